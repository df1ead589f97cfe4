"""The real Dockerfile, built; the real Deployment, started from that image under its own security context.

Run by `make test-deploy`, as root on Debian: buildah builds on a base made by debootstrap, podman plays the manifests.
Only what this machine lacks is changed: the host's network, other ports, and no pulling.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx
import pytest
import trustme
import yaml
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

Manifest = dict[str, Any]


class Machine(Protocol):
    """What conftest sets up."""

    def __call__(self, *words: str, fine: tuple[int, ...] = (0,), cwd: Path | None = None) -> str: ...


_CONTAINER = "viq-pod-0-viq"
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_MOST_BYTES = 1_300_000_000  # most of it is torch


def test_the_image_holds_what_it_needs_and_no_more(machine: Machine, image: Manifest) -> None:
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["viq"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.title"] == "viq-serving"
    assert image["Size"] < _MOST_BYTES
    look = (
        "for tool in cc gcc g++ c++ clang ld as make nvcc pip pip3 pip3.11; do command -v $tool; done;"
        " find / -xdev \\( -name pip -o -name ptxas \\) -path '*python*' 2> /dev/null;"
        " find / -xdev -perm /6000 -path '/opt/*'; cat /opt/viq/requirements.txt"
    )
    options = ["--rm", "--network", "host", "--pull=never", "--no-healthcheck", "--entrypoint", "sh"]
    inside = machine("podman", "run", *options, image["RepoTags"][0], "-c", look).splitlines()
    assert inside
    assert all("==" in line or line.startswith("viq-serving @") for line in inside)


@pytest.fixture
def deploy(
    machine: Machine,
    image: Manifest,
    kustomize: Callable[[str], list[Manifest]],
    ports: Callable[[int], list[int]],
    tmp_path: Path,
) -> Iterator[Callable[..., Manifest]]:
    """Start the container of an overlay; it is described as in the manifest, with the ports that it has here."""
    file = tmp_path / "deployment.yaml"

    def play(overlay: str, secrets: Path | None = None) -> Manifest:
        kept = [one for one in kustomize(f"overlays/{overlay}") if one["kind"] in ("ConfigMap", "Deployment")]
        settings, deployment = sorted(yaml.safe_load(yaml.safe_dump(kept)), key=lambda one: str(one["kind"]))
        http, grpc_port, metrics = ports(3)
        settings["data"] |= {f"VIQ_{name}_PORT": str(port) for name, port in (("HTTP", http), ("GRPC", grpc_port))}
        settings["data"]["VIQ_METRICS_PORT"] = str(metrics)
        deployment["spec"]["replicas"] = 1
        pod = deployment["spec"]["template"]["spec"]
        pod["hostNetwork"] = True
        for volume in pod["volumes"]:  # podman's secrets are of another kind
            if (secret := volume.pop("secret", None)) is not None:
                volume["hostPath"] = {"path": f"{secrets}/{secret['secretName']}", "type": "Directory"}
        (container,) = pod["containers"]
        container |= {"image": image["RepoTags"][0], "imagePullPolicy": "Never"}
        del container["ports"]  # podman maps none in the host's network
        for kind in _PROBES:
            probe = container[kind]
            (probe["httpGet"] if "httpGet" in probe else probe["grpc"])["port"] = (
                http if "httpGet" in probe else grpc_port
            )
        file.write_text(yaml.safe_dump_all([settings, deployment]))
        machine("podman", "play", "kube", "--replace", str(file))  # also what a run before left that was killed
        own = {"http": http, "grpc": grpc_port, "metrics": metrics, "grace_s": pod["terminationGracePeriodSeconds"]}
        return dict(container) | own

    try:
        yield play
    finally:
        machine("podman", "play", "kube", "--down", str(file), fine=(0, 125))


def _kubelet(probe: Manifest) -> bool:
    """Ask as the kubelet does."""
    try:
        if "grpc" in probe:
            with grpc.insecure_channel(f"127.0.0.1:{probe['grpc']['port']}") as channel:
                reply = HealthStub(channel).Check(HealthCheckRequest(), timeout=probe["timeoutSeconds"])
            return bool(reply.status == HealthCheckResponse.SERVING)
        asked = probe["httpGet"]
        url = f"{asked.get('scheme', 'http').lower()}://127.0.0.1:{asked['port']}{asked['path']}"
        return httpx.get(url, timeout=probe["timeoutSeconds"], verify=False).status_code == 200  # noqa: S501 - likewise
    except (grpc.RpcError, httpx.TransportError):
        return False


def test_the_deployment_runs_from_the_image_under_its_own_security_context(
    machine: Machine,
    deploy: Callable[..., Manifest],
    picture: bytes,
    until: Callable[[Callable[[], bool]], None],
) -> None:
    name, deployed = _CONTAINER, deploy("cpu")
    for kind in _PROBES:
        until(lambda probe=deployed[kind]: _kubelet(probe))  # type: ignore[misc]

    url = f"http://127.0.0.1:{deployed['http']}"
    encoded = httpx.post(f"{url}/v1/encode", files={"image": picture}, timeout=60)
    assert encoded.json()["results"][0]["grid"] == [3, 4]
    decoded = httpx.post(f"{url}/v1/decode", json=encoded.json(), timeout=60)
    assert decoded.headers["content-type"] == "image/png"
    assert "viq_ready 1.0" in httpx.get(f"http://127.0.0.1:{deployed['metrics']}/metrics").text

    about = json.loads(machine("podman", "inspect", name))[0]
    host = about["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == 3 * 2**30
    assert about["Config"]["User"].startswith("10001")
    assert {"OMP_NUM_THREADS=2", "VIQ_REPLICAS=2", "VIQ_HOST=0.0.0.0"} <= set(about["Config"]["Env"])
    working = httpx.get(f"http://127.0.0.1:{deployed['metrics']}/metrics").text
    assert working.count("viq_device_up{") == 2
    status = machine("podman", "exec", name, "cat", "/proc/1/status")
    held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (int(held["CapEff"], 16), int(held["CapPrm"], 16), int(held["CapBnd"], 16)) == (0, 0, 0)
    assert (held["NoNewPrivs"], held["Seccomp"]) == ("1", "2")
    assert held["Uid"].split() == ["10001"] * 4
    machine("podman", "exec", name, "sh", "-c", "! touch /x /opt/viq/x 2> /dev/null && touch /tmp/x")

    began = time.monotonic()
    machine("podman", "stop", "--time", str(deployed["grace_s"]), name)
    assert time.monotonic() - began < deployed["grace_s"]
    assert json.loads(machine("podman", "inspect", name))[0]["State"]["ExitCode"] == 0
    assert "draining" in machine("sh", "-c", f"podman logs {name} 2>&1")


def test_with_tls_and_keys_probes_are_answered_and_callers_need_a_key(
    machine: Machine,
    deploy: Callable[..., Manifest],
    picture: bytes,
    until: Callable[[Callable[[], bool]], None],
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    for secret in ("viq-tls", "viq-api-keys"):
        (tmp_path / secret).mkdir()
    (tmp_path / "viq-tls/tls.crt").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    (tmp_path / "viq-tls/tls.key").write_bytes(issued.private_key_pem.bytes())
    (tmp_path / "viq-api-keys/keys").write_text("open-sesame\n")
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o755)
    machine("sh", "-c", f"chmod -R a+rX {tmp_path} && chmod a+x {tmp_path.parent} {tmp_path.parent.parent}")
    deployed = deploy("secure", tmp_path)
    for kind in _PROBES:
        assert deployed[kind]["httpGet"]["scheme"] == "HTTPS"
        until(lambda probe=deployed[kind]: _kubelet(probe))  # type: ignore[misc]

    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    url = f"https://127.0.0.1:{deployed['http']}/v1/encode"
    assert httpx.post(url, files={"image": picture}, verify=trusting, timeout=60).status_code == 401
    key = {"Authorization": "Bearer open-sesame"}
    assert httpx.post(url, files={"image": picture}, headers=key, verify=trusting, timeout=60).status_code == 200
    assert "viq_ready 1.0" in httpx.get(f"http://127.0.0.1:{deployed['metrics']}/metrics").text
    machine("podman", "exec", _CONTAINER, "python3", "/opt/viq/healthcheck.py")
