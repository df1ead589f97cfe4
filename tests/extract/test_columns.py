"""Columns of Parquet sources: they travel along with their types, whatever they are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from viq import Codes
from viq.errors import InvalidInput
from viq_serving.client import CodesFolder
from viq_serving.extract import sinks
from viq_serving.extract.errors import PlaceError

Extract = Callable[..., dict[str, Any] | None]
Samples = Callable[..., list[dict[str, Any]]]


def test_columns_of_parquet_travel_into_both_forms(
    extract: Extract, samples: Samples, photos: Path, tmp_path: Path
) -> None:
    images = [(photos / f"d{i % 3}" / f"{i:03d}.png").read_bytes() for i in range(4)]
    table = pa.table({"key": ["a", "a", "b", "c"], "image": images, "label": [1, 2, 3, 4], "mask": [b"m"] * 4})
    pq.write_table(table, tmp_path / "in.parquet")
    extract(tmp_path / "in.parquet", tmp_path / "rows", format="parquet")
    made = pq.read_table(tmp_path / "rows" / "codes-000000.parquet")
    assert made.column("label").to_pylist() == [1, 2, 3, 4]
    assert made.schema.field("label").type == "int64"
    extract(tmp_path / "in.parquet", tmp_path / "tars")
    found = samples(tmp_path / "tars" / "codes-000000.tar")
    assert [one["__key__"] for one in found] == ["a", "a~2", "b", "c"]  # the key itself is in codes.json
    assert [json.loads(one["json"]) for one in found] == [{"label": i} for i in (1, 2, 3, 4)]
    assert found[0]["mask"] == b"m"


def test_columns_named_as_ours_travel_under_another_name(
    extract: Extract, samples: Samples, photos: Path, tmp_path: Path
) -> None:
    image = (photos / "d0" / "000.png").read_bytes()
    columns = {"key": ["k"], "image": [image], "size": [len(image)], "grid": ["north"], "fields": ["corn"]}
    more = {"json": [b"{}"], "a/b.txt": [b"slash"], "codes.npy": [b"not ours"]}
    pq.write_table(pa.table({**columns, **more}), tmp_path / "in.parquet")
    extract(tmp_path / "in.parquet", tmp_path / "rows", format="parquet")
    extract(tmp_path / "in.parquet", tmp_path / "tars")
    with CodesFolder(tmp_path / "rows") as rows, CodesFolder(tmp_path / "tars") as tars:
        assert rows[0].codes == tars[0].codes
        own = {"source_size": len(image), "source_grid": "north", "fields": "corn"}
        assert rows[0].fields == {**own, "json": b"{}", "a/b.txt": b"slash", "codes.npy": b"not ours"}
        plain = {"size": len(image), "grid": "north", "fields": "corn"}
        assert json.loads(tars[0].fields["json"]) == plain
    (found,) = samples(tmp_path / "tars" / "codes-000000.tar")
    assert (found["source_json"], found["a%2fb.txt"], found["source_codes.npy"]) == (b"{}", b"slash", b"not ours")
    pq.write_table(pa.table({**columns, "source_size": [1]}), tmp_path / "both.parquet")
    with pytest.raises(InvalidInput, match="cannot be written beside"):
        extract(tmp_path / "both.parquet", tmp_path / "both", format="parquet")


def test_rows_with_large_fields_are_written_in_small_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sinks, "_GROUP_FIELDS_BYTES", 1000)
    sink = sinks.sink_of("parquet", tmp_path / "a.parquet", None)
    for i in range(10):
        sink.add(str(i), Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), "nano"), {"txt": bytes(400)})
    sink.close()
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 3, 1]


def test_files_whose_columns_are_of_other_types_end_the_run_and_say_so(
    extract: Extract, photos: Path, tmp_path: Path
) -> None:
    image = (photos / "d0" / "000.png").read_bytes()
    for name, label in (("a", 1), ("b", "one")):
        pq.write_table(pa.table({"image": [image], "label": [label]}), tmp_path / f"{name}.parquet")
    with pytest.raises(PlaceError, match="not of the type that it has in the first file"):
        extract(tmp_path / "*.parquet", tmp_path / "out", format="parquet")
