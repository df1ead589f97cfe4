"""A request's headers and body as the items it is about."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from viq.codes import Codes
from viq_serving.errors import UnsupportedMediaType, ViQError
from viq_serving.metrics import Metrics
from viq_serving.rest.aside import aside
from viq_serving.rest.body import Item, media_type, parse_json, parse_multipart, read_body
from viq_serving.rest.codes_body import codes_of_json, codes_of_raw
from viq_serving.rest.exchange import claim_of, exchange_of
from viq_serving.rest.terms import EXPECT, terms_of
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ModelInfo

_JSON, _NPZ, _BYTES, _PARTS = "application/json", "application/x-npz", "application/octet-stream", "multipart/form-data"
_VIQ = "application/x-viq"


def tokenizer_of(request: Request) -> Tokenizer:
    """The one door inward."""
    tokenizer: Tokenizer = request.app.state.tokenizer
    return tokenizer


def settings_of(request: Request) -> Settings:
    """The settings the app was built with."""
    settings: Settings = request.app.state.settings
    return settings


def metrics_of(request: Request) -> Metrics:
    """The metrics of this app."""
    metrics: Metrics = request.app.state.metrics
    return metrics


def pick(request: Request, size: str | None) -> ModelInfo:
    """The model that answers `request`, held against its `ViQ-Expect-Fingerprint` and noted for the reply's headers."""
    model = tokenizer_of(request).model(size, request.headers.get(EXPECT))
    exchange_of(request).model = model
    return model


async def body_of(request: Request) -> bytes:
    """The whole body, unpacked, within the limits of the settings and the caller's own terms."""
    settings, claim = settings_of(request), claim_of(request)
    max_bytes = min(settings.max_body_bytes, claim.limit)
    return await read_body(request, max_bytes, settings.body_read_timeout_s, terms_of(request).deadline, claim)


async def json_of(request: Request) -> dict[str, object]:
    """The object in a JSON body.

    Raises `UnsupportedMediaType` for any other body, before reading it; one of no stated type is taken at its word.
    """
    kind = media_type(request)
    if kind not in (_JSON, _BYTES):
        raise UnsupportedMediaType(f"body is {kind}, expected {_JSON}")
    body = await body_of(request)
    return await aside(len(body), parse_json, body)


async def images_of(request: Request) -> list[Item[bytes]]:
    """The image files in the body: one by itself, or the parts of a multipart.

    Raises `UnsupportedMediaType` for any other body, before reading it.
    """
    kind = media_type(request)
    if not kind.startswith("image/") and kind not in (_PARTS, _BYTES):
        raise UnsupportedMediaType(f"body is {kind}, expected an image (image/*, {_BYTES}) or {_PARTS}")
    body = await body_of(request)
    if kind != _PARTS:
        return [Item(body)]
    limit = settings_of(request).max_images
    return await aside(len(body), parse_multipart, body, request.headers["content-type"], limit)


async def codes_of(request: Request, size: str | None) -> list[Item[Codes | ViQError]]:
    """The codes in the body, JSON, raw, npz or compact; those that name no size are of `size`, or of the default one.

    Raises `UnsupportedMediaType` for any other body, before reading it.
    """
    kind, default = media_type(request), tokenizer_of(request).model(size).size
    if kind not in (_JSON, _NPZ, _VIQ, _BYTES):
        raise UnsupportedMediaType(f"body is {kind}, expected codes: {_JSON}, {_NPZ}, {_VIQ} or {_BYTES}")
    body = await body_of(request)
    if kind == _JSON:
        return await aside(len(body), codes_of_json, body, default, settings_of(request).max_images)
    if kind == _NPZ:
        return [Item(await run_in_threadpool(Codes.from_npz, body))]
    if kind == _VIQ:
        return [Item(await run_in_threadpool(Codes.from_viq, body))]
    return [Item(codes_of_raw(body, request.headers, default))]


async def inputs_of(request: Request, size: str | None) -> Sequence[Item[bytes | Codes | ViQError]]:
    """Codes or images, whichever the body is: raw bytes are codes if `ViQ-Grid` says what shape they have."""
    kind = media_type(request)
    if kind in (_JSON, _NPZ, _VIQ) or (kind == _BYTES and "viq-grid" in request.headers):
        return await codes_of(request, size)
    return await images_of(request)


def size_of(items: Sequence[Item[bytes | Codes | ViQError]]) -> str | None:
    """The size of the first codes among `items`, None if there are none."""
    return next((item.value.size for item in items if isinstance(item.value, Codes)), None)
