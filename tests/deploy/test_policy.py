"""What holds for every deployment: no rights that it does not need, limits, probes, and numbers that fit each other."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from viq_serving.settings import Settings

Manifest = dict[str, Any]

_BATCH_S = 15.0  # for the last batch, which may be a large image on a CPU, and for the replies


@pytest.fixture
def settings(settings_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What `viq serve` makes of the ConfigMap; unknown names and bad values fail."""
    for name, value in settings_env.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def _pods(manifests: list[Manifest]) -> list[Manifest]:
    """The pods that some manifests make."""
    runtimes = [one["spec"] for one in manifests if one["kind"] == "ServingRuntime"]
    return runtimes + [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]


def _may_do_too_much(manifests: list[Manifest]) -> list[str]:
    """What a strict cluster would object to."""
    found = []
    for pod in _pods(manifests):
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(name):
                found.append(name)
        found += ["hostPath" for volume in pod.get("volumes", ()) if "hostPath" in volume]
        whole = pod.get("securityContext", {})
        for container in [*pod["containers"], *pod.get("initContainers", ())]:
            context = whole | container.get("securityContext", {})
            required = {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            found += [f"{container['name']}: {name}" for name, value in required.items() if context.get(name) != value]
            if context.get("runAsUser", 0) == 0 or context.get("privileged"):
                found.append(f"{container['name']}: root")
            given = container.get("resources", {})
            found += [
                f"{container['name']}: no {kind} of {what}"
                for kind in ("requests", "limits")
                for what in ("cpu", "memory")
                if what not in given.get(kind, {})
            ]
        for container in pod["containers"]:
            found += [
                f"no {kind}Probe" for kind in ("startup", "readiness", "liveness") if f"{kind}Probe" not in container
            ]
    return found


def test_pods_have_no_rights_that_they_do_not_need_and_limits_and_probes(manifests: list[Manifest]) -> None:
    assert len(_pods(manifests)) == 1
    assert _may_do_too_much(manifests) == []


def test_the_runtime_for_kserve_likewise(kustomize: Callable[[str], list[Manifest]]) -> None:
    assert _may_do_too_much(kustomize("kserve")) == []


def test_what_is_missing_is_seen() -> None:
    bare = {"kind": "Deployment", "spec": {"template": {"spec": {"containers": [{"name": "viq"}]}}}}
    told = _may_do_too_much([bare])
    assert {"viq: readOnlyRootFilesystem", "viq: root", "viq: no limits of memory", "no livenessProbe"} <= set(told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pod, one: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod, one: pod["securityContext"].pop("runAsNonRoot"), "viq: runAsNonRoot"),
        (lambda pod, one: pod["securityContext"].update(runAsUser=0), "viq: root"),
        (lambda pod, one: pod["securityContext"].pop("seccompProfile"), "viq: seccompProfile"),
        (lambda pod, one: one["securityContext"].update(privileged=True), "viq: root"),
        (
            lambda pod, one: one["securityContext"].update(allowPrivilegeEscalation=True),
            "viq: allowPrivilegeEscalation",
        ),
        (lambda pod, one: one["securityContext"].pop("readOnlyRootFilesystem"), "viq: readOnlyRootFilesystem"),
        (lambda pod, one: one["securityContext"]["capabilities"].update(add=["NET_ADMIN"]), "viq: capabilities"),
        (lambda pod, one: one["resources"]["limits"].pop("memory"), "viq: no limits of memory"),
        (lambda pod, one: one["resources"]["requests"].pop("cpu"), "viq: no requests of cpu"),
        (lambda pod, one: one.pop("readinessProbe"), "no readinessProbe"),
        (lambda pod, one: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
        (lambda pod, one: pod.update(initContainers=[{"name": "bare"}]), "bare: readOnlyRootFilesystem"),
    ],
)
def test_each_thing_that_is_too_much_is_seen_in_a_deployment_that_was_right(
    kustomize: Callable[[str], list[Manifest]], change: Callable[[Manifest, Manifest], object], told: str
) -> None:
    (right,) = (one for one in kustomize("overlays/cpu") if one["kind"] == "Deployment")
    wrong = copy.deepcopy(right)
    pod = wrong["spec"]["template"]["spec"]
    change(pod, pod["containers"][0])
    assert told in _may_do_too_much([wrong])


def _lets(rules: list[Manifest], side: str, namespace: str | None, port: str | int, protocol: str = "TCP") -> bool:
    """Whether a network policy's rules let traffic from or to pods of a namespace through; None is outside."""

    def there(rule: Manifest) -> bool:
        if side not in rule:
            return True
        labels = {"kubernetes.io/metadata.name": namespace}
        selectors = [peer["namespaceSelector"] for peer in rule[side] if set(peer) == {"namespaceSelector"}]
        return namespace is not None and any(one.get("matchLabels", {}).items() <= labels.items() for one in selectors)

    def through(rule: Manifest) -> bool:
        return any(one["port"] == port and one.get("protocol", "TCP") == protocol for one in rule["ports"])

    return any(there(rule) and through(rule) for rule in rules)


def test_the_network_policy_lets_through_what_is_needed_and_no_more(
    manifests: list[Manifest], settings: Settings
) -> None:
    (policy,) = (one["spec"] for one in manifests if one["kind"] == "NetworkPolicy")
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    callers, called = policy["ingress"], policy["egress"]
    assert all(_lets(callers, "from", "anybody", port) for port in ("http", "grpc"))
    assert _lets(callers, "from", "monitoring", "metrics")
    assert not _lets(callers, "from", "anybody", "metrics")
    assert all(_lets(called, "to", "kube-system", 53, protocol) for protocol in ("UDP", "TCP"))
    collector = re.fullmatch(r"http://[a-z-]+\.([a-z-]+):(\d+)", settings.otlp_endpoint or "")
    assert (collector is None) == (settings.otlp_endpoint is None)
    if collector is not None:
        assert _lets(called, "to", collector[1], int(collector[2]))
    fetches = any(
        one["kind"] == "Deployment" and "initContainers" in one["spec"]["template"]["spec"] for one in manifests
    )
    assert _lets(called, "to", None, 443) == fetches


def test_no_token_no_service_links_and_an_image_of_one_version(deployment: Manifest, container: Manifest) -> None:
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert re.fullmatch(r"viq-serving:(cpu|cuda)", container["image"])
    assert all(init["image"] == container["image"] for init in pod.get("initContainers", ()))


def test_threads_are_the_whole_cores_of_the_limit(container: Manifest) -> None:
    assert container["resources"]["limits"]["cpu"].isdigit()
    (threads,) = (one for one in container["env"] if one["name"] == "OMP_NUM_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"


def test_a_cpus_replicas_are_the_cores_of_the_limit_and_not_those_of_the_node(
    container: Manifest, settings: Settings
) -> None:
    counts = [one["valueFrom"]["resourceFieldRef"]["resource"] for one in container["env"] if "REPLICAS" in one["name"]]
    assert counts == (["limits.cpu"] if settings.device == ("cpu",) else [])


def test_the_settings_can_be_used_and_their_ports_are_the_containers(settings: Settings, container: Manifest) -> None:
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == {"http": settings.http_port, "grpc": settings.grpc_port, "metrics": settings.metrics_port}
    assert container["envFrom"][0]["configMapRef"]["name"].startswith("viq-settings-")  # a change rolls the pods


def test_a_pod_is_given_the_time_to_answer_what_it_was_sent(
    settings: Settings, deployment: Manifest, container: Manifest
) -> None:
    leave_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = leave_s + settings.drain_delay + settings.body_read_timeout_s + settings.max_queue_age_s + _BATCH_S
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= needed_s
    probe = container["readinessProbe"]
    noticed_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert leave_s + settings.drain_delay > noticed_s  # served until the last load balancer has noticed


def test_a_slow_start_is_no_reason_to_restart_or_to_call_a_rollout_failed(
    deployment: Manifest, container: Manifest
) -> None:
    probe = container["startupProbe"]
    patience_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert patience_s >= 600
    assert deployment["spec"]["progressDeadlineSeconds"] > patience_s


def test_probes_ask_ports_and_paths_that_are_there(settings: Settings, container: Manifest, root: Path) -> None:
    known = set(re.findall(r'@router\.get\("(/\w+)"', (root / "service/viq_serving/rest/health.py").read_text()))
    for kind in ("startup", "readiness", "liveness"):
        probe = container[f"{kind}Probe"]
        if "grpc" in probe:
            assert probe["grpc"]["port"] == settings.grpc_port
            assert settings.tls_cert is None  # the kubelet cannot
        else:
            assert probe["httpGet"]["port"] == "http"
            assert probe["httpGet"]["path"] in known
            assert (probe["httpGet"].get("scheme") == "HTTPS") == (settings.tls_cert is not None)


def test_every_folder_that_the_settings_name_is_mounted_and_uploads_have_room(
    settings: Settings, deployment: Manifest, container: Manifest
) -> None:
    mounts = [one["mountPath"] for one in container["volumeMounts"]]
    assert "/tmp" in mounts  # noqa: S108
    for path in (settings.weights_root, settings.api_keys_file, settings.tls_cert, settings.tls_key):
        assert path is None or any(path == mount or path.startswith(f"{mount}/") for mount in mounts)
    (tmp,) = (one for one in deployment["spec"]["template"]["spec"]["volumes"] if one["name"] == "tmp")
    assert tmp["emptyDir"]["sizeLimit"] == "1Gi"
    assert settings.max_bytes_in_flight < 2**30


def test_all_that_selects_pods_selects_these(manifests: list[Manifest], deployment: Manifest) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = {
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    }
    seen = set()
    for one in manifests:
        if one["kind"] in selectors:
            wanted = selectors[one["kind"]](one["spec"])
            assert wanted
            assert wanted.items() <= labels
            seen.add(one["kind"])
    assert seen == set(selectors)


def test_ports_are_routed_to_by_names_and_numbers_that_exist(manifests: list[Manifest], container: Manifest) -> None:
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in manifests if one["kind"] == "Service"}
    named = {one["name"] for one in container["ports"]}
    assert {port["targetPort"] for ports in services.values() for port in ports} <= named
    for one in manifests:
        if one["kind"] in ("HTTPRoute", "GRPCRoute"):
            for rule in one["spec"]["rules"]:
                for to in rule["backendRefs"]:
                    assert to["port"] in {port["port"] for port in services[to["name"]]}
        if one["kind"] == "Ingress":
            for host in one["spec"]["rules"]:
                for path in host["http"]["paths"]:
                    to = path["backend"]["service"]
                    assert to["port"]["name"] in {port["name"] for port in services[to["name"]]}
        if one["kind"] == "ServiceMonitor":
            assert {end["port"] for end in one["spec"]["endpoints"]} <= {port["name"] for port in services["viq"]}


def test_metrics_are_not_led_outside(manifests: list[Manifest]) -> None:
    for one in manifests:
        paths = []
        if one["kind"] == "HTTPRoute":
            matched = [match["path"] for rule in one["spec"]["rules"] for match in rule["matches"]]
            paths = [path["value"] for path in matched if path["type"] == "PathPrefix"]
            assert "/metrics" not in [path["value"] for path in matched]
        if one["kind"] == "Ingress":
            every = [path for rule in one["spec"]["rules"] for path in rule["http"]["paths"]]
            paths = [path["path"] for path in every if path["pathType"] == "Prefix"]
            assert "/metrics" not in [path["path"] for path in every]
        assert not [path for path in paths if "/metrics".startswith(path)]


def test_autoscaled_pods_have_no_number_of_their_own(
    overlay: str, manifests: list[Manifest], deployment: Manifest
) -> None:
    scaled = [one for one in manifests if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert ("replicas" in deployment["spec"]) == (not scaled)
    assert len(scaled) == (1 if overlay.startswith("autoscale") or overlay == "production" else 0)


def test_both_autoscalers_follow_the_same_rule(root: Path) -> None:
    folder = root / "k8s" / "components"
    hpa = yaml.safe_load((folder / "autoscale-hpa/horizontal-pod-autoscaler.yaml").read_text())["spec"]
    keda = yaml.safe_load((folder / "autoscale-keda/scaled-object.yaml").read_text())["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"])
    assert hpa["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    queue, busy = (float(one["metadata"]["threshold"]) for one in keda["triggers"])
    targets = [one["pods"]["target"]["averageValue"] for one in hpa["metrics"]]
    assert targets == [f"{queue / 1000:g}k", f"{busy * 1000:g}m"]
    adapter = yaml.safe_load((folder / "autoscale-hpa/adapter-values.yaml").read_text())["rules"]["custom"]
    assert [one["name"]["as"] for one in adapter] == [one["pods"]["metric"]["name"] for one in hpa["metrics"]]
