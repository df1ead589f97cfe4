"""Files that hold a compiled quantization head, and what is known of one before anything in it runs.

A head file is code. It says for which weights, type and device it was made, in a JSON text that is read
without loading the rest: the entry `viq_head.json` of the archives that TorchScript, AOTInductor and TensorRT
files are here, the metadata property of that name in ONNX.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from viq.errors import WeightsError

ENTRY = "viq_head.json"
SUFFIXES = {"torchscript": ".pt", "aoti": ".pt2", "onnx": ".onnx", "tensorrt": ".engine"}
"""Formats and what their files' names end with."""

_MAX_BYTES = 64 * 2**10


@dataclass(frozen=True)
class HeadFacts:
    """What a head file was made for: `device` as in a fingerprint, with the instruction set; `made_with` versions.

    `cpu` is a digest of the features of the CPU whose machine code the file is, empty for what is none.
    """

    format: str
    family: str
    size: str
    dtype: str
    device: str
    width: int
    torch: str
    made_with: str
    cpu: str = ""

    def to_json(self) -> str:
        """The text that the file carries."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def torch_version() -> str:
    """Major and minor version of torch: compiled heads are for one."""
    return ".".join(torch.__version__.split(".")[:2])


def read_facts(path: Path) -> HeadFacts:
    """What the head file `path` says of itself; runs nothing of it. Raises `WeightsError`."""
    if not path.is_file():
        raise WeightsError(f"head file {path}: no such file")
    text = _from_onnx(path) if path.suffix == SUFFIXES["onnx"] else _from_archive(path)
    try:
        found = json.loads(text)
        facts = HeadFacts(**{field.name: found[field.name] for field in fields(HeadFacts)})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"head file {path}: {ENTRY} is not readable ({error!r})") from None
    if facts.format not in SUFFIXES:
        raise WeightsError(f"head file {path}: format {facts.format!r}; there are {', '.join(SUFFIXES)}")
    return facts


def chosen(paths: Sequence[Path], wanted: HeadFacts) -> Path:
    """The one of `paths` that was made for the weights of `wanted`, checked against all of it.

    Raises `WeightsError` naming the file and what does not fit: another format, other weights, type, device or torch.
    """
    if not paths:
        suffix = SUFFIXES[wanted.format]
        raise WeightsError(
            f"head {wanted.format} is loaded from --head-file: make one with "
            f"viq build-head --format {wanted.format} -o head{suffix}"
        )
    known = [(path, read_facts(path)) for path in paths]
    ours = [pair for pair in known if pair[1].family == wanted.family]
    if not ours:
        held = "; ".join(f"{path} is for {facts.family} (size {facts.size})" for path, facts in known)
        raise WeightsError(f"no head file for weights {wanted.family} (size {wanted.size}): {held}")
    fitting = [pair for pair in ours if (pair[1].dtype, pair[1].device) == (wanted.dtype, wanted.device)]
    path, facts = (fitting or ours)[0]
    for name in ("format", "dtype", "device", "torch", "size", "width", "cpu"):
        is_, expected = getattr(facts, name), getattr(wanted, name)
        if is_ != expected:
            raise WeightsError(f"head file {path}: is for {name} {is_}, expected {expected}")
    return path


def checked_place(path: str | Path, weights: Path | None) -> Path:
    """`path`, unless it lies in the folder of weights or at a hub: weights are data, a head is code."""
    if str(path).startswith("hf:") or "://" in str(path):
        raise WeightsError(f"head file {path}: a head is code, and only taken from a path on this machine")
    place = Path(path)
    if weights is not None and place.resolve().is_relative_to(weights.resolve()):
        raise WeightsError(f"head file {path}: a head is code, and not taken from a folder of weights, {weights}")
    return place


def _from_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [one for one in archive.infolist() if one.filename.rpartition("/")[2] == ENTRY]
            if len(found) != 1:
                raise WeightsError(f"head file {path}: no head made by viq build-head, {len(found)} entries {ENTRY}")
            if found[0].file_size > _MAX_BYTES:
                raise WeightsError(f"head file {path}: {ENTRY} has {found[0].file_size} bytes, at most {_MAX_BYTES}")
            return archive.read(found[0]).decode()
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError, RuntimeError, NotImplementedError) as error:
        raise WeightsError(f"head file {path}: not readable ({error})") from None


def _from_onnx(path: Path) -> str:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise WeightsError("reading ONNX needs onnx: pip install 'viq-serving[heads]'") from None
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise WeightsError(f"head file {path}: not readable as ONNX ({error})") from None
    for entry in model.metadata_props:
        if entry.key == ENTRY:
            return entry.value[:_MAX_BYTES]
    raise WeightsError(f"head file {path}: no head made by viq build-head, no property {ENTRY}")
