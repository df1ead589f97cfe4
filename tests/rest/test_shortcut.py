"""The way past FastAPI: whatever is asked, the reply is the one that FastAPI gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from viq import ViQ
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest import routes
from viq_serving.rest.app import create_api, create_app
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.shortcut import Shortcut
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

MakeImage = Callable[..., bytes]
MakeApp = Callable[[Tokenizer, Metrics], Awaitable[Envelope]]
ServeApp = Callable[[MakeApp], AbstractContextManager[httpx.Client]]


class Doors(NamedTuple):
    """Two servers with the same settings."""

    short: httpx.Client
    fastapi: httpx.Client


async def _short(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
    await tokenizer.load(lambda: [ViQ.from_pretrained()])
    return create_app(tokenizer, metrics, Settings(), Keys(Settings()))


async def _fastapi(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
    await tokenizer.load(lambda: [ViQ.from_pretrained()])
    api = create_api(tokenizer, metrics, Settings())
    return Envelope(api, tokenizer, metrics, Settings(), Keys(Settings()))


@pytest.fixture(scope="module")
def doors(serve_app: ServeApp) -> Iterator[Doors]:
    with serve_app(_short) as short, serve_app(_fastapi) as fastapi:
        yield Doors(short, fastapi)


def _told(reply: httpx.Response) -> tuple[int, dict[str, str], Any]:
    """All of a reply that is not of its moment."""
    headers = {name: value for name, value in reply.headers.items() if name not in ("date", "content-length")}
    if "application/json" not in reply.headers.get("content-type", ""):
        return reply.status_code, headers, reply.content
    body = reply.json() if reply.content else None
    if isinstance(body, dict):
        body.pop("timings_ms", None)
    return reply.status_code, headers, body


_IMAGE_PATHS = ("/v1/encode", "/v1/embed", "/v1/reconstruct")


@pytest.mark.parametrize(
    "query",
    [
        "", "?", "?size=nano", "?size=huge", "?size=", "?exif=false", "?exif=off&alpha=drop", "?exif=maybe",
        "?alpha=red", "?codes=base64", "?codes=", "?codes=list&codes=base64", "?codes=base64&codes=other",
        "?format=json", "?format=png",
        "?dtype=float16", "?dtype=int8", "?any_fingerprint=1", "?any_fingerprint=2", "?unknown=1", "?a=1&b=2&exif=x",
        "?Size=nano", "?size=na%6eo", "?size=nano;codes=base64", "?&&", "?=", "?%ff=1", "?size=%00", "?query=1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", _IMAGE_PATHS)
def test_options_are_read_alike(doors: Doors, make_image: MakeImage, path: str, query: str) -> None:
    replies = [
        _told(one.post(path + query, content=make_image(), headers={"X-Request-ID": "same"}, timeout=60))
        for one in doors
    ]
    assert replies[0] == replies[1]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        *(("GET", path) for path in ("/v1/models", "/v1/models?x=1", "/v1/encode", "/v1/", "/v1", "/v1/none", "/v2")),
        ("HEAD", "/v1/models"), ("HEAD", "/v1/encode"), ("POST", "/v1/models"), ("PUT", "/v1/encode"),
        ("OPTIONS", "/v1/encode"), ("POST", "/v1/encode/"), ("POST", "/v1/%65ncode"), ("POST", "/V1/encode"),
        ("POST", "//v1/encode"), ("POST", "/v1/plan"), ("POST", "/v1/decode"), ("DELETE", "/v1/plan?size=1"),
        ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/v2/models/viq-encode"), ("GET", "/livez"),
    ],
)  # fmt: skip
def test_paths_and_verbs_lead_to_the_same(doors: Doors, verb: str, path: str) -> None:
    replies = [_told(one.request(verb, path, headers={"X-Request-ID": "same"})) for one in doors]
    assert replies[0] == replies[1]


def test_bodies_and_headers_lead_to_the_same(doors: Doors, make_image: MakeImage) -> None:
    plan = {"images": [{"width": 40, "height": 24}]}
    for asked in (
        {"url": "/v1/plan", "json": plan},
        {"url": "/v1/plan", "json": {"images": [{"width": "40", "height": 24}]}},
        {"url": "/v1/plan", "content": b"{"},
        {"url": "/v1/encode", "content": b"no image"},
        {"url": "/v1/encode", "content": b""},
        {"url": "/v1/encode", "content": make_image(), "headers": {"Accept": "text/html"}},
        {"url": "/v1/encode", "content": make_image(), "headers": {"Content-Type": "text/plain"}},
        {"url": "/v1/encode", "content": make_image(), "headers": {"Accept": "application/octet-stream"}},
        {"url": "/v1/encode", "content": make_image(), "headers": {"ViQ-Timeout-Ms": "0"}},
        {"url": "/v1/encode", "content": make_image(), "headers": {"ViQ-Timeout-Ms": "1"}},
        {"url": "/v1/encode", "content": make_image(), "headers": {"ViQ-Expect-Fingerprint": "other"}},
        {"url": "/v1/encode", "files": [("image", ("a.png", make_image())), ("image", ("b.png", b"none"))]},
        {"url": "/v1/encode", "files": [("other", ("a.png", make_image()))]},
    ):
        headers = {**asked.get("headers", {}), "X-Request-ID": "same"}  # type: ignore[dict-item]
        replies = [_told(one.post(**{**asked, "headers": headers})) for one in doors]  # type: ignore[arg-type]
        assert replies[0] == replies[1], asked


def test_what_it_knows_never_comes_to_fastapi(serve_app: ServeApp, make_image: MakeImage) -> None:
    came = list[str]()

    async def app(tokenizer: Tokenizer, metrics: Metrics) -> Envelope:
        await tokenizer.load(lambda: [ViQ.from_pretrained()])
        api = create_api(tokenizer, metrics, Settings())
        inner = api.build_middleware_stack()

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            came.append(scope["path"])
            await inner(scope, receive, send)

        api.middleware_stack = noting
        return Envelope(Shortcut(api, routes.router), tokenizer, metrics, Settings(), Keys(Settings()))

    with serve_app(app) as client:
        for path in ("/v1/encode", "/v1/embed", "/v1/reconstruct"):
            assert client.post(path, content=make_image()).status_code == 200
        assert client.get("/v1/models").status_code == 200
        assert not came
        assert client.get("/livez").status_code == 200
    assert came == ["/livez"]
