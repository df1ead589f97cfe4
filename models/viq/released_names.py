"""What the released files call the parameters of this project's modules (model.md, "Files")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from viq.errors import WeightsError

ENCODER_NAMES = {
    "patch_embed.proj.": "patch_embed.",
    "pos_embed": "pos_embed",
    "blocks.": "trunk.",
    "fusion_block.vq_low_preprocess_layers.": "head_trunk.",
    "fusion_block.vq_low_pre_token_shuffle_head.": "expand.",
    "fusion_block.vq_low_post_token_shuffle_head.": "mix.",
    "fusion_block.vq_low.fsq_pre_attn.": "headwise.",
    "fusion_block.vq_low.project_in.": "project_in.",
}
"""Prefix in an encoder file, and the prefix of the same parameters in `viq.encoder.Encoder`."""

ENCODER_UNUSED = (
    "fusion_block.vq_low.project_out.",
    "fusion_block.vq_low_inverse_token_shuffle_head.",
    "fusion_block.vq_low_postprocess_layers.",
    "fusion_block.vq_low_norm_trick_post_quantize_affine_",
    "norm.",
    "attn_pool.",
    "vae_preprocess_layers.",
    "vae_head.",
)
"""Prefixes of an encoder file that codes do not need: never read."""

EMBEDDER_NAMES = {
    "ori_codebook.weight": "codebook",
    "projector_1.": "lift.",
    "projector_2.": "merge.",
    "projector_3.0.": "refine.",
    "projector_3.1.": "residual.0.",
    "projector_3.2.": "residual.1.",
    "projector_3.3.": "residual.2.",
    "_weight": "scale",
    "_bias": "shift",
}

DECODER_NAMES = {
    "vae_preprocess_layers.0.": "mlp.",
    "vae_preprocess_layers.1.": "norm.",
    "vae_preprocess_layers.2.": "blocks.0.",
    "vae_preprocess_layers.3.": "blocks.1.",
    "vae_preprocess_layers.4.": "blocks.2.",
    "vae_head.conv_norm_out.": "latent_head.norm.",
    "vae_head.conv_out.": "latent_head.conv.",
    "vae_head.vae.post_quant_conv.": "vae.post_quant_conv.",
    "vae_head.vae.decoder.": "vae.",
}

DECODER_UNUSED = ("vae_head.vae.encoder.", "vae_head.vae.quant_conv.")
UPSAMPLER = ".upsamplers.0.resample.1."
TIME_CONVOLUTION = ".upsamplers.0.time_conv."  # passes a first frame through: never needed


def take(
    file: Mapping[str, Tensor], names: Mapping[str, str], unused: tuple[str, ...], path: Path
) -> dict[str, Tensor]:
    """The tensors of `file` under a module's own names. Raises `WeightsError` naming one that has no place."""
    taken = {}
    for name, tensor in file.items():
        if name.startswith(unused):
            continue
        prefix = next((p for p in names if name == p or (p.endswith(".") and name.startswith(p))), None)
        ours = None if prefix is None else names[prefix] + name[len(prefix) :]
        # Two names for one parameter: the one that does not translate back is in excess.
        if ours is None or file_name(ours, names) != name:
            raise WeightsError(f"{path}: unexpected tensor {name}")
        taken[ours] = tensor
    return taken


def file_name(name: str, names: Mapping[str, str]) -> str:
    """A module's parameter by its name in the file."""
    for theirs, ours in names.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name[len(ours) :].replace(".upsample.", UPSAMPLER)
    return name
