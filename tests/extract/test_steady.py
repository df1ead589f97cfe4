"""File systems that fail: in passing nothing is lost, for good the run ends, and of one file only that one fails."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from viq.errors import InvalidInput
from viq_serving.extract import steady
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.sources import Reading, source_of

Extract = Callable[..., dict[str, Any] | None]


class Refused(Exception):
    """What a store's own library raises for an HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """Memory far away: reads and uploads fail as they are told."""

    protocol = "flaky"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures: ClassVar[list[Exception]] = []
    seldom: ClassVar[int] = 1
    reads: ClassVar[int] = 0
    just_failed: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("flaky://"))
        return stripped

    @classmethod
    def fail(cls, path: str) -> None:
        """Fail every so many times; if seldom, then never twice in a row with one file, whatever threads there are."""
        Flaky.reads += 1
        again = cls.seldom > 1 and path in cls.just_failed
        cls.just_failed.discard(path)
        if cls.failures and Flaky.reads % cls.seldom == 0 and not again:
            cls.just_failed.add(path)
            raise cls.failures.pop()

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        opened = super().open(path, mode, **kwargs)
        if mode == "rb":

            def read(size: int = -1) -> bytes:
                data: bytes = MemoryFile.read(opened, size)
                self.fail(path)  # the place in the file has moved on by then
                return data

            opened.read = read
        return opened

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.fail(rpath)
        super().put_file(lpath, rpath, **kwargs)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Flaky]]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(steady, "PAUSES_S", (0.0, 0.0))
    Flaky.failures, Flaky.seldom, Flaky.reads, Flaky.just_failed = [], 1, 0, set()
    yield Flaky
    Flaky.store.clear()


def filled(photos: Path) -> None:
    system = Flaky()
    images = {path.name: path.read_bytes() for path in sorted(photos.rglob("*.png")) if path.name[0] != "."}
    for name, data in images.items():
        system.pipe_file(f"/in/{name}", data)
    table = pa.table({"key": list(images), "image": list(images.values())})
    pq.write_table(table, "/in/rows.parquet", filesystem=system)


@pytest.mark.parametrize("source", ["flaky://in", "flaky://in/*.parquet"])
@pytest.mark.parametrize("error", [TimeoutError(), OSError(5, "lost"), RuntimeError("a library's own")])
def test_what_fails_in_passing_is_read_again(
    extract: Extract, photos: Path, flaky: type[Flaky], source: str, error: Exception
) -> None:
    filled(photos)
    flaky.failures, flaky.seldom = [error] * 20, 3
    manifest = extract(source, "flaky://out")
    assert manifest is not None
    assert (manifest["images"], manifest["failed"]) == (21, 2)
    assert len(flaky.failures) < 20


@pytest.mark.parametrize("source", ["flaky://in", "flaky://in/*.parquet"])
def test_a_place_that_does_not_come_back_ends_the_run_and_no_image_is_blamed(
    extract: Extract, photos: Path, flaky: type[Flaky], tmp_path: Path, source: str
) -> None:
    filled(photos)
    extract(source, tmp_path / "whole")
    given = source_of([source], Reading())
    flaky.failures = [ConnectionError("gone")] * 10**4
    with pytest.raises(PlaceError, match="gone"):
        [item.content() for item in given.items(lambda position: True)]
    with pytest.raises(PlaceError, match="gone"):
        extract(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("codes-*"))
    flaky.failures = []
    extract(source, tmp_path / "out")
    for path in (tmp_path / "whole").glob("[a-z]*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), Refused(403), FileNotFoundError(2, "gone")])
def test_one_file_that_is_refused_fails_alone(
    extract: Extract, photos: Path, flaky: type[Flaky], error: Exception, tmp_path: Path
) -> None:
    filled(photos)
    flaky.failures, flaky.seldom = [error], 3
    manifest = extract("flaky://in", tmp_path / "out")
    assert manifest is not None
    assert (manifest["images"], manifest["failed"]) == (20, 3)


def test_a_machine_without_another_file_to_open_blames_no_image(photos: Path) -> None:
    (item, *_) = source_of([str(photos / "d0")], Reading()).items(lambda position: True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(PlaceError, match="Too many open files"):
            item.content()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (photos / "d0" / "000.png").unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        item.content()


def test_a_file_far_away_is_read_as_any_other() -> None:
    system = Flaky()
    system.pipe_file("/a", b"0123456789")
    with steady.SteadyFile("a", system.open("/a")) as file:
        assert (file.readable(), file.seekable(), file.read(3), file.tell()) == (True, True, b"012", 3)
        buffer = bytearray(4)
        assert (file.readinto(buffer), bytes(buffer), file.seek(-2, 2), file.readall()) == (4, b"3456", 8, b"89")
        assert (file.read(5), file.readinto(buffer)) == (b"", 0)
    assert isinstance(file._file, MemoryFile)
