"""The examples in the documentation of the client do what they say."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import viq_serving.client
from viq_serving.cli.main import main
from viq_serving.client import loaders

Png = Callable[..., bytes]


def examples(document: str | None) -> list[str]:
    """The indented blocks of a text."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", f"{document}\n", re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in blocks if block.strip()]


def test_every_example_runs(
    servers: list[Any], png: Png, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for path, seed in (("cat.png", 1), ("dog.png", 2), ("photos/a.png", 3), ("photos/b.png", 4)):
        (tmp_path / path).write_bytes(png(seed))
    (tmp_path / "photos" / "c.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    assert main(["extract", "cat.png", "dog.png", "-o", "extracted"]) == 0
    capsys.readouterr()
    said, spaces = list[str](), list[dict[str, Any]]()
    for document in (viq_serving.client.__doc__, loaders.__doc__):
        for example in examples(document):
            spaces.append({})
            exec(example.replace("viq.example:8001", servers[0].grpc), spaces[-1])  # noqa: S102
            said.append(capsys.readouterr().out)
    assert len(said) == 6
    assert [len(one) for one in spaces[0]["features"]] == [6, 6]
    assert [one.shape for one in spaces[0]["pictures"]] == [(20, 35, 3)] * 2
    assert said[1].startswith("c.png not an image")
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["a.png.npz", "b.png.npz"]
    assert spaces[2]["codes"] == spaces[0]["codes"][:1]
    assert said[3].startswith("cat.png (2, 3)")
    assert len(spaces[4]["features"]) == 12
    assert said[5].startswith("['a.png', 'b.png'] torch.Size([12, 4])")
