"""The HTTP door put together."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from viq import __version__
from viq_serving.errors import ViQError
from viq_serving.metrics import Metrics
from viq_serving.rest import health, routes
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.errors import on_error, on_framework_error
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer


def create_app(tokenizer: Tokenizer, metrics: Metrics, settings: Settings) -> Envelope:
    """The ASGI app over `tokenizer`; does no I/O."""
    app = FastAPI(
        title="ViQ",
        version=__version__,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.tokenizer, app.state.metrics, app.state.settings = tokenizer, metrics, settings
    app.include_router(routes.router)
    app.include_router(health.router)
    app.add_exception_handler(ViQError, on_error)
    app.add_exception_handler(HTTPException, on_framework_error)
    app.add_exception_handler(RequestValidationError, on_framework_error)
    app.add_exception_handler(Exception, on_error)
    return Envelope(app, tokenizer, metrics)
