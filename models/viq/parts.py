"""The parts of a model, of which some may be loaded and others not."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from viq.checkpoint import find, load_embedder, read_manifest
from viq.decoder import Decoder
from viq.embedder import Embedder
from viq.encoder import Encoder
from viq.errors import WeightsError
from viq.hardware import device_named, dtype_named
from viq.tensor_file import open_tensors
from viq.weights_root import folder_of

T = TypeVar("T")
PARTS = ("encoder", "embedder", "decoder")


def loaded(part: T | None, name: str) -> T:
    """The part; raises `WeightsError` if it was not loaded."""
    if part is None:
        raise WeightsError(f"the {name} was not loaded (parts=)")
    return part


def same_widths(encoder: Encoder | None, embedder: Embedder | None, decoder: Decoder | None, folder: Path) -> None:
    """Raise `WeightsError` naming the widths if parts of one folder are of different ones."""
    widths = {}
    if encoder is not None:
        widths["encoder"] = encoder.project_in.weight.shape[1]
    if embedder is not None:
        widths["embedder"] = embedder.lift.weight.shape[0]
    if decoder is not None:
        widths["index_drawer"] = decoder.norm.weight.shape[0]
    if len(set(widths.values())) > 1:
        raise WeightsError(f"{folder}: files are of different widths, {widths}")


def load_embedder_alone(root: str | Path | None, size: str | None, device: str, dtype: str) -> Embedder:
    """The embedder of a weights root, from its own file alone; see `Embedder.from_pretrained`."""
    folder, size = folder_of(root, size)
    read_manifest(folder, size)
    where = device_named(device)
    return load_embedder(open_tensors(find(folder, "embedder")), size, dtype_named(dtype, where), where)
