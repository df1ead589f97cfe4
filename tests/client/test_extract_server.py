"""`viq extract` at services: the same shards as on this machine."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from viq import Codes
from viq_serving.cli.main import main
from viq_serving.client import Client
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.sources import Item
from viq_serving.extract.there import There
from viq_serving.images import ImageLimits

Png = Callable[..., bytes]


def test_services_give_the_same_shards_as_this_machine(
    servers: list[Any], png: Png, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(20):
        (tmp_path / "photos" / f"{i:03d}.png").write_bytes(b"broken" if i in (4, 17) else png(i, 10 + i, 30 - i))
        (tmp_path / "photos" / f"{i:03d}.txt").write_text(f"caption {i}")
    arguments = ["extract", str(tmp_path / "photos"), "--shard-items", "10", "--fields", "txt", "-o"]
    ways = {
        "here": [],
        "grpc": ["--server", f"{servers[0].grpc},{servers[1].grpc}"],
        "http": ["--server", servers[0].http],
    }
    made, failed = {}, {}
    for name, way in ways.items():
        out = tmp_path / name
        assert main([*arguments, str(out), *way]) == 1
        made[name] = [path.read_bytes() for path in sorted(out.glob("*.tar"))]
        failed[name] = [json.loads(line)["key"] for line in (out / "failures.jsonl").read_text().splitlines()]
    assert len(made["here"]) == 2
    assert made["grpc"] == made["http"] == made["here"]
    assert failed == {way: ["004.png", "017.png"] for way in ways}
    capsys.readouterr()
    assert main(["extract", "verify", str(tmp_path / "here"), "--server", servers[1].grpc]) == 0
    assert "20 encoded again" in capsys.readouterr().out


def test_services_judge_pictures_as_this_machine_does(
    servers: list[Any], png: Png, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(12):
        even = io.BytesIO()
        Image.new("RGB", (30 + i, 20), (20 * i, 90, 120)).save(even, "PNG")
        data = png(i, 20, 30) if i % 3 == 1 else b"broken" if i % 4 == 2 else even.getvalue()
        (tmp_path / "photos" / f"{i:03d}.png").write_bytes(data)
    arguments = ["extract", str(tmp_path / "photos"), "--shard-items", "5", "--min-psnr", "15", "-o"]
    assert main([*arguments, str(tmp_path / "here")]) == 1
    expected = [json.loads(line) for line in (tmp_path / "here" / "rejected.jsonl").read_text().splitlines()]
    assert [one["key"] for one in expected] == ["001.png", "004.png", "007.png", "010.png"]
    for kind in ("grpc", "http"):
        out = tmp_path / kind
        assert main([*arguments, str(out), "--server", getattr(servers[0], kind)]) == 1
        rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
        assert [one["key"] for one in rejected] == [one["key"] for one in expected]
        assert [one["psnr"] for one in rejected] == pytest.approx([one["psnr"] for one in expected], abs=0.011)
        for path in (tmp_path / "here").glob("*.tar"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    capsys.readouterr()
    assert main(["extract", "verify", str(tmp_path / "here"), "--server", servers[1].http]) == 0
    assert main(["encode", str(tmp_path / "photos" / "001.png"), "-o", str(tmp_path), "--min-psnr", "15",
                 "--server", servers[0].http]) == 1  # fmt: skip
    assert "has 1" in capsys.readouterr().err


def test_what_one_file_makes_a_file_system_do_is_that_files_failure(servers: list[Any], png: Png) -> None:
    def strange() -> bytes:
        raise RuntimeError("nobody foresaw this")

    def lost() -> bytes:
        raise PlaceError("the place is gone")

    with Client(servers[0].grpc) as client:
        there = There(client, ImageLimits())
        first, second = there.encoded([Item(0, "a", strange), Item(1, "b", lambda: png(1))])
        assert (str(first.codes), type(second.codes)) == ("RuntimeError: nobody foresaw this", Codes)
        with pytest.raises(PlaceError, match="the place is gone"):
            list(there.encoded([Item(0, "a", lost)]))
