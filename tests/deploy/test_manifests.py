"""Every manifest is what Kubernetes and the operators of its custom resources take."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

_CRDS = {"keda.sh", "monitoring.coreos.com", "gateway.networking.k8s.io"}
_OLDEST, _NEWEST = "1.30", "1.37"  # the oldest has the sleep before stopping


def _group(manifest: Manifest) -> str:
    return str(manifest["apiVersion"]).rpartition("/")[0]


def _of_kubernetes(manifests: list[Manifest]) -> list[Manifest]:
    return [one for one in manifests if _group(one) not in _CRDS and _group(one) != "serving.kserve.io"]


@pytest.mark.parametrize("version", [_OLDEST, _NEWEST])
def test_an_overlay_is_what_kubernetes_takes(manifests: list[Manifest], version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in _of_kubernetes(manifests):
        validator.validate(manifest, version, strict=True)


def test_the_kustomization_on_the_operators_page_does_what_it_says(
    root: Path, tool: Callable[[str], str], tmp_path: Path
) -> None:
    (example,) = re.findall(r"```yaml\n(.+?)```", (root / "deploy/README.md").read_text(), re.DOTALL)
    here = os.path.relpath(root, tmp_path.resolve())
    local = re.sub(r"github\.com/YOU/viq-serving//(\S+?)\?ref=v[\d.]+", rf"{here}/\1", example)
    assert local.count(f"{here}/k8s/") == example.count("//k8s/") > 1
    (tmp_path / "kustomization.yaml").write_text(local)
    command = [tool("kubectl"), "kustomize", str(tmp_path.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    every = [one for one in yaml.safe_load_all(done.stdout) if one]
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in _of_kubernetes(every):
        validator.validate(manifest, _NEWEST, strict=True)
    (deployment,) = (one for one in every if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    images = {one["image"] for one in [*pod["containers"], *pod.get("initContainers", ())]}
    assert images == {"REGISTRY/viq-serving:cuda"}
    (settings,) = (one for one in every if one["kind"] == "ConfigMap" and one["metadata"]["name"] != "viq-dashboard")
    assert settings["data"]["VIQ_MAX_QUEUE_AGE_S"] == "5"
    assert pod["containers"][0]["envFrom"][0]["configMapRef"]["name"] == settings["metadata"]["name"]
    assert {"ServiceMonitor", "PrometheusRule", "ScaledObject"} <= {one["kind"] for one in every}


def test_a_misspelt_field_is_not_taken(kustomize: Callable[[str], list[Manifest]]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    (deployment,) = (one for one in kustomize("overlays/cpu") if one["kind"] == "Deployment")
    wrong = copy.deepcopy(deployment)
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(validator.ValidationError, match="readinesProbe"):
        validator.validate(wrong, _NEWEST, strict=True)


@pytest.fixture(scope="module")
def wrong_with(tool: Callable[[str], str], built: Callable[[str], Path]) -> Callable[[list[Manifest]], list[str]]:
    """What is wrong with some custom resources, as those who made their types see it."""
    source = (Path(__file__).parent / "crds" / "check.mjs").read_text()
    command, folder = [tool("node"), "--input-type=module", "-e", source], built("crds")

    def check(resources: list[Manifest]) -> list[str]:
        done = subprocess.run(
            command, cwd=folder, input=json.dumps(resources), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return check


def test_custom_resources_are_what_their_operators_take(
    overlays: list[str],
    kustomize: Callable[[str], list[Manifest]],
    wrong_with: Callable[[list[Manifest]], list[str]],
) -> None:
    every = [one for overlay in overlays for one in kustomize(f"overlays/{overlay}") if _group(one) in _CRDS]
    kinds = {one["kind"] for one in every}
    assert kinds == {"ScaledObject", "ServiceMonitor", "PrometheusRule", "Gateway", "HTTPRoute", "GRPCRoute"}
    assert wrong_with(every) == []
    misspelt = copy.deepcopy(next(one for one in every if one["kind"] == "ScaledObject"))
    misspelt["spec"]["poolingInterval"] = 15
    mistyped = copy.deepcopy(next(one for one in every if one["kind"] == "GRPCRoute"))
    mistyped["spec"]["rules"][0]["backendRefs"][0]["port"] = "grpc"
    told = "\n".join(wrong_with([misspelt, mistyped]))
    assert "poolingInterval" in told
    assert "port must be integer" in told


def test_the_runtime_for_kserve_is_what_it_takes(
    kustomize: Callable[[str], list[Manifest]], built: Callable[[str], Path]
) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    models = built("kserve") / "kserve" / "models"
    runtime, service = sorted(kustomize("kserve"), key=lambda one: str(one["kind"]), reverse=True)
    assert list(_unlike(models, "V1alpha1ServingRuntime", runtime)) == []
    assert list(_unlike(models, "V1beta1InferenceService", service)) == []
    service["spec"]["predictor"]["model"]["runTime"] = "viq"
    assert list(_unlike(models, "V1beta1InferenceService", service)) == ["spec.predictor.model.runTime: no such field"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "viq"},
        "spec": {name: runtime["spec"][name] for name in ("containers", "volumes")},
    }
    validator.validate(pod, _NEWEST, strict=True)
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    assert service["spec"]["predictor"]["model"]["modelFormat"]["name"] in {
        one["name"] for one in runtime["spec"]["supportedModelFormats"]
    }


def _unlike(models: Path, kind: str, value: Any, at: str = "") -> list[str]:
    """Where `value` is not what KServe's generated model `kind` describes; Kubernetes' own types are left to others."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return [
            found for number, one in enumerate(value) for found in _unlike(models, inner[1], one, f"{at}[{number}]")
        ]
    plain = {"str": str, "int": int, "bool": bool, "dict(str, str)": dict}.get(kind)
    if plain is not None:
        return [] if isinstance(value, plain) else [f"{at}: not {kind}"]
    file = models / (re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", kind).lower() + ".py")
    if not file.exists():
        return []
    types, names = _model(file)
    problems = []
    for name, inside in value.items():
        where = f"{at}.{name}".lstrip(".")
        if name not in names:
            problems.append(f"{where}: no such field")
        else:
            problems += _unlike(models, types[names[name]], inside, where)
    return problems


def _model(file: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Types by attribute and attributes by JSON name, read without running the file, which would want all of KServe."""
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    return tables["openapi_types"], {name: attribute for attribute, name in tables["attribute_map"].items()}
