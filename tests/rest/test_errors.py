"""Every row of the error table that this door can give, and the shape that all errors share."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Callable

import httpx
import pytest
from PIL import Image

MakeImage = Callable[..., bytes]
JSON = {"Content-Type": "application/json"}


def assert_error(reply: httpx.Response, status: int, code: str, words: str = "") -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), reply.text
    assert words in error["message"]
    assert error["request_id"] == reply.headers["X-Request-ID"]
    assert set(error) == {"code", "message", "request_id"}
    assert re.fullmatch(r"[0-9a-f]{16}\.[0-9a-f]{8}", reply.headers["ViQ-Fingerprint"])
    assert reply.headers["Content-Type"] == "application/json"


def png_header(width: int, height: int) -> bytes:
    """A PNG that is all header: any attempt at its pixels would fail differently."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\xfd", b'{"results": [NaN]}', b"[" * 100_000, b"nonsense"])
@pytest.mark.parametrize("path", ["/v1/decode", "/v1/embed", "/v1/plan"])
def test_malformed_json_is_400(client: httpx.Client, path: str, body: bytes) -> None:
    assert_error(client.post(path, content=body, headers=JSON), 400, "malformed", "JSON")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"nonsense"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut short'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x\r\n',
        ),
    ],
)
def test_malformed_multipart_is_400(client: httpx.Client, content_type: str, body: bytes) -> None:
    reply = client.post("/v1/encode", content=body, headers={"Content-Type": content_type})
    assert_error(reply, 400, "malformed", "multipart")


@pytest.mark.parametrize("part", ["file", "images", "", "IMAGE"])
def test_a_part_of_another_name_is_422(client: httpx.Client, make_image: MakeImage, part: str) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="{part}"; filename="a"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    reply = client.post("/v1/encode", content=head + make_image() + b"\r\n--x--\r\n", headers=headers)
    assert_error(reply, 422, "invalid_input", "image")


def test_a_multipart_without_parts_is_422(client: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_error(client.post("/v1/encode", content=b"--x--\r\n", headers=headers), 422, "invalid_input", "no image")


@pytest.mark.parametrize(
    ("body", "words"), [(b"", "empty"), (b"no image at all", "not an image"), (b"<svg/>", "not an image")]
)
def test_what_is_no_image_is_422(client: httpx.Client, body: bytes, words: str) -> None:
    assert_error(client.post("/v1/encode", content=body), 422, "invalid_input", words)
    assert_error(client.post("/v1/encode", files={"image": ("a.png", body)}), 422, "invalid_input", words)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_a_truncated_image_is_422(client: httpx.Client, make_image: MakeImage, format: str, keep: float) -> None:
    whole = make_image(64, 64, format)
    assert_error(client.post("/v1/encode", content=whole[: int(keep * len(whole))]), 422, "invalid_input")


def test_a_png_that_is_only_a_header_is_422(client: httpx.Client) -> None:
    assert_error(client.post("/v1/encode", content=png_header(16, 16)), 422, "invalid_input")


@pytest.mark.parametrize("query", ["?colour=red", "?exif=maybe", "?alpha=black", "?codes=hex", "?size=nano&x"])
def test_unknown_options_of_encode_are_422(client: httpx.Client, make_image: MakeImage, query: str) -> None:
    assert_error(client.post(f"/v1/encode{query}", content=make_image()), 422, "invalid_input")


@pytest.mark.parametrize(
    "path", ["/v1/decode?format=xml", "/v1/embed?dtype=int8", "/v1/embed?codes=list", "/v1/plan?size=nano"]
)
def test_unknown_options_of_the_other_methods_are_422(client: httpx.Client, path: str) -> None:
    assert_error(client.post(path, content=b"{}", headers=JSON), 422, "invalid_input")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/encode", "text/plain"),
        ("/v1/encode", "application/json"),
        ("/v1/encode", "application/x-www-form-urlencoded"),
        ("/v1/encode", "multipart/mixed; boundary=x"),
        ("/v1/decode", "image/png"),
        ("/v1/decode", "multipart/form-data; boundary=x"),
        ("/v1/embed", "text/html"),
        ("/v1/plan", "image/png"),
    ],
)
def test_a_body_of_a_type_that_is_not_taken_is_415(client: httpx.Client, path: str, content_type: str) -> None:
    reply = client.post(path, content=b"body", headers={"Content-Type": content_type})
    assert_error(reply, 415, "unsupported_media_type", content_type.partition(";")[0])


@pytest.mark.parametrize(
    ("image", "limit"),
    [
        (png_header(30_000, 30_000), "50000000"),
        (b"P6\n30000 30000\n255\n", "50000000"),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0), "50000000"),
        (png_header(9_000, 9_000), "50000000"),
        (png_header(2_049, 2_048), "16384"),
    ],
)
def test_an_image_over_a_limit_is_413_by_its_header(client: httpx.Client, image: bytes, limit: str) -> None:
    assert_error(client.post("/v1/encode", content=image), 413, "too_large", limit)
    assert_error(client.post("/v1/embed", content=image), 413, "too_large", limit)


def test_a_decompression_bomb_is_413(client: httpx.Client) -> None:
    bomb = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    assert_error(client.post("/v1/encode", content=bomb.getvalue()), 413, "too_large", "50000000")


def test_a_picture_that_hides_a_larger_one_is_413(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2056, 2056)).save(buffer, "AVIF", speed=10)
    claim = b"ispe\0\0\0\0" + struct.pack(">II", 2056, 2056)
    hidden = buffer.getvalue().replace(claim, claim[:8] + struct.pack(">II", 16, 16))
    assert hidden != buffer.getvalue()
    assert_error(client.post("/v1/encode", content=hidden), 413, "too_large", str(2056 * 2056))


def test_a_text_chunk_that_unpacks_to_too_much_is_413(client: httpx.Client, make_image: MakeImage) -> None:
    whole, text = make_image(16, 16), b"zTXtComment\0\0" + zlib.compress(bytes(2**26), 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    assert_error(client.post("/v1/encode", content=whole[:33] + chunk + whole[33:]), 413, "too_large")


def test_an_npz_that_unpacks_to_too_much_is_413(client: httpx.Client) -> None:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("codes", "image_size", "size", "fingerprint"):
            archive.writestr(f"{name}.npy", bytes(65 * 2**20 if name == "codes" else 1))
    reply = client.post("/v1/decode", content=buffer.getvalue(), headers={"Content-Type": "application/x-npz"})
    assert_error(reply, 413, "too_large", str(64 * 2**20))


def test_more_images_than_the_limit_are_413(client: httpx.Client) -> None:
    assert_error(client.post("/v1/encode", files=[("image", b"x")] * 65), 413, "too_large", "64")
    assert_error(client.post("/v1/decode", json={"results": [{}] * 65}), 413, "too_large", "64")


@pytest.mark.parametrize("path", ["/v1", "/v1/encode/", "/v1/nothing", "/metrics/x"])
def test_no_such_path_is_404(client: httpx.Client, path: str) -> None:
    assert_error(client.get(path), 404, "not_found", path)


@pytest.mark.parametrize(("size", "words"), [("16k", "not loaded"), ("17k", "does not exist")])
def test_no_such_size_is_404(client: httpx.Client, make_image: MakeImage, size: str, words: str) -> None:
    for path in ("/v1/encode", "/v1/embed"):
        assert_error(client.post(f"{path}?size={size}", content=make_image()), 404, "unknown_model", words)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models"])
def test_head_is_answered_as_get_without_the_body(client: httpx.Client, path: str) -> None:
    reply = client.head(path)
    assert (reply.status_code, reply.content) == (200, b"")
    assert int(reply.headers["Content-Length"]) > 0


def test_a_message_quotes_only_the_beginning_of_what_is_long(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    body = {"size": "x" * 1_000_000, "grid": [1, 1], "codes": [0, 0, 0, 0]}
    reply = client.post("/v1/decode", json=body)
    assert_error(reply, 404, "unknown_model", "xxx")
    assert len(reply.content) < 2000
    assert all(len(record.getMessage()) < 2000 for record in caplog.records)


def test_every_reply_forbids_guessing_its_type(client: httpx.Client, make_image: MakeImage) -> None:
    for reply in (client.get("/livez"), client.get("/nothing"), client.post("/v1/encode", content=make_image())):
        assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("verb", "path"), [("GET", "/v1/encode"), ("DELETE", "/v1/decode"), ("POST", "/v1/models")])
def test_the_wrong_method_is_405_and_says_which_is_right(client: httpx.Client, verb: str, path: str) -> None:
    reply = client.request(verb, path)
    assert_error(reply, 405, "method_not_allowed", verb)
    assert reply.headers["Allow"] in ("POST", "GET")


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/v1/encode", "image/png"),
        ("/v1/encode", "application/json;q=0"),
        ("/v1/decode", "text/html"),
        ("/v1/plan", "image/png"),
    ],
)
def test_an_accept_that_cannot_be_met_is_406(client: httpx.Client, path: str, accept: str) -> None:
    assert_error(client.post(path, content=b"", headers={"Accept": accept}), 406, "not_acceptable", accept)


def test_an_expected_fingerprint_may_be_a_family_or_the_whole(client: httpx.Client, make_image: MakeImage) -> None:
    whole = client.get("/v1/models").json()["models"][0]["fingerprint"]
    for expected in (whole, whole.partition(".")[0]):
        reply = client.post("/v1/encode", content=make_image(), headers={"ViQ-Expect-Fingerprint": expected})
        assert reply.status_code == 200
    for expected in ("0123456789abcdef", whole[:-1], whole[:8]):
        reply = client.post("/v1/encode", content=make_image(), headers={"ViQ-Expect-Fingerprint": expected})
        assert_error(reply, 409, "fingerprint_mismatch", expected)


def test_a_good_request_id_comes_back_and_a_bad_one_is_replaced(client: httpx.Client) -> None:
    for given in ("abc-1.2_3", "x" * 128):
        assert client.get("/livez", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
        assert client.get("/nothing", headers={"X-Request-ID": given}).json()["error"]["request_id"] == given
    for given in ("", "a b", "x" * 129, "é".encode().decode("latin-1")):
        reply = client.get("/livez", headers=[(b"X-Request-ID", given.encode("latin-1"))])
        assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["X-Request-ID"])


def test_what_is_no_http_gets_a_400_in_our_shape(client: httpx.Client) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as wire:
        wire.sendall(b"this is no http\r\n\r\n")
        reply = b"".join(iter(lambda: wire.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"X-Request-ID: " in head
    assert b"ViQ-Fingerprint: " in head
    assert json.loads(body)["error"]["code"] == "malformed"
