"""Times the packaged `nano` on one picture: `python -m nano.timing picture.png`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from PIL import Image

from viq import ViQ


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Shortest and middle of several durations, in seconds, after one that does not count."""
    work()
    durations = []
    for _ in range(repeats):
        begun = perf_counter()
        work()
        durations.append(perf_counter() - begun)
    return min(durations), sorted(durations)[len(durations) // 2]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    begun = perf_counter()
    model = ViQ.from_pretrained(device="cpu")
    print(f"load    {perf_counter() - begun:.2f} s")
    with Image.open(arguments.picture) as image:
        picture = image.convert("RGB")
    codes = model.encode([picture])
    for name, work in (("encode", lambda: model.encode([picture])), ("decode", lambda: model.decode(codes))):
        best, middle = timed(work, arguments.repeats)
        print(f"{name}  {best:.2f} s at best, {middle:.2f} s in the middle of {arguments.repeats}")


if __name__ == "__main__":
    main()
