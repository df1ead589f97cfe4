"""Weights roots: folders, and names of repositories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from viq.errors import UnknownModel, WeightsError
from viq.model import ViQ
from viq.weights_root import folder_of

MakeRoot = Callable[..., Path]


@pytest.fixture
def sized(tmp_path: Path) -> Callable[..., Path]:
    """A weights root with empty folders of some sizes."""

    def make(*sizes: str) -> Path:
        for size in sizes:
            (tmp_path / "root" / f"converted_{size}").mkdir(parents=True)
        return tmp_path / "root"

    return make


def test_the_only_size_of_a_root_need_not_be_named(sized: Callable[..., Path]) -> None:
    root = sized("8k")
    (root / "converted_5k").mkdir()
    (root / "README.md").write_text("not weights")
    (root / "converted_16k").write_text("not a folder")
    for given in (root, str(root), f"{root}/"):
        assert folder_of(given, None) == (root / "converted_8k", "8k")


def test_of_several_sizes_one_is_named(sized: Callable[..., Path]) -> None:
    root = sized("16k", "64k")
    assert folder_of(root, "64k") == (root / "converted_64k", "64k")
    with pytest.raises(WeightsError, match="name a size; it holds 16k, 64k") as caught:
        folder_of(root, None)
    assert str(root) in str(caught.value)


def test_a_size_that_the_root_does_not_hold_is_refused_and_those_held_are_named(sized: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="no folder converted_4k; it holds 16k, 64k"):
        folder_of(sized("16k", "64k"), "4k")


@pytest.mark.parametrize("size", ["5k", "16K", "", "../16k", "16k/"])
def test_a_size_that_does_not_exist_is_an_unknown_model(sized: Callable[..., Path], size: str) -> None:
    with pytest.raises(UnknownModel, match="2k, 4k, 8k, 16k, 64k"):
        folder_of(sized("16k"), size)


def test_a_root_that_is_no_folder_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "absent", tmp_path / "file"):
        for size in (None, "16k"):
            with pytest.raises(WeightsError, match="no such folder") as caught:
                folder_of(root, size)
            assert str(root) in str(caught.value)
    with pytest.raises(WeightsError, match="no converted_<size> folder"):
        folder_of(tmp_path, None)


def test_the_weights_folder_itself_is_no_root(sized: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="no converted_<size> folder"):
        folder_of(sized("16k") / "converted_16k", None)


def test_loading_takes_the_only_size(make_root: MakeRoot) -> None:
    root = make_root(size="4k")
    assert ViQ.from_pretrained(root, device="cpu", parts=("encoder",)).size == "4k"
    make_root(size="16k")
    with pytest.raises(WeightsError, match="name a size"):
        ViQ.from_pretrained(root, device="cpu")
    assert ViQ.from_pretrained(str(root), "16k", device="cpu", parts=("encoder",)).size == "16k"


def test_without_a_root_there_is_nano_alone() -> None:
    with pytest.raises(UnknownModel, match="weights root"):
        ViQ.from_pretrained(None, "16k", device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:repo",
        "hf:/repo",
        "hf:org/",
        "hf:org//repo",
        "hf:org/repo@",
        "hf:org/repo@@main",
        "hf:org/repo//etc",
        "hf:org/repo/sub//etc",
        "hf:org/repo///",
        "hf:org/..",
        "hf:../..",
        "hf:org/repo/..",
        "hf:org/repo/../../etc",
        "hf:org/repo/a/../b",
        "hf:org/repo@../main",
        "hf:org/re po",
        "hf:org/repo/*",
        "hf:org/repo?x=1",
        "hf:org/repo#main",
        "hf:https://example.org/org/repo",
        "hf:org/repo\n",
    ],
)
def test_a_malformed_hub_name_is_refused_before_anything_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for size in (None, "16k"):
        with pytest.raises(WeightsError, match=r"hf:ORG/REPO\[/SUBDIR\]\[@REV\]"):
            folder_of(name, size)
