"""ETags of encode: who has the codes of an image already is told so, and nothing is computed (RFC 9110, 13.1.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response

from viq_serving.digest import digest_of
from viq_serving.rest.body import Item
from viq_serving.types import ModelInfo, PixelOptions


async def etag(
    items: Sequence[Item[bytes]], model: ModelInfo, pixels: PixelOptions, form: str, codes: str
) -> str | None:
    """A strong ETag of the encode of one image: its bytes, the fingerprint, every option that shows in the reply."""
    if len(items) != 1:
        return None
    about = repr((model.size, model.fingerprint, pixels, form, codes, items[0].name))
    return f'"{hashlib.sha256(await digest_of(items[0].value) + about.encode()).hexdigest()}"'


def matches(headers: Headers, tag: str | None) -> bool:
    """Whether an `If-None-Match` among `headers` names `tag`, as a strong or weak one of however many.

    A star names nothing: it is no tag that we gave.
    """
    named = ",".join(headers.getlist("if-none-match")).split(",")
    return tag is not None and tag in [part.strip().removeprefix("W/") for part in named]


def not_modified(tag: str | None) -> Response:
    """The reply to a caller that has what `tag` names already."""
    return Response(status_code=304, headers=cache_headers(tag))


def cache_headers(tag: str | None) -> dict[str, str]:
    """What a reply with this tag says to caches."""
    return {} if tag is None else {"ETag": tag, "Vary": "Accept"}
