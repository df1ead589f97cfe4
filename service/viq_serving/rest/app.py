"""The HTTP door put together."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from viq_serving.errors import ViQError
from viq_serving.keys import Keys
from viq_serving.metrics import Metrics
from viq_serving.rest import docs, health, oip, page, routes
from viq_serving.rest.docs import Api
from viq_serving.rest.envelope import Envelope
from viq_serving.rest.errors import on_error, on_framework_error
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer


def create_app(tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> Envelope:
    """The ASGI app over `tokenizer`; does no I/O."""
    app = Api()
    app.state.tokenizer, app.state.metrics, app.state.settings = tokenizer, metrics, settings
    app.include_router(routes.router)
    app.include_router(oip.router)
    app.include_router(health.router)
    app.include_router(docs.router)
    if settings.page:
        app.include_router(page.router)
    app.add_exception_handler(ViQError, on_error)
    app.add_exception_handler(HTTPException, on_framework_error)
    app.add_exception_handler(RequestValidationError, on_framework_error)
    app.add_exception_handler(Exception, on_error)
    return Envelope(app, tokenizer, metrics, settings, keys)
