"""What orchestrators and people ask a server besides work: health, metrics, the description of the API."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from viq_serving.errors import NotReady
from viq_serving.metrics import CONTENT_TYPE
from viq_serving.rest.inputs import metrics_of, tokenizer_of
from viq_serving.rest.replies import json_reply

router = APIRouter()

_STYLE = "body{font:1rem/1.5 system-ui;max-width:50rem;margin:2rem auto;padding:0 1rem}code{font-size:.95em}"
_NO_OTHER_HOST = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


@router.get("/livez", summary="Alive: the process answers")
async def livez() -> Response:
    """200 for as long as the process can answer at all, also while loading and draining."""
    return json_reply({"status": "ok"})


@router.get("/readyz", summary="Ready: warmed and not draining")
async def readyz(request: Request) -> Response:
    """200 while new requests are welcome, else 503."""
    state = tokenizer_of(request).state
    if state != "ready":
        raise NotReady(f"the service is {state}")
    return json_reply({"status": "ok"})


@router.get("/startupz", summary="Started: loaded and warmed once")
async def startupz(request: Request) -> Response:
    """200 from the first warm forward on, else 503."""
    tokenizer = tokenizer_of(request)
    if not tokenizer.models():
        raise NotReady(f"the service is {tokenizer.state}")
    return json_reply({"status": "ok"})


@router.get("/metrics", summary="Metrics in the Prometheus text form")
async def metrics(request: Request) -> Response:
    """Everything that is counted."""
    return Response(metrics_of(request).text(), media_type=CONTENT_TYPE)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API as a plain page that needs no other host and no script."""
    return Response(_page(request.app.openapi()), headers=_NO_OTHER_HOST, media_type="text/html")


def _page(openapi: dict[str, dict[str, dict[str, dict[str, object]]]]) -> str:
    sections = [
        f"<h2><code>{escape(verb.upper())} {escape(path)}</code></h2>{_operation(operation)}"
        for path, verbs in openapi["paths"].items()
        for verb, operation in verbs.items()
    ]
    title = escape(str(openapi["info"]["title"]))
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    lead = f"<h1>{title}</h1><p>The same, for machines: <a href=openapi.json>openapi.json</a></p>"
    return head + lead + "".join(sections) + "</html>"


def _operation(operation: dict[str, object]) -> str:
    lines = [f"<p>{escape(str(operation.get('summary', '')))}</p>"]
    parameters, body = operation.get("parameters"), operation.get("requestBody")
    if isinstance(parameters, list):
        rows = (f"<li><code>?{escape(one['name'])}=</code> {escape(one.get('description', ''))}" for one in parameters)
        lines.append(f"<ul>{''.join(rows)}</ul>")
    if isinstance(body, dict):
        lines.append(f"<p>Takes {escape(', '.join(body['content']))}</p>")
    responses = operation.get("responses")
    if isinstance(responses, dict):
        lines.append(f"<p>Gives {escape(', '.join(responses.get('200', {}).get('content', {})))}</p>")
    return "".join(lines)
