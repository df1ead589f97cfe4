"""How streams end: by their client, by what it sends, by the clock, by the service; and that nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import viq_serving.rpc.stream
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc import pieces
from viq_serving.rpc.messages import Messages

if TYPE_CHECKING:
    from tests.rpc.conftest import Door, Stuck, Talk

MakeImage = Callable[..., bytes]
Open = Callable[..., AbstractContextManager["Door"]]
Begin = Callable[..., "Talk"]

UNAVAILABLE, INVALID = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def image(make_image: MakeImage) -> bytes:
    return make_image()


def items(image: bytes, *keys: object) -> list[pb.Item]:
    return [pb.Item(key=str(key), image=image) for key in keys]


def keys_of(results: list[pb.Result]) -> list[str]:
    return sorted(result.key for result in results)


def counted(door: Door, outcome: str) -> float:
    labels = {"method": "encode", "door": "grpc", "size": "nano", "priority": "bulk"}
    return door.sample("viq_requests_total", **labels, outcome=outcome)


def left_nothing(door: Door) -> bool:
    waiting: float = door.sample("viq_queue_requests")
    return door.tokenizer.bodies.held_now == 0 and waiting == 0


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\xff\xff\xff", "malformed"),
        (pb.EncodeStreamRequest(options=pb.EncodeStreamOptions(size="nano")).SerializeToString(), "malformed"),
        (pb.EncodeStreamRequest(items=[pb.Item()] * 65).SerializeToString(), "too_large"),
        (b"\x12\x00" * 20_000, "too_large"),
        (pb.EncodeStreamRequest(items=[pb.Item(image=bytes(150_000))]).SerializeToString(), "too_large"),
    ],
    ids=["garbage", "options after the first message", "too many items", "items by the thousand", "too many bytes"],
)
def test_a_message_that_cannot_be_taken_ends_the_stream_and_says_why(
    open_door: Open, image: bytes, message: bytes, code: str
) -> None:
    first = pb.EncodeStreamRequest(items=items(image, "good")).SerializeToString()
    with open_door(max_message_bytes=100_000) as door:
        answered = threading.Event()

        def messages() -> Iterator[bytes]:
            yield first
            answered.wait(60)
            yield message

        call = door.channel.stream_stream("/viq.v1.ViQ/EncodeStream")(messages())
        (result,) = pb.EncodeStreamResponse.FromString(next(call)).results
        assert result.codes.data
        answered.set()
        assert call.code() is INVALID
        assert dict(call.trailing_metadata())["viq-error-code"] == code
        door.until(lambda: left_nothing(door))


def test_a_message_of_twice_the_limit_is_refused_by_the_transport(open_door: Open, talk: Begin) -> None:
    with open_door(max_message_bytes=100_000) as door:
        stream = talk(door, "Encode").send(pb.Item(image=bytes(250_000)))
        assert stream.last()[1] is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["Encode", "Embed", "Decode"])
@pytest.mark.parametrize(
    ("metadata", "fields", "status", "code"),
    [
        ([], {"size": "99k"}, grpc.StatusCode.NOT_FOUND, "unknown_model"),
        ([("viq-expect-fingerprint", "0123456789abcdef")], {}, grpc.StatusCode.FAILED_PRECONDITION,
         "fingerprint_mismatch"),
        ([("viq-priority", "urgent")], {}, INVALID, "invalid_input"),
    ],
    ids=["unknown size", "fingerprint", "priority"],
)  # fmt: skip
def test_what_no_item_could_change_is_refused_at_once(
    door: Door, talk: Begin, method: str, metadata: Any, fields: Any, status: grpc.StatusCode, code: str
) -> None:
    options = getattr(pb, f"{method}StreamOptions")(**fields)
    stream = talk(door, method, metadata=metadata).send(options=options)
    assert stream.last() == ([], status)
    assert stream.trailers()["viq-error-code"] == code
    assert stream.trailers()["viq-fingerprint"] == door.tokenizer.model().fingerprint


def test_numbers_that_name_nothing_are_refused_at_once(door: Door, talk: Begin) -> None:
    unknown: Any = 9
    for method, options in (
        ("Embed", pb.EmbedStreamOptions(dtype=unknown)),
        ("Decode", pb.DecodeStreamOptions(format=unknown)),
    ):
        assert talk(door, method).send(options=options).last() == ([], INVALID)


def test_while_loading_a_stream_is_unavailable_before_anything_is_sent(open_door: Open, talk: Begin) -> None:
    with open_door(load=False) as door:
        assert talk(door, "Encode").last() == ([], UNAVAILABLE)


def test_without_a_known_key_no_stream_begins(open_door: Open, talk: Begin, image: bytes) -> None:
    with open_door(api_keys="sesame") as door:
        for metadata in ([], [("authorization", "Bearer other")]):
            assert talk(door, "Encode", metadata=metadata).last() == ([], grpc.StatusCode.UNAUTHENTICATED)
        stream = talk(door, "Encode", metadata=[("authorization", "Bearer sesame")])
        assert keys_of(stream.send(*items(image, "a")).end().rest()) == ["a"]


def test_a_key_shares_its_requests_between_streams_and_unary_calls_and_has_only_its_lanes(
    open_door: Open, talk: Begin, image: bytes, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("slow lanes=bulk max-requests=2\nfree\n")
    slow, free = [("authorization", "Bearer slow")], [("authorization", "Bearer free")]
    with open_door(api_keys_file=str(keys)) as door:
        one = pb.EncodeRequest(items=items(image, "one"))
        first = talk(door, "Encode", metadata=slow).send(*items(image, "a"))
        assert keys_of(first.read()) == ["a"]
        assert door.viq.Encode(one, metadata=slow).results[0].codes.data
        second = talk(door, "Encode", metadata=slow).send(*items(image, "b"))
        assert keys_of(second.read()) == ["b"]
        for refused in (door.viq.Encode.future(one, metadata=slow), talk(door, "Embed", metadata=slow).call):
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "limit is 2" in refused.details()
            assert "grpc-retry-pushback-ms" in dict(refused.trailing_metadata())
        assert door.viq.Encode(one, metadata=free).results[0].codes.data
        assert first.end().rest() == []
        door.until(lambda: door.viq.Encode.future(one, metadata=slow).code() is grpc.StatusCode.OK)
        assert second.end().rest() == []
        asking = [*slow, ("viq-priority", "interactive")]
        assert talk(door, "Encode", metadata=asking).last() == ([], grpc.StatusCode.PERMISSION_DENIED)


def test_more_streams_than_the_limit_are_refused_with_a_hint_and_unary_calls_are_not(
    open_door: Open, talk: Begin, image: bytes
) -> None:
    with open_door(stream_max_open=2) as door:
        held = [talk(door, "Encode").send(*items(image, n)) for n in range(2)]
        assert [keys_of(stream.read()) for stream in held] == [["0"], ["1"]]
        refused = talk(door, "Encode")
        assert refused.last() == ([], grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "grpc-retry-pushback-ms" in refused.trailers()
        assert door.viq.Encode(pb.EncodeRequest(items=items(image, "one"))).results[0].codes.data
        assert held[0].end().rest() == []
        door.until(lambda: talk(door, "Encode").end().last()[1] is grpc.StatusCode.OK)
        held[1].end().rest()


def test_a_deadline_ends_the_stream_and_the_work(open_door: Open, talk: Begin, image: bytes, stuck: Stuck) -> None:
    with open_door(change=stuck.into) as door:
        stream = talk(door, "Encode", timeout=4).send(*items(image, *range(4)))
        door.until(lambda: stuck.begun == 4)  # a slow machine may not have them all within half a second
        assert stream.last() == ([], grpc.StatusCode.DEADLINE_EXCEEDED)
        door.until(lambda: counted(door, "deadline_exceeded") == 4)
        assert stuck.cancelled == stuck.begun
        assert left_nothing(door)


@pytest.mark.parametrize("how", ["cancels", "vanishes"])
def test_a_client_that_leaves_takes_its_work_with_it(
    open_door: Open, talk: Begin, image: bytes, stuck: Stuck, how: str
) -> None:
    with open_door(change=stuck.into) as door:
        channel = door.dial()
        stream = talk(door, "Encode", channel=channel).send(*items(image, *range(6)))
        neighbour = talk(door, "Encode").send(*items(image, "other"))
        door.until(lambda: stuck.begun == 7)
        stream.call.cancel() if how == "cancels" else channel.close()
        door.until(lambda: counted(door, "cancelled") == 6)
        assert stuck.cancelled == 6
        door.inside(stuck.let_go.set)
        assert keys_of(neighbour.end().rest()) == ["other"]
        door.until(lambda: left_nothing(door))
        channel.close()


def test_a_client_that_leaves_while_answers_are_on_their_way_is_no_error(
    open_door: Open, talk: Begin, make_image: MakeImage, caplog: pytest.LogCaptureFixture
) -> None:
    image = make_image(160, 160)
    with open_door() as door:
        for _ in range(5):
            channel = door.dial()
            stream = talk(door, "Embed", channel=channel)
            for n in range(8):
                stream.send(*items(image, n))
            stream.read()
            channel.close()
        door.until(lambda: left_nothing(door))
        assert talk(door, "Embed").send(*items(image, "a")).end().rest()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_when_the_service_stops_what_was_read_is_answered_and_the_stream_is_unavailable(
    open_door: Open, talk: Begin, image: bytes, stuck: Stuck
) -> None:
    with open_door(change=stuck.into) as door:
        stream, idle = talk(door, "Encode").send(*items(image, *range(5))), talk(door, "Encode").send()
        door.until(lambda: stuck.begun == 5)
        door.inside(door.tokenizer.drain)
        stream.send(*items(image, 5))  # still served, as every request is
        door.until(lambda: stuck.begun == 6)
        door.inside(door.tokenizer.stop)
        assert idle.last() == ([], UNAVAILABLE)
        stream.send(*items(image, "late"))
        door.inside(stuck.let_go.set)
        results, status = stream.last()
        assert status is UNAVAILABLE
        assert keys_of(results) == [str(n) for n in range(6)]
        assert all(result.codes.data for result in results)
        assert stream.trailers()["viq-error-code"] == "not_ready"
        assert stream.trailers()["viq-fingerprint"] == door.tokenizer.model().fingerprint
        assert "send the rest again" in stream.call.details()
        assert talk(door, "Encode").last() == ([], UNAVAILABLE)


def test_a_stream_that_was_sent_whole_before_the_service_stops_ends_well(
    open_door: Open, talk: Begin, image: bytes, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, read = threading.Event(), Messages.next

    async def noting(self: Messages, context: Any) -> bytes | None:
        message = await read(self, context)
        if message is None:
            ended.set()
        return message

    monkeypatch.setattr(Messages, "next", noting)
    with open_door(change=stuck.into) as door:
        stream = talk(door, "Encode").send(*items(image, *range(5))).end()
        assert ended.wait(60)
        door.inside(door.tokenizer.stop)
        door.inside(stuck.let_go.set)
        assert keys_of(stream.rest()) == [str(n) for n in range(5)]


def test_streams_age_and_who_sends_the_unanswered_again_loses_nothing(
    open_door: Open, talk: Begin, image: bytes
) -> None:
    with open_door(stream_max_age_s=0.3) as door:
        wanted, answered, streams = {str(n) for n in range(150)}, list[str](), 0
        while wanted:
            stream, streams = talk(door, "Encode"), streams + 1
            for key in sorted(wanted):
                stream.send(*items(image, key))
            results, status = stream.last()
            assert status is UNAVAILABLE
            assert "old" in stream.call.details()
            assert stream.trailers()["viq-error-code"] == "not_ready"
            answered += [result.key for result in results]
            wanted -= set(answered)
        assert len(answered) == len(set(answered)) == 150
        idle = talk(door, "Encode")
        assert idle.last() == ([], UNAVAILABLE)
        assert counted(door, "ok") == 150
        assert counted(door, "cancelled") == 0


@pytest.mark.parametrize("age_s", [300, 0.3], ids=["young", "old"])
def test_a_client_that_reads_nothing_does_not_hold_up_the_end_of_the_service(
    open_door: Open, talk: Begin, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, age_s: float
) -> None:
    monkeypatch.setattr(viq_serving.rpc.stream, "_PARTING_S", 0.5)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100_000)
    image, done = make_image(320, 320), {"method": "embed", "size": "nano"}
    with open_door(stream_max_age_s=age_s) as door:
        stream = talk(door, "Embed", channel=door.dial_small())
        for n in range(60):
            stream.send(*items(image, n))
        if age_s < 1:
            door.until(lambda: door.sample("viq_requests_total", method="embed", door="grpc", size="nano",
                                           priority="bulk", outcome="not_ready") > 0)  # fmt: skip
        else:
            door.until(lambda: door.sample("viq_images_total", **done) > 20)
        door.inside(door.tokenizer.stop)
        ended = asyncio.run_coroutine_threadsafe(door.server.stop(600), door.loop)
        assert ended.result(60) is None
        assert door.sample("viq_images_total", **done) < 60
        assert stream.last()[1] is UNAVAILABLE
