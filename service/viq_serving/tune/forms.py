"""Advice as people, systemd and Kubernetes read it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from viq_serving.tune.advice import Advice, Figures, rate_of

FORMS = ("text", "env", "configmap")


def written(advice: Advice, form: str) -> str:
    """The advice in one of `FORMS`."""
    return {"text": _text, "env": _env, "configmap": _config_map}[form](advice)


def _text(advice: Advice) -> str:
    lines = [_said(advice), "", f"{'budget':>9} {'images/s':>9} {'patches/s':>10} {'p50 ms':>8} {'p99 ms':>8}"]
    lines += [_row(str(budget), runs) for budget, runs in advice.budgets.items()]
    for name, tried in (("replicas", advice.replicas), ("processes", advice.processes)):
        if tried:
            lines += ["", f"{name:>9}", *(_row(str(count), runs) for count, runs in tried.items())]
    lines += ["", *_expected(advice), "", *(f"{name}={value}" for name, value in advice.settings().items())]
    return "\n".join(lines) + "\n"


def _env(advice: Advice) -> str:
    comments = [_said(advice), *_expected(advice)]
    return "\n".join([*(f"# {line}" for line in comments), *_assigned(advice)]) + "\n"


def _config_map(advice: Advice) -> str:
    comments = [_said(advice), *_expected(advice)]
    data = [f'  {name}: "{value}"' for name, value in advice.settings().items()]
    head = ["apiVersion: v1", "kind: ConfigMap", "metadata:", "  name: viq-settings", "data:"]
    return "\n".join([*(f"# {line}" for line in comments), *head, *data]) + "\n"


def _assigned(advice: Advice) -> Iterator[str]:
    for name, value in advice.settings().items():
        yield f"{name}={value}"


def _said(advice: Advice) -> str:
    mix, model, machine = advice.mix, advice.model, advice.machine
    return (
        f"viq tune: {model['size']} in {model['dtype']} on {model['device']}, head {model['head']}, "
        f"{machine['cores']} cores of {machine['processor']}; "
        f"{mix['name']}: {mix['pictures']} pictures of {mix['mean_patches']:g} patches each"
    )


def _expected(advice: Advice) -> Iterator[str]:
    if advice.rough:
        yield "Measured in one short round: rough, not to be relied on"
    yield (
        f"Expected: {advice.capacity:.3g} images/s, {advice.patches_per_s:.0f} patches/s, "
        "less what HTTP or gRPC takes of the processor"
    )
    for share, row in advice.loads.items():
        latency = row["latency_ms"]
        yield (
            f"At {100 * share:g} % of that, {row['offered_per_s']:.3g} a second at random times: "
            f"p50 {latency['p50']:.0f} ms, p90 {latency['p90']:.0f} ms, p99 {latency['p99']:.0f} ms"
        )
    yield (
        f"The queue holds what is computed in {advice.queue_s:.3g} s; an image of 16,384 patches would take about "
        f"{advice.largest_s:.3g} s"
    )


def _row(name: str, runs: Sequence[Figures]) -> str:
    patches = statistics.median(run["achieved"]["patches_per_s"] for run in runs)
    p50, p99 = (statistics.median(run["latency_ms"][what] for run in runs) for what in ("p50", "p99"))
    return f"{name:>9} {rate_of(runs):>9.4g} {patches:>10.0f} {p50:>8.0f} {p99:>8.0f}"
