"""The way past FastAPI for the methods that come by the thousand.

What FastAPI does around a handler takes a quarter of the event loop's time for a thumbnail (`bench/shortcut.py`). It
goes on describing these methods, and answers everything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from viq_serving.errors import InvalidInput
from viq_serving.rest.schemas import problems

_Method = tuple[Callable[[Request, Any], Awaitable[Response]], type[BaseModel]]
"""A handler, and the options that it takes in its query."""


class Shortcut:
    """ASGI app that calls the handlers of one router itself and leaves the rest to `app`, which has them too.

    Each takes the request and, as `query`, its options. What it raises goes to whoever called.
    """

    def __init__(self, app: FastAPI, router: APIRouter) -> None:
        self._app = app
        self._methods: dict[tuple[str, str], _Method] = {
            (verb, route.path): (route.endpoint, get_type_hints(route.endpoint)["query"])
            for route in router.routes
            if isinstance(route, APIRoute)
            for verb in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (the ASGI entry)."""
        found = self._methods.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        handler, options = found
        scope["app"] = self._app  # where handlers look for what the app was built with
        request = Request(scope, receive, send)
        try:
            query = options.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise InvalidInput(problems(error.errors())) from None
        reply = await handler(request, query)
        await reply(scope, receive, send)
