"""Codes for training: shards by number, batches packed, streams through a service shared over ranks and workers."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from viq import Codes, ViQ
from viq.errors import InvalidInput
from viq_serving.client import CodesFolder
from viq_serving.client.loaders import ServiceDataset, ShardDataset, packed
from viq_serving.extract.sinks import sink_of

Png = Callable[..., bytes]

FINGERPRINT = "0" * 16 + "." + "0" * 8


def coded(i: int) -> Codes:
    h, w = 1 + i % 3, 1 + i % 4
    return Codes(np.full((h, w, 4), i, np.uint16), (16 * h, 16 * w - i % 16), "nano", FINGERPRINT)


@pytest.fixture(params=["webdataset", "parquet"])
def extracted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """50 images in 3 shards, as `viq extract` leaves them."""
    rows = []
    for shard, span in enumerate((range(20), range(20, 20), range(20, 50))):
        name = f"codes-{shard:06d}.{'tar' if request.param == 'webdataset' else 'parquet'}"
        sink = sink_of(request.param, tmp_path / name, None)
        for i in span:
            sink.add(f"d/{i}.png", coded(i), {"txt": b"%d" % i} if i % 2 else {})
        sink.close()
        rows.append({"shard": name, "images": len(span)})
    (tmp_path / "manifest.json").write_text(json.dumps({"shard_list": rows}))
    return tmp_path


def test_every_image_is_found_by_number(extracted: Path) -> None:
    codes = CodesFolder(extracted)
    assert len(codes) == 50
    for i in (0, 49, 19, 20, 7, -1):
        row = codes[i]
        assert (row.key, row.codes) == (f"d/{i % 50}.png", coded(i % 50))
        assert dict(row.fields) == ({"txt": b"%d" % (i % 50)} if i % 2 else {})
    assert [row.key for row in codes] == [f"d/{i}.png" for i in range(50)]
    assert [row.key for row in codes[3:5]] == ["d/3.png", "d/4.png"]
    with pytest.raises(IndexError):
        codes[50]
    some = CodesFolder(extracted, codes.shards[2:])
    assert (len(some), some[0].key) == (30, "d/20.png")
    copy = pickle.loads(pickle.dumps(codes))  # noqa: S301
    assert copy[30] == codes[30]
    for one in (codes, some, copy):
        one.close()


def test_names_too_long_for_a_header_are_read_too(tmp_path: Path) -> None:
    keys = ["short", "d" * 90 + "/" + "ä" * 150, "x" * 300, "last"]
    sink = sink_of("webdataset", tmp_path / "a.tar", None)
    for i, key in enumerate(keys):
        sink.add(key, coded(i), {"txt": b"of %d" % i})
    sink.close()
    folder = CodesFolder(tmp_path, ["a.tar"])
    assert [(row.key, row.codes, row.fields["txt"]) for row in folder] == [
        (key, coded(i), b"of %d" % i) for i, key in enumerate(keys)
    ]
    folder.close()


def test_a_folder_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not finished"):
        CodesFolder(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(InvalidInput, match="no readable tar"):
        CodesFolder(tmp_path, ["x.tar"])
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.codes.npy"), io.BytesIO())
    folder = CodesFolder(tmp_path, ["y.tar"])
    with pytest.raises(InvalidInput, match="none of viq extract"):
        folder[0]
    folder.close()


def test_a_damaged_parquet_shard_is_noticed_and_named(tmp_path: Path) -> None:
    sink = sink_of("parquet", tmp_path / "a.parquet", None)
    for i in range(30):
        sink.add(str(i), coded(i), {})
    sink.close()
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    for at in range(60, 500, 20):
        data[at] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(data)
    with CodesFolder(tmp_path, ["a.parquet"]) as folder, pytest.raises(InvalidInput, match=r"a\.parquet: row group 0"):
        folder[0]
    import pyarrow
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table({"key": ["a"]}), tmp_path / "b.parquet")
    with CodesFolder(tmp_path, ["b.parquet"]) as folder, pytest.raises(InvalidInput, match="none of viq extract"):
        folder[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_each_image_once_in_packed_batches(extracted: Path, workers: int) -> None:
    loader = DataLoader(
        ShardDataset(extracted), batch_size=8, shuffle=True, num_workers=workers, collate_fn=packed,
        multiprocessing_context="forkserver" if workers else None,
    )  # fmt: skip
    seen = []
    for batch in loader:
        ends = batch["cu_seqlens"].tolist()
        assert ends[-1] == len(batch["codes"])
        for key, begin, end, grid in zip(batch["keys"], ends, ends[1:], batch["grid_hw"].tolist(), strict=False):
            i = int(key[2:-4])
            assert tuple(grid) == coded(i).grid
            assert batch["codes"][begin:end].tolist() == coded(i).array.reshape(-1, 4).tolist()
            seen.append(i)
    assert sorted(seen) == list(range(50))


def test_a_packed_batch_is_what_the_embedder_takes(model: ViQ, png: Png) -> None:
    from PIL import Image

    codes = model.encode([Image.open(io.BytesIO(png(i, 20 + i, 40))) for i in range(3)])
    batch = packed([(i, one) for i, one in enumerate(codes)])
    features = model.embedder(batch["codes"])
    expected = model.embed(codes)
    assert torch.equal(features, torch.cat(expected))
    assert batch["cu_seqlens"].tolist() == [0, *np.cumsum([len(one) for one in expected])]
    trained = torch.nn.Linear(features.shape[1], 1)
    for given in (features, torch.cat(expected)):
        trained(given).sum().backward()
    assert trained.weight.grad is not None
    assert batch["image_hw"].tolist() == [[20 + i, 40] for i in range(3)]


def test_ranks_and_workers_take_each_image_once(servers: list[Any], png: Png) -> None:
    pairs: Callable[[], Any] = partial(list, [(i, png(i, 16, 16)) for i in range(30)])
    seen: list[int] = []
    for rank in range(2):
        dataset = ServiceDataset(pairs, servers[0].grpc, rank=rank, world_size=2)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=2 if rank else 0,
            multiprocessing_context="forkserver" if rank else None,
        )  # fmt: skip
        found = [key for key, codes in loader if isinstance(codes, Codes)]
        assert len(found) == 15
        seen += found
    assert sorted(seen) == list(range(30))


def test_errors_are_raised_skipped_or_yielded(servers: list[Any], png: Png) -> None:
    pairs: Callable[[], Any] = partial(list, [("a", png(1)), ("b", b"no picture"), ("c", png(2))])
    assert [key for key, _ in ServiceDataset(pairs, servers[0].http, errors="skip")] == ["a", "c"]
    given = dict(ServiceDataset(pairs, servers[0].http, errors="yield"))
    assert isinstance(given["b"], InvalidInput)
    with pytest.raises(InvalidInput, match="b: not an image"):
        list(ServiceDataset(pairs, servers[0].http))
    with pytest.raises(InvalidInput, match="rank"):
        ServiceDataset(pairs, "h:1", rank=2, world_size=2)


def test_workers_that_are_not_forked_know_the_rank_of_their_process() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    pairs: Callable[[], Any] = partial(list, [(i, b"") for i in range(6)])
    torch.distributed.init_process_group("fake", rank=1, world_size=3, store=FakeStore())
    try:
        sent = pickle.dumps(ServiceDataset(pairs, "h:1"))
    finally:
        torch.distributed.destroy_process_group()
    assert pickle.loads(sent)._place() == (1, 3)  # noqa: S301
    assert ServiceDataset(pairs, "h:1")._place() == (0, 1)
    assert pickle.loads(pickle.dumps(ServiceDataset(pairs, "h:1", rank=2, world_size=4)))._place() == (2, 4)  # noqa: S301


def test_what_has_no_codes_stands_beside_a_batch_and_a_batch_may_be_empty() -> None:
    error = InvalidInput("no picture")
    batch = packed([("a", coded(1)), ("b", error), ("c", coded(2))])
    assert (batch["keys"], batch["errors"], batch["fields"]) == (["a", "c"], [("b", error)], [{}, {}])
    assert batch["cu_seqlens"].tolist() == [0, 4, 13]
    for rows in ([("b", error)], []):
        empty = packed(rows)
        assert {name: tuple(empty[name].shape) for name in ("codes", "cu_seqlens", "grid_hw", "image_hw")} == {
            "codes": (0, 4), "cu_seqlens": (1,), "grid_hw": (0, 2), "image_hw": (0, 2),
        }  # fmt: skip
        assert {str(empty[name].dtype) for name in ("codes", "cu_seqlens", "grid_hw")} == {"torch.int32"}
        assert len(empty["errors"]) == len(rows)


def test_a_folder_anywhere_that_fsspec_reaches_is_read(extracted: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(extracted), "/far/codes", recursive=True)
    try:
        with CodesFolder("memory://far/codes") as far, CodesFolder(extracted) as near:
            assert [far[i] for i in (49, 0, 21)] == [near[i] for i in (49, 0, 21)]
            assert len(far) == 50
            with CodesFolder("memory://far/codes", far.shards[:1]) as some:
                assert len(some) == 20
        with pytest.raises(InvalidInput, match="not finished"):
            CodesFolder("memory://far")
    finally:
        memory.rm("/far", recursive=True)
