"""Rules, alerts and dashboards: expressions that Prometheus takes, of metrics that the service has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from viq_serving.metrics import Metrics

# What Prometheus and the operator add to every series, besides the metrics' own labels.
_TARGET = {"namespace", "job", "instance", "pod", "le"}


def _run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def alerts(root: Path) -> list[dict[str, Any]]:
    """The alerts."""
    return list(yaml.safe_load((root / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"])


def _labels() -> dict[str, set[str]]:
    """The service's metrics, as their series are called, with their labels."""
    known: dict[str, set[str]] = {}
    metrics = Metrics("0")
    for family in text_string_to_metric_families(metrics.text().decode()):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            known[family.name + suffix] = set()
    for value in vars(metrics).values():
        names = getattr(value, "_labelnames", None)
        if names is not None:
            for series in (f"{value._name}{suffix}" for suffix in ("", "_total", "_bucket", "_sum", "_count")):
                if series in known:
                    known[series] = set(names)
    known["viq_build_info"] = {"version", "python"}
    return known


def test_prometheus_takes_the_rules_and_the_configuration(root: Path, tool: Callable[[str], str]) -> None:
    folder = root / "deploy" / "prometheus"
    _run(tool("promtool"), "check", "config", "prometheus.yml", cwd=folder)


def test_every_alert_fires_when_it_should(root: Path, tool: Callable[[str], str]) -> None:
    _run(tool("promtool"), "test", "rules", "alerts.yml", cwd=root / "deploy" / "prometheus" / "tests")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(
    root: Path, alerts: list[dict[str, Any]]
) -> None:
    tests = yaml.safe_load((root / "deploy/prometheus/tests/alerts.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    silent = {case["alertname"] for case in cases if not case["exp_alerts"]}
    assert {alert["alert"] for alert in alerts} == fires == silent


def test_every_alert_has_a_paragraph_in_the_runbook_that_it_names(root: Path, alerts: list[dict[str, Any]]) -> None:
    headings = re.findall(r"^## (\w+)$", (root / "deploy/runbook.md").read_text(), re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts]
    for alert in alerts:
        assert alert["annotations"]["runbook"] == f"deploy/runbook.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")


def test_the_operator_is_given_the_same_rules(root: Path) -> None:
    groups = [
        group
        for name in ("recording", "alerts")
        for group in yaml.safe_load((root / f"deploy/prometheus/{name}.yml").read_text())["groups"]
    ]
    resource = yaml.safe_load((root / "k8s/components/monitoring/prometheus-rule.yaml").read_text())
    assert resource["spec"]["groups"] == groups, "run make k8s-rules"


def test_what_the_operator_is_given_is_written_by_a_script_that_runs(root: Path) -> None:
    command = [sys.executable, str(root / "deploy/prometheus/rule_resource.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (root / "k8s/components/monitoring/prometheus-rule.yaml").read_text(), "run make k8s-rules"


def test_expressions_are_of_metrics_and_labels_that_the_service_has(root: Path, expressions: dict[str, str]) -> None:
    known = _labels()
    rules = yaml.safe_load((root / "deploy/prometheus/recording.yml").read_text())["groups"][0]["rules"]
    recorded = {rule["record"] for rule in rules}
    every = {label for labels in known.values() for label in labels} | _TARGET
    for where, expression in expressions.items():
        names = set(re.findall(r"\bviq[_:][a-z0-9_:]+", expression))
        assert names, where
        assert names <= known.keys() | recorded, where
        for name, selector in re.findall(r"\b(viq_[a-z0-9_]+)\{([^}]*)\}", expression):
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', selector)))
            assert used <= known[name] | _TARGET, where
        for grouping in re.findall(r"\b(?:by|on|ignoring|without|group_left)\s*\(([^)]*)\)", expression):
            assert {label.strip() for label in grouping.split(",") if label.strip()} <= every, where


def test_every_metric_of_the_service_is_asked_for_by_a_panel_or_a_rule(expressions: dict[str, str]) -> None:
    asked = " ".join(expressions.values())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in _labels() if not name.endswith("_created")}
    unseen = {name for name in families if not re.search(rf"\b{name}(?:_bucket|_sum|_count)?\b", asked)}
    assert unseen == {"viq_queue_oldest_seconds"}  # the panels show it by lane


def test_panels_ask_what_prometheus_understands(
    expressions: dict[str, str], tool: Callable[[str], str], tmp_path: Path
) -> None:
    rules = []
    for number, (where, expression) in enumerate(expressions.items()):
        plain = expression.replace("$__rate_interval", "1m")
        rules.append({"record": f"viq:{number}", "expr": plain, "labels": {"at": where}})
    file = tmp_path / "expressions.yml"
    file.write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    _run(tool("promtool"), "check", "rules", file, cwd=tmp_path)


def test_panels_lie_beside_each_other(root: Path) -> None:
    dashboard = json.loads((root / "deploy/grafana/viq.json").read_text())
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not places & cells, panel["title"]
        places |= cells
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)
