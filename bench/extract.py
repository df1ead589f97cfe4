"""`viq extract` of many images of mixed sizes, some of them damaged: whole, and killed again and again.

    python bench/extract.py --items 100000 --kills 10 --out bench/results/extract.json
    python bench/extract.py --items 100000 --sides 64 128 192 256 --bare-items 2000 --folder build/extract_mid \
        --out bench/results/extract_mid.json
    python bench/extract.py --items 1000 --sides 128 256 384 512 --kills 2 --shard-items 100 --bare-items 150 \
        --out bench/results/extract_large.json

Images are JPEG and PNG files in WebDataset tars, drawn ones and crops of photographs, 1 % of them damaged. One run is
left alone; its memory is looked at all along. Another is killed with SIGKILL at random moments and started again; its
output must be equal, byte for byte. The bare model (`ViQ.encode_pixels`, packs of as many patches, pixels decoded
beforehand, a process of its own) encodes a sample of the same images just before and just after.

For hours in the background, to be ended and started again at will:

    nice -n 19 python bench/extract.py --folder build/extract --out bench/results/extract.json
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from full_size import machine
from PIL import Image
from serving import VIQ, jpeg, picture

_A_TAR = 2500
SAMPLES = Path(__file__).parent.parent / "service/viq_serving/page/samples"

BARE = """
import sys, tarfile
from time import perf_counter
from viq_serving.heap import keep_freed_memory
from viq_serving.openmp import spin_briefly
keep_freed_memory()
spin_briefly()
from viq import ViQ
from viq.errors import ViQError
from viq_serving.images import ImageLimits, decode
from viq_serving.extract.here import CPU_PACK
model, packs, held = ViQ.from_pretrained(parts=("encoder",)), [[]], 0
with tarfile.open(sys.argv[1]) as archive:
    for member in list(archive)[: int(sys.argv[2])]:
        try:
            pixels = decode(archive.extractfile(member).read(), ImageLimits())
        except ViQError:
            continue
        patches = -(-pixels.shape[0] // 16) * -(-pixels.shape[1] // 16)
        if held + patches > CPU_PACK:
            packs.append([])
            held = 0
        packs[-1].append(pixels)
        held += patches
model.encode_pixels(packs[0])
begun = perf_counter()
for pack in packs:
    model.encode_pixels(pack)
print(sum(map(len, packs)) / (perf_counter() - begun))
"""


def make(folder: Path, items: int, sides: Sequence[int]) -> None:
    """Tars of `items` pictures, made of some hundred a different corner each; half are of photographs."""
    rng = random.Random(0)
    shapes = [(rng.choice(sides) - rng.randrange(16), rng.choice(sides) - rng.randrange(16)) for _ in range(300)]
    photographs = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(SAMPLES.glob("*.jpg"))]
    pixels = [
        _crop(rng.choice(photographs), *shape, rng) if seed // 2 % 2 else picture(*shape, seed)
        for seed, shape in enumerate(shapes)
    ]
    for first in range(0, items, _A_TAR):
        with tarfile.open(folder / f"set-{first // _A_TAR:06d}.tar", "w") as archive:
            for i in range(first, min(items, first + _A_TAR)):
                one = pixels[i % len(pixels)].copy()
                one[:4, :4] = np.frombuffer(hashlib.sha256(b"%d" % i).digest()[:3], np.uint8)
                data, suffix = (jpeg(one), "jpg") if i % 2 else (_png(one), "png")
                if i % 100 == 42:
                    data = data[: len(data) // 2]
                header = tarfile.TarInfo(f"{i:09d}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))


def extract(source: Path, out: Path, shard_items: int, kill_after_s: float | None = None) -> dict[str, Any]:
    """One run: its exit code, seconds, images a second of the work itself, and its memory in MiB all along."""
    pattern = str(source / "*.tar")
    command = [str(VIQ), "extract", pattern, "-o", str(out), "--shard-items", str(shard_items), "--report-every", "1e8"]
    memory, begun, over = list[int](), perf_counter(), threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        first_s = None
        while process.poll() is None and not over.wait(0.2):
            seconds = perf_counter() - begun
            if first_s is None and out.exists() and any(out.glob(".unfinished*/*")):
                first_s = seconds  # the first shard has begun: loading is over
            try:
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                memory.append(int(lines.get("VmRSS", "0").split()[0]) // 1024)
            except (FileNotFoundError, IndexError, ProcessLookupError):
                break
            if kill_after_s is not None and seconds > kill_after_s:
                process.send_signal(signal.SIGKILL)
                over.set()
        code = process.wait()
    quarter = max(1, len(memory) // 4)
    seconds = perf_counter() - begun
    return {
        "exit_code": code,
        "seconds": round(seconds, 1),
        "seconds_of_work": round(seconds - (first_s or 0.0), 1),
        "rss_mib_by_quarter": [max(memory[i : i + quarter]) for i in range(0, 4 * quarter, quarter) if memory[i:]],
    }


def digests(folder: Path) -> dict[str, str]:
    """Of every file of an output."""
    found = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def bare(source: Path, items: int) -> float:
    """Images a second of the model alone."""
    command = [sys.executable, "-c", BARE, str(source / "set-000000.tar"), str(items)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 48, 64, 96])
    parser.add_argument("--shard-items", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--bare-items", type=int, default=1000)
    parser.add_argument(
        "--folder", type=Path, help="for gigabytes of images; kept, so that the same command goes on where it was ended"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        result, holds = measured(args, folder, Checkpoint(folder / "done.json", _asked(args)))
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if holds else 1)


class Checkpoint:
    """Results of steps that are done, in a file, so that a run that was ended goes on after them."""

    def __init__(self, path: Path, asked: Any) -> None:
        """Raises `SystemExit` if the file is of a run that was `asked` for something else."""
        self._path, self._done = path, {"asked": asked}
        if path.exists():
            self._done = json.loads(path.read_text())
            if self._done["asked"] != asked:
                raise SystemExit(f"{path} is of {self._done['asked']}, not of {asked}: remove its folder")

    def once(self, name: str, step: Callable[[], Any]) -> Any:
        """The result of a step, which is done unless it was before."""
        if name not in self._done:
            self._done[name] = step()
            unfinished = self._path.with_suffix(".part")
            unfinished.write_text(json.dumps(self._done))
            unfinished.replace(self._path)
            print(name, json.dumps(self._done[name]), flush=True)
        return self._done[name]


def measured(args: argparse.Namespace, folder: Path, done: Checkpoint) -> tuple[dict[str, Any], bool]:
    """All steps, and whether what must hold does."""
    source, whole, cut = (folder / part for part in ("source", "whole", "cut"))

    def afresh(path: Path) -> Path:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    done.once("source", lambda: make(afresh(source), args.items, args.sides))
    before = done.once("bare before", lambda: bare(source, args.bare_items))
    run = done.once("whole", lambda: extract(source, afresh(whole), args.shard_items))
    after = done.once("bare after", lambda: bare(source, args.bare_items))
    manifest = json.loads((whole / "manifest.json").read_text())
    rng, runs = random.Random(1), list[dict[str, Any]]()
    for i in range(args.kills):
        seconds = rng.uniform(0.0, 2.0 * run["seconds"] / args.kills)
        runs.append(done.once(f"killed {i}", partial(extract, source, cut, args.shard_items, seconds)))
    runs.append(done.once("to the end", lambda: extract(source, cut, args.shard_items)))
    wanted, found = digests(whole), digests(cut)
    verified = subprocess.run([str(VIQ), "extract", "verify", str(cut)], capture_output=True, text=True, check=False)
    rate = manifest["images"] / run["seconds_of_work"]
    result = {
        "machine": machine(),
        "items": args.items,
        "failed": manifest["failed"],
        "expected_failed": sum(i % 100 == 42 for i in range(args.items)),
        "whole": run,
        "images_per_s": round(rate, 1),
        "patches_per_s": round(manifest["patches"] / run["seconds_of_work"]),
        "bare_images_per_s": [round(before, 1), round(after, 1)],
        "over_bare": round(2 * rate / (before + after), 3),
        "killed_runs": sum(one["exit_code"] == -signal.SIGKILL for one in runs),
        "files": len(wanted),
        "files_that_differ": sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)),
        "verify": {"exit_code": verified.returncode, "said": verified.stdout.splitlines()[-2:]},
    }
    holds = not result["files_that_differ"] and not verified.returncode
    return result, holds and result["failed"] == result["expected_failed"]


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("items", "sides", "shard_items", "kills", "bare_items")}


def _crop(photograph: Any, height: int, width: int, rng: random.Random) -> Any:
    scale = max(1.0, height / photograph.shape[0], width / photograph.shape[1])
    if scale > 1:
        larger = [math.ceil(scale * side) for side in photograph.shape[1::-1]]
        photograph = np.asarray(Image.fromarray(photograph).resize(larger))
    top, left = rng.randrange(photograph.shape[0] - height + 1), rng.randrange(photograph.shape[1] - width + 1)
    return photograph[top : top + height, left : left + width]


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    main()
