"""The Open Inference Protocol v2 on the HTTP port."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from viq_serving.errors import NotReady
from viq_serving.oip import metadata
from viq_serving.oip.handler import infer
from viq_serving.rest import oip_codec
from viq_serving.rest.body import parse_json
from viq_serving.rest.exchange import exchange_of
from viq_serving.rest.inputs import body_of, tokenizer_of
from viq_serving.rest.replies import JSON, RAW, json_reply
from viq_serving.rest.terms import EXPECT, terms_of

router = APIRouter(prefix="/v2")

T = TypeVar("T")

_HEAVY_BYTES = 16 * 2**10  # if it is JSON, reading or writing it takes milliseconds

# A path parameter of a function cannot be optional, and a model's version is.
_MODEL: Any = {
    "openapi_extra": {
        "parameters": [
            {
                "name": "model",
                "in": "path",
                "required": True,
                "description": "a size may follow, as in /v2/models/viq-encode/versions/16k",
                "schema": {"enum": list(metadata.MODELS)},
            }
        ]
    }
}


@router.get("", summary="Open Inference Protocol: name, version and extensions of the server")
@router.get("/", include_in_schema=False)
async def server() -> Response:
    """Answered as soon as the process can answer."""
    return json_reply(metadata.server_metadata())


@router.get("/health/live", summary="Open Inference Protocol: alive")
async def live(request: Request) -> Response:
    """200 for as long as a restart would not help, 503 once the device is lost."""
    if tokenizer_of(request).state == "lost":
        raise NotReady("the service is lost")
    return json_reply({"live": True})


@router.get("/health/ready", summary="Open Inference Protocol: ready")
async def ready(request: Request) -> Response:
    """200 while new requests are welcome, else 503."""
    _require_ready(request)
    return json_reply({"ready": True})


@router.get("/models/{model}", summary="Open Inference Protocol: versions and tensors of a model", **_MODEL)
@router.get("/models/{model}/versions/{version}", include_in_schema=False)
async def described(request: Request) -> Response:
    """The three models and what they take and give."""
    return json_reply(metadata.model_metadata(tokenizer_of(request), *_asked(request)))


@router.get("/models/{model}/ready", summary="Open Inference Protocol: a model is ready", **_MODEL)
@router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(request: Request) -> Response:
    """200 while requests for it are welcome, 503 while not, 404 if there is none such."""
    model, version = _asked(request)
    metadata.find(model)
    tokenizer_of(request).model(version)
    _require_ready(request)
    return json_reply({"name": model, "ready": True})


@router.get(
    "/models/{model}/config",
    summary="Open Inference Protocol: a model's configuration as Triton describes it",
    **_MODEL,
)
@router.get("/models/{model}/versions/{version}/config", include_in_schema=False)
async def config(request: Request) -> Response:
    """Batches are no dimension of the tensors: `max_batch_size` is 0."""
    return json_reply(metadata.model_config(tokenizer_of(request), *_asked(request)))


@router.post("/repository/index", summary="Open Inference Protocol: all models and versions")
async def index(request: Request) -> Response:
    """The body, if there is one, may ask for those that are ready only."""
    body = await body_of(request)
    only_ready = bool(parse_json(body).get("ready", False)) if body else False
    return json_reply(metadata.repository_index(tokenizer_of(request), only_ready))


@router.post("/models/{model}/infer", summary="Open Inference Protocol: inference", **_MODEL)
@router.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
async def inference(request: Request) -> Response:
    """Tensors in, tensors out: JSON, or JSON and binary tensors."""
    model, version = _asked(request)
    exchange_of(request).method, terms = metadata.find(model).method, terms_of(request)
    body, length = await body_of(request), request.headers.get(oip_codec.HEADER_LENGTH)
    asked, form = await _off_loop(len(body) > _HEAVY_BYTES, lambda: oip_codec.decode(body, length, model, version))
    expect = request.headers.get(EXPECT)
    answer = await infer(tokenizer_of(request), asked, exchange_of(request), terms, expect)
    data, json_length = await _off_loop(answer.bytes_held > _HEAVY_BYTES, lambda: oip_codec.encode(answer, form))
    if json_length is None:
        return Response(data, media_type=JSON)
    return Response(data, headers={oip_codec.HEADER_LENGTH: str(json_length)}, media_type=RAW)


def _asked(request: Request) -> tuple[str, str]:
    """Model and version in the path; the empty version is the first size."""
    return request.path_params["model"], request.path_params.get("version", "")


async def _off_loop(heavy: bool, work: Callable[[], T]) -> T:
    """The result of `work`, on a thread if it is heavy."""
    return await run_in_threadpool(work) if heavy else work()


def _require_ready(request: Request) -> None:
    state = tokenizer_of(request).state
    if state != "ready":
        raise NotReady(f"the service is {state}")
