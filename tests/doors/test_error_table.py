"""A test a row of the table of errors, through every door that the row can come through, with neighbours unharmed."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.waiting import until

from viq import Codes, ViQ
from viq_serving.pb import open_inference_pb2 as oip
from viq_serving.pb import viq_pb2 as pb

if TYPE_CHECKING:
    from tests.doors.conftest import Reply, Server

MakePng = Callable[..., bytes]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
JSON, PNG = {"Content-Type": "application/json"}, {"Content-Type": "image/png"}
ENCODE, INFER = "viq.v1.ViQ/Encode", "inference.GRPCInferenceService/ModelInfer"
OIP_ENCODE = "/v2/models/viq-encode/infer"
FOREIGN = "0123456789abcdef.01234567"

STATUS = {
    "malformed": (400, "INVALID_ARGUMENT"),
    "invalid_input": (422, "INVALID_ARGUMENT"),
    "unsupported_media_type": (415, None),
    "too_large": (413, "INVALID_ARGUMENT"),
    "not_found": (404, "UNIMPLEMENTED"),
    "unknown_model": (404, "NOT_FOUND"),
    "method_not_allowed": (405, None),
    "not_acceptable": (406, None),
    "fingerprint_mismatch": (409, "FAILED_PRECONDITION"),
    "internal": (500, "INTERNAL"),
}


@pytest.fixture(autouse=True)
def _neighbours(server: Server, make_png: MakePng) -> Iterator[None]:
    """Others who ask while a test provokes errors: whatever they are, these get their codes."""
    image, ended, found = make_png(seed=7), threading.Event(), list[Any]()
    (expected,) = server.ask("http", "encode", [image]).items

    def ask() -> None:
        while not ended.is_set():
            found.extend(server.ask(door, "encode", [image]) for door in DOORS)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert found
    assert all(reply.items == [expected] for reply in found)


def check(reply: Reply, code: str, *said: str, native: bool = True) -> None:
    """`reply` is the error `code` with its status, and its message says all of `said`."""
    assert reply.status in STATUS[code], reply
    assert reply.code == code if native or isinstance(reply.status, str) else reply.code == "", reply
    for words in said:
        assert words in reply.message, reply
    assert reply.headers["x-request-id"]
    assert reply.fingerprint


@pytest.fixture(scope="module")
def codes(model: ViQ) -> Codes:
    return model.encode_pixels([np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)])[0]


def claiming(width: int, height: int) -> bytes:
    """The file of a picture that says it is of that size, and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


# 400 malformed


def test_a_body_or_message_that_cannot_be_taken_apart_is_malformed(server: Server) -> None:
    check(server.post("/v1/decode", content=b'{"results": [', headers=JSON), "malformed", "JSON")
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    check(server.post("/v1/encode", content=b"--x\r\nno end", headers=multipart), "malformed", "multipart")
    check(server.call(ENCODE, b"\xff\xff"), "malformed")
    check(server.post(OIP_ENCODE, content=b'{"inputs": ['), "malformed", "JSON", native=False)
    check(server.call(INFER, b"\xff\xff"), "malformed")


# 422 invalid_input


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("image", "said"), [(b"no image", "not an image of a known format"), (b"", "empty (0 bytes)")])
def test_an_undecodable_or_empty_image_is_invalid_input(server: Server, door: str, image: bytes, said: str) -> None:
    check(server.ask(door, "encode", [image]), "invalid_input", said, native=door != "oip_http")


@pytest.mark.parametrize("door", DOORS)
def test_pixels_that_end_too_early_are_invalid_input(server: Server, door: str, make_png: MakePng) -> None:
    broken = make_png(64, 64)[:-4000]
    check(server.ask(door, "encode", [broken]), "invalid_input", "cannot be decoded", native=door != "oip_http")


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_one_bad_image_among_good_ones_fails_alone(server: Server, door: str, make_png: MakePng) -> None:
    good = [make_png(seed=n) for n in range(2)]
    expected = server.ask(door, "encode", good).items
    reply = server.ask(door, "encode", [good[0], b"no image", make_png(64, 64)[:-4000], good[1]])
    assert reply.good
    assert [reply.items[0], reply.items[3]] == expected
    assert [reply.items[n].code for n in (1, 2)] == ["invalid_input"] * 2


@pytest.mark.parametrize("door", ["oip_http", "oip_grpc"])
def test_the_open_inference_protocol_fails_whole_and_names_the_image(
    server: Server, door: str, make_png: MakePng
) -> None:
    reply = server.ask(door, "encode", [make_png(), b"no image"])
    check(reply, "invalid_input", "image 1: ", native=door != "oip_http")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["embed", "decode"])
def test_codes_that_do_not_fit_their_grid_are_invalid_input(
    server: Server, door: str, method: str, codes: Codes
) -> None:
    check(short(server, door, method, codes), "invalid_input", native=door != "oip_http")


def short(server: Server, door: str, method: str, codes: Codes) -> Reply:
    """What a door says to codes of which one is missing."""
    (h, w), data = codes.grid, codes.to_bytes()[:-2]
    if door == "http":
        headers = {"Content-Type": "application/octet-stream", "ViQ-Grid": f"{h},{w}"}
        return server.post(f"/v1/{method}", content=data, headers=headers)
    if door == "grpc":
        kind = {"embed": pb.EmbedRequest, "decode": pb.DecodeRequest}[method]
        request = kind(items=[pb.Item(codes=pb.Codes(data=data, h=h, w=w))])
        reply = server.call(f"viq.v1.ViQ/{method.capitalize()}", request.SerializeToString())
        (result,) = pb.DecodeResponse.FromString(reply.items[0]).results
        reply.status, reply.code = "INVALID_ARGUMENT", result.status.code
        assert result.status.grpc_code == 3
        return reply
    tensors = [("codes", "UINT16", [len(data) // 2]), ("grid_hw", "INT32", [1, 2])]
    raw = [data, struct.pack("<ii", h, w)]
    if door == "oip_grpc":
        inputs = [oip.ModelInferRequest.InferInputTensor(name=n, datatype=d, shape=s) for n, d, s in tensors]
        infer = oip.ModelInferRequest(model_name=f"viq-{method}", inputs=inputs, raw_input_contents=raw)
        return server.call(INFER, infer.SerializeToString())
    described = [
        {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(r)}}
        for (n, d, s), r in zip(tensors, raw, strict=True)
    ]
    head = json.dumps({"inputs": described}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return server.post(f"/v2/models/viq-{method}/infer", content=head + b"".join(raw), headers=headers)


@pytest.mark.parametrize("door", ["http", "oip_http", "oip_grpc"])
def test_an_option_that_there_is_not_is_invalid_input(server: Server, door: str, make_png: MakePng) -> None:
    reply = server.ask(door, "encode", [make_png()], bogus=True)
    check(reply, "invalid_input", "bogus", native=door != "oip_http")


def test_a_value_that_an_option_does_not_have_is_invalid_input_on_grpc_too(server: Server, make_png: MakePng) -> None:
    request = pb.EmbedRequest(items=[pb.Item(image=make_png())], dtype=99)  # type: ignore[arg-type]
    check(server.call("viq.v1.ViQ/Embed", request.SerializeToString()), "invalid_input", "99")


@pytest.mark.parametrize("door", ["grpc", "oip_http", "oip_grpc"])
def test_a_request_without_any_item_is_invalid_input(server: Server, door: str) -> None:
    if door == "oip_http":
        reply = server.post(OIP_ENCODE, json={"inputs": []})
    elif door == "oip_grpc":
        reply = server.call(INFER, oip.ModelInferRequest(model_name="viq-encode").SerializeToString())
    else:
        reply = server.call(ENCODE, b"")
    check(reply, "invalid_input", native=door != "oip_http")


# 415, 405, 406: HTTP alone has them


def test_a_body_of_a_type_that_no_method_takes_is_unsupported(server: Server, make_png: MakePng) -> None:
    text, packed = {"Content-Type": "text/plain"}, {**PNG, "Content-Encoding": "br"}
    check(server.post("/v1/encode", content=b"hello", headers=text), "unsupported_media_type", "text/plain")
    check(server.post("/v1/encode", content=make_png(), headers=packed), "unsupported_media_type", "br")
    reply = server.post(OIP_ENCODE, content=b"{}", headers={"Content-Encoding": "br"})
    check(reply, "unsupported_media_type", "br", native=False)


def test_a_wrong_verb_and_a_form_that_no_reply_has_are_refused(server: Server, make_png: MakePng) -> None:
    for path, native in (("/v1/encode", True), (OIP_ENCODE, False)):
        reply = server.post(path, method="GET")
        check(reply, "method_not_allowed", "GET", native=native)
        assert reply.headers["allow"] == "POST"
    reply = server.post("/v1/encode", content=make_png(), headers={**PNG, "Accept": "text/html"})
    check(reply, "not_acceptable", "text/html")


# 413 too_large


@pytest.mark.parametrize("door", DOORS)
def test_over_a_limit_is_too_large_and_the_message_holds_value_and_limit(
    server: Server, door: str, make_png: MakePng
) -> None:
    native = door != "oip_http"
    pixels = claiming(1000, 300)
    check(server.ask(door, "encode", [pixels]), "too_large", "300000", "200000", native=native)
    patches = claiming(16 * 600, 16)
    check(server.ask(door, "encode", [patches]), "too_large", "600 patches", "512", native=native)
    items = [make_png()] * 9
    check(server.ask(door, "encode", items), "too_large", "8", native=native)
    request = [claiming(256, 272)] * 3  # each of them would be welcome
    check(server.ask(door, "encode", request), "too_large", "816", "600", native=native)
    body = make_png() + bytes(600_000)
    check(server.ask(door, "encode", [body]), "too_large", "600000", native=native)


def test_what_comes_packed_is_counted_unpacked(server: Server, codes: Codes) -> None:
    bomb, packed = gzip.compress(bytes(10_000_000)), {"Content-Encoding": "gzip"}
    assert len(bomb) < 600_000
    check(server.post("/v1/encode", content=bomb, headers={**PNG, **packed}), "too_large", "600000")
    check(server.post(OIP_ENCODE, content=bomb, headers=packed), "too_large", "600000", native=False)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("codes", "image_size", "size", "fingerprint"):
            archive.writestr(f"{name}.npy", bytes(100_000_000))
    reply = server.post("/v1/decode", content=file.getvalue(), headers={"Content-Type": "application/x-npz"})
    check(reply, "too_large", str(64 * 2**20))
    for path in (ENCODE, INFER):
        reply = server.call(path, bytes(700_000), compression=grpc.Compression.Gzip)
        check(reply, "too_large", "700000", "600000")


# 404


def test_what_does_not_exist_is_not_found(server: Server) -> None:
    check(server.post("/v1/bogus", method="GET"), "not_found", "/v1/bogus")
    check(server.post("/v2/bogus", method="GET"), "not_found", "/v2/bogus", native=False)
    check(server.call("viq.v1.ViQ/Bogus", b""), "not_found", "Bogus")
    check(server.call("inference.GRPCInferenceService/Bogus", b""), "not_found", "Bogus")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("size", ["16k", "17k"])
def test_a_size_that_is_not_served_is_unknown_model(server: Server, door: str, size: str, make_png: MakePng) -> None:
    reply = server.ask(door, "encode", [make_png()], size=size)
    check(reply, "unknown_model", f"'{size}'", "nano", native=door != "oip_http")


def test_a_model_that_does_not_exist_is_unknown_model(server: Server) -> None:
    check(
        server.post("/v2/models/bogus/infer", json={"inputs": list[Any]()}),
        "unknown_model",
        "bogus",
        "viq-encode",
        native=False,
    )
    message = oip.ModelInferRequest(model_name="bogus").SerializeToString()
    check(server.call(INFER, message), "unknown_model", "bogus", "viq-encode")


# 409 fingerprint_mismatch


@pytest.mark.parametrize("door", DOORS)
def test_another_fingerprint_than_expected_is_refused(server: Server, door: str, make_png: MakePng, model: ViQ) -> None:
    reply = server.ask(door, "encode", [make_png()], expect=FOREIGN)
    check(reply, "fingerprint_mismatch", FOREIGN, model.fingerprint, native=door != "oip_http")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["embed", "decode"])
def test_codes_of_another_family_are_refused_unless_allowed(
    server: Server, door: str, method: str, codes: Codes, model: ViQ
) -> None:
    foreign = replace(codes, fingerprint=FOREIGN)
    reply = server.ask(door, method, [foreign])
    check(reply, "fingerprint_mismatch", FOREIGN[:16], model.family, native=door != "oip_http")
    allowed, own = server.ask(door, method, [foreign], any_fingerprint=True), server.ask(door, method, [codes])
    np.testing.assert_array_equal(allowed.items[0], own.items[0])
    elsewhere = replace(codes, fingerprint=f"{model.family}.01234567")  # the same weights on another machine
    assert server.ask(door, method, [elsewhere]).good


# 500 internal


@pytest.mark.parametrize("door", DOORS)
def test_what_nobody_foresaw_is_internal_without_details_outside(server: Server, door: str, make_png: MakePng) -> None:
    request_id = f"exploding.{door}"
    reply = server.ask(door, "encode", [make_png(80, 16)], request_id=request_id)
    check(reply, "internal", "internal error", native=door != "oip_http")
    assert "secret" not in reply.message
    assert "RuntimeError: secret of the device" in server.log()
    until(lambda: request_id in server.access(), "its line in the log")  # written when it is already answered
    assert server.access()[request_id] == "internal"


def test_base64_on_the_open_inference_protocol_must_be_some(server: Server) -> None:
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["*"]}
    check(server.post(OIP_ENCODE, json={"inputs": [image]}), "invalid_input", "base64", native=False)
    image["data"] = [base64.b64encode(b"no image").decode()]
    check(server.post(OIP_ENCODE, json={"inputs": [image]}), "invalid_input", "image 0", native=False)
