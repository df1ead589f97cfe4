"""The page for people at `/`: static files of the package, open to everybody, that load nothing from elsewhere.

The page names everything relative to itself, so that it works behind any path prefix that a proxy takes away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from viq_serving.errors import NotFound
from viq_serving.rest.etag import matches

router = APIRouter(include_in_schema=False)

FILES = "/page/"
"""Below it are the files that the page at `/` is made of."""

_INDEX = "index.html"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
"""What of the folder is served, by suffix, and as what."""

_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304 while it is the same
}


@dataclass(frozen=True)
class Asset:
    """One file: what it holds, its type, and its strong ETag."""

    data: bytes
    media_type: str
    tag: str


def is_page(path: str) -> bool:
    """Whether `path` belongs to the page, which needs no key."""
    return path == "/" or path.startswith(FILES)


@router.get("/")
async def page(request: Request) -> Response:
    """The page."""
    return _reply(request, _INDEX)


@router.get(FILES + "{name:path}")
async def file(request: Request, name: str) -> Response:
    """A file that the page is made of."""
    return _reply(request, name)


@cache
def assets() -> Mapping[str, Asset]:
    """All files by their path in the folder, read once: names of requests are looked up here and never on a disk."""
    return dict(_found(files("viq_serving") / "page", ""))


def _found(folder: Traversable, before: str) -> Iterator[tuple[str, Asset]]:
    for entry in folder.iterdir():
        name = before + entry.name
        media_type = _TYPES.get("." + name.rpartition(".")[2])
        if entry.is_dir():
            yield from _found(entry, f"{name}/")
        elif media_type is not None:
            data = entry.read_bytes()
            yield name, Asset(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _reply(request: Request, name: str) -> Response:
    asset = assets().get(name)
    if asset is None:
        raise NotFound(f"no such path: {request.scope['path']}")
    headers = {**_SAFE, "ETag": asset.tag}
    if matches(request.headers, asset.tag):
        return Response(status_code=304, headers=headers)
    return Response(asset.data, headers=headers, media_type=asset.media_type)
