"""The methods of the HTTP door: decode the wire form, call the tokenizer, encode the reply."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from viq_serving import reconstruction
from viq_serving.errors import InvalidInput, TooLarge
from viq_serving.rest import replies
from viq_serving.rest.aside import aside
from viq_serving.rest.etag import etag, matches, not_modified
from viq_serving.rest.exchange import exchange_of, noted
from viq_serving.rest.inputs import codes_of, images_of, inputs_of, json_of, pick, settings_of, size_of, tokenizer_of
from viq_serving.rest.negotiate import choose
from viq_serving.rest.replies import JSON, NPY, NPZ, PICTURES, RAW, VIQ
from viq_serving.rest.schemas import (
    DECODE,
    EMBED,
    ENCODE,
    MODELS,
    PLAN,
    RECONSTRUCT,
    DecodeOptions,
    EmbedOptions,
    EncodeOptions,
    NoOptions,
    PlanRequest,
    ReconstructOptions,
)
from viq_serving.rest.terms import terms_of
from viq_serving.types import ImageFile

router = APIRouter(prefix="/v1")

_PICTURES_OR_JSON = ("image/png", JSON, "image/jpeg", "image/webp")


@router.post("/encode", **ENCODE)
async def encode(request: Request, query: Annotated[EncodeOptions, Query()]) -> Response:
    """Images in, codes out."""
    form, model, terms = choose(request, (JSON, RAW, NPZ, VIQ)), pick(request, query.size), terms_of(request)
    items = await images_of(request)
    if len(items) > 1 and form != JSON:
        raise InvalidInput(f"{form} holds one image, the request has {len(items)}: ask for JSON with ?codes=base64")
    tag = await etag(items, model, query.pixels(), form, query.codes)
    if matches(request.headers, tag):
        return not_modified(tag)
    files = [ImageFile(item.value, query.pixels()) for item in items]
    results = await noted(request, len(items), tokenizer_of(request).encode(files, model, terms))
    names, exchange = [item.name for item in items], exchange_of(request)
    return await aside(replies.effort(results, form), replies.encoded, results, names, form, query.codes, tag, exchange)


@router.post("/decode", **DECODE)
async def decode(request: Request, query: Annotated[DecodeOptions, Query()]) -> Response:
    """Codes in, pictures out."""
    accepted, terms = choose(request, _PICTURES_OR_JSON), terms_of(request)
    items = await codes_of(request, query.size)
    model, as_json = pick(request, query.size or size_of(items)), query.format == "json" or len(items) > 1
    picture = "png" if as_json else PICTURES.get(accepted, "png")
    codes, names = [item.value for item in items], [item.name for item in items]
    work = tokenizer_of(request).decode(codes, model, picture, query.any_fingerprint, terms)
    results = await noted(request, len(items), work)
    return await aside(replies.weight(results), replies.decoded, results, names, as_json, exchange_of(request))


@router.post("/embed", **EMBED)
async def embed(request: Request, query: Annotated[EmbedOptions, Query()]) -> Response:
    """Images or codes in, features out."""
    terms = terms_of(request)
    items = await inputs_of(request, query.size)
    model = pick(request, query.size or size_of(items))
    form = JSON if query.format else choose(request, (NPY, NPZ, JSON) if len(items) == 1 else (NPZ, JSON))
    names = [item.name for item in items]
    inputs = [ImageFile(one, query.pixels()) if isinstance(one, bytes) else one for one in (i.value for i in items)]
    work = tokenizer_of(request).embed(inputs, model, query.dtype, query.any_fingerprint, terms)
    results = await noted(request, len(items), work)
    return await aside(replies.weight(results), replies.embedded, results, names, form, exchange_of(request))


@router.post("/reconstruct", **RECONSTRUCT)
async def reconstruct(request: Request, query: Annotated[ReconstructOptions, Query()]) -> Response:
    """Images in, what their codes become out."""
    accepted, model, terms = choose(request, _PICTURES_OR_JSON), pick(request, query.size), terms_of(request)
    items = await images_of(request)
    as_json = query.format == "json" or len(items) > 1
    picture = "png" if as_json else PICTURES.get(accepted, "png")
    files, names = [ImageFile(item.value, query.pixels()) for item in items], [item.name for item in items]
    work = reconstruction.reconstruct(tokenizer_of(request), files, model, picture, terms)
    results = await noted(request, len(items), work)
    return await aside(replies.weight(results), replies.reconstructed, results, names, as_json, exchange_of(request))


@router.post("/plan", **PLAN)
async def plan(request: Request, query: Annotated[NoOptions, Query()]) -> Response:
    """What images would take, from their sizes alone."""
    choose(request, (JSON,))
    terms_of(request)
    asked = PlanRequest.of(await json_of(request))
    limit = settings_of(request).max_images
    if len(asked.images) > limit:
        raise TooLarge(f"{len(asked.images)} images in one request, the limit is {limit}")
    model, tokenizer = pick(request, asked.size), tokenizer_of(request)
    exchange_of(request).items = len(asked.images)
    return replies.planned(model, [tokenizer.plan(one.height, one.width) for one in asked.images])


@router.get("/models", **MODELS)
async def models(request: Request, query: Annotated[NoOptions, Query()]) -> Response:
    """The loaded sizes, with the limits of this server."""
    choose(request, (JSON,))
    terms_of(request)
    pick(request, None)
    return replies.models_listed(tokenizer_of(request).models(), settings_of(request).limits())
