"""Tensors from files, strictly and without running anything that the files carry.

A file is opened memory-mapped: a tensor's bytes are read when they are used, and those that nobody
needs never are. Released files are `torch.save`d dictionaries of tensors; the same stems as safetensors
are preferred where both exist.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from viq.config import variant
from viq.decoder import Decoder, decoder_shape
from viq.embedder import Embedder, embedder_shape
from viq.encoder import Encoder, encoder_shape
from viq.errors import UnknownModel, WeightsError
from viq.fsq import codebook
from viq.hardware import multiplies_natively
from viq.vae import fold

DEFAULT_HEADS = 16
Module = TypeVar("Module", bound=nn.Module)

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
_UPSAMPLER = ".upsamplers.0.resample.1."
_TIME = ".upsamplers.0.time_conv."  # passes a first frame through: never needed


@dataclass(frozen=True)
class TensorFile(Mapping[str, Tensor]):
    """The tensors of one file by name; `path` is named in errors."""

    path: Path
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_tensors(path: Path) -> TensorFile:
    """Map a `.safetensors` or `.pth` file. Raises `WeightsError` for anything but a file of plain tensors."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    tensors = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or not tensor.dtype.is_floating_point:
            raise WeightsError(f"{path}: tensor {name} is {tensor.dtype} {tensor.layout}, expected dense floats")
    return TensorFile(path, tensors)


def find(folder: Path, stem: str) -> Path:
    """The file of `stem` in a weights folder, safetensors before pth. Raises `WeightsError` if there is none."""
    for suffix in (".safetensors", ".pth"):
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise WeightsError(f"{folder}: neither {stem}.safetensors nor {stem}.pth")


def encoder_stem(size: str) -> str:
    """Stem of the encoder's file."""
    return f"model_viq_fsq_{size}"


def read_manifest(folder: Path, size: str) -> dict[str, object]:
    """The folder's `viq.json`, empty if there is none, checked against `size`. Raises `WeightsError`."""
    path = folder / "viq.json"
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise WeightsError(f"{path}: holds {type(manifest).__name__}, expected an object")
    heads = manifest.get("num_heads", DEFAULT_HEADS)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise WeightsError(f"{path}: num_heads is {heads!r}, expected a positive whole number")
    if manifest.get("size", size) != size:
        raise WeightsError(f"{path}: is of size {manifest['size']!r}, expected {size!r}")
    levels = list(_variant_levels(size))
    if manifest.get("levels", levels) != levels:
        raise WeightsError(f"{path}: levels {manifest['levels']!r}, expected {levels} for size {size}")
    return manifest


def take(
    file: Mapping[str, Tensor], names: Mapping[str, str], unused: tuple[str, ...], path: Path
) -> dict[str, Tensor]:
    """The tensors of `file` under a module's own names. Raises `WeightsError` naming one that has no place."""
    taken = {}
    for name, tensor in file.items():
        if name.startswith(unused):
            continue
        prefix = next((p for p in names if name == p or (p.endswith(".") and name.startswith(p))), None)
        if prefix is None:
            raise WeightsError(f"{path}: unexpected tensor {name}")
        taken[names[prefix] + name[len(prefix) :]] = tensor
    return taken


def fill(module: Module, tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> Module:
    """Give a module made on the meta device its tensors. Raises `WeightsError` naming one that does not fit."""
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    for name, shape in wanted.items():
        if name not in tensors:
            raise WeightsError(f"{path}: missing tensor {_file_name(name, names)}")
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise WeightsError(f"{path}: tensor {_file_name(name, names)} has shape {found}, expected {shape}")
    for name in tensors:
        if name not in wanted:
            raise WeightsError(f"{path}: unexpected tensor {_file_name(name, names)}")
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    return module.requires_grad_(False).eval()


def build(make: Callable[[], Module], path: Path) -> Module:
    """Make a module on the meta device; a tensor whose absence or shape makes that impossible is a `WeightsError`."""
    try:
        with torch.device("meta"):
            return make()
    except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise WeightsError(f"{path}: tensors do not make a network (at {error})") from None


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Tensors in `dtype` on `device`; those that already are stay mapped and are not read."""
    return {name: tensor.detach().to(device=device, dtype=dtype) for name, tensor in tensors.items()}


def load_encoder(file: TensorFile, size: str, heads: int, dtype: torch.dtype, device: torch.device) -> Encoder:
    """The encoder of an encoder file. Raises `WeightsError` naming a missing, unexpected or misshapen tensor."""
    tensors = take(file, ENCODER_NAMES, ENCODER_UNUSED, file.path)
    kernel = tensors.get("patch_embed.weight")
    if kernel is None or kernel.dim() != 4:
        raise WeightsError(f"{file.path}: missing tensor patch_embed.proj.weight, or it is no convolution")
    tensors["patch_embed.weight"] = kernel.reshape(kernel.shape[0], -1)
    levels = _variant_levels(size)
    shapes = shapes_of(tensors)
    encoder = build(lambda: Encoder(encoder_shape(shapes, heads, levels)), file.path)
    if shapes["patch_embed.weight"][0] % heads:
        raise WeightsError(f"{file.path}: width {shapes['patch_embed.weight'][0]} is no multiple of {heads} heads")
    return fill(encoder, cast(tensors, dtype, device), ENCODER_NAMES, file.path)


def load_embedder(file: TensorFile, size: str, dtype: torch.dtype, device: torch.device) -> Embedder:
    """The embedder, from its own file or from a drawer's copy. Raises `WeightsError` as `load_encoder` does."""
    tensors = take(file, EMBEDDER_NAMES, tuple(DECODER_NAMES) + DECODER_UNUSED, file.path)
    levels = _variant_levels(size)
    embedder = build(lambda: Embedder(embedder_shape(shapes_of(tensors))), file.path)
    embedder = fill(embedder, cast(tensors, dtype, device), EMBEDDER_NAMES, file.path)
    stored, expected = tensors["codebook"], codebook(levels)
    if stored.shape != expected.shape or not torch.equal(stored, expected.to(stored.dtype)):
        raise WeightsError(
            f"{file.path}: tensor ori_codebook.weight {tuple(stored.shape)} is not the codebook of size {size}, "
            f"{tuple(expected.shape)} with levels {list(levels)}"
        )
    return embedder


def load_decoder(file: TensorFile, heads: int, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The decoder of a drawer file, its 3-D kernels folded. Raises `WeightsError` as `load_encoder` does."""
    tensors = take(file, DECODER_NAMES, tuple(EMBEDDER_NAMES) + DECODER_UNUSED, file.path)
    tensors = {name: fold(t) if name.startswith("vae.") else t for name, t in tensors.items() if _TIME not in name}
    tensors = {name.replace(_UPSAMPLER, ".upsample."): tensor for name, tensor in tensors.items()}
    decoder = build(lambda: Decoder(decoder_shape(shapes_of(tensors), heads)), file.path)
    # Without matrix instructions for the dtype, convolutions in float32 are 5 times as fast and no less right.
    picture = dtype if device.type != "cpu" or multiplies_natively(dtype) else torch.float32
    parts = {True: {}, False: {}}  # type: dict[bool, dict[str, Tensor]]
    for name, tensor in tensors.items():
        parts[name.startswith(("vae.", "latent_head."))][name] = tensor
    # Through the compute dtype first, so that the weights are the same wherever they are computed with.
    pictures = cast(cast(parts[True], dtype, device), picture, device)
    pictures = {
        name: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.contiguous()
        for name, t in pictures.items()
    }
    return fill(decoder, {**cast(parts[False], dtype, device), **pictures}, DECODER_NAMES, file.path)


def _variant_levels(size: str) -> tuple[int, ...]:
    try:
        return variant(size).levels
    except UnknownModel as error:
        raise WeightsError(str(error)) from None


def _file_name(name: str, names: Mapping[str, str]) -> str:
    """A module's parameter by its name in the file."""
    for theirs, ours in names.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name[len(ours) :].replace(".upsample.", _UPSAMPLER)
    return name


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None


def _open_pickle(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: not a whole torch.save file (damaged, cut short, or older than torch 1.6)")
    try:
        # weights_only: an unpickler that knows tensors and containers, and refuses everything else unrun.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: refused, it holds more than plain tensors ({reason})") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a readable torch.save file ({str(error).splitlines()[0]})") from None
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path}: holds {type(loaded).__name__}, expected a dictionary of tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: entry {name!r} is {type(tensor).__name__}, expected a tensor")
    return loaded
