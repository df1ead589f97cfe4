"""What orchestrators ask a server besides work: health and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from viq_serving.errors import NotReady
from viq_serving.metrics import CONTENT_TYPE
from viq_serving.rest.inputs import metrics_of, tokenizer_of
from viq_serving.rest.replies import json_reply
from viq_serving.tokenizer import State

router = APIRouter()


@router.get("/livez", summary="Alive: the process answers")
async def livez(request: Request) -> Response:
    """200 for as long as a restart would not help, also while loading and draining; 503 once the device is lost."""
    state = tokenizer_of(request).state
    if state == "lost":
        raise NotReady(_told(state))
    return json_reply({"status": "ok"})


@router.get("/readyz", summary="Ready: warmed and not draining")
async def readyz(request: Request) -> Response:
    """200 while new requests are welcome, also if they are too many; else 503."""
    state = tokenizer_of(request).state
    if state != "ready":
        raise NotReady(_told(state))
    return json_reply({"status": "ok"})


@router.get("/startupz", summary="Started: loaded and warmed once")
async def startupz(request: Request) -> Response:
    """200 from the first warm forward on, else 503."""
    tokenizer = tokenizer_of(request)
    if not tokenizer.models():
        raise NotReady(_told(tokenizer.state))
    return json_reply({"status": "ok"})


@router.get("/metrics", summary="Metrics in the Prometheus text form")
async def metrics(request: Request) -> Response:
    """Everything that is counted."""
    return Response(metrics_of(request).text(), media_type=CONTENT_TYPE)


def _told(state: State) -> str:
    return "the device is lost" if state == "lost" else f"the service is {state}"
