"""Files that hold a compiled quantization head, and what is known of one before anything in it runs.

A head file is code. It says for which weights, type and device it was made, in a JSON text that is read
without loading the rest: the entry `viq_head.json` of the archives that TorchScript, AOTInductor and TensorRT
files are here, the metadata property of that name in ONNX.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from viq.errors import WeightsError

ENTRY, DIGEST = "viq_head.json", "viq_head.sha256"
SUFFIXES = {"torchscript": ".pt", "aoti": ".pt2", "onnx": ".onnx", "tensorrt": ".engine"}
"""Formats and what their files' names end with."""

_MAX_BYTES = 64 * 2**10
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError, RuntimeError)


@dataclass(frozen=True)
class HeadFacts:
    """What a head file was made for: `device` as in a fingerprint, with the instruction set; `made_with` versions.

    `weights` is a digest of every byte of the head's own weights, as `family` may be what a folder remembers; empty in
    files of earlier versions. `cpu` is one of the features of the CPU whose machine code the file is, empty for what
    is none.
    """

    format: str
    family: str
    size: str
    dtype: str
    device: str
    width: int
    torch: str
    made_with: str
    weights: str
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
        found = {"weights": "", **found}
        facts = HeadFacts(**{field.name: found[field.name] for field in fields(HeadFacts)})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"head file {path}: {ENTRY} is not readable ({error!r})") from None
    for field in fields(HeadFacts):
        if type(getattr(facts, field.name)) is not (int if field.name == "width" else str):
            raise WeightsError(f"head file {path}: {ENTRY} says {field.name} {found[field.name]!r:.80}")
    if facts.format not in SUFFIXES:
        raise WeightsError(f"head file {path}: format {facts.format!r}; there are {', '.join(SUFFIXES)}")
    return facts


def check_whole(path: Path) -> None:
    """Raise `WeightsError` unless every byte of a head file is what was written: what loads it does not look."""
    if path.suffix == SUFFIXES["onnx"]:
        model = _onnx_model(path)
        if _property(model, DIGEST) != digest_of(model):
            raise WeightsError(f"head file {path}: damaged, its checksum differs: build it anew")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except _UNREADABLE as error:
        raise WeightsError(f"head file {path}: not readable ({error})") from None
    if broken is not None:
        raise WeightsError(f"head file {path}: damaged, the checksum of {broken} in it differs: build it anew")


def digest_of(model: Any) -> str:
    """SHA-256 of all that an ONNX model computes: its graph, weights among it, and its functions."""
    digest = hashlib.sha256(model.graph.SerializeToString(deterministic=True))
    for function in model.functions:
        digest.update(function.SerializeToString(deterministic=True))
    return digest.hexdigest()


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
    path, facts = min(ours, key=lambda pair: len(_unlike(pair[1], wanted)))
    unlike = _unlike(facts, wanted)
    if unlike == ["weights"] and not facts.weights:
        raise WeightsError(f"head file {path}: made by an earlier viq: build it anew")
    for name in unlike[:1]:
        raise WeightsError(f"head file {path}: is for {name} {getattr(facts, name)}, expected {getattr(wanted, name)}")
    return path


def _unlike(facts: HeadFacts, wanted: HeadFacts) -> list[str]:
    """Names of what does not fit, that first which says most."""
    names = ("format", "dtype", "device", "torch", "size", "width", "cpu", "weights")
    return [name for name in names if getattr(facts, name) != getattr(wanted, name)]


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
    except _UNREADABLE as error:
        raise WeightsError(f"head file {path}: not readable ({error})") from None


def _from_onnx(path: Path) -> str:
    text = _property(_onnx_model(path), ENTRY)
    if text is None:
        raise WeightsError(f"head file {path}: no head made by viq build-head, no property {ENTRY}")
    return text[:_MAX_BYTES]


def _property(model: Any, name: str) -> str | None:
    return next((str(entry.value) for entry in model.metadata_props if entry.key == name), None)


def _onnx_model(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise WeightsError("reading ONNX needs onnx: pip install 'viq-serving[heads]'") from None
    try:
        return onnx.load_model(str(path), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise WeightsError(f"head file {path}: not readable as ONNX ({error})") from None
