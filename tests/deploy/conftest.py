"""The deployment's files, rendered as an operator would, and the tools that judge them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

_ROOT = Path(__file__).parents[2]
_BUILT = _ROOT / "build" / "deploy"  # what `make deploy-tools` fetched
_OVERLAYS = sorted(path.parent.name for path in _ROOT.glob("k8s/overlays/*/kustomization.yaml"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `overlay` runs for each of them."""
    if "overlay" in metafunc.fixturenames:
        metafunc.parametrize("overlay", _OVERLAYS)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return _ROOT


@pytest.fixture(scope="session")
def overlays() -> list[str]:
    """The names of all overlays."""
    return _OVERLAYS


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a program; without it the test is skipped, and says so."""

    def find(name: str) -> str:
        places = os.pathsep.join([str(_BUILT / "bin"), str(_ROOT / ".venv" / "bin"), os.environ["PATH"], "/usr/sbin"])
        path = shutil.which(name, path=places)
        if path is None:
            pytest.skip(f"{name} is not installed (make deploy-tools)")
        return path

    return find


@pytest.fixture(scope="session")
def built() -> Callable[[str], Path]:
    """A folder of `make deploy-tools`; without it the test is skipped, and says so."""

    def find(name: str) -> Path:
        if not (_BUILT / name).is_dir():
            pytest.skip(f"build/deploy/{name} is not there (make deploy-tools)")
        return _BUILT / name

    return find


@pytest.fixture(scope="session")
def kustomize(tool: Callable[[str], str]) -> Callable[[str], list[Manifest]]:
    """What `kubectl apply -k FOLDER` would send."""
    rendered: dict[str, list[Manifest]] = {}

    def build(folder: str) -> list[Manifest]:
        if folder not in rendered:
            command = [tool("kubectl"), "kustomize", str(_ROOT / "k8s" / folder)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            rendered[folder] = [one for one in yaml.safe_load_all(done.stdout) if one]
        return rendered[folder]

    return build


@pytest.fixture
def manifests(overlay: str, kustomize: Callable[[str], list[Manifest]]) -> list[Manifest]:
    """All of one overlay."""
    return kustomize(f"overlays/{overlay}")


@pytest.fixture
def deployment(manifests: list[Manifest]) -> Manifest:
    """The Deployment of one overlay."""
    (one,) = (each for each in manifests if each["kind"] == "Deployment")
    return one


@pytest.fixture
def container(deployment: Manifest) -> Manifest:
    """The container that serves, of one overlay."""
    (one,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(one)


@pytest.fixture
def settings_env(manifests: list[Manifest]) -> dict[str, str]:
    """The environment that the ConfigMap of one overlay gives the container."""
    (one,) = (
        each
        for each in manifests
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].startswith("viq-settings")
    )
    return dict(one["data"])


@pytest.fixture(scope="session")
def expressions(root: Path) -> dict[str, str]:
    """Every PromQL expression that is deployed, by where it stands."""
    found: dict[str, str] = {}
    for name in ("recording", "alerts"):
        rules = yaml.safe_load((root / f"deploy/prometheus/{name}.yml").read_text())
        for rule in rules["groups"][0]["rules"]:
            found[f"{name} {rule.get('record') or rule.get('alert')}"] = rule["expr"]
    dashboard = json.loads((root / "deploy/grafana/viq.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    scaled = yaml.safe_load((root / "k8s/components/autoscale-keda/scaled-object.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        found[f"scaler {trigger['name']}"] = trigger["metadata"]["query"]
    adapter = yaml.safe_load((root / "k8s/components/autoscale-hpa/adapter-values.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        found[f"adapter {rule['name']['as']}"] = rule["seriesQuery"]
    return found
