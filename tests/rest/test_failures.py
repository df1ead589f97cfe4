"""What a caller sees of a service that is still loading, and of one that has a bug."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from viq import Codes, ViQ
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest.app import create_app
from viq_serving.rest.envelope import Envelope
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

MakeImage = Callable[..., bytes]
MakeApp = Callable[[Tokenizer, Metrics], Awaitable[Envelope]]
ServeApp = Callable[[MakeApp], AbstractContextManager[httpx.Client]]

DETAIL = "the secret of line 7"


class FailsOnBlack:
    """The real model, with a bug that shows only for black pixels."""

    def __init__(self) -> None:
        self._model = ViQ.from_pretrained()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        if not all(image.rows.any() for image in images):
            raise RuntimeError(DETAIL)
        return self._model.launch_encode(images)


def assert_internal(reply: httpx.Response, caplog: pytest.LogCaptureFixture) -> None:
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert reply.json()["error"]["request_id"] == reply.headers["X-Request-ID"] == "find-me"
    assert "secret" not in reply.text
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert any(record.name == "viq.rest" and "find-me" in record.getMessage() for record in errors)
    assert any(record.exc_info is not None and DETAIL in str(record.exc_info[1]) for record in errors)


def test_while_loading_the_port_is_open_but_nothing_is_ready(serve_app: ServeApp, make_image: MakeImage) -> None:
    async def loading(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        return create_app(tokenizer, metrics, Settings(), Keys(Settings()))

    with serve_app(loading) as client:
        assert client.get("/livez").status_code == 200
        assert "viq_ready 0.0" in client.get("/metrics").text
        refused = [client.get(path) for path in ("/readyz", "/startupz", "/v1/models")]
        refused += [client.post(f"/v1/{method}", content=make_image()) for method in ("encode", "embed", "decode")]
        refused.append(client.post("/v1/plan", json={"images": [{"width": 1, "height": 1}]}))
    for reply in refused:
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")
        assert reply.headers["Retry-After"] == "1"
        assert reply.headers["X-Request-ID"]
        assert "ViQ-Fingerprint" not in reply.headers


def test_a_bug_is_500_without_details_and_the_next_request_works(
    serve_app: ServeApp, make_image: MakeImage, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [FailsOnBlack()])  # type: ignore[list-item]
        return create_app(tokenizer, metrics, Settings(), Keys(Settings()))

    black = b"P6\n16 16\n255\n" + bytes(768)
    with serve_app(buggy) as client:
        reply = client.post("/v1/encode", content=black, headers={"X-Request-ID": "find-me"})
        assert client.post("/v1/encode", content=make_image()).status_code == 200
        assert 'outcome="internal"' in client.get("/metrics").text
    assert_internal(reply, caplog)
    assert reply.headers["ViQ-Fingerprint"]


def test_a_bug_on_one_of_several_images_fails_a_reply_that_can_hold_no_error(
    serve_app: ServeApp, make_image: MakeImage, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [FailsOnBlack()])  # type: ignore[list-item]
        return create_app(tokenizer, metrics, Settings(), Keys(Settings()))

    files = [("image", make_image()), ("image", b"P6\n16 16\n255\n" + bytes(768))]
    with serve_app(buggy) as client:
        reply = client.post("/v1/embed", files=files, headers={"X-Request-ID": "find-me"})
        listed = client.post("/v1/encode", files=files)
    assert_internal(reply, caplog)
    assert not [record for record in caplog.records if "TypeError" in str(record.exc_info)]
    assert listed.status_code == 200
    assert listed.json()["results"][1]["error"] == {"code": "internal", "message": "internal error"}


def test_a_bug_outside_the_framework_looks_the_same(serve_app: ServeApp, caplog: pytest.LogCaptureFixture) -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError(DETAIL)

    async def buggy(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        return Envelope(raises, tokenizer, metrics, Settings(), Keys(Settings()))

    with serve_app(buggy) as client, caplog.at_level(logging.ERROR, "viq.rest"):
        reply = client.get("/v1/encode", headers={"X-Request-ID": "find-me"})
    assert_internal(reply, caplog)
