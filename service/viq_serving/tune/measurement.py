"""The engine measured with some batch budget and number of replicas, under callers who wait or at a rate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from viq import __version__
from viq_serving.bench.arrivals import Arrivals, Closed, Poisson, cycle
from viq_serving.bench.figures import figures_of
from viq_serving.bench.load import Span, closed, opened
from viq_serving.bench.pictures import PictureFile
from viq_serving.bench.seen import Seen
from viq_serving.engine.child import ProcessEnded, in_processes
from viq_serving.engine.engine import EngineLimits
from viq_serving.errors import ViQError
from viq_serving.event_loop import new_loop
from viq_serving.images import ImageLimits
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.tune.engine_door import EngineDoor

if TYPE_CHECKING:
    from viq.model import ViQ
    from viq_serving.engine.child import Model

_MAX_AGE_S, _MAX_IMAGES = 3600.0, 64  # nothing is refused for waiting while it is measured
_ARRIVALS, _LONGER, _TRIES = 20, 8.0, 3
_NEW_WARM_S = 2.0


class TuningFailed(ViQError):
    """The engine refused or failed what it was measured with."""

    code = "tuning_failed"


@dataclass(frozen=True)
class Setting:
    """What is varied: patches computed together, attention counted in; how many compute beside one another; where."""

    batch_patches: int
    replicas: int = 1
    processes: bool = False


class Measurement:
    """Runs of the engine with one model and one set of pictures. `threads` are torch's, shared by replicas.

    Processes of their own load what `asked` says, arguments of `ViQ.from_pretrained`. Where a machine is so slow that
    nothing comes of a run in its time, it is run again for longer.
    """

    def __init__(
        self,
        model: ViQ,
        files: Sequence[PictureFile],
        span: Span,
        seed: int,
        threads: int,
        asked: Mapping[str, Any] = {},
    ) -> None:
        self._model, self._files, self._span, self._seed, self._threads = model, files, span, seed, threads
        self._asked = asked

    def run(self, setting: Setting, arrivals: Arrivals) -> dict[str, Any]:
        """Figures as `viq bench` gives them; raises `TuningFailed` if not all was answered."""
        span = self._span
        if setting.processes:  # they are new, this one has seen the pictures before
            span = replace(span, warm_s=max(span.warm_s, _NEW_WARM_S))
        if isinstance(arrivals, Poisson) and span.seconds is not None:
            span = replace(span, seconds=max(span.seconds, min(_ARRIVALS / arrivals.rate, _LONGER * span.seconds)))
        figures = self._figures(setting, arrivals, span)
        for _ in range(_TRIES - 1):
            if span.seconds is None or _told(figures):
                break
            span = replace(span, seconds=4 * span.seconds)
            figures = self._figures(setting, arrivals, span)
        if figures["errors"] or figures["rejects"]["count"] or not _told(figures):
            raise TuningFailed(
                f"{figures['requests']} pictures with {setting}: {figures['answered']} answered, "
                f"{figures['rejects']['count']} refused, errors {figures['errors']}"
                + ("" if figures["errors"] else f", in {figures['seconds']:g} s: --duration and smaller pictures help")
            )
        return figures

    def _figures(self, setting: Setting, arrivals: Arrivals, span: Span) -> dict[str, Any]:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(self._measured(setting, arrivals, span))

    async def _measured(self, setting: Setting, arrivals: Arrivals, span: Span) -> dict[str, Any]:
        import torch

        torch.set_num_threads(self._threads)
        limits = EngineLimits(max_patches=2**40, max_age_s=_MAX_AGE_S, batch_patches=setting.batch_patches)
        tokenizer = Tokenizer(ImageLimits(), _MAX_IMAGES, Metrics(__version__), limits)
        await tokenizer.load(lambda: self._replicas(setting))
        try:
            door, seen = EngineDoor(tokenizer, self._files), Seen(wanted=False)
            order = cycle(len(self._files), self._seed)
            if isinstance(arrivals, Closed):
                load = await closed(door, arrivals, order, span, monotonic(), seen)
            else:
                load = await opened(door, arrivals, order, span, monotonic(), seen, self._seed)
        finally:
            await tokenizer.finish()
            tokenizer.close()
        counted = isinstance(arrivals, Closed) and span.seconds is None
        return figures_of([load], self._files, closed=isinstance(arrivals, Closed), counted=counted)

    def _replicas(self, setting: Setting) -> Sequence[Model]:
        if setting.processes:
            try:
                return in_processes([self._asked], self._model.device, setting.replicas)
            except (ProcessEnded, MemoryError) as error:
                raise TuningFailed(
                    f"{setting.replicas} replicas in processes of their own cannot be loaded: {error}; "
                    "--no-replica-processes measures without them"
                ) from None
        return [self._model] * setting.replicas


def _told(figures: dict[str, Any]) -> bool:
    """Whether there is anything to go by: an answer that counts and one that came in time; or what went wrong."""
    return bool(figures["errors"] or (figures["answered"] and figures["achieved"]["images_per_s"] > 0))
