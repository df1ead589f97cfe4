"""The golden training checkpoint, and what its conversion is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from torch import Tensor

GOLDEN = Path(__file__).parent.parent / "golden"
TRAINED = GOLDEN / "vision_tower_4k.pth"
STEMS = ("model_viq_fsq_4k", "embedder", "index_drawer")
HEADS = 4
FORMATS = ("pth", "safetensors")
Alter = Callable[[Mapping[str, Tensor | None]], Path]

every_format = pytest.mark.parametrize("file_format", FORMATS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
