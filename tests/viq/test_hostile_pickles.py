"""Nothing that a file of weights carries ever runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.viq.weights_folder import (
    PART,
    Write,
    every_file,
    refusal,
    states,
)

from viq.random_weights import State


class Bomb:
    """On unpickling calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def bombs(marker: Path) -> dict[str, Bomb]:
    return {
        "os.system": Bomb(os.system, f"touch '{marker}'"),
        "os.mkdir": Bomb(os.mkdir, str(marker)),
        "exec": Bomb(exec, f"import os; os.mkdir({str(marker)!r})"),
        "torch.save": Bomb(torch.save, {}, str(marker)),
    }


WRAPPINGS: dict[str, Callable[[State, Bomb], object]] = {
    "alone": lambda _, bomb: bomb,
    "entry": lambda state, bomb: {**state, "zzz": bomb},
    "first": lambda state, bomb: {"aaa": bomb, **state},
    "nested": lambda state, bomb: {**state, "optimizer": {"state": [({"deep": bomb},)]}},
}


def dump(content: object, path: Path, form: str) -> None:
    if form == "zip":
        torch.save(content, path)
    elif form == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("call", bombs(Path()))
def test_the_hostile_pickles_here_do_run_where_pickles_are_trusted(tmp_path: Path, call: str) -> None:
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(bombs(marker)[call], protocol=2))  # noqa: S301 - the point
    assert marker.exists()
    again = tmp_path / "ran again"
    dump({"x": bombs(again)[call]}, tmp_path / "hostile.pth", "zip")
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert again.exists()


@every_file
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_hostile_pickle_is_refused_and_never_runs(write: Write, stem: str, form: str, wrapping: str) -> None:
    folder = write()
    marker = folder.parent / "ran"
    for bomb in bombs(marker).values():
        dump(WRAPPINGS[wrapping](states()[stem], bomb), folder / f"{stem}.pth", form)
        assert f"{stem}.pth" in refusal(folder, PART[stem])
        assert not marker.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_pickle_under_the_name_of_a_safetensors_file_never_runs(write: Write, form: str) -> None:
    folder = write(".safetensors")
    marker = folder.parent / "ran"
    dump({"_bias": bombs(marker)["os.system"]}, folder / "embedder.safetensors", form)
    assert "embedder.safetensors" in refusal(folder)
    assert not marker.exists()
