"""Messages near, at and over their limits, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq import Codes, ViQ
from viq_serving.images import encode_picture
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc.fields import more_than

if TYPE_CHECKING:
    from tests.rpc.conftest import Door

MakeImage = Callable[..., bytes]
Open = Callable[..., AbstractContextManager["Door"]]

LIMIT = 100_000
PPM = b"P6\n16 16\n255\n" + bytes(768)


def padded(size: int) -> pb.EncodeRequest:
    """A request of exactly `size` bytes, of one good image and a long key."""
    request = pb.EncodeRequest(items=[pb.Item(image=PPM, key="x" * (size // 2))])
    request.items[0].key += "x" * (size - request.ByteSize())
    request.items[0].key = request.items[0].key[: len(request.items[0].key) - (request.ByteSize() - size)]
    assert request.ByteSize() == size
    return request


def noise(side: int, seed: int = 0) -> pb.Codes:
    """Codes of a picture of `side` x `side` patches."""
    data = np.random.default_rng(seed).integers(0, 1000, 4 * side * side, np.uint16).tobytes()
    return pb.Codes(data=data, h=side, w=side)


@pytest.fixture(scope="module")
def narrow(open_door: Open) -> Any:
    """A server that takes and gives messages of 100 kB."""
    with open_door(max_message_bytes=LIMIT) as door:
        yield door


def test_a_message_at_the_limit_is_answered_and_one_byte_more_is_too_large(narrow: Door) -> None:
    (result,) = narrow.viq.Encode(padded(LIMIT - 200)).results
    assert result.codes.data
    refused = narrow.viq.Encode.future(padded(LIMIT + 1))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(LIMIT) in refused.details()
    trailers = dict(refused.trailing_metadata())
    assert trailers["viq-error-code"] == "too_large"
    assert "grpc-retry-pushback-ms" not in trailers


def test_a_message_of_twice_the_limit_is_refused_by_the_transport_without_a_hint(narrow: Door) -> None:
    before = narrow.sample("viq_rejected_total", reason="too_large")
    refused = narrow.viq.Encode.future(padded(2 * LIMIT + 1))
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-retry-pushback-ms" not in dict(refused.trailing_metadata())
    assert narrow.viq.Encode(padded(5000)).results[0].codes.data
    narrow.until(lambda: narrow.sample("viq_rejected_total", reason="too_large") == before + 1)


@pytest.mark.parametrize("size", [LIMIT + 1, 50 * LIMIT])
def test_a_compressed_message_is_counted_unpacked(narrow: Door, size: int) -> None:
    fine = narrow.viq.Encode(padded(LIMIT - 200), compression=grpc.Compression.Gzip)
    assert fine.results[0].codes.data
    refused = narrow.viq.Encode.future(padded(size), compression=grpc.Compression.Gzip)
    assert refused.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "grpc-retry-pushback-ms" not in dict(refused.trailing_metadata())


def test_features_over_the_limit_are_too_large_and_the_message_says_what_helps(narrow: Door) -> None:
    side, width = 224, narrow.tokenizer.model().width
    patches = (side // 16) ** 2
    assert 2 * width * patches < LIMIT < 4 * width * patches
    items = [pb.Item(image=encode_picture(np.zeros((side, side, 3), np.uint8), "png"))]
    refused = narrow.viq.Embed.future(pb.EmbedRequest(items=items))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.trailing_metadata())["viq-error-code"] == "too_large"
    for words in (str(LIMIT), "max_message_bytes", "fewer images", "float16"):
        assert words in refused.details()
    fine = narrow.viq.Embed(pb.EmbedRequest(items=items, dtype=pb.FEATURE_DTYPE_FLOAT16))
    assert len(fine.results[0].features.data) == 2 * width * patches


def test_pictures_over_the_limit_are_too_large(narrow: Door) -> None:
    refused = narrow.viq.Decode.future(pb.DecodeRequest(items=[pb.Item(codes=noise(16))] * 2))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.trailing_metadata())["viq-error-code"] == "too_large"


def test_megabytes_go_both_ways_bit_for_bit(door: Door, model: ViQ) -> None:
    """More than the 4 MiB that clients and servers take unless told otherwise."""
    items = [pb.Item(image=bytes(5 * 2**20)), *(pb.Item(codes=noise(64, seed)) for seed in range(3))]
    bad, *good = door.viq.Embed(pb.EmbedRequest(items=items)).results
    assert bad.status.code == "invalid_input"
    assert sum(len(result.features.data) for result in good) > 5 * 2**20
    for item, result in zip(items[1:], good, strict=True):
        codes = Codes.from_bytes(item.codes.data, (64, 64), "nano")
        assert result.features.data == model.embed([codes])[0].numpy().tobytes()
    assert door.tokenizer.bodies.held_now == 0


@pytest.mark.parametrize("method", ["Encode", "Embed", "Decode", "Plan"])
def test_items_by_the_million_are_refused_before_they_are_parsed(door: Door, method: str) -> None:
    call = door.channel.unary_unary(f"/viq.v1.ViQ/{method}").future(b"\x0a\x00" * 1_000_000)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(call.trailing_metadata())["viq-error-code"] == "too_large"
    assert "10000 fields" in call.details()


FIELDS = st.one_of(
    st.builds(
        lambda value: b"\x08" + value, st.binary(max_size=9).map(lambda one: bytes(b | 128 for b in one) + b"\1")
    ),
    st.binary(min_size=8, max_size=8).map(lambda value: b"\x11" + value),
    st.binary(max_size=300).map(lambda value: b"\x1a" + _varint(len(value)) + value),
    st.binary(min_size=4, max_size=4).map(lambda value: b"\xa5\x06" + value),
)


def _varint(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


@given(st.lists(FIELDS, min_size=1, max_size=8), st.integers(0, 9))
def test_fields_are_counted_as_a_parser_would(fields: list[bytes], most: int) -> None:
    message = b"".join(fields)
    pb.InfoRequest.FromString(message)  # it is whole
    assert more_than(message, most) == (len(fields) > most)


@given(st.binary(max_size=40), st.integers(0, 20))
def test_counting_the_fields_of_what_is_no_message_ends(junk: bytes, most: int) -> None:
    assert more_than(junk, most) in (True, False)
