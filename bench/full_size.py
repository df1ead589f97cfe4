"""The model at full size on this machine: start, memory, and speed beside the plain way.

    python bench/make_weights.py --size 16k -o /tmp/viq-full
    python bench/full_size.py /tmp/viq-full --size 16k --dtypes float32 --out bench/results/full_size_float32.json

Both sides have the same weights, threads and pictures, and take turns in one process; medians are given.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from eager import EagerViQ

from viq import ViQ
from viq.checkpoint import encoder_stem, find
from viq.hardware import instruction_set
from viq.packing import Packing
from viq.tensor_file import open_tensors

CHILD = """
import time, sys; start = float(sys.argv[5])
import numpy as np
from viq import ViQ
root, size, dtype, parts = sys.argv[1:5]
def memory():
    fields = dict(line.split(':') for line in open('/proc/self/status') if ':' in line)
    return {k: int(fields[k].split()[0]) // 1024 for k in ('RssAnon', 'RssFile', 'VmHWM')}
imported = time.monotonic() - start
before = memory()
model = ViQ.from_pretrained(root, size, device='cpu', dtype=dtype, parts=parts.split('+'))
loaded, held = time.monotonic() - start, memory()
pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
codes = model.encode([pixels])
first = time.monotonic() - start
if 'decoder' in parts: model.embed(codes); model.decode(codes)
import json; print(json.dumps({'imported_s': imported, 'loaded_s': loaded, 'first_code_s': first,
    'anon_mib_before': before['RssAnon'], 'anon_mib_loaded': held['RssAnon'], 'after_use_mib': memory()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--size", default="16k")
    parser.add_argument("--vae-base", type=int, default=96)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "start": {}, "speed": []}
    for dtype in args.dtypes:
        for parts in ("encoder", "encoder+embedder+decoder"):
            command = [sys.executable, "-c", CHILD, str(args.root), args.size, dtype, parts, str(time.monotonic())]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            result["start"][f"{dtype} {parts}"] = row  # type: ignore[index]
            print(dtype, parts, json.dumps(row), flush=True)
    for dtype in args.dtypes:
        for row in speed(args, dtype):
            result["speed"].append(row)  # type: ignore[attr-defined]
            print(json.dumps(row), flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(result, indent=1) + "\n")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def speed(args: argparse.Namespace, dtype: str) -> list[dict[str, object]]:
    """Encode, VAE and whole decode of one picture of each side, ours and the plain way in turn."""
    folder = args.root / f"converted_{args.size}"
    ours = ViQ.from_pretrained(args.root, args.size, device="cpu", dtype=dtype)
    encoder, drawer = (open_tensors(find(folder, stem)) for stem in (encoder_stem(args.size), "index_drawer"))
    plain = EagerViQ(encoder, drawer, ours.levels, args.heads, getattr(torch, dtype), args.vae_base)
    rows = []
    for side in args.sides:
        pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        codes = ours.encode([pixels])[0]
        flat = torch.from_numpy(codes.flat.astype(np.int64))
        plain_codes = plain.encode(torch.from_numpy(pixels))
        latent = plain.latent(flat, codes.grid)
        same = float((plain_codes.numpy() == codes.flat).mean())
        for what, a, b in (
            ("encode", partial(ours.encode, [pixels]), partial(plain.encode, torch.from_numpy(pixels))),
            ("vae", partial(_vae, ours, latent), partial(plain.picture, latent)),
            ("decode", partial(ours.decode, [codes]), partial(plain.decode, flat, codes.grid)),
        ):
            mine, theirs = in_turn(a, b, args.repeats)
            row: dict[str, object] = {"dtype": dtype, "side": side, "what": what, "ours_s": mine, "plain_s": theirs}
            row["plain_over_ours"] = statistics.median(t / m for m, t in zip(mine, theirs, strict=True))
            row["ours_median_s"], row["plain_median_s"] = statistics.median(mine), statistics.median(theirs)
            if what == "encode":
                row["codes_equal"], row["ours_gflops"] = same, gflop(ours, codes.grid) / statistics.median(mine)
            rows.append(row)
    return rows


@torch.inference_mode()
def _vae(model: ViQ, latent: torch.Tensor) -> torch.Tensor:
    return model.decoder.vae(latent.to(model.decoder.latent_head.conv.weight.dtype))  # type: ignore[no-any-return]


def in_turn(a: Callable[[], object], b: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of `a` and `b`, run in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, list_ in zip((a, b), times, strict=True):
            start = time.perf_counter()
            call()
            list_.append(time.perf_counter() - start)
    return times


def gflop(model: ViQ, grid: tuple[int, int]) -> float:
    """Work of one encode: twice the multiply-adds of every linear layer and of attention."""
    n = Packing.of([grid]).patches
    total = 0.0
    for name, module in model.encoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            rows = 4 * n if name.startswith(("mix", "headwise", "project_in")) else n
            total += 2.0 * rows * module.weight.numel()
        elif name.endswith("attn"):
            total += 4.0 * n * n * module.proj.weight.shape[0] * (4 if name.startswith("headwise") else 1)
    return total / 1e9


if __name__ == "__main__":
    main()
