"""The folded 2-D VAE decoder beside diffusers' video class: default configuration, random weights, one run.

    python bench/vae.py --out bench/results/vae.json

Both have the same weights; they decode the same latents in turn. The ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import torch
from eager import published_vae
from full_size import in_turn, machine

from viq.checkpoint import load_decoder
from viq.random_weights import Layout, drawer_state
from viq.tensor_file import TensorFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # The VAE's own sizes are the released ones; the layers before it, which are not measured, are narrow.
    layout = Layout(width=64, heads=4, vae_base=96)
    state = drawer_state(layout)
    ours = load_decoder(TensorFile(Path("random"), state), 4, torch.float32, torch.device("cpu")).vae
    published = published_vae(state, layout.vae_base)
    rows = []
    with torch.inference_mode():
        for side in args.sides:
            latent = torch.randn(1, 16, side // 8, side // 8, generator=torch.Generator().manual_seed(side))
            theirs = published.decode(latent[:, :, None], return_dict=False)[0][:, :, 0]
            difference = (ours(latent) - theirs).abs().max().item()
            frame = latent[:, :, None]
            mine, plain = in_turn(partial(ours, latent), partial(published.decode, frame), args.repeats)
            row = {
                "side": side,
                "largest_difference": difference,
                "largest_value": theirs.abs().max().item(),
                "folded_median_s": statistics.median(mine),
                "published_median_s": statistics.median(plain),
                "published_over_folded": statistics.median(p / m for m, p in zip(mine, plain, strict=True)),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"machine": machine(), "dtype": "float32", "vae": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
