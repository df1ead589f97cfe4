"""Streams of items: every one answered by its key, as it is done, whatever becomes of its neighbours."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ
from viq_serving.images import decode
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc import pieces
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import Features

if TYPE_CHECKING:
    from tests.rpc.conftest import Door, Stuck, Talk

MakeImage = Callable[..., bytes]
Open = Callable[..., AbstractContextManager["Door"]]
Begin = Callable[..., "Talk"]

CHUNK = 2 * 2**20


def item(key: str, image: bytes) -> pb.Item:
    return pb.Item(key=key, image=image)


def codes_item(key: str, codes: Codes) -> pb.Item:
    (h, w), (height, width) = codes.grid, codes.image_size
    message = pb.Codes(
        data=codes.to_bytes(), h=h, w=w, height=height, width=width, size=codes.size, fingerprint=codes.fingerprint
    )
    return pb.Item(key=key, codes=message)


def codes_of(result: pb.Result) -> Codes:
    one = result.codes
    return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)


def features_of(results: list[pb.Result], most: int) -> dict[str, Any]:
    """Rows by key, of chunks that must be whole, in order and of the promised size."""
    found: dict[str, list[Any]] = {}
    total: dict[str, int] = {}
    for result in results:
        chunk, rows = result.features, found.setdefault(result.key, [])
        assert chunk.row_offset == sum(map(len, rows))
        assert len(chunk.data) <= most
        rows.append(np.frombuffer(chunk.data, "<f4").reshape(-1, chunk.c))
        total[result.key] = chunk.n
        assert chunk.last == (sum(map(len, rows)) == chunk.n)
    whole = {key: np.concatenate(rows) for key, rows in found.items()}
    assert {key: len(rows) for key, rows in whole.items()} == total
    return whole


@pytest.fixture(scope="module")
def images(make_image: MakeImage) -> list[bytes]:
    return [make_image(16 + 7 * n, 60 - 5 * n, seed=n) for n in range(8)]


@pytest.fixture(scope="module")
def expected(door: Door, model: ViQ, images: list[bytes]) -> list[Codes]:
    return [model.encode([decode(one, door.tokenizer.limits)])[0] for one in images]


def test_every_item_is_answered_by_its_key_with_the_codes_it_has_alone(
    door: Door, talk: Begin, images: list[bytes], expected: list[Codes]
) -> None:
    stream = talk(door, "Encode")
    for n in range(100):
        stream.send(item(str(n), images[n % 8]))
    stream.send(*(item(str(100 + n), images[n % 8]) for n in range(60))).send().end()
    results = stream.rest()
    assert sorted(int(result.key) for result in results) == list(range(160))
    for result in results:
        number = int(result.key)
        assert codes_of(result) == expected[(number if number < 100 else number - 100) % 8]
        assert not result.status.code
    model = door.tokenizer.model()
    assert [message.HasField("model") for message in stream.messages].count(True) == 1
    assert stream.messages[0].model.fingerprint == model.fingerprint
    assert stream.trailers()["viq-fingerprint"] == model.fingerprint
    assert door.tokenizer.bodies.held_now == 0


def test_equal_keys_are_each_answered(door: Door, talk: Begin, images: list[bytes]) -> None:
    stream = talk(door, "Encode").send(*(item("same", images[n]) for n in (0, 1, 1, 0))).send(item("", images[0])).end()
    assert Counter(result.key for result in stream.rest()) == {"same": 4, "": 1}


def test_what_is_wrong_with_an_item_is_its_own_status_and_the_stream_goes_on(
    door: Door, talk: Begin, images: list[bytes], expected: list[Codes]
) -> None:
    large = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(large, "PNG")
    bad = {
        "garbage": (item("garbage", b"no image"), "invalid_input"),
        "cut": (item("cut", images[0][:-60]), "invalid_input"),
        "empty": (pb.Item(key="empty"), "invalid_input"),
        "codes": (codes_item("codes", expected[0]), "invalid_input"),
        "large": (item("large", large.getvalue()), "too_large"),
        "alpha": (pb.Item(key="alpha", image=images[0], options=pb.ItemOptions(alpha=9)), "invalid_input"),  # type: ignore[arg-type]
    }
    stream = talk(door, "Encode")
    for number, (one, _) in enumerate(bad.values()):
        stream.send(one, item(str(number), images[number]))
    results = {result.key: result for result in stream.end().rest()}
    assert len(results) == 2 * len(bad)
    for key, (_, code) in bad.items():
        assert (results[key].status.code, results[key].WhichOneof("content")) == (code, None)
        assert results[key].status.grpc_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert results[key].status.message
    assert all(codes_of(results[str(n)]) == expected[n] for n in range(len(bad)))


def test_an_item_that_is_done_does_not_wait_for_one_that_came_before(
    open_door: Open, talk: Begin, images: list[bytes], stuck: Stuck
) -> None:
    first, rest = item("first", images[0]), [item(str(n), images[1]) for n in range(5)]

    def holding(tokenizer: Tokenizer) -> None:
        encode = tokenizer.encode
        stuck.into(tokenizer)

        async def chosen(files: Any, model: Any, terms: Any) -> Any:
            return await (stuck._wait if files[0].data == images[0] else encode)(files, model, terms)

        tokenizer.encode = chosen  # type: ignore[assignment,method-assign]

    with open_door(change=holding) as door:
        stream = talk(door, "Encode").send(first, *rest)
        early: list[str] = []
        while len(early) < 5:
            early += [result.key for result in stream.read()]
        assert sorted(early) == [str(n) for n in range(5)]
        door.inside(stuck.let_go.set)
        assert [result.key for result in stream.end().rest()] == ["first"]


def test_features_come_in_chunks_and_are_those_of_the_model(
    door: Door, talk: Begin, model: ViQ, make_image: MakeImage, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10_000)
    large = make_image(160, 160, seed=1)
    codes = [model.encode([decode(one, door.tokenizer.limits)])[0] for one in (large, images[0])]
    stream = talk(door, "Embed").send(item("a", large), codes_item("b", codes[1]))
    results = stream.send(codes_item("c", codes[0]), item("d", b"no image")).end().rest()
    failed = [result for result in results if result.key == "d"]
    assert [result.status.code for result in failed] == ["invalid_input"]
    found = features_of([result for result in results if result.key != "d"], 10_000)
    assert sum(result.key == "a" for result in results) > 5
    for key, one in (("a", codes[0]), ("b", codes[1]), ("c", codes[0])):
        assert (found[key] == model.embed([one])[0].numpy()).all()


@pytest.mark.parametrize("shape", [(1, 1), (511, 1152), (16_384, 1152), (3, 600_000)])
def test_features_are_cut_into_chunks_of_at_most_2_mib_and_lose_nothing(shape: tuple[int, int]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    cut = pieces.pieces_of("k", Features(array, "float32", (1, len(array)), (16, 16 * len(array))), 1)
    results = [piece.make() for piece in cut]
    for piece, result in zip(cut, results, strict=True):
        assert result.ByteSize() <= piece.size <= max(CHUNK, 4 * shape[1]) + 300
    assert (features_of(results, max(CHUNK, 4 * shape[1]))["k"] == array).all()


def test_options_of_the_first_message_hold_for_all_of_an_embed_stream(
    door: Door, talk: Begin, model: ViQ, images: list[bytes]
) -> None:
    stream = talk(door, "Embed").send(options=pb.EmbedStreamOptions(size="nano", dtype=pb.FEATURE_DTYPE_FLOAT16))
    results = stream.send(item("a", images[0])).send(item("b", images[1])).end().rest()
    width = door.tokenizer.model().width
    assert {result.features.dtype for result in results} == {pb.FEATURE_DTYPE_FLOAT16}
    assert all(len(result.features.data) == 2 * width * result.features.n for result in results)


def test_pictures_are_those_of_the_model_in_the_format_asked(
    door: Door, talk: Begin, model: ViQ, expected: list[Codes]
) -> None:
    stream = talk(door, "Decode").send(*(codes_item(str(n), one) for n, one in enumerate(expected))).end()
    results = {result.key: result for result in stream.rest()}
    for n, one in enumerate(expected):
        pixels = np.asarray(Image.open(io.BytesIO(results[str(n)].image))).astype(int)
        assert abs(pixels - model.decode([one])[0]).max() <= 1  # rounded from what a batch moves by a bit
    options = pb.DecodeStreamOptions(format=pb.PICTURE_FORMAT_WEBP)
    (result,) = talk(door, "Decode").send(codes_item("w", expected[0]), options=options).end().rest()
    assert Image.open(io.BytesIO(result.image)).format == "WEBP"


@pytest.mark.parametrize("method", ["Embed", "Decode"])
def test_codes_of_other_weights_fail_alone_unless_they_are_allowed(
    door: Door, talk: Begin, expected: list[Codes], method: str
) -> None:
    foreign = codes_item("foreign", expected[0])
    foreign.codes.fingerprint = "0123456789abcdef.01234567"
    stream = talk(door, method).send(foreign, codes_item("own", expected[0])).end()
    statuses = {result.key: result.status for result in stream.rest()}
    assert (statuses["foreign"].code, statuses["own"].code) == ("fingerprint_mismatch", "")
    assert statuses["foreign"].grpc_code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    options = getattr(pb, f"{method}StreamOptions")(allow_fingerprint_mismatch=True)
    (result,) = talk(door, method).send(foreign, options=options).end().rest()
    assert result.WhichOneof("content")


def test_a_stream_without_items_is_a_good_one(door: Door, talk: Begin) -> None:
    for stream in (talk(door, "Encode").end(), talk(door, "Embed").send().end()):
        assert stream.rest() == []


def test_streams_are_bulk_and_patient_unless_told_otherwise(
    open_door: Open, talk: Begin, images: list[bytes], stuck: Stuck
) -> None:
    with open_door(change=stuck.into) as door:
        door.inside(stuck.let_go.set)
        for metadata in ([], [("viq-priority", "interactive")], [("viq-priority", "bulk")]):
            stream = talk(door, "Encode", metadata=[*metadata, ("x-request-id", "mine")], timeout=1000)
            assert stream.send(item("a", images[0])).end().rest()
        for priority, count in (("bulk", 2), ("interactive", 1)):
            labels = {"method": "encode", "door": "grpc", "size": "nano", "outcome": "ok", "priority": priority}
            door.until(lambda: door.sample("viq_requests_total", **labels) == count)  # noqa: B023
    assert [terms.priority for terms in stuck.terms] == ["bulk", "interactive", "bulk"]
    assert all(terms.patient and terms.request_id == "mine" for terms in stuck.terms)
    assert all(0 < terms.deadline < float("inf") for terms in stuck.terms)


def test_items_are_counted_like_requests_and_a_stream_is_one_line_in_the_log(
    open_door: Open, talk: Begin, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with open_door() as door:
        stream = talk(door, "Encode", metadata=[("x-request-id", "log-me")])
        stream.send(*(item(str(n), images[n]) for n in range(5))).send(item("bad", b"no")).end().rest()
        door.until(lambda: any(record.name == "viq.access" for record in caplog.records))
        text = door.metrics.text().decode()
    counted = re.findall(r'viq_requests_total\{door="(\w+)",method="(\w+)",outcome="(\w+)".*\} (\S+)', text)
    assert sorted(counted) == [("grpc", "encode", "invalid_input", "1.0"), ("grpc", "encode", "ok", "5.0")]
    assert 'viq_images_total{method="encode",size="nano"} 5.0' in text
    assert 'viq_rejected_total{reason="invalid_input"} 1.0' in text
    assert 'viq_request_duration_seconds_count{door="grpc",method="encode"} 6.0' in text
    (line,) = (getattr(record, "fields", {}) for record in caplog.records if record.name == "viq.access")
    told = {name: line[name] for name in ("request_id", "method", "outcome", "items", "failed", "unanswered")}
    assert told == {
        "request_id": "log-me",
        "method": "encode_stream",
        "outcome": "ok",
        "items": 6,
        "failed": 1,
        "unanswered": 0,
    }


def test_a_bug_that_one_item_meets_is_internal_and_its_own(
    open_door: Open, talk: Begin, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    def breaking(tokenizer: Tokenizer) -> None:
        encode = tokenizer.encode

        async def broken(files: Any, model: Any, terms: Any) -> Any:
            if files[0].data == images[0]:
                raise RuntimeError("secret of the service")
            return await encode(files, model, terms)

        tokenizer.encode = broken  # type: ignore[assignment,method-assign]

    with open_door(change=breaking) as door:
        stream = talk(door, "Encode", metadata=[("x-request-id", "find-me")])
        results = stream.send(item("a", images[0]), item("b", images[1])).end().rest()
    statuses = {result.key: (result.status.code, result.status.message) for result in results}
    assert statuses == {"a": ("internal", "internal error"), "b": ("", "")}
    (record,) = (record for record in caplog.records if record.exc_info)
    assert "secret of the service" in str(record.exc_info)
    assert getattr(record, "fields", {})["request_id"] == "find-me"
