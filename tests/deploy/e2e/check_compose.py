"""compose.yaml as it is, brought up by podman-compose: the service, scraped by a Prometheus that finds it by name.

Run by `make test-deploy`, as root on Debian. The images of Prometheus and Grafana are not to be had everywhere: this
machine's own Prometheus in a small image stands in for the one, and for Grafana something that has its files and
answers on its port. Ports of this machine are others, as those may be taken.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import yaml

_PROJECT = "viq-test"
_PROMETHEUS = """\
FROM {base}
COPY prometheus /bin/prometheus
USER 65534
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/data"]
"""
_GRAFANA = """\
FROM {base}
USER 472
WORKDIR /var/lib/grafana/dashboards
STOPSIGNAL SIGKILL
ENTRYPOINT ["python3", "-m", "http.server", "3000"]
"""


class Machine(Protocol):
    """What conftest sets up."""

    def __call__(self, *words: str, fine: tuple[int, ...] = (0,), cwd: Path | None = None) -> str: ...


@pytest.fixture
def compose(
    machine: Machine,
    base: str,
    image: dict[str, Any],
    root: Path,
    tool: Callable[[str], str],
    ports: Callable[[int], list[int]],
    tmp_path: Path,
) -> Iterator[dict[int, int]]:
    """All that compose.yaml names, up; the ports of this machine by those of the containers."""
    command = tool("podman-compose")
    if not Path("/usr/lib/cni/dnsname").exists() and not Path("/usr/lib/podman/netavark").exists():
        pytest.skip("podman finds no containers by name here: the plugin dnsname, or netavark, is not installed")
    text = (root / "deploy/compose.yaml").read_text()
    described = yaml.safe_load(text)["services"]
    shutil.copy(tool("prometheus"), tmp_path / "prometheus")
    for service, lines in (("prometheus", _PROMETHEUS), ("grafana", _GRAFANA)):
        (tmp_path / f"{service}.containerfile").write_text(lines.format(base=base))
        build = ["buildah", "bud", "--isolation", "chroot", "-f", str(tmp_path / f"{service}.containerfile")]
        machine(*build, "-t", f"docker.io/{described[service]['image']}", str(tmp_path))
    machine("podman", "tag", image["RepoTags"][0], "localhost/viq-serving:cpu")

    inside = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+):\d+", text)]
    outside = dict(zip(inside, ports(len(inside)), strict=True))
    for number, other in outside.items():
        text = text.replace(f"127.0.0.1:{number}:", f"127.0.0.1:{other}:")
    file = root / "deploy" / ".compose.test.yaml"  # its paths are meant from there
    file.write_text(text)
    whole = [command, "-f", str(file), "-p", _PROJECT]
    try:
        machine(*whole, "down", "--volumes", fine=(0, 1, 125))  # what a run left that was killed
        machine(*whole, "up", "--detach", "--no-build")
        yield outside
    finally:
        machine(*whole, "down", "--volumes", "--timeout", "90", fine=(0, 1, 125))
        file.unlink()


def test_compose_brings_up_a_service_that_prometheus_finds(
    compose: dict[int, int], machine: Machine, picture: bytes, until: Callable[[Callable[[], bool]], None]
) -> None:
    def answers(port: int, path: str) -> httpx.Response | None:
        try:
            return httpx.get(f"http://127.0.0.1:{compose[port]}{path}", timeout=10)
        except httpx.TransportError:
            return None

    def ready() -> bool:
        reply = answers(8000, "/readyz")
        return reply is not None and reply.status_code == 200

    until(ready)
    url = f"http://127.0.0.1:{compose[8000]}/v1/encode"
    assert httpx.post(url, files={"image": picture}, timeout=60).json()["results"][0]["grid"] == [3, 4]

    def scraped() -> bool:
        reply = answers(9090, "/api/v1/query?query=viq_ready")
        return reply is not None and [one["value"][1] for one in reply.json()["data"]["result"]] == ["1"]

    until(scraped)
    groups = httpx.get(f"http://127.0.0.1:{compose[9090]}/api/v1/rules").json()["data"]["groups"]
    assert {group["name"] for group in groups} == {"viq-recording", "viq-alerts"}

    def dashboard() -> bool:
        reply = answers(3000, "/viq.json")
        return reply is not None and reply.json()["uid"] == "viq-serving"

    until(dashboard)
    ask = "import urllib.request as u; assert u.urlopen('http://prometheus:9090/-/ready', timeout=30).status == 200"
    machine("podman", "exec", f"{_PROJECT}_grafana_1", "python3", "-c", ask)  # as the data source is called

    name = f"{_PROJECT}_viq_1"
    about = json.loads(machine("podman", "inspect", name))[0]
    assert about["HostConfig"]["ReadonlyRootfs"] is True
    assert about["Config"]["User"] == "10001:10001"
    status = machine("podman", "exec", name, "cat", "/proc/1/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    machine("podman", "healthcheck", "run", name)
    machine("podman", "stop", "--time", "90", name)
    assert json.loads(machine("podman", "inspect", name))[0]["State"]["ExitCode"] == 0
