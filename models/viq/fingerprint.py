"""Provenance: which weights made some codes, and with which numerics.

A fingerprint is `<family>.<mode>`. Equal fingerprints promise equal codes for equal pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from viq import attention, linear
from viq.config import PREPROCESSING, variant
from viq.errors import WeightsError
from viq.hardware import instruction_set
from viq.released_names import ENCODER_UNUSED
from viq.tensor_file import TensorFile

_SAMPLES, _SAMPLE_BYTES = 16, 512


def family(file: Mapping[str, Tensor], size: str, heads: int) -> str:
    """16 hex digits of SHA-256 over levels, heads, preprocessing and the encoder tensors that codes need.

    Tensors count by name, dtype, shape and bytes in name order; the file format does not.
    """
    digest = hashlib.sha256(_header(size, heads))
    for name, tensor in _needed(file):
        digest.update(_line(name, tensor))
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def remembered_family(file: TensorFile, manifest: Mapping[str, object], size: str, heads: int) -> str:
    """The family that the folder's `viq.json` remembers, else computed and, where that is writable, remembered.

    Hashing every byte of a released encoder takes seconds. What is remembered comes with a checksum over
    samples of every tensor, so that a file replaced by another is noticed.
    """
    check = sample_check(file, size, heads)
    known = _named_family(manifest)
    if known is not None and manifest.get("family_check") == check:
        return known
    computed = family(file, size, heads)
    with suppress(OSError):  # a read-only folder: computed again next time
        write_manifest(file.path.parent, {**manifest, "family": computed, "family_check": check})
    return computed


def stated_family(manifest: Mapping[str, object], folder: Path) -> str:
    """The family that `viq.json` names, taken at its word where there is no encoder file to compute it from.

    Raises `WeightsError` if it names none: features of codes from other weights would then go unnoticed.
    """
    known = _named_family(manifest)
    if known is None:
        raise WeightsError(f"{folder}: no encoder file, and no family of 16 hex digits in viq.json in its place")
    return known


def sample_check(file: Mapping[str, Tensor], size: str, heads: int) -> str:
    """16 hex digits over what `family` covers, but only some bytes of each tensor, evenly spread."""
    digest = hashlib.sha256(_header(size, heads))
    for name, tensor in _needed(file):
        digest.update(_line(name, tensor))
        raw = _bytes(tensor)
        step = max(_SAMPLE_BYTES, len(raw) // _SAMPLES)
        for start in range(0, len(raw), step):
            digest.update(raw[start : start + _SAMPLE_BYTES])
        digest.update(raw[-_SAMPLE_BYTES:])
    return digest.hexdigest()[:16]


def mode(
    device: torch.device,
    dtype: torch.dtype,
    invariance: str = "strict",
    head: str = "eager",
    extras: Mapping[str, str] | None = None,
) -> str:
    """8 hex digits over everything but the weights that can move a code: dtype, device, torch and kernels.

    `invariance` is `strict` where a code does not depend on the batch, else `none`; `head` names what computes the
    quantization head; `extras` what else was switched on, or a fact to state in another's place.
    """
    facts = {
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_mode(device, dtype, exact=head != "eager"),
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "attention": attention.kernel(device, dtype),
        "linear": linear.kernel(device, dtype),
        "head": head,
        "invariance": invariance,
        # cuBLAS and cuDNN come with it, and choose by their version.
        **({"toolkit": str(torch.version.cuda)} if device.type == "cuda" else {}),
        **(extras or {}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write `viq.json` so that a reader sees the old file or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".viq.json.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            file.write("\n")
        Path(name).chmod(0o644)
        Path(name).replace(folder / "viq.json")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def device_mode(device: torch.device, dtype: torch.dtype, *, exact: bool = False) -> str:
    """The device as far as codes depend on it; `exact` names the instruction set where eager float32 does not."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda/sm_{major}{minor}"
    return "cpu" if dtype == torch.float32 and not exact else f"cpu/{instruction_set()}"


def _named_family(manifest: Mapping[str, object]) -> str | None:
    known = manifest.get("family")
    return known if isinstance(known, str) and re.fullmatch("[0-9a-f]{16}", known) else None


def _needed(file: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted((name, tensor) for name, tensor in file.items() if not name.startswith(ENCODER_UNUSED))


def _header(size: str, heads: int) -> bytes:
    return json.dumps(["viq", list(variant(size).levels), heads, PREPROCESSING]).encode()


def _line(name: str, tensor: Tensor) -> bytes:
    return json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]).encode()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
