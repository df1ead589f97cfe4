"""Whatever is sent: an answer comes, in our shape, and it is never 500."""

from __future__ import annotations

import json
import socket
import string
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

CODES = {
    400: {"malformed"},
    404: {"not_found", "unknown_model"},
    405: {"method_not_allowed"},
    406: {"not_acceptable"},
    409: {"fingerprint_mismatch"},
    413: {"too_large"},
    415: {"unsupported_media_type"},
    422: {"invalid_input"},
    504: {"deadline_exceeded"},
}

quick = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PATHS = st.sampled_from(["/v1/encode", "/v1/decode", "/v1/embed", "/v1/reconstruct", "/v1/plan", "/v1/models"])
NAMES = ("size", "codes", "exif", "alpha", "format", "dtype", "any_fingerprint", "x")
VALUES = st.one_of(
    st.sampled_from(["nano", "json", "base64", "bfloat16", "1", "0", "true", "drop"]), st.text(max_size=8)
)
HEADER_TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Accept",
            "Content-Type",
            "Content-Encoding",
            "ViQ-Grid",
            "ViQ-Image-Size",
            "ViQ-Size",
            "ViQ-Fingerprint",
            "ViQ-Timeout-Ms",
            "ViQ-Priority",
            "ViQ-Expect-Fingerprint",
            "X-Request-ID",
            "If-None-Match",
            "Authorization",
        ]
    ),
    st.one_of(
        HEADER_TEXT,
        st.sampled_from(
            [
                "application/json",
                "application/x-npz",
                "application/octet-stream",
                "multipart/form-data; boundary=x",
                "multipart/form-data",
                "image/png",
                "*/*;q=nan",
                "gzip",
                "1,1",
                "99999,99999",
                "interactive",
                "10000",
            ]
        ),
    ),
    max_size=4,
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 70_000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
    st.sampled_from(["nano", "AAAAAAAAAAA=", "====", "0123456789abcdef.01234567"]),
)
KEYS = st.sampled_from(
    [
        *("model", "results", "timings_ms", "size", "fingerprint", "codebook_size", "levels", "name", "image_size"),
        *("grid", "codes", "codes_b64", "error", "images", "width", "height", "inputs", "outputs", "parameters"),
        *("id", "datatype", "shape", "data", "binary_data_size", "x"),
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=12,
)
CODE_LIKE = st.fixed_dictionaries(
    {
        "grid": st.one_of(st.lists(st.integers(-1, 3), min_size=2, max_size=2), SCALARS),
        "codes": st.one_of(st.lists(st.integers(-1, 70_000), max_size=16), SCALARS),
    },
    optional={
        "image_size": st.one_of(st.lists(st.integers(-1, 40), max_size=3), SCALARS),
        "name": SCALARS,
        "x": SCALARS,
    },
)
REPLY_LIKE = st.fixed_dictionaries(
    {"results": st.lists(st.one_of(CODE_LIKE, SCALARS), max_size=3)},
    optional={"model": st.dictionaries(KEYS, SCALARS, max_size=3), "timings_ms": SCALARS},
)


def assert_sound(reply: httpx.Response) -> None:
    """A success, or an error of our table in our shape."""
    assert reply.headers["X-Request-ID"]
    assert reply.headers["ViQ-Fingerprint"]
    if reply.status_code in (200, 304):
        return
    assert reply.status_code in CODES, (reply.status_code, reply.text)
    error = reply.json()["error"]
    assert error["code"] in CODES[reply.status_code]
    assert error["request_id"] == reply.headers["X-Request-ID"]
    assert error["message"]


def ask(client: httpx.Client, verb: str, path: str, **more: Any) -> httpx.Response:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in more.pop("headers", {}).items()]
    return client.request(verb, path, headers=headers, timeout=60, **more)


@quick
@given(PATHS, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3), HEADERS, st.binary(max_size=200))
@example("/v1/embed", {}, {"Content-Type": "application/octet-stream", "ViQ-Grid": "1,1"}, bytes(8))
@example("/v1/encode", {}, {"Accept": "*/*;q=nan"}, b"")
@example("/v1/encode", {}, {"If-None-Match": '"' * 20}, b"P5 1 1 255\n0")
def test_any_headers_options_and_bytes(
    client: httpx.Client, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    try:
        reply = ask(client, "POST", path, params=query, headers=headers, content=body)
    except httpx.LocalProtocolError:
        return  # the client itself does not send it
    assert_sound(reply)


@quick
@given(
    st.sampled_from(["/v1/decode", "/v1/embed", "/v1/plan"]),
    st.one_of(ANYTHING, CODE_LIKE, REPLY_LIKE, st.fixed_dictionaries({"images": st.lists(ANYTHING, max_size=3)})),
)
@example("/v1/decode", {"grid": [10**30, 10**30], "codes": []})
@example("/v1/decode", {"grid": [1, 1], "codes": [True, False, True, False]})
@example("/v1/plan", {"images": [{"width": 2**31 - 1, "height": 2**31 - 1}]})
def test_any_json(client: httpx.Client, path: str, value: object) -> None:
    assert_sound(ask(client, "POST", path, json=value))


@quick
@given(st.sampled_from(["viq-encode", "viq-embed", "viq-decode", "other"]), ANYTHING)
def test_any_json_for_the_open_inference_protocol(client: httpx.Client, model: str, value: object) -> None:
    fields = value if isinstance(value, dict) else {"inputs": value}
    reply = ask(client, "POST", f"/v2/models/{model}/infer", json=fields)
    assert reply.status_code in {200, *CODES}, (reply.status_code, reply.text)
    if reply.status_code != 200:
        assert list(reply.json()) == ["error"]
        assert isinstance(reply.json()["error"], str)


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["image", "file", "", "ima\u00e9ge"]),
            st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=10)),
            st.binary(max_size=60),
        ),
        max_size=4,
    )
)
def test_any_multipart(client: httpx.Client, parts: list[tuple[str, str | None, bytes]]) -> None:
    files: list[tuple[str, Any]] = [(name, (filename, data)) for name, filename, data in parts]
    assert_sound(client.post("/v1/encode", files=files or None))


@quick
@given(st.binary(max_size=300))
def test_any_bytes_in_a_multipart(client: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_sound(ask(client, "POST", "/v1/encode", headers=headers, content=b"--x\r\n" + body))


@quick
@given(
    st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"]),
    st.text(string.ascii_letters + string.digits + "/%._-~é?#&=", max_size=30),
)
def test_any_path_and_verb(client: httpx.Client, verb: str, path: str) -> None:
    reply = client.request(verb, f"/{path.lstrip('/')}")
    assert reply.status_code in {200, *CODES}, (reply.status_code, reply.text)
    assert reply.headers["X-Request-ID"]
    if reply.status_code != 200 and verb != "HEAD":
        assert "error" in reply.json()


@quick
@given(st.binary(max_size=120), st.sampled_from([b"", b"GET ", b"GET / HTTP/1.1\r\n", b"POST /v1/encode HTTP/1.1\r\n"]))
@pytest.mark.timeout(120)
def test_any_bytes_on_the_wire(client: httpx.Client, body: bytes, start: bytes) -> None:
    """What answers there are look like HTTP, errors like ours, and the server lives."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=60) as wire:
        wire.sendall(start + body + b"\r\n\r\n")
        wire.shutdown(socket.SHUT_WR)
        try:
            reply = b"".join(iter(lambda: wire.recv(65536), b""))
        except ConnectionResetError:
            reply = b""
    if reply:
        head, _, content = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ")
        status = int(head.split()[1])
        assert status in {200, *CODES}
        if status != 200:
            assert json.loads(content.partition(b"HTTP/1.1")[0])["error"]["code"] in CODES[status]
    assert client.get("/livez").status_code == 200
