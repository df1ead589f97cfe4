"""Folders of small random weights in the released layout, and what loading says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from viq.errors import WeightsError
from viq.model import ViQ
from viq.random_weights import Layout, State, drawer_state, embedder_state, encoder_state

SMALL = Layout(
    size="16k", width=32, depth=2, heads=4, headwise_width=16, grid=4, vae_base=4, head_blocks=1, headwise_blocks=1
)
ENCODER, EMBEDDER, DRAWER = STEMS = ("model_viq_fsq_16k", "embedder", "index_drawer")
SUFFIXES = (".pth", ".safetensors")
PART = dict(zip(STEMS, ("encoder", "embedder", "decoder"), strict=True))
CPU = torch.device("cpu")
Write = Callable[..., Path]

every_file = pytest.mark.parametrize("stem", STEMS)
every_format = pytest.mark.parametrize("suffix", SUFFIXES)


@cache
def states(size: str = "16k", seed: int = 0) -> dict[str, State]:
    layout = Layout(**{**SMALL.__dict__, "size": size})
    made = (encoder_state(layout, seed), embedder_state(layout, seed), drawer_state(layout, seed))
    return dict(zip((f"model_viq_fsq_{size}", EMBEDDER, DRAWER), made, strict=True))


def save(state: Mapping[str, Tensor], path: Path) -> None:
    if path.suffix == ".pth":
        torch.save(dict(state), path)
    else:
        save_file(dict(state), path)


def load(folder: Path, *parts: str, dtype: str = "float32") -> ViQ:
    chosen = parts or ("encoder", "embedder", "decoder")
    return ViQ.from_pretrained(folder.parent, device="cpu", dtype=dtype, parts=chosen)


def refusal(folder: Path, *parts: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load(folder, *parts)
    return str(caught.value)


def own(stem: str) -> State:
    """A file's tensors, a drawer's without its copy of the embedder (which is checked by the embedder's means)."""
    whole = states()
    return {name: t for name, t in whole[stem].items() if stem != DRAWER or name not in whole[EMBEDDER]}
