"""`viq extract verify`: a good output is proved to be one, and what is wrong or missing is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_verify_proves_a_good_output_and_finds_what_is_wrong(viq: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    viq("extract", photos, "-o", out, "--shard-items", 10)
    code, said, _ = viq("extract", "verify", out)
    assert code == 0
    assert "3 shards read, 21 images in them, 23 encoded again" in said

    (photos / "d0" / "000.png").write_bytes((photos / "d0" / "003.png").read_bytes())
    code, said, _ = viq("extract", "verify", out, photos)
    assert code == 1
    assert "d0/000.png: is of" in said

    shard = out / "codes-000001.tar"
    data = bytearray(shard.read_bytes())
    data[1500] ^= 1
    shard.write_bytes(data)
    code, said, _ = viq("extract", "verify", out)
    assert code == 1
    assert "codes-000001.tar: its checksum is" in said
    assert "IS NOT WHAT IT SAYS" in said


def test_verify_misses_what_is_not_there(viq: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    viq("extract", photos, "-o", out, "--shard-items", 6)
    shard, manifest = out / "codes-000001.tar", out / "manifest.json"
    whole, listed = shard.read_bytes(), manifest.read_text()
    for damage in (shard.unlink, lambda: shard.write_bytes(whole[:-512])):
        damage()
        code, said, _ = viq("extract", "verify", out)
        assert (code, "codes-000001.tar: is missing, or not as long" in said) == (1, True), said
        assert "3 shards read" in said  # the others are looked at
        shard.write_bytes(whole)
    changed = json.loads(listed)
    changed["shard_list"][2]["images"] += 1
    manifest.write_text(json.dumps(changed))
    code, said, _ = viq("extract", "verify", out)
    assert (code, "codes-000002.tar: manifest.json lists it as" in said) == (1, True), said


def test_verify_reads_the_source_that_the_last_run_named(viq: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    viq("extract", photos, "-o", out)
    photos.rename(tmp_path / "moved")
    assert viq("extract", tmp_path / "moved", "-o", out)[0] == 1
    assert json.loads((out / "manifest.json").read_text())["sources"] == [str(tmp_path / "moved")]
    assert viq("extract", "verify", out)[0] == 0
