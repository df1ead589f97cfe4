"""A weights folder's files to networks, strictly: every tensor has its place and its shape, or is named in an error.

The same stems as safetensors are preferred where both exist. Networks are made on the meta device and given
the files' own mapped tensors, so that loading reads only what must be converted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from viq.config import PATCH, variant
from viq.decoder import Decoder, decoder_shape
from viq.embedder import Embedder, embedder_shape
from viq.encoder import Encoder, encoder_shape
from viq.errors import UnknownModel, WeightsError
from viq.fsq import codebook
from viq.hardware import multiplies_natively
from viq.released_names import (
    DECODER_NAMES,
    DECODER_UNUSED,
    EMBEDDER_NAMES,
    ENCODER_NAMES,
    ENCODER_UNUSED,
    TIME_CONVOLUTION,
    UPSAMPLER,
    file_name,
    take,
)
from viq.tensor_file import TensorFile
from viq.vae import fold

DEFAULT_HEADS = 16
SUFFIXES = (".safetensors", ".pth")
"""Formats of a weights file, the preferred one first."""

Module = TypeVar("Module", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]

# The tensors, by parameter, that say how large a network is or that its parts are there; with their dimensions.
_ENCODER_RANKS = {
    "patch_embed.weight": 2,
    "pos_embed": 3,
    "trunk.0.norm1.weight": 1,
    "head_trunk.0.norm1.weight": 1,
    "headwise.0.norm1.weight": 1,
}
_NARROWING = ("headwise.0.attn.decrease_dim.", "headwise.0.attn.increase_dim.")  # in wide networks only
_EMBEDDER_RANKS = {"codebook": 2, "lift.weight": 2, "residual.2.norm.weight": 1}
_DECODER_RANKS = {"norm.weight": 1, "blocks.2.norm1.weight": 1, "vae.conv_out.weight": 5}


def find(folder: Path, stem: str) -> Path:
    """The file of `stem` in a weights folder, safetensors before pth. Raises `WeightsError` if there is none."""
    for suffix in SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise WeightsError(f"{folder}: neither {stem}.safetensors nor {stem}.pth")


def holds(folder: Path, stem: str) -> bool:
    """Whether a weights folder has the file of `stem`, in either format."""
    return any((folder / f"{stem}{suffix}").is_file() for suffix in SUFFIXES)


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
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise WeightsError(f"{path}: holds {type(manifest).__name__}, expected an object")
    heads = manifest.get("num_heads", DEFAULT_HEADS)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise WeightsError(f"{path}: num_heads is {heads!r}, expected a positive whole number")
    if manifest.get("size", size) != size:
        raise WeightsError(f"{path}: is of size {manifest['size']!r}, expected {size!r}")
    if not isinstance(manifest.get("untrained", False), bool):
        raise WeightsError(f"{path}: untrained is {manifest['untrained']!r}, expected true or false")
    levels = list(_variant_levels(size))
    if manifest.get("levels", levels) != levels:
        raise WeightsError(f"{path}: levels {manifest['levels']!r}, expected {levels} for size {size}")
    return manifest


def fill(module: Module, tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> Module:
    """Give a module made on the meta device its tensors. Raises `WeightsError` naming one that does not fit."""
    compare(shapes_of(tensors), parameter_shapes(module), names, path)
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    return module.requires_grad_(False).eval()


def compare(found: Shapes, wanted: Shapes, names: Mapping[str, str], path: Path) -> None:
    """Raise `WeightsError` naming, as the file does, a tensor that is missing, misshapen or unexpected."""
    for name, shape in wanted.items():
        if name not in found:
            raise WeightsError(f"{path}: missing tensor {file_name(name, names)}")
        if found[name] != shape:
            raise WeightsError(f"{path}: tensor {file_name(name, names)} has shape {found[name]}, expected {shape}")
    for name in found:
        if name not in wanted:
            raise WeightsError(f"{path}: unexpected tensor {file_name(name, names)}")


def build(
    make: Callable[[], Module], found: Shapes, ranks: Mapping[str, int], names: Mapping[str, str], path: Path
) -> Module:
    """Make a module on the meta device from tensors' shapes.

    `ranks` has the number of dimensions of the tensors that its sizes are read off. Raises `WeightsError`
    naming one of them that is missing or has another number, or saying why the sizes make no network.
    """
    for name, rank in ranks.items():
        if name not in found:
            raise WeightsError(f"{path}: missing tensor {file_name(name, names)}")
        if len(found[name]) != rank or 0 in found[name]:
            kind = f"{rank} dimensions, none of them 0"
            raise WeightsError(f"{path}: tensor {file_name(name, names)} has shape {found[name]}, expected {kind}")
    try:
        with torch.device("meta"):
            return make()
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: tensors do not make a network ({error})") from None


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


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
    if kernel is not None:
        expected = (*kernel.shape[:1], 3, PATCH, PATCH)
        if tuple(kernel.shape) != expected:
            found = tuple(kernel.shape)
            raise WeightsError(f"{file.path}: tensor patch_embed.proj.weight has shape {found}, expected {expected}")
        tensors["patch_embed.weight"] = kernel.reshape(expected[0], 3 * PATCH * PATCH)
    levels = _variant_levels(size)
    shapes = shapes_of(tensors)
    narrow = any(name.startswith(_NARROWING) for name in shapes)
    ranks = {**_ENCODER_RANKS, f"{_NARROWING[0]}weight": 2} if narrow else _ENCODER_RANKS
    encoder = build(lambda: Encoder(encoder_shape(shapes, heads, levels)), shapes, ranks, ENCODER_NAMES, file.path)
    _check_heads(shapes["patch_embed.weight"][0], heads, file.path)
    return fill(encoder, cast(tensors, dtype, device), ENCODER_NAMES, file.path)


def load_embedder(
    file: TensorFile, size: str, dtype: torch.dtype, device: torch.device, *, drawer: bool = False
) -> Embedder:
    """The embedder, from its own file or from a `drawer`'s copy. Raises `WeightsError` as `load_encoder` does."""
    tensors, embedder = _embedder(file, size, drawer)
    return fill(embedder, cast(tensors, dtype, device), EMBEDDER_NAMES, file.path)


def check_copy(drawer: TensorFile, size: str) -> None:
    """Raise `WeightsError` unless a drawer's copy of the embedder is whole and of `size`; reads its codebook only.

    That tells a drawer of another size, whose own layers have the same shapes.
    """
    tensors, embedder = _embedder(drawer, size, is_drawer=True)
    compare(shapes_of(tensors), parameter_shapes(embedder), EMBEDDER_NAMES, drawer.path)


def load_decoder(file: TensorFile, heads: int, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The decoder of a drawer file, its 3-D kernels folded. Raises `WeightsError` as `load_encoder` does.

    The file's copy of the embedder is left alone: `check_copy` and `load_embedder` are for that.
    """
    tensors = take(file, DECODER_NAMES, tuple(EMBEDDER_NAMES) + DECODER_UNUSED, file.path)
    tensors = {name.replace(UPSAMPLER, ".upsample."): t for name, t in tensors.items() if TIME_CONVOLUTION not in name}
    stored = shapes_of(tensors)
    decoder = build(lambda: Decoder(decoder_shape(stored, heads)), stored, _DECODER_RANKS, DECODER_NAMES, file.path)
    _check_heads(stored["norm.weight"][0], heads, file.path)
    # Before folding, which would make a kernel of the wrong length in time fit.
    unfolded = {name: _unfolded(name, shape) for name, shape in parameter_shapes(decoder).items()}
    compare(stored, unfolded, DECODER_NAMES, file.path)
    tensors = {name: fold(t) if name.startswith("vae.") else t for name, t in tensors.items()}
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


def _embedder(file: TensorFile, size: str, is_drawer: bool) -> tuple[dict[str, Tensor], Embedder]:
    """An embedder's tensors by module name, and the module still without them; the codebook is checked."""
    unused = tuple(DECODER_NAMES) + DECODER_UNUSED if is_drawer else ()
    tensors = take(file, EMBEDDER_NAMES, unused, file.path)
    shapes = shapes_of(tensors)
    embedder = build(lambda: Embedder(embedder_shape(shapes)), shapes, _EMBEDDER_RANKS, EMBEDDER_NAMES, file.path)
    levels = _variant_levels(size)
    stored, expected = tensors["codebook"], codebook(levels)
    if stored.shape != expected.shape or not torch.equal(stored, expected.to(stored.dtype)):
        raise WeightsError(
            f"{file.path}: tensor ori_codebook.weight {tuple(stored.shape)} is not the codebook of size {size}, "
            f"{tuple(expected.shape)} with levels {list(levels)}"
        )
    return tensors, embedder


def _unfolded(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stored shape of a decoder's parameter: the VAE's kernels are cubes, but for its 2-D layers."""
    if not name.startswith("vae."):
        return shape
    flat = ".attentions." in name or ".upsample." in name
    if name.endswith(".gamma"):
        return (*shape, 1, 1) if flat else (*shape, 1, 1, 1)
    return shape if flat or len(shape) != 4 else (*shape[:2], shape[2], *shape[2:])


def _check_heads(width: int, heads: int, path: Path) -> None:
    if heads < 1 or width % heads:
        raise WeightsError(f"{path}: width {width} is no multiple of {heads} heads")


def _variant_levels(size: str) -> tuple[int, ...]:
    try:
        return variant(size).levels
    except UnknownModel as error:
        raise WeightsError(str(error)) from None
