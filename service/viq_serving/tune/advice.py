"""What to set, from what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from viq.cost import encode_cost
from viq_serving.tune.measurement import Setting

ENOUGH, WORTH = 0.97, 1.05
"""Share of the best throughput at which the smaller budget wins, as others wait less; gain at which replicas do."""

MAX_PATCHES, QUEUE_AGE_S, QUEUE_PATCHES = 16_384, 10.0, 262_144
"""Defaults of the service: of an image, of a wait, of the queue."""

Figures = Mapping[str, Any]


@dataclass
class Advice:
    """Settings and what to expect of them. Rows are figures of runs, by what was set or by share of the capacity.

    `asked` are settings of the model that it was measured with, if they were given; `rough` says that it was too quick
    to trust. `replicas` are threads of one process, `processes` are processes of their own, both by their number.
    """

    mix: Mapping[str, Any]
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    asked: Mapping[str, str] = field(default_factory=dict)
    rough: bool = False
    budgets: dict[int, list[Figures]] = field(default_factory=dict)
    replicas: dict[int, list[Figures]] = field(default_factory=dict)
    processes: dict[int, list[Figures]] = field(default_factory=dict)
    loads: dict[float, Figures] = field(default_factory=dict)
    setting: Setting = field(default_factory=lambda: Setting(1))

    def choose_budget(self) -> None:
        """The smallest budget that gives nearly the best throughput."""
        rates = {budget: rate_of(runs) for budget, runs in self.budgets.items()}
        most = max(rates.values())
        self.setting = Setting(min(budget for budget, rate in rates.items() if rate >= ENOUGH * most))

    def choose_replicas(self) -> None:
        """As few replicas as give nearly the best throughput; several, and processes, only if they are worth it."""
        ways = [(runs, count, False) for count, runs in sorted(self.replicas.items())]
        ways += [(runs, count, True) for count, runs in sorted(self.processes.items())]
        best, rate = ways[0], rate_of(ways[0][0])
        for way in ways:
            if rate_of(way[0]) > WORTH * rate:
                best, rate = way, rate_of(way[0])
        self.setting = Setting(self.setting.batch_patches, *best[1:])

    @property
    def capacity(self) -> float:
        """Images a second with what was chosen."""
        return rate_of(self._chosen)

    @property
    def patches_per_s(self) -> float:
        """Patches a second with what was chosen."""
        return statistics.median(float(run["achieved"]["patches_per_s"]) for run in self._chosen)

    @property
    def queue_patches(self) -> int:
        """What can be computed within the age limit of the queue, rounded up to 1,024; at least the largest image."""
        answered = math.ceil(self.patches_per_s * QUEUE_AGE_S / 1024) * 1024
        return min(max(answered, MAX_PATCHES), QUEUE_PATCHES)

    @property
    def queue_s(self) -> float:
        """Seconds in which a full queue is computed."""
        return self.queue_patches / self.patches_per_s

    @property
    def largest_s(self) -> float:
        """Seconds that an image of the most patches would take, at the speed of the mix and by its cost."""
        mean = float(self.mix["mean_patches"])
        per_cost = mean / (self.patches_per_s * encode_cost(round(mean)))
        return encode_cost(MAX_PATCHES) * per_cost

    def settings(self) -> dict[str, str]:
        """Environment variables of `viq serve`."""
        return {
            **self.asked,
            "VIQ_MAX_BATCH_PATCHES": str(self.setting.batch_patches),
            "VIQ_REPLICAS": str(self.setting.replicas),
            "VIQ_REPLICA_PROCESSES": str(self.setting.processes).lower(),
            "VIQ_MAX_QUEUE_PATCHES": str(self.queue_patches),
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "format": "viq-tune/1",
            "rough": self.rough,
            "settings": self.settings(),
            "expected": {
                "images_per_s": round(self.capacity, 3),
                "patches_per_s": round(self.patches_per_s, 1),
                "largest_image_s": round(self.largest_s, 2),
                "latency_ms_at_load": {f"{100 * share:g}%": row["latency_ms"] for share, row in self.loads.items()},
            },
            "mix": dict(self.mix),
            "model": dict(self.model),
            "machine": dict(self.machine),
            "measured": {
                "budgets": {str(budget): list(runs) for budget, runs in self.budgets.items()},
                "replicas": {str(count): list(runs) for count, runs in self.replicas.items()},
                "processes": {str(count): list(runs) for count, runs in self.processes.items()},
                "loads": {f"{100 * share:g}%": dict(row) for share, row in self.loads.items()},
            },
        }

    @property
    def _chosen(self) -> Sequence[Figures]:
        """The runs with what was chosen."""
        if self.setting.processes:
            return self.processes[self.setting.replicas]
        return self.replicas.get(self.setting.replicas) or self.budgets[self.setting.batch_patches]


def rate_of(runs: Sequence[Figures]) -> float:
    """Images a second, the median of the rounds."""
    return statistics.median(float(run["achieved"]["images_per_s"]) for run in runs)
