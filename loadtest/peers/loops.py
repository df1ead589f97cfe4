"""The network without a server, on the very files that the generator sends: what the servers are held against.

    python loadtest/peers/loops.py pictures/ --way image|padded|bare [--processes 2 --threads 1] --seconds 10

Prints one line of JSON. `bare`: the model on pixels already decoded, one image after another. `image`: decoded and
encoded, one after another. `padded`: decoded, then as many as a batch holds, in the order they come, each padded to the
height and width of the largest. With several processes each does the same, and what they do together is counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from network import Network, Pixels

BATCH = 8


def files(folder: Path) -> list[bytes]:
    """The image files of a folder that `viq bench pictures` wrote, in their order."""
    rows = json.loads((folder / "pictures.json").read_text())
    listed = rows["pictures"] if isinstance(rows, dict) else rows
    names = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    assert len(names) == len(listed), (len(names), len(listed))
    return [path.read_bytes() for path in names]


def padded(images: Sequence[Pixels]) -> list[Pixels]:
    """Each laid at the top left of zeros as high and wide as the largest of them."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    batch = np.zeros((len(images), height, width, 3), np.uint8)
    for there, image in zip(batch, images, strict=True):
        there[: image.shape[0], : image.shape[1]] = image
    return list(batch)


def cut(codes: bytes, whole: Pixels, image: Pixels) -> bytes:
    """Of the codes of a padded image those of its own patches."""
    w = -(-whole.shape[1] // 16)
    h_own, w_own = -(-image.shape[0] // 16), -(-image.shape[1] // 16)
    return np.frombuffer(codes, "<u2").reshape(-1, w, 4)[:h_own, :w_own].tobytes()


def one_by_one(network: Network, data: Sequence[bytes]) -> list[bytes]:
    """Decoded and encoded alone."""
    return [network.codes([network.pixels(one)])[0] for one in data]


def in_padded_batches(network: Network, data: Sequence[bytes]) -> list[bytes]:
    """Decoded, padded to the largest of the batch, encoded together."""
    images = [network.pixels(one) for one in data]
    whole = padded(images)
    return [cut(codes, w, i) for codes, w, i in zip(network.codes(whole), whole, images, strict=True)]


def digest(codes: Sequence[bytes]) -> str:
    """As `viq bench` makes it: SHA-256 over the SHA-256 of each picture's codes."""
    outer = hashlib.sha256()
    for one in codes:
        outer.update(hashlib.sha256(one).digest())
    return outer.hexdigest()


def batches(count: int, size: int) -> Iterator[list[int]]:
    """Places of pictures, `size` at a time, round and round."""
    places = cycle(range(count))
    while True:
        yield [next(places) for _ in range(size)]


def measured(compute: Callable[[list[int]], object], count: int, size: int, seconds: float) -> dict[str, object]:
    """Images a second, and what a batch took, over whole rounds of the pictures lasting `seconds` or more."""
    taken, done, begun = list[float](), 0, perf_counter()
    for places in batches(count, size):
        if perf_counter() - begun >= seconds and done % count == 0:
            break
        since = perf_counter()
        compute(places)
        taken.append(perf_counter() - since)
        done += len(places)
    return {
        "images": done,
        "images_per_s": done / (perf_counter() - begun),
        "latency_ms": {name: 1000 * float(np.percentile(taken, share)) for name, share in (("p50", 50), ("p99", 99))},
    }


def run(folder: Path, way: str, seconds: float) -> dict[str, object]:
    """One process's part."""
    from network import Network  # not where processes are only started: its memory is counted, too

    network, data = Network(), files(folder)
    pixels = [network.pixels(one) for one in data] if way == "bare" else []
    size = BATCH if way == "padded" else 1

    def compute(places: list[int]) -> list[bytes]:
        if way == "bare":
            return network.codes([pixels[place] for place in places])
        return (in_padded_batches if way == "padded" else one_by_one)(network, [data[place] for place in places])

    # The first round warms up and is what the codes are compared by.
    codes = [code for at in range(0, len(data), size) for code in compute(list(range(at, min(at + size, len(data)))))]
    print("ready", flush=True)
    sys.stdin.readline()
    return {**measured(compute, len(data), size, seconds), "codes": {"digest": digest(codes), "pictures": len(data)}}


def together(command: list[str], processes: int) -> dict[str, object]:
    """Several processes that begin together."""
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for one in runs:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n", "a process ended before it was ready"
    for one in runs:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    parts = [json.loads(one.communicate()[0]) for one in runs]
    assert len({part["codes"]["digest"] for part in parts}) == 1, "the processes' codes differ"
    return {
        **parts[0],
        "images": sum(p["images"] for p in parts),
        "images_per_s": sum(p["images_per_s"] for p in parts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--way", choices=("bare", "image", "padded"), required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    if args.processes == 1:
        print(json.dumps(run(args.folder, args.way, args.seconds)))
        return
    command = [sys.executable, __file__, str(args.folder), "--way", args.way, "--seconds", str(args.seconds)]
    print(json.dumps(together(command, args.processes)))


if __name__ == "__main__":
    main()
