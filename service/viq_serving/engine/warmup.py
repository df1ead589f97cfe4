"""The first forwards of a model: it works, and how long it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from viq.launched import Launched
from viq.patches import Patches
from viq_serving.engine.work import Kind
from viq_serving.types import Method

if TYPE_CHECKING:
    from viq_serving.engine.child import Model

log = logging.getLogger("viq.engine")

PROBE_SIDE = 32
"""Pixels of the grey square that tells whether a device still works."""

_SIDES, _ROUNDS = (PROBE_SIDE, 128), 3


def warmed_up(models: Sequence[Model]) -> list[tuple[Kind, int, float]]:
    """Warm `models` with forwards of each method; cost and seconds of each kind of work at best.

    A batch has a price and a patch has one: two sizes tell them apart. At best, because the first forward of
    all is never a typical one, and because too much expected would turn callers away for nothing.
    """
    best: dict[tuple[Kind, int], float] = {}
    for model in models:
        if model.untrained:
            log.warning("size %s is untrained: its codes mean nothing yet", model.size)
        for side in _SIDES * _ROUNDS:
            for method, cost, seconds in forwards(model, side):
                key = (Kind(method, model.size), cost)
                best[key] = min(seconds, best.get(key, seconds))
    return [(kind, cost, seconds) for (kind, cost), seconds in best.items()]


def forwards(model: Model, side: int) -> list[tuple[Method, int, float]]:
    """One forward of each method on a grey square of `side` pixels: method, cost and seconds of each."""
    grey = Patches.of(np.full((side, side, 3), 128, np.uint8))
    patches, taken = len(grey.rows), list[tuple[Method, int, float]]()

    def timed(method: Method, launch: Callable[[list[Any]], Launched[Any]], item: object) -> Any:
        begun = perf_counter()
        (result,) = launch([item]).results()
        taken.append((method, patches, perf_counter() - begun))
        return result

    codes = timed("encode", model.launch_encode, grey)
    timed("embed", model.launch_embed, codes)
    timed("decode", model.launch_decode, codes)
    return taken
