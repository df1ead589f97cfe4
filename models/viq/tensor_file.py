"""Tensors from one file, without running anything that the file carries.

A file is opened memory-mapped: a tensor's bytes are read when they are used, and those that nobody
needs never are. Released files are `torch.save`d dictionaries of tensors; safetensors files are read too.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from viq.errors import WeightsError

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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


def open_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> TensorFile:
    """Map a `.safetensors` or `.pth` file: all its tensors, or those whose name is `wanted`.

    Raises `WeightsError` for anything but a file of tensors, and for one of these that is not of plain floats.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    tensors = _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    if wanted is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if wanted(name)}
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            kind = "nested" if tensor.is_nested else f"{tensor.dtype} {tensor.layout} on {tensor.device}"
            raise WeightsError(f"{path}: tensor {name} is {kind}, expected dense floats of 16, 32 or 64 bits")
        # A few bytes repeated by a stride of 0 can claim any shape, and would take its memory when they are read.
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: tensor {name} {tuple(tensor.shape)} has fewer bytes than its shape says")
    return TensorFile(path, tensors)


def _is_plain(tensor: Tensor) -> bool:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return tensor.dtype in _FLOATS and tensor.device.type == "cpu"


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
        raise WeightsError(f"{path}: refused, it holds more than plain tensors ({_first_line(error)})") from None
    except Exception as error:  # noqa: BLE001 - damaged bytes can drive an unpickler into any error
        raise WeightsError(f"{path}: not a readable torch.save file ({_first_line(error)})") from None
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path}: holds {type(loaded).__name__}, expected a dictionary of tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: entry {name!r} is {type(tensor).__name__}, expected a tensor")
    return loaded


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
