"""Weights for the network's tests: the golden models in the released layout, and smaller random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.viq.conversion import FORMATS, HEADS, TRAINED, Alter, contents
from tests.viq.weights_folder import ENCODER, Write, save, states
from torch import Tensor

from viq.convert import PREFIX, convert
from viq.errors import WeightsError
from viq.random_weights import Layout, State, drawer_state, embedder_state, encoder_state
from viq.tensor_file import open_tensors

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = Layout(size="16k", width=64, depth=1, heads=4, headwise_width=16, grid=128, vae_base=4, head_blocks=1)
SMALL_ENCODER = Layout(size="16k", width=32, depth=1, heads=4, headwise_width=16, grid=4, vae_base=4, head_blocks=1)
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


@pytest.fixture(scope="session")
def state() -> State:
    """The tensors of a tiny encoder."""
    return encoder_state(SMALL_ENCODER)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str, str], bytes]:
    """The bytes of an unchanged file, saved once a session: most tests change one of three."""
    folder = tmp_path_factory.mktemp("saved")

    @cache
    def content(size: str, seed: int, stem: str, suffix: str) -> bytes:
        save(states(size, seed)[stem], folder / f"{stem}{suffix}")
        return (folder / f"{stem}{suffix}").read_bytes()

    return content


@pytest.fixture
def write(tmp_path: Path, saved: Callable[[str, int, str, str], bytes]) -> Write:
    """Writes a whole weights folder, with changes to the tensors of one file; returns the folder."""

    def write(
        suffix: str = ".pth",
        stem: str = ENCODER,
        changes: Mapping[str, Tensor | None] | None = None,
        size: str = "16k",
        seed: int = 0,
    ) -> Path:
        folder = tmp_path / f"converted_{size}"
        folder.mkdir(exist_ok=True)
        for name, state in states(size, seed).items():
            path = folder / f"{name}{suffix}"
            if changes and name == stem:
                changed = {**state, **changes}
                save({k: t for k, t in changed.items() if t is not None}, path)
            else:
                path.write_bytes(saved(size, seed, name, suffix))
        (folder / "viq.json").write_text('{"num_heads": 4}\n')
        return folder

    return write


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small only lose by being shared between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden training checkpoint converted with verification, by format."""
    return {
        form: convert(TRAINED, "4k", tmp_path_factory.mktemp(form), num_heads=HEADS, file_format=form, verify=True)
        for form in FORMATS
    }


@pytest.fixture(scope="session")
def trained() -> dict[str, Tensor]:
    """The golden training checkpoint's tensors."""
    return dict(open_tensors(TRAINED))


@pytest.fixture
def alter(tmp_path: Path, trained: dict[str, Tensor]) -> Alter:
    """Writes the training checkpoint with changes, named without the prefix; `None` takes a tensor out."""

    def alter(changes: Mapping[str, Tensor | None]) -> Path:
        changed = {**trained, **{PREFIX + name: tensor for name, tensor in changes.items()}}
        path = tmp_path / "vision_tower.pth"
        torch.save({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
        return path

    return alter


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[..., str]:
    """Converts into a root that holds something, expects a `WeightsError` that names the checkpoint and no change."""

    def refusal(checkpoint: Path, size: str = "4k", file_format: str = "pth", num_heads: int = HEADS) -> str:
        root, absent = tmp_path / "root", tmp_path / "absent"
        (root / "converted_16k").mkdir(parents=True, exist_ok=True)
        (root / "converted_16k" / "viq.json").write_text("{}")
        before = sorted(root.rglob("*")), contents(root)
        for target in (root, absent):
            with pytest.raises(WeightsError) as caught:
                convert(checkpoint, size, target, num_heads=num_heads, file_format=file_format)
        assert (sorted(root.rglob("*")), contents(root)) == before
        assert not absent.exists()
        assert str(checkpoint) in str(caught.value)
        return str(caught.value)

    return refusal


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A random RGB image."""
    return np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)
