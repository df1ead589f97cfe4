"""What the machine has and can do, as far as it decides where and with which kernels to compute."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch

from viq.errors import InvalidInput

FP8 = "fp8"
"""The mode in which the encoder's trunk multiplies in 8 bits (`viq.fp8`), and all else is as in bfloat16."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16, FP8: torch.bfloat16}
_FP8_CAPABILITY = (8, 9)
_OURS: ContextVar[bool] = ContextVar("ours", default=False)


def device_named(name: str) -> torch.device:
    """The device of that name, `auto` being CUDA where there is one; raises `InvalidInput` for one there is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidInput(f"device {name!r}; there are auto, cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"device {name!r}; there are auto, cpu, cuda and cuda:N")
    if device.type == "cpu" and device.index:
        raise InvalidInput(f"device {name!r}: there is one cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def dtype_named(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations in the mode of that name: `auto` follows the device, `fp8` has bfloat16's.

    Raises `InvalidInput` for a mode there is not, or not on this device.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InvalidInput(f"dtype {name!r}; there are auto, {', '.join(_DTYPES)}")
    if name == FP8 and device.type == "cuda":
        check_fp8(str(device), torch.cuda.get_device_capability(device))
    return _DTYPES[name]


def check_fp8(device: str, capability: tuple[int, int]) -> None:
    """Raise `InvalidInput` for a CUDA device without matrix instructions for 8-bit numbers."""
    if capability < _FP8_CAPABILITY:
        needed, found = (".".join(map(str, pair)) for pair in (_FP8_CAPABILITY, capability))
        raise InvalidInput(f"dtype {FP8} needs compute capability {needed} or above, {device} has {found}")


@cache
def instruction_set() -> str:
    """The CPU's instruction set as torch dispatches on it, for example `avx512` or `avx512_bf16`."""
    capability = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "_")
    for feature, name in (("_is_amx_tile_supported", "amx"), ("_is_avx512_bf16_supported", "avx512_bf16")):
        if _supports(feature):
            return name
    return capability


@cache
def cpu_features() -> str:
    """8 hex digits over what this CPU can do, where the system tells, else over its kind: machine code is for one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):
        told = platform.machine()
    return hashlib.sha256(" ".join(sorted(told.split())).encode()).hexdigest()[:8]


@cache
def multiplies_natively(dtype: torch.dtype) -> bool:
    """Whether this CPU has matrix instructions for `dtype`; otherwise products are computed in float32."""
    if dtype == torch.bfloat16:
        return _supports("_is_avx512_bf16_supported") or _supports("_is_amx_tile_supported")
    if dtype == torch.float16:
        return _supports("_is_amx_fp16_supported")
    return dtype == torch.float32


def traced() -> bool:
    """Whether this call is being turned into a graph: what depends on a pack's size must then stay open."""
    return torch.compiler.is_compiling() or scripting()


def functional() -> bool:
    """Whether this call is being turned into a graph for others, who may want gradients of it or cast what it is given.

    Such a graph writes into no tensor that it was given or made before.
    """
    return torch.compiler.is_compiling() or (scripting() and not _OURS.get())


@contextmanager
def ours() -> Iterator[None]:
    """A graph that is made within is computed by this package alone: without gradients, and never under autocast."""
    before = _OURS.set(True)
    try:
        yield
    finally:
        _OURS.reset(before)


def scripting() -> bool:
    """Whether this call is being turned into TorchScript."""
    return bool(torch._C._get_tracing_state())


def prepare_cuda() -> None:
    """Settings of the process under which a row of a CUDA product does not depend on the other rows.

    cuBLASLt without split-K accumulates each element over the inner dimension once, in float32; with it, the
    number of parts follows the number of rows. TF32 is off: float32 means float32.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls the choice experimental
        torch.backends.cuda.preferred_blas_library("cublaslt")
    matmul = torch.backends.cuda.matmul
    # Pairs of (reduced precision, split-K), both off.
    matmul.allow_bf16_reduced_precision_reduction = (False, False)
    matmul.allow_fp16_reduced_precision_reduction = (False, False)
    matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def has_amx() -> bool:
    """Whether this CPU has AMX tiles."""
    return _supports("_is_amx_tile_supported")


def _supports(feature: str) -> bool:
    # These probes are private names of torch.cpu; one that a version lacks counts as "no".
    probe = getattr(torch.cpu, feature, None)
    return bool(probe()) if probe is not None else False
