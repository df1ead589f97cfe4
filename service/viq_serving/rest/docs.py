"""The description of the API, for machines and as a page for people that needs no other host and no script."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from viq import __version__
from viq_serving.rest.envelope import OIP_OPEN, OPEN
from viq_serving.rest.schemas import SCHEMAS
from viq_serving.rest.terms import EXPECT, PRIORITY, TIMEOUT

router = APIRouter()

_STYLE = "body{font:1rem/1.5 system-ui;max-width:50rem;margin:2rem auto;padding:0 1rem}code{font-size:.95em}"
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

_KEY: dict[str, Any] = {"type": "http", "scheme": "bearer", "description": "one of the server's keys, if it has any"}
_HEADERS: dict[str, dict[str, Any]] = {
    TIMEOUT: {
        "description": "milliseconds from the request's arrival after which nobody waits for the reply: 504",
        "schema": {"type": "integer", "minimum": 1},
    },
    PRIORITY: {
        "description": "which lane the request takes; by default interactive, or bulk for a key that has only that: "
        "to ask for a lane that the key has no right to is 403",
        "schema": {"type": "string", "enum": ["interactive", "bulk"]},
    },
    EXPECT: {
        "description": "fingerprint, or family, that must answer: else 409",
        "schema": {"type": "string"},
    },
    "X-Request-ID": {
        "description": "name of the request in reply and log; made if not given",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
}


class Api(FastAPI):
    """FastAPI without its pages, which load scripts from another host, and with our headers in its description."""

    def __init__(self) -> None:
        super().__init__(title="ViQ", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)

    def openapi(self) -> dict[str, Any]:
        """The description as OpenAPI; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _completed(super().openapi())
        return self.openapi_schema


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The page."""
    return Response(_page(request.app.openapi()), headers=_SAFE, media_type="text/html")


def _completed(openapi: dict[str, Any]) -> dict[str, Any]:
    """Add what holds for all methods: their headers, and where a key is asked for."""
    components = openapi.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **SCHEMAS}
    components["securitySchemes"] = {"key": _KEY}
    components["parameters"] = {name: {"name": name, "in": "header", **about} for name, about in _HEADERS.items()}
    openapi["security"] = [{"key": []}, {}]
    for path, verbs in openapi["paths"].items():
        for operation in verbs.values():
            if path in OPEN or path.startswith(OIP_OPEN):
                operation["security"] = []
            elif path.startswith("/v1/"):
                references = [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS]
                operation["parameters"] = [*operation.get("parameters", []), *references]
    return openapi


def _page(openapi: dict[str, Any]) -> str:
    sections = [
        f"<h2><code>{escape(verb.upper())} {escape(path)}</code></h2>{_operation(operation)}"
        for path, verbs in openapi["paths"].items()
        for verb, operation in verbs.items()
    ]
    title = escape(str(openapi["info"]["title"]))
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    lead = f"<h1>{title}</h1><p>The same, for machines: <a href=openapi.json>openapi.json</a></p>"
    headers = "".join(f"<li><code>{name}:</code> {escape(about['description'])}" for name, about in _HEADERS.items())
    key = f"<li><code>Authorization: Bearer KEY</code> {escape(_KEY['description'])}"
    notes = f"<p>Headers of every method under <code>/v1</code>:</p><ul>{headers}{key}</ul>"
    return head + lead + notes + "".join(sections) + "</html>"


def _operation(operation: dict[str, Any]) -> str:
    lines = [f"<p>{escape(str(operation.get('summary', '')))}</p>"]
    parameters, body = operation.get("parameters"), operation.get("requestBody")
    options = [one for one in parameters or () if one.get("in") == "query"]
    if options:
        rows = (f"<li><code>?{escape(one['name'])}=</code> {escape(one.get('description', ''))}" for one in options)
        lines.append(f"<ul>{''.join(rows)}</ul>")
    if body:
        lines.append(f"<p>Takes {escape(', '.join(body['content']))}</p>")
    gives = operation.get("responses", {}).get("200", {}).get("content", {})
    lines.append(f"<p>Gives {escape(', '.join(gives))}</p>")
    headers = operation.get("responses", {}).get("200", {}).get("headers", {})
    if headers:
        rows = (f"<li><code>{escape(name)}</code> {escape(about['description'])}" for name, about in headers.items())
        lines.append(f"<ul>{''.join(rows)}</ul>")
    return "".join(lines)
