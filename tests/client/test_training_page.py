"""The page on training is a session that works, block after block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from viq.codes import Codes
from viq_serving.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_every_block_of_the_page_runs(
    servers: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        Image.new("RGB", (40 + i, 30), (60 * i, 90, 120)).save(photos / f"{i}.jpg")
        (photos / f"{i}.txt").write_text(f"caption {i}")
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "4.jpg", quality=95, subsampling=0)
    (photos / "4.txt").write_text("noise")
    monkeypatch.chdir(tmp_path)
    said = list[str]()
    for language, block in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        if language == "sh":
            for line in block.splitlines():
                command, *arguments = shlex.split(line)
                assert (command, main(arguments)) == ("viq", 0)
        else:
            code = block.replace("viq.example:8001", servers[0].grpc)
            exec(compile(code, "training.md", "exec"), {"__name__": "__main__"})  # noqa: S102
        out, err = capsys.readouterr()
        said.append(out + err)
    extracted, gated, verified, trained, ranks, served, looked = said
    assert "5 images in 1 shards" in extracted
    assert "1 images have less than 15 dB and were left out" in gated
    assert verified.rstrip().endswith("is what it says")
    assert sorted(line.split()[-1] for line in trained.splitlines()) == ["0", "1", "2", "3", "noise"]
    assert ranks.strip() == str([f"{i}.jpg" for i in range(5)])
    assert served.startswith("['0.jpg', '1.jpg']")
    assert looked.splitlines() == ["5 0 0.jpg (2, 3)", "(30, 40, 3)"]
    assert Codes.from_viq("one.viq").grid == (2, 3)
