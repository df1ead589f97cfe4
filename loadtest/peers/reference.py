"""How fast the machine is just now: the bare model on one 512x512 picture, in a process that otherwise sleeps.

Answers each line on its standard input with the median milliseconds of three encodes, by one thread.
"""

from __future__ import annotations

import statistics
import sys
from time import perf_counter

import numpy as np
from network import Network


def main() -> None:
    network = Network()
    picture = np.random.default_rng(1).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    network.codes([picture])
    for _ in sys.stdin:
        taken = []
        for _ in range(3):
            begun = perf_counter()
            network.codes([picture])
            taken.append(1000 * (perf_counter() - begun))
        print(round(statistics.median(taken), 2), flush=True)


if __name__ == "__main__":
    main()
