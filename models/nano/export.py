"""Makes the packaged checkpoint of a run: `python -m nano.export`.

Averaged weights → a training-format `vision_tower.pth` → the project's converter → what inference reads, in float16.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from nano.network import Network
from nano.run import averaged_of
from viq.checkpoint import encoder_stem
from viq.convert import PREFIX, convert
from viq.fingerprint import family, sample_check, write_manifest
from viq.released_names import (
    DECODER_NAMES,
    DECODER_UNUSED,
    EMBEDDER_NAMES,
    ENCODER_NAMES,
    ENCODER_UNUSED,
    file_name,
)
from viq.tensor_file import open_tensors

SIZE = "nano"
LIMIT = 16 * 2**20
"""Bytes that the packaged files may take together."""

# The released converter's renaming (viq.convert), read backwards.
_TRAINED = (
    ("projector_1.", "dualvq_head.vq_low.fsq.project_out."),
    ("projector_2.", "dualvq_head.vq_low_inverse_token_shuffle_head."),
    ("projector_3.", "dualvq_head.vq_low_postprocess_layers."),
    ("_weight", "dualvq_head.vq_low_norm_trick_post_quantize_affine_weight"),
    ("_bias", "dualvq_head.vq_low_norm_trick_post_quantize_affine_bias"),
    ("fusion_block.vq_low.", "dualvq_head.vq_low.fsq."),
    ("fusion_block.", "dualvq_head."),
    ("vae_", "movq_"),
)


def training_state(network: Network) -> dict[str, Tensor]:
    """The network under the names, and in the shapes, of a training run's `vision_tower.pth`."""
    state: dict[str, Tensor] = {}
    parts = ((network.encoder, ENCODER_NAMES), (network.embedder, EMBEDDER_NAMES), (network.decoder, DECODER_NAMES))
    for module, names in parts:
        for name, parameter in module.named_parameters():
            if name == "codebook":
                continue  # the converter computes it from the levels
            released = file_name(name, names)
            # Not contiguous(), which takes channels-last 1x1 kernels for contiguous: loaded so, they compute otherwise.
            whole = parameter.detach().clone(memory_format=torch.contiguous_format)
            state[PREFIX + _trained_name(released)] = _stored(released, whole)
    return state


def package(network: Network, heads: int, out: Path) -> int:
    """Write `out/converted_nano` of a network; returns its bytes. Raises `ValueError` beyond `LIMIT`.

    What was there before is replaced only when all is made and small enough.
    """
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as scratch:
        tower = Path(scratch) / "vision_tower.pth"
        torch.save(training_state(network), tower)
        whole = convert(tower, SIZE, Path(scratch), num_heads=heads, file_format="safetensors", verify=True)
        halved = Path(scratch) / "packaged"
        size = _halve(whole, halved)
        target = out / f"converted_{SIZE}"
        target.mkdir(exist_ok=True)
        for path in sorted(halved.iterdir()):
            path.replace(target / path.name)
        return size


def _halve(whole: Path, target: Path) -> int:
    """A converted folder's tensors that inference reads, in float16."""
    target.mkdir()
    unused = {encoder_stem(SIZE): ENCODER_UNUSED, "index_drawer": DECODER_UNUSED}
    for path in sorted(whole.glob("*.safetensors")):
        tensors = open_tensors(path)
        kept = {name: t.half() for name, t in tensors.items() if not name.startswith(unused.get(path.stem, ("\0",)))}
        save_file(kept, target / path.name, metadata={"format": "pt"})
        (target / path.name).chmod(0o644)
    manifest = json.loads((whole / "viq.json").read_text(encoding="utf-8"))
    encoder = open_tensors(target / f"{encoder_stem(SIZE)}.safetensors")
    heads = manifest["num_heads"]
    manifest |= {"family": family(encoder, SIZE, heads), "family_check": sample_check(encoder, SIZE, heads)}
    write_manifest(target, manifest)
    size = sum(path.stat().st_size for path in target.iterdir())
    if size > LIMIT:
        raise ValueError(f"{size} bytes, at most {LIMIT} may be packaged")
    return size


def _trained_name(released: str) -> str:
    if released.startswith("fusion_block.vq_low_"):
        return released.replace("fusion_block.", "dualvq_head.", 1)
    for new, old in _TRAINED:
        if released.startswith(new):
            return old + released[len(new) :]
    return released


def _stored(name: str, tensor: Tensor) -> Tensor:
    """A parameter as training stores it: kernels of patches and of the video VAE have their own shapes."""
    if name == "patch_embed.proj.weight":
        return tensor.reshape(-1, 3, 16, 16)
    if not name.startswith("vae_head.vae."):
        return tensor
    flat = ".attentions." in name or ".upsamplers." in name
    if name.endswith(".gamma"):
        return tensor.reshape(-1, *((1, 1) if flat else (1, 1, 1)))
    if flat or tensor.dim() != 4:
        return tensor
    cube = tensor.new_zeros((*tensor.shape[:2], tensor.shape[2], *tensor.shape[2:]))
    cube[:, :, -1] = tensor  # a single frame meets only the last time slice
    return cube


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("build/nano/run"))
    parser.add_argument("--out", type=Path, default=Path("build/nano/weights"), help="weights root to write")
    arguments = parser.parse_args()
    state = arguments.run / "state.pt"
    if not state.exists():
        sys.exit(f"{state}: no such run; train first (make nano-train)")
    network, options, steps = averaged_of(state)
    size = package(network, options.heads, arguments.out)
    print(f"{arguments.out / f'converted_{SIZE}'}: {size} bytes, after {steps} steps")


if __name__ == "__main__":
    main()
