"""The composition root: builds the parts, starts and stops them in written order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from viq import __version__
from viq_serving.errors import ViQError
from viq_serving.images import ImageLimits
from viq_serving.log import configure
from viq_serving.metrics import Metrics
from viq_serving.rest.app import create_app
from viq_serving.rest.server import create_server
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

if TYPE_CHECKING:
    from viq.model import ViQ

log = logging.getLogger("viq")

UNUSABLE = 3
"""Exit code when the weights or the port cannot be used."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code is 0 after a clean drain, 3 if weights or port are unusable."""
    configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(Service(settings).serve(lambda url: print(f"viq serves at {url}", flush=True)))


class Service:
    """One server process. The port opens at once, readiness follows when the models are loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, on_listening: Callable[[str], None] = print, *, own_signals: bool = True) -> int:
        """Run the whole life of the service and return the exit code.

        `on_listening` is told the address once connections are accepted; `own_signals` needs the main thread.
        """
        self._loop = asyncio.get_running_loop()
        try:
            listener = _listen(self._settings.host, self._settings.http_port)
        except (OSError, UnicodeError) as error:  # the latter for what can be no host name
            log.error("cannot listen on %s port %d: %s", self._settings.host, self._settings.http_port, error)
            return UNUSABLE
        if own_signals:
            self._own_signals()
        metrics = Metrics(__version__)
        tokenizer = Tokenizer(_limits(self._settings), self._settings.max_images, metrics)
        server = create_server(create_app(tokenizer, metrics, self._settings))
        serving = asyncio.create_task(server.serve([listener]))
        on_listening(_url(listener))
        code = await self._live(tokenizer)
        server.should_exit = True
        await serving
        tokenizer.close()
        return code

    def stop(self) -> None:
        """Ask the service to drain and end, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _live(self, tokenizer: Tokenizer) -> int:
        """Load, serve until asked to stop, drain. A stop while loading needs no drain: nobody was sent here yet."""
        loading = asyncio.create_task(tokenizer.load(lambda: _models(self._settings)))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            return 0
        if loading.exception() is not None:
            stopping.cancel()
            return _unusable(loading.exception())
        log.info("ready: %s", ", ".join(f"{one.label} {one.fingerprint}" for one in tokenizer.models()))
        await stopping
        tokenizer.drain()
        log.info("draining: serving for another %g s", self._settings.drain_delay)
        await asyncio.sleep(self._settings.drain_delay)
        return 0

    def _own_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():  # asked twice: whoever asks will not wait
            log.warning("second signal: ending at once")
            os._exit(128 + number)
        self._stop.set()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop where there is one (not on Windows), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; connections wait in it until the server takes them."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _limits(settings: Settings) -> ImageLimits:
    return ImageLimits(settings.max_body_bytes, settings.max_pixels, settings.max_patches)


def _models(settings: Settings) -> list[ViQ]:
    """Load every size asked for; with none asked, the one that the weights root or nano gives."""
    from viq.model import ViQ

    sizes = settings.size or (None,)
    return [
        ViQ.from_pretrained(settings.weights_root, size, device=settings.device, dtype=settings.dtype) for size in sizes
    ]


def _unusable(error: BaseException | None) -> int:
    if isinstance(error, ViQError):
        log.error("weights cannot be used: %s", error)
    else:
        log.error("weights cannot be loaded", exc_info=error)
    return UNUSABLE
