"""Every row of the error table that this door can give, and the shape that all errors share."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.message import Message

from viq_serving.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    Forbidden,
    Internal,
    InvalidInput,
    Malformed,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    Unauthenticated,
    UnknownModel,
    ViQError,
)
from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc.errors import STATUS
from viq_serving.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.rpc.conftest import Door

MakeImage = Callable[..., bytes]
Open = Callable[..., AbstractContextManager["Door"]]

FINGERPRINT = r"[0-9a-f]{16}\.[0-9a-f]{8}"
FOREIGN = "0123456789abcdef.01234567"
BLACK = pb.Codes(data=bytes(8), h=1, w=1)


def failure(call: Callable[[], object]) -> Any:
    """The error that `call` ends with; its trailers as a dict."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


def trailers(error: Any) -> dict[str, str]:
    return dict(error.trailing_metadata())


def assert_error(error: Any, status: grpc.StatusCode, code: str, words: str = "") -> None:
    assert error.code() is status, error
    assert words in error.details()
    assert trailers(error)["viq-error-code"] == code
    assert re.fullmatch(FINGERPRINT, trailers(error)["viq-fingerprint"])
    assert re.fullmatch(r"[0-9a-f]{32}", trailers(error)["x-request-id"])
    assert ("grpc-retry-pushback-ms" in trailers(error)) == (code == "overloaded")


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x01\xff"])
@pytest.mark.parametrize("method", ["Encode", "Embed", "Decode", "Plan", "Info"])
def test_a_broken_message_is_invalid_argument(door: Door, method: str, message: bytes) -> None:
    if (method, message) == ("Info", b"\x12\x01\xff"):
        message = b"\x12\x02\xff"  # a field of another version must be whole only
    error = failure(lambda: door.channel.unary_unary(f"/viq.v1.ViQ/{method}")(message))
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "malformed", "message")


def test_a_request_without_a_message_is_invalid_argument(door: Door) -> None:
    error = failure(lambda: door.channel.stream_unary("/viq.v1.ViQ/Encode")(iter(())))
    assert_error(error, grpc.StatusCode.INVALID_ARGUMENT, "malformed", "without a message")


@pytest.mark.parametrize("method", ["/viq.v1.ViQ/Paint", "/viq.v1.ViQ/encode", "/viq.v2.ViQ/Encode", "/x"])
def test_no_such_method_is_unimplemented(door: Door, method: str) -> None:
    assert_error(
        failure(lambda: door.channel.unary_unary(method)(b"")), grpc.StatusCode.UNIMPLEMENTED, "not_found", method
    )
    calls = door.channel.stream_stream(method)(iter([b""]))
    assert_error(failure(lambda: list(calls)), grpc.StatusCode.UNIMPLEMENTED, "not_found", method)


ITEMS = [
    ("Encode", pb.Item(image=b""), "invalid_input", "empty"),
    ("Encode", pb.Item(image=b"junk"), "invalid_input", "not an image"),
    ("Encode", pb.Item(), "invalid_input", "holds no image"),
    ("Encode", pb.Item(codes=BLACK), "invalid_input", "holds no image"),
    ("Encode", pb.Item(image=b"junk", options=pb.ItemOptions(alpha=7)), "invalid_input", "alpha"),  # type: ignore[arg-type]
    ("Encode", pb.Item(image=png_header(9000, 9000)), "too_large", "50000000"),
    ("Encode", pb.Item(image=png_header(2049, 2048)), "too_large", "16384"),
    ("Embed", pb.Item(), "invalid_input", "holds no image"),
    ("Embed", pb.Item(image=b"junk"), "invalid_input", "not an image"),
    ("Embed", pb.Item(codes=pb.Codes(data=bytes(6), h=1, w=1)), "invalid_input", "expected 4"),
    ("Decode", pb.Item(image=b"junk"), "invalid_input", "holds no codes"),
    ("Decode", pb.Item(), "invalid_input", "holds no codes"),
    ("Decode", pb.Item(codes=pb.Codes()), "invalid_input", "no patches"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(7), h=1, w=1)), "invalid_input", "7 bytes"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=2)), "invalid_input", "expected 8"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(8), h=2**32 - 1, w=1)), "invalid_input", ""),
    ("Decode", pb.Item(codes=pb.Codes(data=b"\xff" * 8, h=1, w=1)), "invalid_input", "out of range"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=1, height=17, width=1)), "invalid_input", "17"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=1, height=16)), "invalid_input", "width 0"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=1, size="17k")), "unknown_model", "17k"),
    ("Decode", pb.Item(codes=pb.Codes(data=bytes(8 * 16385), h=16385, w=1)), "too_large", "16384"),
]


@pytest.mark.parametrize(("method", "item", "code", "words"), ITEMS)
def test_what_is_wrong_with_an_item_is_its_status_and_the_next_item_is_answered(
    door: Door, make_image: MakeImage, method: str, item: pb.Item, code: str, words: str
) -> None:
    good = pb.Item(codes=BLACK) if method == "Decode" else pb.Item(image=make_image())
    kind = {"Encode": pb.EncodeRequest, "Embed": pb.EmbedRequest, "Decode": pb.DecodeRequest}[method]
    bad, fine = getattr(door.viq, method)(kind(items=[item, good], size="nano")).results
    assert (bad.status.code, bad.status.grpc_code) == (code, STATUS[code].value[0])
    assert words in bad.status.message
    assert fine.WhichOneof("content") is not None
    assert not fine.HasField("status")


def test_codes_of_another_loaded_or_known_size_are_an_items_error(door: Door) -> None:
    item = pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=1, size="16k"))
    (result,) = door.viq.Decode(pb.DecodeRequest(items=[item], size="nano")).results
    assert (result.status.code, result.status.grpc_code) == ("invalid_input", 3)
    assert "16k" in result.status.message


MANY = [pb.Item(image=b"x")] * 65
WHOLE: list[tuple[str, Message, grpc.StatusCode, str, str]] = [
    ("Encode", pb.EncodeRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_input", "no image"),
    ("Embed", pb.EmbedRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_input", "no image"),
    ("Decode", pb.DecodeRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_input", "no codes"),
    ("Plan", pb.PlanRequest(), grpc.StatusCode.INVALID_ARGUMENT, "invalid_input", "no image"),
    ("Encode", pb.EncodeRequest(items=MANY), grpc.StatusCode.INVALID_ARGUMENT, "too_large", "64"),
    ("Embed", pb.EmbedRequest(items=MANY), grpc.StatusCode.INVALID_ARGUMENT, "too_large", "64"),
    ("Decode", pb.DecodeRequest(items=MANY), grpc.StatusCode.INVALID_ARGUMENT, "too_large", "64"),
    (
        "Plan",
        pb.PlanRequest(images=[pb.ImageSize(height=1, width=1)] * 65),
        grpc.StatusCode.INVALID_ARGUMENT,
        "too_large",
        "64",
    ),
    (
        "Plan",
        pb.PlanRequest(images=[pb.ImageSize(height=0, width=1)]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid_input",
        "1x0",
    ),
    (
        "Plan",
        pb.PlanRequest(images=[pb.ImageSize(height=1, width=2**31)]),
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid_input",
        "2147483648",
    ),
    (
        "Embed",
        pb.EmbedRequest(items=MANY[:1], dtype=9),  # type: ignore[arg-type]
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid_input",
        "float16",
    ),
    (
        "Decode",
        pb.DecodeRequest(items=MANY[:1], format=9),  # type: ignore[arg-type]
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid_input",
        "webp",
    ),
    ("Encode", pb.EncodeRequest(items=MANY[:1], size="16k"), grpc.StatusCode.NOT_FOUND, "unknown_model", "not loaded"),
    ("Embed", pb.EmbedRequest(items=MANY[:1], size="17k"), grpc.StatusCode.NOT_FOUND, "unknown_model", "not exist"),
    ("Plan", pb.PlanRequest(size="17k"), grpc.StatusCode.NOT_FOUND, "unknown_model", "not exist"),
    (
        "Decode",
        pb.DecodeRequest(items=[pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=1, size="16k"))]),
        grpc.StatusCode.NOT_FOUND,
        "unknown_model",
        "16k",
    ),
]


@pytest.mark.parametrize(("method", "request_", "status", "code", "words"), WHOLE)
def test_what_is_wrong_with_a_whole_request_is_its_status(
    door: Door, method: str, request_: Message, status: grpc.StatusCode, code: str, words: str
) -> None:
    assert_error(failure(lambda: getattr(door.viq, method)(request_)), status, code, words)


@pytest.mark.parametrize(("method", "kind"), [("Embed", pb.EmbedRequest), ("Decode", pb.DecodeRequest)])
def test_codes_of_another_family_are_refused_unless_allowed(door: Door, method: str, kind: Any) -> None:
    foreign = pb.Codes(data=bytes(8), h=1, w=1, fingerprint=FOREIGN)
    items = [pb.Item(codes=BLACK), pb.Item(codes=foreign)]
    error = failure(lambda: getattr(door.viq, method)(kind(items=items)))
    assert_error(error, grpc.StatusCode.FAILED_PRECONDITION, "fingerprint_mismatch", FOREIGN[:16])
    results = getattr(door.viq, method)(kind(items=items, allow_fingerprint_mismatch=True)).results
    assert all(result.WhichOneof("content") for result in results)


ROWS: list[tuple[ViQError, grpc.StatusCode]] = [
    (Malformed("why"), grpc.StatusCode.INVALID_ARGUMENT),
    (InvalidInput("why"), grpc.StatusCode.INVALID_ARGUMENT),
    (TooLarge("why"), grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound("why"), grpc.StatusCode.UNIMPLEMENTED),
    (UnknownModel("why"), grpc.StatusCode.NOT_FOUND),
    (FingerprintMismatch("why"), grpc.StatusCode.FAILED_PRECONDITION),
    (Overloaded("why", 0.25), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NotReady("why"), grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded("why"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (Unauthenticated("why"), grpc.StatusCode.UNAUTHENTICATED),
    (Forbidden("why"), grpc.StatusCode.PERMISSION_DENIED),
]


def fails_with(error: Exception) -> Callable[[Tokenizer], None]:
    """Makes every encode of a tokenizer fail so."""

    async def fail(*_: object) -> None:
        raise error

    return lambda tokenizer: setattr(tokenizer, "encode", fail)


@pytest.mark.parametrize(("error", "status"), ROWS, ids=[type(error).__name__ for error, _ in ROWS])
def test_every_refusal_from_inside_has_its_row(
    open_door: Open, one: pb.EncodeRequest, error: ViQError, status: grpc.StatusCode
) -> None:
    with open_door(change=fails_with(error)) as door:
        seen = failure(lambda: door.viq.Encode(one))
        assert_error(seen, status, error.code, "why")
        assert door.sample("viq_rejected_total", reason=error.code) == 1
        if isinstance(error, Overloaded):
            assert trailers(seen)["grpc-retry-pushback-ms"] == "250"


def test_the_table_has_no_row_untested() -> None:
    assert {error.code for error, _ in ROWS} == set(STATUS)


@pytest.mark.parametrize(
    "error", [RuntimeError("the secret of line 7"), Internal(), MethodNotAllowed("the secret of line 7")]
)
def test_anything_else_is_internal_without_details_and_the_traceback_is_in_the_log(
    open_door: Open, one: pb.EncodeRequest, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with open_door(change=fails_with(error)) as door:
        seen = failure(lambda: door.viq.Encode(one, metadata=[("x-request-id", "find-me")]))
        assert (seen.code(), seen.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert trailers(seen)["x-request-id"] == "find-me"
        assert "secret" not in str(trailers(seen))
        assert door.sample("viq_rejected_total", reason="internal") == 1
    tracebacks = [record for record in caplog.records if record.name == "viq.rpc" and record.exc_info]
    if isinstance(error, RuntimeError):
        (record,) = tracebacks
        assert "find-me" in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is error


@pytest.mark.parametrize("long", ["x" * 1_000_000, "😀" * 300_000, "\n" * 10_000])
def test_a_message_quotes_only_the_beginning_of_what_is_long(
    door: Door, long: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    error = failure(lambda: door.viq.Encode(pb.EncodeRequest(items=MANY[:1], size=long)))
    assert_error(error, grpc.StatusCode.NOT_FOUND, "unknown_model")
    assert len(error.details().encode()) < 1100
    assert all(len(record.getMessage()) < 5000 for record in caplog.records)
    items = [pb.Item(codes=pb.Codes(data=bytes(8), h=1, w=1, size=long))]
    (result,) = door.viq.Decode(pb.DecodeRequest(items=items, size="nano")).results
    assert len(result.status.message.encode()) < 1100


def test_while_loading_all_is_unavailable_and_nothing_is_claimed_about_the_model(
    open_door: Open, one: pb.EncodeRequest
) -> None:
    with open_door(load=False) as door:
        refused = [
            failure(lambda: door.viq.Encode(one)),
            failure(lambda: door.viq.Embed(pb.EmbedRequest(items=one.items))),
            failure(lambda: door.viq.Decode(pb.DecodeRequest(items=[pb.Item(codes=BLACK)]))),
            failure(lambda: door.viq.Plan(pb.PlanRequest(images=[pb.ImageSize(height=1, width=1)]))),
            failure(lambda: door.viq.Info(pb.InfoRequest())),
        ]
    for error in refused:
        assert (error.code(), trailers(error)["viq-error-code"]) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
        assert "viq-fingerprint" not in trailers(error)
        assert trailers(error)["x-request-id"]
