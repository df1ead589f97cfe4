"""Weights roots that are repositories of a hub, which here is a real server on a loopback port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.viq.hub import REVISION, Hub

from viq.model import ViQ

MakeRoot = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one empty repository org/repo."""
    made = Hub(tmp_path / "hub home")
    yield made
    made.stop()


@pytest.fixture
def stocked(hub: Hub, make_root: MakeRoot) -> Hub:
    """A hub whose repository holds a model under sub/deep/, another size beside it, and much else."""
    folder = make_root() / "converted_16k"
    for file in folder.iterdir():
        hub.files[f"sub/deep/converted_16k/{file.name}"] = file.read_bytes()
        hub.files[f"elsewhere/converted_16k/{file.name}"] = b"not wanted"
    for name in ("README.md", "converted_16k/loader.py", "config.json", "head.so", "model.pt2", "viq.json.bak"):
        hub.files[f"sub/deep/{name}"] = b"not wanted"
        hub.files[f"sub/deep/converted_16k/{name}"] = b"not wanted"
    hub.files["sub/deep/converted_4k/embedder.pth"] = b"not wanted"
    return hub


WANTED = {
    f"sub/deep/converted_16k/{n}" for n in ("model_viq_fsq_16k.pth", "embedder.pth", "index_drawer.pth", "viq.json")
}


def test_a_hub_folder_at_a_revision_is_fetched_loads_and_encodes(stocked: Hub, make_root: MakeRoot) -> None:
    code = """
import sys
import numpy as np
from viq.model import ViQ
model = ViQ.from_pretrained(sys.argv[1], "16k", device="cpu", dtype="float32")
codes = model.encode([np.full((20, 30, 3), 77, np.uint8)])
print(model.fingerprint, model.decode(codes)[0].shape, *codes[0].flat)
"""
    local = ViQ.from_pretrained(make_root(), device="cpu", dtype="float32")
    codes = local.encode([np.full((20, 30, 3), 77, np.uint8)])[0]
    expected = " ".join(map(str, (local.fingerprint, (20, 30, 3), *codes.flat)))
    assert stocked.call(code, "hf:org/repo/sub/deep@v1") == expected
    assert any(line.endswith("/revision/v1") for line in stocked.asked)


@pytest.mark.parametrize("name", ["hf:org/repo/sub/deep", "hf:org/repo/sub/deep/", f"hf:org/repo/sub/deep@{REVISION}"])
def test_only_the_weights_of_the_size_are_fetched(stocked: Hub, name: str) -> None:
    folder = Path(stocked.folder_of(name, "16k"))
    assert folder.parts[-3:] == ("sub", "deep", "converted_16k")
    assert stocked.fetched() == WANTED
    assert {p.name for p in folder.iterdir()} == {Path(name).name for name in WANTED}


def test_safetensors_of_a_repository_without_subfolders_are_fetched_too(hub: Hub) -> None:
    hub.files = {f"converted_16k/{n}": b"x" for n in ("embedder.safetensors", "viq.json", "notes.txt")}
    folder = Path(hub.folder_of("hf:org/repo"))
    assert {p.name for p in folder.iterdir()} == {"embedder.safetensors", "viq.json"}


def test_of_several_sizes_on_a_hub_none_is_fetched_until_one_is_named(stocked: Hub) -> None:
    told = stocked.folder_of("hf:org/repo/sub/deep")
    assert told.startswith("WeightsError: ")
    assert "name a size; it holds 4k, 16k" in told
    assert stocked.fetched() == set()


def test_a_hub_folder_that_holds_no_such_size_or_does_not_exist_is_refused(stocked: Hub) -> None:
    asked = (("hf:org/repo/sub/deep", "64k"), ("hf:org/repo", "16k"), ("hf:org/repo/absent", ""))
    for told in stocked.folders_of(*asked):
        assert told.startswith("WeightsError: weights root ")
        assert "no such folder" in told or "no folder converted_" in told or "no converted_<size> folder" in told
    assert stocked.fetched() == set()


def test_what_was_fetched_is_used_without_the_hub(stocked: Hub) -> None:
    first = stocked.folder_of("hf:org/repo/sub/deep@main", "16k")
    stocked.asked.clear()
    both = [("hf:org/repo/sub/deep@main", size) for size in ("16k", "")]
    assert stocked.folders_of(*both, HF_HUB_OFFLINE="1") == [first, first]
    assert stocked.asked == []
    assert stocked.folders_of(*both, HF_ENDPOINT="http://127.0.0.1:9") == [first, first]


@pytest.mark.parametrize("size", ["16k", ""])
def test_a_repository_or_revision_that_does_not_exist_is_a_weights_error(hub: Hub, size: str) -> None:
    names = ("hf:org/other", "hf:org/repo@absent")
    for name, told in zip(names, hub.folders_of(*((name, size) for name in names)), strict=True):
        assert told.startswith(f"WeightsError: weights root {name}: could not be fetched")
        assert "404" in told


@pytest.mark.parametrize("size", ["16k", ""])
def test_without_the_hub_and_without_a_copy_it_is_a_weights_error(hub: Hub, size: str) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        told = hub.folder_of("hf:org/repo", size, **environment)
        assert told.startswith("WeightsError: weights root hf:org/repo: could not be fetched")


@pytest.mark.parametrize("size", ["16k", ""])
def test_a_hub_that_hangs_up_is_a_weights_error(hub: Hub, size: str) -> None:
    hub.hangs_up = True
    assert hub.folder_of("hf:org/repo", size).startswith("WeightsError: weights root hf:org/repo: could not be fetched")
    assert hub.asked


def test_a_name_that_the_hub_itself_would_not_take_is_a_weights_error(hub: Hub) -> None:
    names = ("hf:-org/repo", "hf:org/repo.git", "hf:org/re--po")
    for name, told in zip(names, hub.folders_of(*((name, "16k") for name in names)), strict=True):
        assert told.startswith(f"WeightsError: weights root {name}: could not be fetched")


def test_a_hostile_pickle_from_a_hub_is_refused_and_never_runs(stocked: Hub, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    stocked.files["sub/deep/converted_16k/embedder.pth"] = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    code = """
import sys
from viq.errors import WeightsError
from viq.model import ViQ
try:
    ViQ.from_pretrained(sys.argv[1], "16k", device="cpu")
except WeightsError as error:
    print(error)
"""
    assert "embedder.pth" in stocked.call(code, "hf:org/repo/sub/deep")
    assert not marker.exists()
