"""What a server with keys lets in, and what anybody may ask."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from tests.rest.wires import said
from tests.waiting import until

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]

KEY = "s3cret-of-the-test"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def guarded(serve: Serve) -> Iterator[httpx.Client]:
    """A server with one key."""
    with serve(api_keys=f"other-key,{KEY}") as client:
        yield client


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready"])
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
def test_probes_need_no_key(guarded: httpx.Client, verb: str, path: str) -> None:
    assert guarded.request(verb, path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/nothing",
        "/v1/nothing",
        "/livez/",
        "/livez/../metrics",
    ],
)
@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", "Bearer"])
def test_all_else_needs_a_known_key(guarded: httpx.Client, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for verb in ("GET", "POST", "DELETE"):
        reply = guarded.request(verb, path, headers=headers)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (401, "unauthenticated")
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert error["request_id"] == reply.headers["X-Request-ID"]
        assert reply.headers["Cache-Control"] == "no-store"
        assert "wrong" not in reply.text
        assert KEY not in reply.text
    assert guarded.head(path, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json", "/v1/models", "/v2"])
def test_a_known_key_opens_everything(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path, headers=BEARER).status_code == 200
    assert guarded.get(path, headers={"Authorization": "bearer other-key"}).status_code == 200


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/models/viq-encode", "/v2/models/viq-encode/infer", "/v2/nothing"])
def test_refusals_of_the_open_inference_protocol_have_its_shape(guarded: httpx.Client, path: str) -> None:
    reply = guarded.get(path)
    assert reply.status_code == 401
    assert list(reply.json()) == ["error"]
    assert "key" in reply.json()["error"]


def test_methods_work_with_a_key_and_are_refused_without(guarded: httpx.Client, make_image: MakeImage) -> None:
    assert guarded.post("/v1/encode", content=make_image()).status_code == 401
    reply = guarded.post("/v1/encode", content=make_image(), headers=BEARER)
    assert reply.status_code == 200
    assert reply.headers["Cache-Control"] == "private, no-cache"
    metrics = guarded.get("/metrics", headers=BEARER).text
    assert 'viq_requests_total{door="http",method="encode",outcome="unauthenticated"' in metrics


def test_a_key_is_asked_for_before_the_body_is_read(guarded: httpx.Client) -> None:
    request = "POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((guarded.base_url.host, guarded.base_url.port or 0), timeout=20) as wire:
        wire.sendall(request.encode())
        reply = said(wire)
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in reply


def test_no_log_line_holds_a_key(
    guarded: httpx.Client, make_image: MakeImage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    guarded.post("/v1/encode", content=make_image(), headers=BEARER)
    guarded.post("/v1/encode", content=make_image(), headers={"Authorization": "Bearer s3cret-typo"})
    guarded.post("/v1/encode?size=none", content=make_image(), headers=BEARER)
    ours = [record for record in caplog.records if record.name.startswith("viq")]
    assert len(ours) >= 4
    assert not any("s3cret" in f"{record.getMessage()} {vars(record)}" for record in ours)


def test_a_key_is_exchanged_while_the_server_runs(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old-key\n")
    with serve(api_keys_file=str(keys)) as client:

        def status(key: str) -> int:
            return client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

        assert (status("old-key"), status("new-key")) == (200, 401)
        (tmp_path / "fresh").write_text("new-key\n")
        os.replace(tmp_path / "fresh", keys)  # noqa: PTH105
        until(lambda: status("new-key") != 401, "the new key is known")
        assert (status("old-key"), status("new-key")) == (401, 200)
