"""The composition root: builds the parts, starts and stops them in written order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from viq import __version__
from viq_serving import garbage
from viq_serving.batch_spans import teller
from viq_serving.cache import CodesCache
from viq_serving.doors import Addresses, Doors
from viq_serving.engine.engine import EngineLimits
from viq_serving.engine.lanes import LaneRules
from viq_serving.errors import SettingsError, ViQError
from viq_serving.event_loop import allow_files, new_loop
from viq_serving.images import ImageLimits
from viq_serving.keys import Keys, warn_if_plaintext
from viq_serving.log import configure
from viq_serving.metrics import Metrics
from viq_serving.openmp import take_short_turns
from viq_serving.otlp import traces_of
from viq_serving.settings import Settings
from viq_serving.sockets import CannotListen
from viq_serving.tls import Certificates
from viq_serving.tokenizer import State, Tokenizer
from viq_serving.tracing import here

if TYPE_CHECKING:
    from viq_serving.engine.child import Model

log = logging.getLogger("viq")

UNUSABLE = 3
"""Exit code when the weights, a port or the device cannot be used."""

_ARRIVING_S = 0.25  # for calls on connections that were just taken
_REFUSING_S = 0.25  # for callers to hear that the doors close before they do: the transports would only hang up
_FAREWELL_S = 5.0  # for the last replies when the device is lost
_SENDING_S = 5.0  # for the last traces


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    The exit code is 0 after a clean drain, 3 if weights, a port or the device are unusable.
    """
    configure(settings.log_level, settings.log_format)
    allow_files()
    take_short_turns()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells of starting and stopping, as we do
    service = Service(settings)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        code = runner.run(service.serve(_announce))
        if service.stuck:  # a thread inside torch or a driver can be neither stopped nor waited for
            sys.stdout.flush()
            os._exit(code)
    return code


class Service:
    """One server process. The ports open at once, readiness follows when the models are loaded and warm."""

    def __init__(self, settings: Settings) -> None:
        self.stuck = False
        self._settings = settings
        self._stop, self._lost = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, on_listening: Callable[[Addresses], None], *, own_signals: bool = True) -> int:
        """Run the whole life of the service and return the exit code.

        `on_listening` is told the addresses once connections are accepted; `own_signals` needs the main thread.
        When `stuck` is true afterwards, a thread is left that only the end of the process ends.
        """
        self._loop, settings = asyncio.get_running_loop(), self._settings
        metrics = Metrics(__version__)
        try:
            keys, certificates = Keys(settings), _certificates(settings)
            traces = metrics.traces = traces_of(settings, __version__, os.environ)
        except SettingsError as error:
            log.error("%s", error)
            return UNUSABLE
        ports = settings.http_port is not None or settings.grpc_port is not None
        warn_if_plaintext(keys, settings.host, encrypted=certificates is not None or not ports)
        tokenizer = Tokenizer(
            ImageLimits(settings.max_body_bytes, settings.max_pixels, settings.max_patches),
            settings.max_images,
            metrics,
            _engine_limits(settings),
            settings.max_bytes_in_flight,
            CodesCache(settings.cache_bytes, metrics, settings.cache_shared) if settings.cache_bytes else None,
        )
        if traces is not None:
            tokenizer.watch(here, teller(traces))
        doors = Doors(tokenizer, metrics, settings, keys, certificates)
        try:
            addresses = await doors.open()
        except CannotListen as error:
            log.error("%s", error)
            await doors.close(0.0)
            return UNUSABLE
        if own_signals:
            self._own_signals()
        tokenizer.listen(self._told)
        on_listening(addresses)
        code = await self._live(tokenizer, doors)
        if not self.stuck:
            doors.refuse_grpc()
            await asyncio.sleep(_ARRIVING_S)
        tokenizer.stop()
        await asyncio.sleep(_REFUSING_S)
        await doors.close(_FAREWELL_S if self._lost.is_set() else settings.stall_timeout_s)
        if not self.stuck:
            await tokenizer.finish()
        if self._lost.is_set():  # it may have been lost only now
            self.stuck, code = True, UNUSABLE
        if not self.stuck:
            tokenizer.close()
            self.stuck = tokenizer.hung
        if traces is not None:
            await traces.close(_SENDING_S)
        return code

    def stop(self) -> None:
        """Ask the service to drain and end, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _live(self, tokenizer: Tokenizer, doors: Doors) -> int:
        """Load, serve until asked to stop, drain. A stop while loading needs no drain: nobody was sent here yet."""
        # Ready only when every port is open: who then sends calls must not find one closed.
        loading = asyncio.create_task(tokenizer.load(lambda: _models(self._settings), doors.loaded))
        ending = asyncio.create_task(_first(self._stop, self._lost))
        await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            self.stuck = True
            return 0
        if loading.exception() is not None:
            ending.cancel()
            return _unusable(loading.exception())
        collecting = asyncio.create_task(garbage.collect(lambda: tokenizer.idle))
        log.info("ready: %s", ", ".join(f"{one.label} {one.fingerprint}" for one in tokenizer.models()))
        await ending
        if self._stop.is_set():
            tokenizer.drain()
            log.info("draining: serving for another %g s", self._settings.drain_delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), self._settings.drain_delay)
        collecting.cancel()
        self.stuck = self._lost.is_set()
        return UNUSABLE if self._lost.is_set() else 0

    def _told(self, state: State) -> None:
        if state == "lost":
            self._lost.set()

    def _own_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():  # asked twice: whoever asks will not wait
            log.warning("second signal: ending at once")
            os._exit(128 + number)
        self._stop.set()


def _announce(addresses: Addresses) -> None:
    for line in addresses.lines():
        print(line)
    sys.stdout.flush()


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of `events` is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _certificates(settings: Settings) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def _engine_limits(settings: Settings) -> EngineLimits:
    return EngineLimits(
        max_patches=settings.max_queue_patches,
        max_age_s=settings.max_queue_age_s,
        batch_patches=settings.max_batch_patches,
        stall_timeout_s=settings.stall_timeout_s,
        lanes=LaneRules(settings.bulk_share, settings.bulk_max_wait_s),
    )


def _models(settings: Settings) -> Sequence[Model]:
    """Every size asked for on every device, those of a replica one after another.

    With no size asked, the one that the weights root or nano gives. Replicas of one device share its models.
    """
    from viq.model import ViQ
    from viq_serving.engine.child import in_processes
    from viq_serving.engine.replicas import replicas_on

    asked: dict[str, Any] = {"root": settings.weights_root, "dtype": settings.dtype}
    asked |= {"head": settings.head, "head_file": settings.head_file}
    asked |= {"cuda_graphs": settings.cuda_graphs, "cudnn_attention_from": settings.cudnn_attention_from}
    sizes = [{**asked, "size": size} for size in settings.size or (None,)]
    replicas: list[Model] = []
    for device in settings.device or ("auto",):
        if settings.replica_processes:
            return in_processes(sizes, device, settings.replicas or replicas_on("cpu"))
        models = [ViQ.from_pretrained(**one, device=device) for one in sizes]
        for model in models:
            model.script_small_packs()
        replicas += models * (settings.replicas or replicas_on(models[0].device))
    return replicas


def _unusable(error: BaseException | None) -> int:
    if isinstance(error, CannotListen):
        log.error("%s", error)
    elif isinstance(error, ViQError):
        log.error("weights cannot be used: %s", error)
    else:
        log.error("weights cannot be loaded", exc_info=error)
    return UNUSABLE
