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
from viq_serving.rest.shortcut import Shortcut
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer


def create_app(tokenizer: Tokenizer, metrics: Metrics, settings: Settings, keys: Keys) -> Envelope:
    """The ASGI app over `tokenizer`; does no I/O."""
    api = create_api(tokenizer, metrics, settings)
    return Envelope(Shortcut(api, routes.router), tokenizer, metrics, settings, keys)


def create_api(tokenizer: Tokenizer, metrics: Metrics, settings: Settings) -> Api:
    """What answers and describes every path, without what is around it."""
    api = Api()
    api.state.tokenizer, api.state.metrics, api.state.settings = tokenizer, metrics, settings
    api.include_router(routes.router)
    api.include_router(oip.router)
    api.include_router(health.router)
    api.include_router(docs.router)
    if settings.page:
        api.include_router(page.router)
    api.add_exception_handler(ViQError, on_error)
    api.add_exception_handler(HTTPException, on_framework_error)
    api.add_exception_handler(RequestValidationError, on_framework_error)
    api.add_exception_handler(Exception, on_error)
    return api
