"""The image and what else runs the service: files that their programs take, and settings that exist."""

from __future__ import annotations

import os
import re
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme
import yaml

from viq_serving.settings import Settings, unknown_names


def test_the_dockerfile_has_nothing_that_hadolint_objects_to(root: Path, tool: Callable[[str], str]) -> None:
    done = subprocess.run([tool("hadolint"), str(root / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_image_copies_exists_and_is_let_in(root: Path) -> None:
    copied = []
    for line in re.findall(r"^COPY (.+)$", (root / "Dockerfile").read_text(), re.MULTILINE):
        if not line.startswith("--from"):
            copied += line.split()[:-1]
    admitted = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert "pyproject.toml" in copied
    for path in copied:
        assert (root / path).exists()
        assert any(path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/") for one in admitted), path
    assert all((root / one).exists() for one in admitted)
    packages = re.search(r"^packages = (.+)$", (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    assert all(any(package.startswith(one) for one in admitted) for package in re.findall(r'"([^"]+)"', packages[1]))


def test_the_image_runs_as_a_number_that_is_not_root_and_stops_by_sigterm(root: Path) -> None:
    last = (root / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r"^STOPSIGNAL SIGTERM$", last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["viq"\]$', last, re.MULTILINE)  # no shell in between, which would keep the signal
    assert "VIQ_HOST=0.0.0.0" in last


def test_what_builds_the_wheel_in_the_image_is_pinned(root: Path) -> None:
    dockerfile, lock = (root / "Dockerfile").read_text(), (root / "requirements.lock").read_text()
    (names,) = re.findall(r"\^\(([a-z|]+)\)==' requirements\.lock", dockerfile)
    for name in names.split("|"):
        assert re.search(rf"^{name}==\S+$", lock, re.MULTILINE), name
    assert "hatchling" in names
    assert "--no-build-isolation" in dockerfile
    assert "--constraint requirements.lock" in dockerfile


class _Ready(BaseHTTPRequestHandler):
    """A server that is ready, or says 503."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()

    def address_string(self) -> str:
        return "somebody"  # of a Unix socket there is no address

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _answering(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_images_health_check_asks_where_the_environment_says(root: Path, tmp_path: Path) -> None:
    def says(**settings: object) -> int:
        own = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
        own |= {f"VIQ_{name}": str(value) for name, value in settings.items()}
        command = [sys.executable, str(root / "deploy/image/healthcheck.py")]
        return subprocess.run(command, env=own, capture_output=True, timeout=60).returncode

    plain = socketserver.TCPServer(("127.0.0.1", 0), _Ready)
    secure = socketserver.TCPServer(("127.0.0.1", 0), _Ready)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("viq.example.com").configure_cert(context)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    port, tls_port, path = plain.server_address[1], secure.server_address[1], tmp_path / "viq.sock"
    with _answering(plain), _answering(secure), _answering(socketserver.UnixStreamServer(str(path), _Ready)):
        assert says(HOST="0.0.0.0", HTTP_PORT=port) == 0  # noqa: S104
        assert says(HOST="127.0.0.1", HTTP_PORT=port) == 0
        assert says(HTTP_PORT=tls_port, TLS_CERT="/some.pem") == 0
        assert says(HTTP_PORT=port, TLS_CERT="/some.pem") == 1
        assert says(HTTP_UDS=path, HTTP_PORT=1) == 0
        _Ready.status = 503
        try:
            assert says(HTTP_PORT=port) == says(HTTP_UDS=path) == 1
        finally:
            _Ready.status = 200
    assert says(HTTP_PORT=port) == says(HTTP_UDS=path) == 1


@pytest.mark.parametrize(
    "file", ["Dockerfile", "deploy/compose.yaml", "deploy/systemd/viq.env", "k8s/kserve/serving-runtime.yaml"]
)
def test_settings_that_are_named_exist(root: Path, file: str) -> None:
    names = set(re.findall(r"\bVIQ_[A-Z0-9_]+\b", (root / file).read_text()))
    assert names
    assert unknown_names(dict.fromkeys(names, "1")) == []


@pytest.mark.parametrize("page", ["README.md", "runbook.md", "sizing.md"])
def test_flags_metrics_and_files_that_the_pages_name_exist(root: Path, page: str, expressions: dict[str, str]) -> None:
    text = (root / "deploy" / page).read_text()
    assert unknown_names(dict.fromkeys(re.findall(r"\bVIQ_[A-Z0-9_]+\b", text), "1")) == []
    flags = set(re.findall(r"`--([a-z][a-z0-9-]+)[ `]", text))
    assert flags <= {name.replace("_", "-") for name in Settings.model_fields}
    shown = " ".join(expressions.values())
    recorded = (root / "deploy/prometheus/recording.yml").read_text()
    for name in re.findall(r"\bviq(?:_(?!serving)[a-z0-9_]+|:[a-z_]+:[a-z0-9_]+)", text):
        assert name in shown or f"record: {name}\n" in recorded, name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (root / "deploy" / link).exists(), link


def test_compose_mounts_what_exists_and_gives_no_rights(root: Path) -> None:
    compose = yaml.safe_load((root / "deploy/compose.yaml").read_text())
    viq = compose["services"]["viq"]
    assert viq["read_only"] is True
    assert viq["cap_drop"] == ["ALL"]
    assert viq["tmpfs"] == ["/tmp:size=1g,mode=1777"]  # noqa: S108 - one folder, not two by the comma
    assert Settings.model_fields.keys() >= {name.removeprefix("VIQ_").lower() for name in viq["environment"]}
    for service in compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (root / "deploy" / source).exists() if source.startswith(".") else source in compose["volumes"]
    scraped = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [f"viq:{viq['environment']['VIQ_METRICS_PORT']}"]


@pytest.mark.parametrize("config", ["nginx.conf", "haproxy.cfg", "envoy.yaml"])
def test_proxies_take_their_configuration(root: Path, config: str, tool: Callable[[str], str], tmp_path: Path) -> None:
    name = Path(config).stem
    program = tool(name)
    text = (root / "deploy" / "proxies" / config).read_text()
    file = tmp_path / config
    file.write_text(re.sub(r"viq-\d(?=[:,])", "127.0.0.1", text))
    command = {
        "nginx": [program, "-t", "-p", str(tmp_path), "-c", str(file), "-g", f"pid {tmp_path}/pid; error_log stderr;"],
        "haproxy": [program, "-c", "-f", str(file)],
        "envoy": [program, "--mode", "validate", "-c", str(file)],
    }[name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_takes_the_unit(root: Path, tool: Callable[[str], str], tmp_path: Path) -> None:
    unit = tmp_path / "viq.service"
    unit.write_text((root / "deploy/systemd/viq.service").read_text().replace("/opt/viq/bin/viq", "/bin/true"))
    command = [tool("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
