"""Write a random-weight model in the released layout, for benchmarks at full size.

    python bench/make_weights.py --size 16k --dtype bfloat16 -o /tmp/viq-full

The files hold what inference needs and, in the encoder's, the layers that follow `project_in` in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from viq.random_weights import Layout, drawer_state, embedder_state, encoder_state

TRAINING = {
    "projector_1.": "fusion_block.vq_low.project_out.",
    "projector_2.": "fusion_block.vq_low_inverse_token_shuffle_head.",
    "projector_3.": "fusion_block.vq_low_postprocess_layers.",
    "_weight": "fusion_block.vq_low_norm_trick_post_quantize_affine_weight",
    "_bias": "fusion_block.vq_low_norm_trick_post_quantize_affine_bias",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="16k")
    parser.add_argument("--depth", type=int, default=40)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--vae-base", type=int, default=96)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    layout = Layout(size=args.size, depth=args.depth, width=args.width, vae_base=args.vae_base)
    folder: Path = args.out / f"converted_{args.size}"
    folder.mkdir(parents=True, exist_ok=True)

    embedder = embedder_state(layout, dtype=dtype)
    encoder = encoder_state(layout, dtype=dtype)
    for theirs, training in TRAINING.items():
        for name, tensor in embedder.items():
            if name.startswith(theirs):
                encoder[training + name[len(theirs) :]] = tensor
    states = {
        f"model_viq_fsq_{args.size}": encoder,
        "embedder": embedder,
        "index_drawer": drawer_state(layout, dtype=dtype),
    }
    for stem, state in states.items():
        torch.save(state, folder / f"{stem}.pth")
        print(f"{folder / stem}.pth: {sum(t.numel() for t in state.values()) / 1e6:.1f} M parameters")
    (folder / "viq.json").write_text('{"untrained": true}\n')


if __name__ == "__main__":
    main()
