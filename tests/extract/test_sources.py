"""What sources give: every image once, in an order that never changes, whatever is wrong with some."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from viq.errors import InvalidInput, TooLarge
from viq_serving.extract import parquet_source
from viq_serving.extract.errors import PlaceError
from viq_serving.extract.sources import Item, Pictures, Reading, Source, names_file, source_of

Samples = Callable[..., list[dict[str, Any]]]


def png(seed: int, height: int = 20, width: int = 35) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def keys(source: Source, wanted: Callable[[int], bool] = lambda position: True) -> list[str]:
    return [item.key for item in source.items(wanted)]


def items(*addresses: object, **reading: Any) -> list[Item]:
    return list(source_of([str(one) for one in addresses], Reading(**reading)).items(lambda position: True))


def test_a_folder_gives_its_pictures_by_name_and_nothing_else(photos: Path) -> None:
    found = keys(source_of([str(photos)], Reading()))
    assert found == sorted(f"d{i % 3}/{i:03d}.png" for i in range(23))
    source = Pictures([str(photos)], Reading())
    source.count(lambda: False)
    assert source.total == 23


def test_patterns_files_and_several_folders_give_keys_that_tell_them_apart(photos: Path) -> None:
    assert keys(source_of([f"{photos}/d1/*.png"], Reading()))[:2] == ["001.png", "004.png"]
    assert keys(source_of([f"{photos}/**/00[0-2].png"], Reading())) == ["d0/000.png", "d1/001.png", "d2/002.png"]
    both = keys(source_of([f"{photos}/{{d2,d1}}"], Reading()))
    assert both[0] == "d2/002.png"
    assert "d1/001.png" in both
    assert keys(source_of([f"{photos}/d0/000.png"], Reading())) == ["000.png"]


def test_files_beside_a_picture_travel_along_where_they_are(photos: Path) -> None:
    first, second, *_ = items(photos, fields=["txt"])
    assert (first.fields["txt"](), second.fields["txt"]()) == (b"the first", None)


def test_a_name_that_looks_like_a_pattern_and_is_there_is_that_name(tmp_path: Path) -> None:
    folder = tmp_path / "[2020] trip"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    (tmp_path / "2.png").write_bytes(png(1))
    tar_of(tmp_path / "set[1].tar", [("b.png", png(2))])
    assert keys(source_of([str(folder)], Reading())) == ["a.png"]
    assert keys(source_of([str(folder / "a.png")], Reading())) == ["a.png"]
    assert keys(source_of([f"{tmp_path}/[12].png"], Reading())) == ["2.png"]
    assert keys(source_of([str(tmp_path / "set[1].tar")], Reading())) == ["b"]


def test_patterns_that_stand_for_a_file_to_come_are_known(tmp_path: Path) -> None:
    out = f"{tmp_path}/out"
    for pattern, name, there in (
        (f"{out}/*.tar", f"{out}/codes-000000.tar", True),
        (f"{out}/*.tar", f"{out}/codes-000000.parquet", False),
        (f"{tmp_path}/**/*.tar", f"{out}/codes-000000.tar", True),
        (f"{tmp_path}/*.tar", f"{out}/codes-000000.tar", False),
        (f"{out}/train-*.tar", f"{out}/codes-000000.tar", False),
        (f"{out}/{{train,codes}}-*.tar", f"{out}/codes-000000.tar", True),
        (f"{out}/codes-000000.tar", f"{out}/codes-000000.tar", False),
        ("s3://a/b/*.tar", "s3://a/b/codes-000000.tar", True),
        ("s3://a/b/*.tar", "gs://a/b/codes-000000.tar", False),
        ("/**/*.tar", f"{out}/codes-000000.tar", True),
    ):
        assert names_file([pattern], name) is there, pattern


def test_a_folder_that_is_not_there_ends_it(tmp_path: Path) -> None:
    for name in ("absent", "absent.png"):
        with pytest.raises(PlaceError, match="no such file"):
            items(tmp_path / name)
    for suffix in ("png", "tar", "parquet"):
        with pytest.raises(PlaceError, match="No such file"):
            items(tmp_path / "absent" / f"*.{suffix}")
    with pytest.raises(PlaceError, match="no such file"):
        items(tmp_path / "absent.tar")


def test_a_tar_gives_the_samples_that_webdataset_gives(samples: Samples, tmp_path: Path) -> None:
    members = [
        ("a/0.png", png(0)),
        ("a/0.txt", b"zero"),
        ("a/0.JSON", b"{}"),
        ("a/1.jpg", png(1)),
        ("a/2.x.png", png(2)),
    ]
    path = tar_of(tmp_path / "set.tar", members)
    found = items(path)
    expected: list[dict[str, Any]] = samples(path)
    assert [item.key for item in found] == [one["__key__"] for one in expected] == ["a/0", "a/1", "a/2"]
    assert found[0].fields == {"txt": expected[0]["txt"], "json": expected[0]["json"]}
    assert [item.content() for item in found] == [expected[0]["png"], expected[1]["jpg"], expected[2]["x.png"]]
    assert items(path, fields=["txt"])[0].fields == {"txt": b"zero"}


def test_samples_without_one_image_fail_and_keep_their_place(tmp_path: Path) -> None:
    members = [("0.txt", b"no image"), ("1.png", png(1)), ("1.jpg", png(2)), ("2.png", png(3)), ("2.png", png(4))]
    found = items(tar_of(tmp_path / "set.tar", members))
    assert [item.key for item in found] == ["0", "1", "2", "2"]
    for item, reason in zip(found[:2], ("no image", "several images"), strict=True):
        with pytest.raises(InvalidInput, match=reason):
            item.content()
    assert [found[2].content(), found[3].content()] == [png(3), png(4)]
    assert items(tmp_path / "set.tar", image_field="jpg")[1].content() == png(2)
    with pytest.raises(TooLarge, match="limit is 10"):
        items(tmp_path / "set.tar", max_bytes=10)[2].content()


def test_a_damaged_tar_gives_the_same_items_read_or_passed_over_and_says_what_is_lost(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", [(f"{i}.{f}", png(i)) for i in range(5) for f in ("png", "x.bin")]).read_bytes()
    after = tar_of(tmp_path / "b.tar", [("last.png", png(9))])
    header = bytearray(whole)
    header[3 * 2 * 3072 + 5] ^= 0xFF
    cuts = [whole[:n] for n in (0, 100, 512, 3000, 6144, 7000, 9728, len(whole) // 2, 30720)]
    for damaged in [*cuts, bytes(header), b"no tar at all" * 100]:
        (tmp_path / "a.tar").write_bytes(damaged)
        source = source_of([str(tmp_path / "a.tar"), str(after)], Reading())
        found = list(source.items(lambda position: True))
        assert keys(source, lambda position: False) == [item.key for item in found]
        assert [item.key for item in found[-2:]] == ["a.tar", "last"]
        with pytest.raises(InvalidInput, match="damaged"):
            found[-2].content()
        for item in found[:-2]:
            assert item.content() == png(int(item.key))


def test_headers_that_claim_too_much_are_damage_and_nothing_is_read_for_them(tmp_path: Path) -> None:
    first = tar_of(tmp_path / "a.tar", [("0.png", png(0))]).read_bytes()[: 512 * (1 + -(-len(png(0)) // 512))]
    for kind, size in ((tarfile.XHDTYPE, 2**33), (tarfile.GNUTYPE_LONGNAME, 2**40), (tarfile.REGTYPE, 2**80)):
        header = tarfile.TarInfo("1.png")
        header.size, header.type = size, kind
        (tmp_path / "a.tar").write_bytes(first + header.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
        found = items(tmp_path / "a.tar")
        assert [item.key for item in found] == ["0", "a.tar"]
        assert found[0].content() == png(0)
        with pytest.raises(InvalidInput, match=f"damaged.*{size} bytes"):
            found[1].content()


def test_compressed_tars_and_other_file_systems_give_the_same(tmp_path: Path) -> None:
    data = tar_of(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)]).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    memory = fsspec.filesystem("memory")
    memory.pipe({"/tars/a-0.tar": data, "/tars/a-1.tar": data, "/pictures/x/1.png": png(1), "/pictures/0.png": png(0)})
    try:
        once = [item.content() for item in items(tmp_path / "a.tar")]
        assert [item.content() for item in items(tmp_path / "a.tar.gz")] == once
        assert [item.content() for item in items("memory://tars/a-{0..1}.tar")] == once * 2
        assert [item.content() for item in items("memory://tars/*.tar")] == once * 2
        assert [(i.key, i.content()) for i in items("memory://pictures")] == [("0.png", png(0)), ("x/1.png", png(1))]
    finally:
        memory.rm("/tars", recursive=True)
        memory.rm("/pictures", recursive=True)


def test_rows_of_parquet_come_with_their_columns(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [png(0), None, png(2)], "key": ["a", "b", "c"], "label": [1, 2, 3], "text": ["x", "y", "z"]}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = items(tmp_path / "a.parquet")
    assert (found[0].key, found[0].fields) == ("a", {"label": 1, "text": "x"})
    assert found[2].content() == png(2)
    with pytest.raises(InvalidInput, match="empty"):
        found[1].content()
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert len(items(tmp_path / "*.parquet", fields=["text"])) == 6
    with pytest.raises(InvalidInput, match="no column colour"):
        items(tmp_path / "a.parquet", fields=["colour"])


def test_few_rows_are_held_where_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_source, "_ROWS_BYTES", 10_000)
    noise = np.random.default_rng(0).integers(0, 256, (50, 4000), np.uint8)
    pq.write_table(pa.table({"image": [row.tobytes() for row in noise]}), tmp_path / "a.parquet", compression="none")
    sizes, batches = list[int](), pq.ParquetFile.iter_batches

    def counted(file: Any, *arguments: Any, **named: Any) -> Any:
        for batch in batches(file, *arguments, **named):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert [item.content() for item in items(tmp_path / "a.parquet")] == [row.tobytes() for row in noise]
    assert max(sizes) == 2


def test_images_of_the_datasets_library_are_found_and_rows_without_keys_are_numbered(tmp_path: Path) -> None:
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "train.parquet")
    found = items(tmp_path / "train.parquet")
    assert [item.key for item in found] == [f"train/{i:09d}" for i in range(3)]
    assert [item.content() for item in found] == [png(i) for i in range(3)]


def test_damaged_parquet_fails_row_by_row_and_keeps_every_place(tmp_path: Path) -> None:
    table = pa.table({"image": [png(i) for i in range(20)], "key": [str(i) for i in range(20)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=5, compression="zstd")
    data = bytearray(path.read_bytes())
    at = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(2).column(0).data_page_offset
    data[at : at + 400] = b"\xff" * 400
    path.write_bytes(data)
    source = source_of([str(path)], Reading())
    found = list(source.items(lambda position: True))
    assert [item.key for item in found] == keys(source, lambda position: False) == [str(i) for i in range(20)]
    for item in found[10:15]:
        with pytest.raises(InvalidInput, match="damaged"):
            item.content()
    for item in found[:10] + found[15:]:
        assert item.content() == png(int(item.key))


def test_kinds_of_sources_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="several kinds"):
        source_of([str(tmp_path), "a.tar"], Reading())
