"""How many codes of each compute type are float32's, and how the pictures look that are made of them.

    OMP_NUM_THREADS=1 python bench/precision.py --out bench/results/precision.json

The packaged nano on pictures like photographs. A code is its levels, one of each dimension: shares of codes and of
levels that are equal, and of levels more than one step off; PSNR of the pictures that nano in float32 makes of the
codes. Then networks of random weights, the deeper the more roundings: patches of four images of 256². fp8 is emulated
on a CPU: the time it takes there says nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from full_size import machine
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from loadtest.gpu.network import inputs, randomised  # noqa: E402
from loadtest.gpu.precision import (  # noqa: E402
    agreement,
    decoded_psnr,
    encoded,
    encoded_wholly_in_fp8,
    flat,
    photographs,
)

from viq.config import variant  # noqa: E402
from viq.encoder import Encoder, EncoderShape  # noqa: E402
from viq.fp8 import quantise_trunk  # noqa: E402
from viq.hardware import FP8, dtype_named  # noqa: E402
from viq.packing import Packing  # noqa: E402
from viq.row_probe import row_multiple  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16", FP8)
PAIRS = (("bfloat16", "float32"), ("float16", "float32"), ("fp8", "float32"), ("fp8", "bfloat16"))
WHOLLY = "fp8 in every linear layer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12, 40], help="blocks of the random trunks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pictures = photographs(args.pictures)
    codes = {dtype: encoded(pictures, dtype, args.device) for dtype in DTYPES}
    codes[WHOLLY] = encoded_wholly_in_fp8(pictures, args.device)
    result = {
        "machine": machine(),
        "device": args.device,
        "size": "nano",
        "pictures": len(pictures),
        "height_and_width": pictures[0].shape[:2],
        "agreement": compared(
            {dtype: flat(made) for dtype, made in codes.items()}, variant("nano").levels, (*PAIRS, (WHOLLY, "float32"))
        ),
        "psnr_db": {dtype: round(one, 3) for dtype, one in decoded_psnr(codes, pictures, args.device).items()},
        "random_weights": [random(depth, torch.device(args.device)) for depth in args.depths],
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def random(depth: int, device: torch.device) -> dict[str, object]:
    """A network of random weights 256 wide, with `depth` blocks in its trunk, in each type."""
    shape, codes = EncoderShape(256, depth, 4, 3, 3, 256, 128, variant("16k").levels), dict[str, Tensor]()
    for dtype in DTYPES:
        with torch.device("meta"):
            encoder = Encoder(shape)
        encoder = randomised(encoder, device, torch.float32, 0).to(dtype_named(dtype, device))
        if dtype == FP8:
            quantise_trunk(encoder)
        packing = Packing.of([(16, 16)] * 4, row_multiple(encoder))
        patches = inputs(packing, device, torch.float32).to(encoder.project_in.weight.dtype)
        codes[dtype] = encoder(patches, packing)[: packing.patches * 4].cpu()
    return {"width": shape.width, "trunk_blocks": depth, "agreement": compared(codes, shape.levels)}


def compared(
    codes: dict[str, Tensor], levels: Sequence[int], pairs: Sequence[tuple[str, str]] = PAIRS
) -> list[dict[str, object]]:
    """How well both of each pair agree."""
    return [
        {"of": [one, other], "codes": len(codes[one])}
        | {name: round(share, 5) for name, share in agreement(codes[one], codes[other], levels).items()}
        for one, other in pairs
    ]


if __name__ == "__main__":
    with torch.inference_mode():
        main()
