"""Places: a finished file appears in one step, and what was half-written under its name never shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from viq_serving.extract.errors import PlaceError
from viq_serving.extract.places import Disk, Place, Remote, place_of


class Watched(fsspec.get_filesystem_class("file")):  # type: ignore[misc]
    """The local file system as one that is far away; it notes what was written and moved."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.steps.append(f"put {Path(rpath).name}")
        super().put_file(lpath, rpath)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        self.steps.append(f"mv {Path(path1).name} {Path(path2).name}")
        super().mv(path1, path2)


def test_a_file_is_put_under_another_name_first_where_half_of_it_could_be_seen(tmp_path: Path) -> None:
    for protocol, steps in (("sftp", ["put a.tar.part", "mv a.tar.part a.tar"]), ("s3", ["put a.tar"])):
        system, local = Watched(), tmp_path / "local"
        local.write_bytes(b"whole")
        (tmp_path / "out").mkdir(exist_ok=True)
        Remote(protocol, system).put(local, str(tmp_path / "out" / "a.tar"))
        assert system.steps == steps
        assert (tmp_path / "out" / "a.tar").read_bytes() == b"whole"
        assert not local.exists()


@pytest.mark.parametrize("place", [Disk(), Remote("sftp", Watched())], ids=["disk", "remote"])
def test_both_kinds_of_place_tell_the_same(place: Place, tmp_path: Path) -> None:
    place.make_folder(f"{tmp_path}/a/b")
    (tmp_path / "a" / "c.txt").write_bytes(b"four")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert sorted(entry for entry in place.entries(f"{tmp_path}/a") if entry[0] != "loop") == [
        ("b", True), ("c.txt", False),
    ]  # fmt: skip
    assert (place.is_folder(f"{tmp_path}/a"), place.is_folder(f"{tmp_path}/a/c.txt")) == (True, False)
    assert (place.size(f"{tmp_path}/a/c.txt"), place.size(f"{tmp_path}/absent")) == (4, None)
    place.remove(f"{tmp_path}/a/c.txt")
    place.remove(f"{tmp_path}/a/c.txt")
    assert place.size(f"{tmp_path}/a/c.txt") is None


def test_an_address_that_leads_nowhere_is_told() -> None:
    with pytest.raises(PlaceError, match="nosuch"):
        place_of("nosuch://x")
    assert isinstance(place_of("file:///tmp/x")[0], Disk)
