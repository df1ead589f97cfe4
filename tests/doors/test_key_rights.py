"""Keys with fewer rights, and the cache they share or not, through every door of one server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.doors.conftest import Server
    from tests.doors.forms import Reply

MakePng = Callable[..., bytes]
Start = Callable[..., "Server"]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
OIP = DOORS[2:]
FORBIDDEN, OVERLOADED = (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED")
LINES = """
good
slow lanes=bulk
few max-requests=1
little max-patches=8
wide max-patches=6
"""


@pytest.fixture(scope="module")
def limited(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with such keys and a cache, and a gate before its device."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(LINES)
    flags = ("--drain-delay", "0", "--cache-bytes", "1000000", "--api-keys-file", str(path))
    return start(*flags, gated=True).ready()


@contextmanager
def held(server: Server, door: str, key: str, image: bytes) -> Iterator[None]:
    """A request under way, whose image waits before the device."""
    with ThreadPoolExecutor(1) as pool:
        before = server.gate.count("taken")
        server.gate.close()
        try:
            asked = pool.submit(server.ask, door, "encode", [image], key=key)
            until(lambda: server.gate.count("taken") > before, "a batch before the gate")
            yield
        finally:
            server.gate.open()
        assert asked.result().good


def served(server: Server, door: str, lane: str) -> float:
    return server.metric("viq_requests_total", door=door, method="encode", outcome="ok", priority=lane)


def hinted(reply: Reply) -> bool:
    """Whether the refusal says when to come again."""
    return bool(reply.headers.get("retry-after-ms") or reply.headers.get("grpc-retry-pushback-ms"))


@pytest.mark.parametrize("door", DOORS)
def test_a_lane_that_is_not_the_key_s_is_forbidden(limited: Server, door: str, make_png: MakePng) -> None:
    asked = {"ViQ-Priority": "interactive"}
    reply = limited.ask(door, "encode", [make_png()], key="slow", headers=asked)
    assert reply.status in FORBIDDEN
    assert reply.code == ("" if door == "oip_http" else "forbidden")
    assert "no right to interactive, only to bulk" in reply.message
    assert limited.ask(door, "encode", [make_png()], key="good", headers=asked).good


@pytest.mark.parametrize("door", OIP)
def test_a_priority_of_the_open_inference_protocol_is_a_lane_like_any_other(
    limited: Server, door: str, make_png: MakePng
) -> None:
    reply = limited.ask(door, "encode", [make_png()], key="slow", priority=1)
    assert reply.status in FORBIDDEN
    assert "no right to interactive" in reply.message
    assert limited.ask(door, "encode", [make_png()], key="good", priority=1).good
    for priority in (0, 2):  # no wish, and bulk
        before = served(limited, door, "bulk")
        assert limited.ask(door, "encode", [make_png()], key="slow", priority=priority).good
        until(lambda: served(limited, door, "bulk") == before + 1, "the request counted as bulk")  # noqa: B023


@pytest.mark.parametrize("door", DOORS)
def test_who_has_the_bulk_lane_only_gets_it_without_asking(limited: Server, door: str, make_png: MakePng) -> None:
    before = served(limited, door, "bulk")
    codes = limited.ask(door, "encode", [make_png()], key="slow")
    assert codes.good
    assert limited.ask(door, "decode", codes.items, key="slow").good
    until(lambda: served(limited, door, "bulk") == before + 1, "the request counted as bulk")


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_the_requests_of_a_key_are_counted_over_all_doors(limited: Server, door: str, make_png: MakePng) -> None:
    with held(limited, door, "few", make_png(seed=DOORS.index(door) + 1)):
        for other in DOORS:
            reply = limited.ask(other, "encode", [make_png()], key="few")
            assert reply.status in OVERLOADED
            assert "1 requests of this key are held and 1 more asked for, the limit is 1" in reply.message
            assert hinted(reply)
    for other in DOORS:
        until(lambda: limited.ask(other, "encode", [make_png()], key="few").good, "room for the key")  # noqa: B023


def test_the_patches_of_a_key_are_counted_over_all_doors(limited: Server, make_png: MakePng) -> None:
    with held(limited, "grpc", "little", make_png(seed=20)):
        for seed, door in enumerate(DOORS, 21):
            reply = limited.ask(door, "encode", [make_png(seed=seed)], key="little")
            assert reply.status in OVERLOADED
            assert "6 patches of this key are held and 6 more asked for, the limit is 8" in reply.message
            assert hinted(reply)
    assert limited.ask("http", "encode", [make_png(seed=25)], key="little").good


@pytest.mark.parametrize("door", DOORS)
def test_more_patches_than_a_key_may_ever_have_are_too_many(limited: Server, door: str, make_png: MakePng) -> None:
    reply = limited.ask(door, "encode", [make_png(33, 40)], key="wide")
    assert reply.status in (413, "INVALID_ARGUMENT")
    assert "9 patches in all, the key may have 6" in reply.message


def test_an_image_in_flight_at_every_door_is_computed_once_for_each_key(limited: Server, make_png: MakePng) -> None:
    image, keys = make_png(seed=30), ("good", "slow")
    decoded, miss = limited.gate.count("decoded"), limited.metric("viq_cache_total", result="miss")
    again = limited.metric("viq_cache_total", result="hit") + limited.metric("viq_cache_total", result="shared")
    with ThreadPoolExecutor(2 * len(DOORS)) as pool:
        limited.gate.close()
        asked = [pool.submit(limited.ask, door, "encode", [image], key=key) for key in keys for door in DOORS]
        limited.gate.open()
        replies = [one.result() for one in asked]
    assert all(reply.good for reply in replies)
    assert len({reply.items[0] for reply in replies}) == 1
    assert limited.gate.count("decoded") == decoded + len(keys)
    assert limited.metric("viq_cache_total", result="miss") == miss + len(keys)
    kinds = (limited.metric("viq_cache_total", result=result) for result in ("hit", "shared"))
    assert sum(kinds) == again + len(asked) - len(keys)


def test_the_log_tells_callers_apart_and_shows_no_key(limited: Server, make_png: MakePng) -> None:
    ids = {door: [limited.ask(door, "encode", [make_png()], key=key) for key in ("good", "slow")] for door in DOORS}
    names: set[tuple[str, ...]] = set()
    for replies in ids.values():
        wanted = [reply.headers["x-request-id"] for reply in replies]
        until(lambda: set(wanted) <= set(limited.access()), "the lines of the requests")  # noqa: B023
        lines = [json.loads(line) for line in limited.log().splitlines() if line.startswith("{")]
        by_id = {line["request_id"]: line["caller"] for line in lines if line.get("request_id") in wanted}
        names.add(tuple(by_id[one] for one in wanted))
    ((first, second),) = names  # the same two at every door
    assert first != second
    assert not any(f" {key}" in limited.log() or f'"{key}"' in limited.log() for key in ("slow", "few", "little"))
