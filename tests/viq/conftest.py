"""Weights for the network's tests: the golden models in the released layout, and smaller random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from viq.random_weights import Layout, State, drawer_state, embedder_state, encoder_state

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = Layout(size="16k", width=64, depth=1, heads=4, headwise_width=16, grid=128, vae_base=4, head_blocks=1)
MakeRoot = Callable[..., Path]


@pytest.fixture(scope="session")
def golden_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root with both golden models as `.pth`, with the tensors that inference reads."""
    root = tmp_path_factory.mktemp("golden")
    for size in ("16k", "64k"):
        with np.load(GOLDEN / f"{size}_weights.npz") as archive:
            parts: dict[str, State] = {"encoder": {}, "embedder": {}, "drawer": {}}
            for key in archive.files:
                part, name = key.split("/", 1)
                parts[part][name] = torch.from_numpy(archive[key])
        parts["drawer"] |= parts["embedder"]
        save_root(root, size, parts["encoder"], parts["embedder"], parts["drawer"], heads=4)
    return root


@pytest.fixture
def make_root(tmp_path: Path) -> MakeRoot:
    """Writes a tiny random model of any size into a fresh weights root; takes changes to each file's tensors."""

    def make(
        size: str = "16k",
        suffix: str = ".pth",
        encoder: dict[str, Tensor | None] | None = None,
        embedder: dict[str, Tensor | None] | None = None,
        drawer: dict[str, Tensor | None] | None = None,
        seed: int = 0,
    ) -> Path:
        layout = Layout(**{**TINY.__dict__, "size": size})
        states = (encoder_state(layout, seed), embedder_state(layout, seed), drawer_state(layout, seed))
        for state, changes in zip(states, (encoder, embedder, drawer), strict=True):
            for name, tensor in (changes or {}).items():
                if tensor is None:
                    del state[name]
                else:
                    state[name] = tensor
        return save_root(tmp_path / "weights", size, *states, TINY.heads, suffix)

    return make


def save_root(
    root: Path, size: str, encoder: State, embedder: State, drawer: State, heads: int, suffix: str = ".pth"
) -> Path:
    """Write one size of a weights root."""
    from safetensors.torch import save_file

    folder = root / f"converted_{size}"
    folder.mkdir(parents=True, exist_ok=True)
    for stem, state in ((f"model_viq_fsq_{size}", encoder), ("embedder", embedder), ("index_drawer", drawer)):
        if suffix == ".pth":
            torch.save(state, folder / f"{stem}.pth")
        else:
            save_file(state, folder / f"{stem}.safetensors")
    (folder / "viq.json").write_text(f'{{"num_heads": {heads}}}\n')
    return root


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A random RGB image."""
    return np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)
