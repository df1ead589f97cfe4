"""A run: what is in the shards, what happens when it is cut short, and what is refused."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from viq import Codes, ViQ
from viq_serving.client import CodesFolder
from viq_serving.extract.errors import OutputMismatch, PlaceError
from viq_serving.extract.output import Output, Record
from viq_serving.extract.places import Disk

VIQ = Path(sys.executable).with_name("viq")
Extract = Callable[..., dict[str, Any] | None]
Run = Callable[..., tuple[int, str, str]]
Samples = Callable[..., list[dict[str, Any]]]


def files(folder: Path) -> dict[str, bytes]:
    """What a finished output holds."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def expected(photos: Path, model: ViQ) -> dict[str, Codes]:
    keys = [f"d{i % 3}/{i:03d}.png" for i in range(23) if i not in (4, 17)]
    return dict(zip(keys, model.encode([Image.open(photos / key) for key in keys]), strict=True))


def test_the_command_writes_what_the_webdataset_package_reads(
    viq: Run, samples: Samples, photos: Path, model: ViQ, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, err = viq("extract", photos, "-o", out, "--shard-items", 10, "--fields", "txt")
    assert code == 1
    assert "21 images in 3 shards" in said
    assert "2 images failed" in err
    codes = expected(photos, model)
    found = list(webdataset.decode()(iter(samples(*sorted(out.glob("*.tar"))))))
    assert [one["codes.json"]["key"] for one in found] == sorted(codes)
    for one in found:
        about, array = one["codes.json"], one["codes.npy"]
        assert array.dtype == np.uint16
        assert Codes(array, tuple(about["image_size"]), about["size"], about["fingerprint"]) == codes[about["key"]]
        assert list(array.shape[:2]) == about["grid"]
        assert one.get("txt") == ("the first" if about["key"] == "d0/000.png" else None)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["items"], manifest["images"], manifest["failed"]) == (23, 21, 2)
    assert manifest["patches"] == sum(one.grid[0] * one.grid[1] for one in codes.values())
    assert manifest["fingerprint"] == model.fingerprint
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(one["key"], one["code"]) for one in failures] == [
        ("d1/004.png", "invalid_input"), ("d2/017.png", "invalid_input"),
    ]  # fmt: skip


def test_several_devices_make_the_same_shards(viq: Run, photos: Path, tmp_path: Path) -> None:
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        assert viq("extract", photos, "-o", tmp_path / name, "--shard-items", 10, "--device", device)[0] == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert viq("extract", photos, "-o", tmp_path / "three", "--device", "cpu,nosuch")[0] == 2


def test_parquet_shards_hold_the_same(extract: Extract, photos: Path, model: ViQ, tmp_path: Path) -> None:
    extract(photos, tmp_path / "out", format="parquet", reading={"fields": ["txt"]})
    codes = expected(photos, model)
    rows = [row for path in sorted((tmp_path / "out").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert pq.read_schema(tmp_path / "out" / "codes-000000.parquet").field("codes").type.value_type == "uint16"
    assert [row["key"] for row in rows] == sorted(codes)
    for row in rows:
        made = Codes.from_flat(row["codes"], row["grid"], row["size"], row["image_size"], row["fingerprint"])
        assert made == codes[row["key"]]
    assert rows[0]["fields"] == [("txt", b"the first")]


def test_another_run_changes_nothing(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "out")
    before, times = files(tmp_path / "out"), (tmp_path / "out" / "codes-000000.tar").stat().st_mtime_ns
    extract(photos, tmp_path / "out")
    assert files(tmp_path / "out") == before
    assert (tmp_path / "out" / "codes-000000.tar").stat().st_mtime_ns == times


def test_a_run_cut_short_anywhere_goes_on_to_the_same_end(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "whole")
    whole = files(tmp_path / "whole")
    for missing in (
        ["manifest.json", "failures.jsonl"],
        ["manifest.json", "codes-000002.json"],
        ["manifest.json", "codes-000001.tar", "codes-000000.json"],
        sorted(whole)[:-1],
    ):
        for name in missing:
            (tmp_path / "whole" / name).unlink()
        (tmp_path / "whole" / ".unfinished--x").mkdir()
        (tmp_path / "whole" / ".unfinished--x" / "codes-000002.tar").write_bytes(b"half of it")
        if "codes-000001.tar" not in missing:
            (tmp_path / "whole" / "codes-000001.tar").write_bytes(b"not even half")
        extract(photos, tmp_path / "whole")
        assert files(tmp_path / "whole") == whole


def test_killed_again_and_again_the_result_is_that_of_an_unbroken_run(viq: Run, photos: Path, tmp_path: Path) -> None:
    arguments = ["extract", str(photos), "--shard-items", "4", "-o"]
    assert viq(*arguments, tmp_path / "whole")[0] == 1
    command = [str(VIQ), *arguments]
    out = tmp_path / "out"
    for shards in (0, 2):
        with subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(out.glob("codes-*"))) < 2 * shards + 1:
                threading.Event().wait(0.001)
            process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.json").exists()
    assert viq(*arguments, out)[0] == 1
    assert files(out) == files(tmp_path / "whole")
    assert not list(out.glob(".unfinished*"))


def test_another_fingerprint_or_form_is_refused(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "out")
    with pytest.raises(OutputMismatch, match=rf"begun with fingerprint .*now '{'0' * 16}'"):
        extract(photos, tmp_path / "out", fingerprint="0" * 16)
    with pytest.raises(OutputMismatch, match="shard_items 10, now 11"):
        extract(photos, tmp_path / "out", shard_items=11)


def test_a_source_that_is_no_longer_what_it_was_is_refused(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "out")
    before = files(tmp_path / "out")
    new = photos / "d1" / "000.png"
    new.write_bytes((photos / "d0" / "000.png").read_bytes())
    with pytest.raises(OutputMismatch, match=r"no longer gives what .*codes-000000\.tar"):
        extract(photos, tmp_path / "out")
    new.unlink()
    last = photos / "z.png"
    last.write_bytes((photos / "d0" / "000.png").read_bytes())
    with pytest.raises(OutputMismatch, match=r"codes-000002\.tar"):
        extract(photos, tmp_path / "out")
    last.unlink()
    for path in (photos / "d2").iterdir():
        path.unlink()
    with pytest.raises(OutputMismatch):
        extract(photos, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_parts_on_several_machines_make_one_whole(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "whole")
    assert extract(photos, tmp_path / "out", part=(1, 2)) is None
    assert not (tmp_path / "out" / "codes-000000.tar").exists()
    assert extract(photos, tmp_path / "out", part=(0, 2)) is not None
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    extract: Extract, photos: Path, tmp_path: Path, form: str
) -> None:
    extract(photos, tmp_path / "whole", format=form)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, most))  # as good as a disk that is full in the first shard
    try:
        with pytest.raises(PlaceError, match="File too large"):
            extract(photos, tmp_path / "out", format=form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob(".unfinished*"))
    extract(photos, tmp_path / "out", format=form)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_keys_of_any_kind_come_back(extract: Extract, tmp_path: Path) -> None:
    names = ["a.b.c.png", "ä/ö ü.png", "..x/y.png", "~1/%2E.png", "日本/x.. .png", "d/e/f.PNG"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(tmp_path / "in" / name, "PNG")
    seen = [name for name in names if not name.startswith(".")]  # what begins with a dot is left out
    for form in ("webdataset", "parquet"):
        extract(tmp_path / "in", tmp_path / form, format=form)
        with CodesFolder(tmp_path / form) as folder:
            assert sorted(row.key for row in folder) == sorted(seen)


def test_two_runs_do_not_write_one_place_at_once(tmp_path: Path) -> None:
    with Output(str(tmp_path)).opened():
        with pytest.raises(PlaceError, match="being written by another"), Output(str(tmp_path)).opened():
            pass
        with Output(str(tmp_path)).opened("1-2"):  # another part
            pass
    with Output(str(tmp_path)).opened():
        assert list(tmp_path.iterdir())


def test_any_file_system_will_do_for_the_output(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "out")
    memory = fsspec.filesystem("memory")
    try:
        extract(photos, "memory://made/out")
        manifest = extract(photos, "memory://made/out")
        assert manifest is not None
        assert {Path(name).name: memory.cat(name) for name in memory.ls("/made/out", detail=False)} == files(
            tmp_path / "out"
        )
    finally:
        memory.rm("/made", recursive=True)


def test_shards_after_a_gap_of_a_source_that_became_shorter_are_noticed(
    extract: Extract, photos: Path, tmp_path: Path
) -> None:
    assert extract(photos, tmp_path / "out", shard_items=4, part=(1, 4)) is None  # shards 1 and 5
    for path in [*(photos / "d1").iterdir(), *(photos / "d2").iterdir()]:
        path.unlink()
    (tmp_path / "out" / "codes-000001.json").unlink()
    with pytest.raises(OutputMismatch, match=r"codes-000005\.tar"):
        extract(photos, tmp_path / "out", shard_items=4)


def test_of_two_runs_that_begin_at_once_one_is_refused(extract: Extract, photos: Path, tmp_path: Path) -> None:
    extract(photos, tmp_path / "whole")
    run = Output(str(tmp_path / "whole")).begun()
    assert run is not None
    other = replace(run, fingerprint="f" * 16)
    disk, local = Disk(), [tmp_path / name for name in ("first", "second")]
    for path in local:
        path.write_text(path.name)
    assert [disk.put_first(path, str(tmp_path / "put")) for path in local] == [True, False]
    assert (tmp_path / "put").read_text() == "first"
    memory = fsspec.filesystem("memory")
    try:
        one = Output("memory://two/out")
        with one.opened():
            one.begin(run)
            memory.pipe_file("/two/out/extract.json", json.dumps(asdict(other)).encode())  # who looked as early
            one.new("codes-000000.tar").write_bytes(b"a shard")
            with pytest.raises(OutputMismatch, match="begun with fingerprint 'ffff"):
                one.finish(Record("codes-000000.tar"))
        assert [Path(name).name for name in memory.ls("/two/out", detail=False)] == ["extract.json"]
    finally:
        memory.rm("/two", recursive=True)


def test_what_cannot_be_meant_is_told_at_once(viq: Run, photos: Path, tmp_path: Path) -> None:
    for arguments, code, reason in (
        ([photos], 2, "-o OUT is needed"),
        ([photos, "a.tar", "-o", tmp_path], 2, "several kinds"),
        ([f"{tmp_path}/*.tar", "-o", f"{tmp_path}/"], 2, "codes-000000.tar for a source: write to another folder"),
        ([tmp_path / "absent.tar", "-o", tmp_path], 3, "no such file"),
        (["verify", tmp_path / "absent"], 3, "holds nothing"),
        ([photos, "-o", tmp_path, "--part", "2/2"], 2, "no part"),
        ([tmp_path / "absent", "-o", tmp_path / "a"], 3, "no such file"),
        ([photos / "d0" / "*.tiff", "-o", tmp_path / "b"], 2, "no image"),
        (["nosuch://x", "-o", tmp_path / "out"], 3, "nosuch"),
    ):
        got, _, err = viq("extract", *arguments)
        assert (got, reason in err) == (code, True), err


def test_a_service_that_is_not_there_ends_the_run_without_failures_listed(
    viq: Run, photos: Path, tmp_path: Path
) -> None:
    code, _, err = viq("extract", photos, "-o", tmp_path / "out", "--server", "127.0.0.1:1")
    assert (code, "no answer" in err) == (3, True)
    assert not (tmp_path / "out" / "failures.jsonl").exists()
