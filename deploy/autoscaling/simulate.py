"""What the autoscaling rule does when the load steps up and down: writes step.svg beside this file.

The rule is read from k8s/components/autoscale-hpa and computed as the HorizontalPodAutoscaler's controller does; a pod
is a queue that does as much a second as a real server did in recorded.json, and refuses what would wait for too long.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from drawing import Panel, drawn

HERE = Path(__file__).parent
RULE = HERE.parents[1] / "k8s/components/autoscale-hpa/horizontal-pod-autoscaler.yaml"
SCRAPE_S, SYNC_S, START_S, MAX_AGE_S = 15, 15, 30, 10.0
TOLERANCE = 0.1  # of the controller: so close to its target a metric asks for nothing


@dataclass
class Pod:
    """One server: what waits, in patches, and how long it was busy."""

    ready_at: float
    queue: float = 0.0
    busy_s: float = 0.0

    def second(self, offered: float, capacity: float) -> tuple[float, float]:
        """One second with that much new work; what was answered and what was refused."""
        refused = max(0.0, self.queue + offered - capacity * (MAX_AGE_S + 1.0))
        work = self.queue + offered - refused
        done = min(work, capacity)
        self.queue = work - done
        self.busy_s += done / capacity
        return done, refused


@dataclass
class Step:
    """What can be seen at one second."""

    t: int
    offered: float
    answered: float
    refused: float
    ready: int
    pods: int
    queue: float


@dataclass
class Autoscaler:
    """The controller's arithmetic over the rule in the manifest."""

    spec: dict[str, Any]
    wanted: list[tuple[int, int]] = field(default_factory=list)  # when, how many: for the window of scaling down
    changes: list[tuple[int, int]] = field(default_factory=list)  # when, how many more

    def pods(self, t: int, pods: int, queue: float, busy: float) -> int:
        """How many there shall be, of `pods` with these totals of both metrics."""
        asked = []
        for metric, total in zip(self.spec["metrics"], (queue, busy), strict=True):
            target = _number(metric["pods"]["target"]["averageValue"])
            ratio = total / pods / target
            asked.append(pods if abs(ratio - 1) <= TOLERANCE else ceil(total / target))
        desired = min(max(*asked, self.spec["minReplicas"]), self.spec["maxReplicas"])
        down = self.spec["behavior"]["scaleDown"]
        self.wanted = [(when, n) for when, n in self.wanted if when > t - down["stabilizationWindowSeconds"]] + [
            (t, desired)
        ]
        if desired < pods:  # only to what sufficed all the while
            desired = min(pods, max(n for _, n in self.wanted))
        if desired > pods:
            desired = min(
                desired, max(self._allowed(t, pods, one, 1) for one in self.spec["behavior"]["scaleUp"]["policies"])
            )
        elif desired < pods:
            desired = max(desired, min(self._allowed(t, pods, one, -1) for one in down["policies"]))
        if desired != pods:
            self.changes.append((t, desired - pods))
        return desired

    def _allowed(self, t: int, pods: int, policy: dict[str, Any], sign: int) -> int:
        """The furthest that a policy lets the number go, after what changed in its period."""
        recent = sum(n for when, n in self.changes if when > t - policy["periodSeconds"] and n * sign > 0)
        before = pods - recent
        by = policy["value"] if policy["type"] == "Pods" else before * policy["value"] / 100
        return ceil(before + by) if sign > 0 else int(before - by)


def _number(quantity: str) -> float:
    """A Kubernetes quantity."""
    factor = {"k": 1e3, "m": 1e-3}.get(quantity[-1])
    return float(quantity) if factor is None else float(quantity[:-1]) * factor


def simulated(capacity: float, load: Callable[[int], float], seconds: int) -> list[Step]:
    """Every second of a service of pods that each do `capacity` patches a second, under `load` patches a second."""
    scaler = Autoscaler(yaml.safe_load(RULE.read_text(encoding="utf-8"))["spec"])
    pods = [Pod(ready_at=0) for _ in range(scaler.spec["minReplicas"])]
    queues, busies = [0.0] * 2, [0.0] * 5  # totals at the last scrapes: 30 s of one, a minute of the other
    steps = []
    for t in range(seconds):
        ready = [pod for pod in pods if pod.ready_at <= t]
        both = [pod.second(load(t) / len(ready), capacity) for pod in ready]
        if t % SCRAPE_S == 0:
            queues = [*queues[1:], sum(pod.queue for pod in pods)]
            busies = [*busies[1:], sum(pod.busy_s for pod in pods)]
        if t % SYNC_S == SYNC_S - 1:
            busy = max(0.0, busies[-1] - busies[0]) / (4 * SCRAPE_S)
            desired = scaler.pods(t, len(pods), sum(queues) / len(queues), busy)
            pods += [Pod(ready_at=t + START_S) for _ in range(desired - len(pods))]
            for gone in pods[desired:]:  # it answers what it has; its counters are no longer seen
                busies = [max(0.0, seen - gone.busy_s) for seen in busies]
            del pods[desired:]
        answered, refused = sum(one[0] for one in both), sum(one[1] for one in both)
        steps.append(Step(t, load(t), answered, refused, len(ready), len(pods), sum(pod.queue for pod in pods)))
    return steps


def replayed(recorded: dict[str, Any]) -> list[tuple[float, float, float]]:
    """When, the queue that was recorded, and the queue of one simulated pod under the same load."""
    pod, now, out = Pod(ready_at=0), 0, []
    ends, total = [], 0.0
    for phase in recorded["offered"]:
        total += phase["seconds"]
        ends.append((total, phase["patches_per_s"]))
    for sample in recorded["samples"]:
        while now < sample["t"]:
            offered = next((rate for end, rate in ends if now < end), 0.0)
            pod.second(offered, recorded["capacity_patches_per_s"])
            now += 1
        out.append((sample["t"], sample["queue_patches"], pod.queue))
    return out


def step_load(capacity: float) -> Callable[[int], float]:
    """What one pod can do, for two minutes; eight times that for fifteen; then as before."""
    return lambda t: capacity * (8.0 if 120 <= t < 1020 else 1.0)


SECONDS = 1800


def _panels(steps: list[Step], recording: list[tuple[float, float, float]]) -> list[Panel]:
    def curve(value: Callable[[Step], float]) -> list[tuple[float, float]]:
        return [(step.t, value(step)) for step in steps]

    return [
        Panel(
            "patches a second, thousands: offered (grey), answered (green), refused (red)",
            SECONDS,
            {
                "#888": curve(lambda step: step.offered / 1e3),
                "#2a7": curve(lambda step: step.answered / 1e3),
                "#c33": curve(lambda step: step.refused / 1e3),
            },
        ),
        Panel(
            "pods: asked for (light), ready (dark)",
            SECONDS,
            {"#59c": curve(lambda step: step.pods), "#136": curve(lambda step: step.ready)},
        ),
        Panel("patches that wait, thousands", SECONDS, {"#a60": curve(lambda step: step.queue / 1e3)}),
        Panel(
            "patches that wait, thousands: one recorded server (grey), one simulated pod under the same load (brown)",
            recording[-1][0],
            {
                "#888": [(t, real / 1e3) for t, real, _ in recording],
                "#a60": [(t, simulated / 1e3) for t, _, simulated in recording],
            },
        ),
    ]


def write(file: Path) -> tuple[list[Step], float]:
    """Draw the simulation into `file`; what it was drawn from, and what a pod can do."""
    recorded = json.loads((HERE / "recorded.json").read_text(encoding="utf-8"))
    capacity = float(recorded["capacity_patches_per_s"])
    steps = simulated(capacity, step_load(capacity), SECONDS)
    file.write_text(drawn(_panels(steps, replayed(recorded))), encoding="utf-8")
    return steps, capacity


def main() -> None:
    """Draw, and say it in numbers."""
    steps, capacity = write(HERE / "step.svg")
    refused = [step.t for step in steps if step.refused > 0]
    enough = next(step.t for step in steps if step.t > 120 and step.ready * capacity >= step.offered)
    print(f"pods: {steps[119].pods} before, {max(step.pods for step in steps)} at most, {steps[-1].pods} in the end")
    print(f"enough are ready {enough - 120} s after the step")
    print(f"refusals from {min(refused) - 120} s to {max(refused) - 120} s after it")
    share = sum(step.refused for step in steps) / sum(step.offered for step in steps[120:1020])
    print(f"{share:.1%} of what was offered during the step was refused")


if __name__ == "__main__":
    main()
