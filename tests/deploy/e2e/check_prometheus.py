"""A real Prometheus scrapes a real server: every expression that is deployed has an answer there.

Run by `make test-deploy`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml


class Replica(Protocol):
    """What conftest starts."""

    http: int
    metrics: int


# What a healthy server of one device on a CPU has no series for: refusals, a cache that is off, a GPU's memory, and all
# that is an alert.
_SILENT = {
    "recording viq:errors:ratio_rate5m",
    "recording viq:rejected:ratio_rate5m",
    "panel Failures of the service A",
    "panel Refused for lack of room A",
    "panel Refusals a second by reason A",
    "panel Images asked of the cache, a second A",
}


def test_every_expression_is_answered_by_a_prometheus_that_scrapes_a_live_server(
    root: Path,
    replicas: list[Replica],
    picture: bytes,
    expressions: dict[str, str],
    ports: Callable[[int], list[int]],
    until: Callable[[Callable[[], bool]], None],
    process: Callable[..., subprocess.Popen[bytes]],
    tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    rules = root / "deploy" / "prometheus"
    config = yaml.safe_load((rules / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(rules / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [  # with the labels that they have in Kubernetes
        {"targets": [f"127.0.0.1:{one.metrics}"], "labels": {"namespace": "viq", "pod": f"viq-{number}"}}
        for number, one in enumerate(replicas, 1)
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    for file in config["rule_files"]:  # their own interval is too long to wait for
        text = Path(file).read_text().replace("    interval: 15s\n", "")
        (tmp_path / Path(file).name).write_text(text)
    config["rule_files"] = [Path(file).name for file in config["rule_files"]]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = ports(1)
    flags = [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        process(tool("prometheus"), "--config.file=prometheus.yml", *flags, log=log, cwd=tmp_path)

    def asked(query: str) -> list[dict[str, Any]]:
        reply = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=30)
        assert reply.status_code == 200, (query, reply.text)
        return list(reply.json()["data"]["result"])

    def scraped() -> bool:
        try:
            return len(asked("up{job='viq'} == 1")) == len(replicas)
        except httpx.TransportError:
            return False

    until(scraped)

    def send(one: Replica) -> None:
        url = f"http://127.0.0.1:{one.http}/v1"
        codes = httpx.post(f"{url}/encode", files={"image": picture}, timeout=60)
        assert codes.status_code == 200
        assert httpx.post(f"{url}/decode", json=codes.json(), timeout=60).status_code == 200

    def rates() -> bool:
        for one in replicas:
            send(one)
        return bool(asked("sum(viq:requests:rate5m) > 0")) and bool(asked("sum(viq:device_busy:ratio_rate1m) > 0"))

    until(rates)
    unanswered = set()
    for where, expression in expressions.items():
        query = expression.replace("$namespace", ".*").replace("$job", ".*").replace("$__rate_interval", "1m")
        answer = asked(query)
        if where.startswith("alerts "):
            assert answer == [], where  # nothing is wrong here
        elif not answer:
            unanswered.add(where)
    assert unanswered <= _SILENT

    adapter = yaml.safe_load((root / "k8s/components/autoscale-hpa/adapter-values.yaml").read_text())
    for rule in adapter["rules"]["custom"]:  # as prometheus-adapter asks for the autoscaler
        series = rule["seriesQuery"].partition("{")[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.GroupBy>>", "pod")
        answer = asked(query.replace("<<.LabelMatchers>>", 'namespace="viq",pod=~"viq-1|viq-2"'))
        assert {one["metric"]["pod"] for one in answer} == {"viq-1", "viq-2"}
    assert len(asked("viq:device_busy:ratio_rate1m")) == len(replicas)
    groups = httpx.get(f"http://127.0.0.1:{port}/api/v1/rules", timeout=30).json()["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
