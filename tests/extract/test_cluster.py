"""What the nodes of a cluster do, here without one: whoever makes a shard, it is that of a plain run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from viq import ViQ
from viq.errors import InvalidInput
from viq_serving.extract.cluster import Job, ShardActor, Walk
from viq_serving.extract.errors import DeviceLost
from viq_serving.extract.output import Output, Run
from viq_serving.extract.sources import Item, Reading, Wanted
from viq_serving.images import ImageLimits

Extract = Callable[..., dict[str, Any] | None]


class Numbers:
    """A source that counts how often it is walked through, and gives contents only where they are wanted."""

    kind: Any = "images"
    total: float | None

    def __init__(self) -> None:
        self.walks, self.total = 0, None

    def items(self, wanted: Wanted) -> Iterator[Item]:
        self.walks += 1
        for i in range(25):
            yield Item(i, f"{i} {wanted(i)}", lambda: b"")


def test_a_walk_goes_on_where_it_is_and_begins_anew_only_to_go_back() -> None:
    source = Numbers()
    walk = Walk(source)
    for first, walks in ((0, 1), (10, 1), (20, 1), (0, 2), (5, 2), (5, 3)):
        found = [item.key for item in walk.span(range(first, first + 5))]
        assert found == [f"{i} True" for i in range(first, first + 5)]
        assert source.walks == walks
    assert [item.key for item in walk.span(range(23, 30))] == ["23 True", "24 True"]
    assert [item.key for item in walk.span(range(40, 50))] == []


@pytest.fixture
def job(photos: Path, tmp_path: Path) -> Job:
    return Job(
        sources=[str(photos)], reading=Reading(), output=str(tmp_path / "out"), lock="0-1", weights_root=None,
        size=None, device="cpu", dtype="auto", exif=True, alpha="white", min_psnr=None, limits=ImageLimits(),
    )  # fmt: skip


def test_shards_made_in_any_order_by_any_actor_are_those_of_a_plain_run(
    extract: Extract, job: Job, photos: Path, tmp_path: Path
) -> None:
    manifest = extract(photos, tmp_path / "whole", shard_items=5)
    assert manifest is not None
    output = Output(job.output)
    run = Output(str(tmp_path / "whole")).begun()
    assert run is not None
    with output.opened("0-1"):
        output.begin(run)
        one, other = ShardActor(job, asdict(run)), ShardActor(job, asdict(run))
        for actor, index in ((one, 3), (other, 4), (one, 0), (other, 0), (one, 1), (other, 2), (one, 4)):
            made = actor({"shard": [index]})
            assert made["shard"] == [index]
            assert made["items"] == [5 if index < 4 else 3]
        for actor in (one, other):
            actor.close()
        assert output.conclude(run, 5) is not None
    for path in (tmp_path / "whole").iterdir():
        if not path.name.startswith("."):
            assert (Path(job.output) / path.name).read_bytes() == path.read_bytes()
    assert not list(Path(job.output).glob(".unfinished*"))


def test_a_node_of_other_weights_takes_no_part(job: Job, model: ViQ) -> None:
    run = Run("f" * 16 + ".00000000", "nano", "webdataset", 5, True, "white", None, None, None, 1, 1, 1)
    with pytest.raises(DeviceLost, match=f"a node gives {model.fingerprint}"):
        ShardActor(job, asdict(run))


def test_a_source_with_nothing_in_it_is_refused(job: Job, tmp_path: Path) -> None:
    from viq_serving.extract.cluster import ClusterExtraction

    (tmp_path / "empty").mkdir()
    from viq_serving.extract.sources import source_of

    run = Run("f" * 16 + ".00000000", "nano", "webdataset", 5, True, "white", None, None, None, 1, 1, 1)
    with pytest.raises(InvalidInput, match="holds no image"):
        ClusterExtraction(source_of([str(tmp_path / "empty")], Reading()), Output(job.output), run).run(
            replace(job, sources=[str(tmp_path / "empty")])
        )


def test_what_ray_is_not_for_is_refused(viq: Callable[..., tuple[int, str, str]], photos: Path, tmp_path: Path) -> None:
    for wrong in (["--server", "http://127.0.0.1:9"], ["--part", "0/2"], ["--device", "cuda:0,cuda:1"]):
        code, _, err = viq("extract", photos, "-o", tmp_path / "out", "--ray", "auto", *wrong)
        assert (code, "takes the devices of its cluster" in err) == (2, True)
    if importlib.util.find_spec("ray") is None:
        code, _, err = viq("extract", photos, "-o", tmp_path / "out", "--ray", "auto")
        assert (code, "pip install 'viq-serving[server,extract,ray]'" in err) == (3, True)
