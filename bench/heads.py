"""The quantization head by each back end: codes against eager's, whether they depend on company, and the time.

    OMP_WAIT_POLICY=passive python bench/heads.py --patches 100000 --out bench/results/heads.json

Pictures of mixed sizes go through the trunk once. Each head then computes the same packs, taking turns with eager,
pack by pack, in one process; the ratio is the median over packs. Alone against in company is compared bit by bit, over
a part of the pictures, and once more with one thread. Back ends that lack something here say what.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from full_size import machine
from serving import picture
from torch import Tensor

from viq import ViQ
from viq.errors import WeightsError
from viq.fsq import quantise
from viq.head_backends import HEADS
from viq.head_file import SUFFIXES
from viq.packing import Packing
from viq.patches import normalise, patchify

SIDES = (32, 48, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768)
_PACK = 1024  # patches computed together, as the service does on a CPU


@dataclass(frozen=True)
class Pack:
    """What the trunk gave for some pictures, and the rotations of their grids."""

    packing: Packing
    x: Tensor
    table: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--alone", type=int, default=10_000, help="patches of pictures that are computed alone, too")
    parser.add_argument("--heads", nargs="+", choices=HEADS[1:], default=list(HEADS[1:]))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    eager = ViQ.from_pretrained(parts=("encoder",))
    packs = prepared(eager, args.patches)
    total = sum(pack.packing.patches for pack in packs)
    result: dict[str, object] = {"machine": machine(), "size": eager.size, "patches": total, "packs": len(packs)}
    rows = result["heads"] = list[dict[str, object]]()
    for head in args.heads:
        rows.append({"head": head, **measured(eager, head, packs, args.alone)})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


@torch.inference_mode()
def prepared(model: ViQ, patches: int) -> list[Pack]:
    """Pictures of about `patches` patches together, through the trunk."""
    draw, packs, made = np.random.default_rng(0), list[Pack](), 0
    while made < patches:
        shapes = list[tuple[int, int]]()
        while not shapes or sum(h * w for h, w in shapes) < _PACK * 256:
            shapes.append((int(draw.choice(SIDES)), int(draw.choice(SIDES))))
        pictures = [picture(h, w, made + i) for i, (h, w) in enumerate(shapes)]
        packing = Packing.of(((-(-h // 16), -(-w // 16)) for h, w in shapes), model.row_multiple)
        x = normalise(patchify(pictures, packing), shapes, packing, torch.float32)
        packs.append(Pack(packing, model.encoder.trunk_rows(x, packing), model.encoder.rotations(packing)))
        made += packing.patches
    return packs


def measured(eager: ViQ, head: str, packs: Sequence[Pack], alone: int) -> dict[str, object]:
    """One back end; what it lacks, if it cannot be had here."""
    with tempfile.TemporaryDirectory() as folder:
        files, begun = list[Path](), perf_counter()
        try:
            if head in SUFFIXES:
                files.append(Path(folder) / f"head{SUFFIXES[head]}")
                eager.build_head(head, files[0])
            built = perf_counter() - begun
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that codes depend on the batch is a column here
                model = ViQ.from_pretrained(parts=("encoder",), head=head, head_file=files)
        except WeightsError as error:
            return {"not_run": str(error)}
        loaded = perf_counter() - begun - built
        size = files[0].stat().st_size if files else None
        row = compared(eager, model, packs)
        row |= {"build_s": round(built, 1), "load_and_probe_s": round(loaded, 1), "file_bytes": size}
        return {**row, "probe_says_invariant": model.invariant, **company(model, packs, alone)}


@torch.inference_mode()
def compared(eager: ViQ, model: ViQ, packs: Sequence[Pack]) -> dict[str, object]:
    """Codes that differ, the largest difference before quantization, and the time against eager's."""
    differ, values, largest, ratios, seconds = 0, 0, 0.0, list[float](), ([0.0], [0.0])
    for number, pack in enumerate((packs[0], *packs)):  # the first one twice: what is set up then is nobody's time
        outs = []
        for one, taken in zip((eager, model), seconds, strict=True):
            begun = perf_counter()
            outs.append(one.encoder.head(pack.x, pack.packing, pack.table)[: pack.packing.patches * 4])
            taken.append(perf_counter() - begun)
        if number:
            codes = [quantise(out, eager.levels) for out in outs]
            differ += int((codes[0] != codes[1]).sum())
            values += int((outs[0] != outs[1]).any(1).sum())
            largest = max(largest, float((outs[0] - outs[1]).abs().max()))
            ratios.append(seconds[0][-1] / seconds[1][-1])
    total = 4 * sum(pack.packing.patches for pack in packs)
    return {
        "codes": total, "codes_that_differ_from_eager": differ, "of_whose_values_any_bit_differs": values,
        "largest_difference_before_quantization": largest, "seconds": round(sum(seconds[1][2:]), 2),
        "eager_seconds": round(sum(seconds[0][2:]), 2), "eager_time_over_this": round(statistics.median(ratios), 3),
    }  # fmt: skip


@torch.inference_mode()
def company(model: ViQ, packs: Sequence[Pack], patches: int) -> dict[str, object]:
    """Pictures whose values before quantization have other bits alone than in a pack, or with one thread."""
    pictures, by_company, by_threads, done = 0, 0, 0, 0
    threads = torch.get_num_threads()
    for pack in packs:
        if done >= patches:
            break
        done += pack.packing.patches
        together = model.encoder.head(pack.x, pack.packing, pack.table)
        torch.set_num_threads(1)
        single = model.encoder.head(pack.x, pack.packing, pack.table)
        torch.set_num_threads(threads)
        parts = zip(pack.packing.split(together, 4), pack.packing.split(single, 4), strict=True)
        for (inside, other), grid, (start, end) in zip(parts, pack.packing.grids, pack.packing.spans, strict=True):
            own = Packing.of([grid], model.row_multiple)
            alone = model.encoder.head(own.pad(pack.x[start:end]), own, model.encoder.rotations(own))
            pictures += 1
            by_company += not torch.equal(alone[: inside.shape[0]], inside)
            by_threads += not torch.equal(other, inside)
    return {"pictures_alone": pictures, "differ_in_company": by_company, "differ_with_one_thread": by_threads}


if __name__ == "__main__":
    main()
