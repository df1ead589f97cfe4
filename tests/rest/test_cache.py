"""A server with a cache: hits are replies like any other, and nobody's but their own caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]

RAW = "application/octet-stream"
MINE, THEIRS = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer theirs"}


@pytest.fixture(scope="module")
def cached(serve: Serve) -> Iterator[httpx.Client]:
    """A server with two keys and a cache."""
    with serve(cache_bytes=2**20, api_keys="mine,theirs") as client:
        yield client


def sample(client: httpx.Client, series: str) -> float:
    lines = [line for line in client.get("/metrics", headers=MINE).text.splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def counted(client: httpx.Client) -> tuple[float, ...]:
    """Requests that the cache did not answer, then its hits and misses."""
    results = (f'viq_cache_total{{result="{result}"}}' for result in ("hit", "miss"))
    computed = sample(client, 'viq_stage_duration_seconds_count{method="encode",stage="compute"}')
    return (computed, *(sample(client, series) for series in results))


def body_of(reply: httpx.Response) -> tuple[dict[str, Any], dict[str, float]]:
    body = reply.json()
    return body, body.pop("timings_ms")


def test_a_hit_differs_from_what_was_computed_in_its_timings_only(cached: httpx.Client, make_image: MakeImage) -> None:
    image = make_image(seed=1)
    before = counted(cached)
    first, again = (cached.post("/v1/encode", content=image, headers=MINE) for _ in range(2))
    (made, took), (kept, nothing) = body_of(first), body_of(again)
    assert made == kept
    assert took["compute"] > 0
    assert set(nothing.values()) == {0.0}
    assert counted(cached) == tuple(was + 1 for was in before)
    own = {"x-request-id", "date", "content-length"}
    plain, kept_too = ({k: v for k, v in reply.headers.items() if k not in own} for reply in (first, again))
    assert plain == kept_too
    assert first.headers["X-Request-ID"] != again.headers["X-Request-ID"]


def test_every_form_and_protocol_is_answered_from_one_entry(cached: httpx.Client, make_image: MakeImage) -> None:
    image = make_image(seed=2)
    cached.post("/v1/encode", content=image, headers=MINE)
    before = counted(cached)
    raw = cached.post("/v1/encode", content=image, headers={**MINE, "Accept": RAW}).content
    infer = {**MINE, "Inference-Header-Content-Length": "0"}
    tensors = cached.post("/v2/models/viq-encode/infer", content=image, headers=infer)
    several = cached.post("/v1/encode?codes=base64", files=[("image", image), ("image", image)], headers=MINE)
    assert cached.post("/v1/reconstruct", content=image, headers=MINE).status_code == 200
    assert raw in tensors.content
    assert len(several.json()["results"]) == 2
    assert counted(cached) == (before[0], before[1] + 5, before[2])


def test_two_keys_never_share_an_answer(cached: httpx.Client, make_image: MakeImage) -> None:
    image = make_image(seed=3)
    before = counted(cached)
    for key in (MINE, THEIRS, MINE, THEIRS):
        assert cached.post("/v1/encode", content=image, headers=key).status_code == 200
    assert counted(cached) == tuple(was + 2 for was in before)


def test_two_keys_share_where_they_are_told_to(serve: Serve, make_image: MakeImage, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("mine\ntheirs lanes=bulk\n")
    with serve(cache_bytes=2**20, cache_shared=True, api_keys_file=str(keys)) as client:
        before = counted(client)
        replies = [client.post("/v1/encode", content=make_image(), headers=key).json() for key in (MINE, THEIRS)]
        assert replies[0]["results"] == replies[1]["results"]
        assert counted(client) == tuple(was + 1 for was in before)


def test_errors_are_not_kept(cached: httpx.Client) -> None:
    before = counted(cached)
    for _ in range(2):
        assert cached.post("/v1/encode", content=b"no image", headers=MINE).status_code == 422
    assert counted(cached) == (before[0] + 2, before[1], before[2] + 2)  # both went all the way


def test_what_the_caller_has_already_costs_neither_device_nor_cache(
    cached: httpx.Client, make_image: MakeImage
) -> None:
    image = make_image(seed=4)
    tag = cached.post("/v1/encode", content=image, headers=MINE).headers["ETag"]
    before = counted(cached)
    for named in (tag, f"W/{tag}", f'"a,b" , {tag}', f'W/"x",{tag},"y"'):
        reply = cached.post("/v1/encode", content=image, headers={**MINE, "If-None-Match": named})
        assert (reply.status_code, reply.content, reply.headers["ETag"]) == (304, b"", tag)
        assert reply.headers["Cache-Control"] == "private, no-cache"
        assert reply.headers["Vary"] == "Accept"
    lines = [("If-None-Match", '"other"'), ("If-None-Match", tag), *MINE.items()]
    assert cached.post("/v1/encode", content=image, headers=lines).status_code == 304
    assert counted(cached) == before


@pytest.mark.parametrize("named", ["*", '"other"', "", "W/", "{}", '"{}"x', 'w/"{}"', '"x{}'])
def test_any_other_tag_is_answered_in_full(cached: httpx.Client, make_image: MakeImage, named: str) -> None:
    image = make_image(seed=4)
    tag = cached.post("/v1/encode", content=image, headers=MINE).headers["ETag"].strip('"')
    headers = {**MINE, "If-None-Match": named.format(tag)}
    assert cached.post("/v1/encode", content=image, headers=headers).status_code == 200


def test_without_a_cache_nothing_is_kept(client: httpx.Client, make_image: MakeImage) -> None:
    before = counted(client)
    for _ in range(2):
        client.post("/v1/encode", content=make_image(seed=5))
    assert counted(client) == (before[0] + 2, 0.0, 0.0)
