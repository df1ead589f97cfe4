"""Which matrix products give a row the same bits whatever the number of rows and threads, and at what speed.

    python bench/row_invariance.py --out bench/results/row_invariance.json

Prints, per kernel and dtype, the row counts at which some row differs from the reference (one thread, 1100
rows), over the shapes of the released model, and the median speed at 1024 rows with all threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from full_size import machine
from torch import Tensor

from viq import linear

SHAPES = ((768, 1536), (1536, 4608), (1536, 1536), (1536, 6144), (6144, 1536), (1536, 256), (256, 768), (1536, 6))
ROWS = (1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 32, 63, 64, 96, 100, 128, 255, 256, 257, 511, 512, 1000)
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """oneDNN's product in the tensors' own dtype."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    threads = torch.get_num_threads()
    kernels: dict[str, Product] = {"torch F.linear": F.linear, "oneDNN": onednn, "viq.linear": linear.linear}
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name, product in kernels.items():
            wrong: set[int] = set()
            speeds = []
            for inner, out in SHAPES:
                make = torch.Generator().manual_seed(inner + out)
                x = torch.randn(1100, inner, generator=make).to(dtype)
                weight = (torch.randn(out, inner, generator=make) * inner**-0.5).to(dtype)
                bias = torch.randn(out, generator=make).to(dtype)
                wrong |= differing(product, x, weight, bias)
                torch.set_num_threads(threads)
                if out > 1000:
                    speeds.append(gflops(product, x[:1024], weight, bias))
            row = {
                "dtype": str(dtype).removeprefix("torch."),
                "kernel": name,
                "row_counts_that_differ": sorted(wrong),
                "gflops_at_1024_rows": round(statistics.median(speeds)),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": machine(), "rows_tried": ROWS, "products": rows}, indent=1) + "\n")


def differing(product: Product, x: Tensor, weight: Tensor, bias: Tensor) -> set[int]:
    """Row counts at which a row's bits are not those of the reference, with 1, 2, 3 or 4 threads."""
    torch.set_num_threads(1)
    whole, found = product(x, weight, bias), set()
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        for count in ROWS:
            for start in (0, 64):
                if not torch.equal(
                    product(x[start : start + count].clone(), weight, bias), whole[start : start + count]
                ):
                    found.add(count)
    return found


def gflops(product: Product, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Median GFLOP/s of five calls after one."""
    product(x, weight, bias)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x, weight, bias)
        seconds.append(time.perf_counter() - start)
    return 2 * x.shape[0] * weight.numel() / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    main()
