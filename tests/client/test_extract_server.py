"""`viq extract` at services: the same shards as on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from viq_serving.cli.main import main

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
