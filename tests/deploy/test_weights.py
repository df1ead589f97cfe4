"""The init container that fetches weights: once, whole, and by options that the hub's client has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

_STAND_IN = """#!/bin/sh
echo "$@" >> {log}
mkdir -p "{weights}/converted_$VIQ_SIZE"
exit $EXIT
"""


@pytest.fixture
def script(root: Path, tmp_path: Path) -> str:
    """What the container runs, with a folder of this machine in place of its volume."""
    patch = yaml.safe_load((root / "k8s/components/weights-from-hub/fetch.yaml").read_text())
    (container,) = patch["spec"]["template"]["spec"]["initContainers"]
    assert container["command"] == ["/bin/sh", "-euc"]
    return str(container["args"][0]).replace("/weights", str(tmp_path / "weights"))


def _run(script: str, folder: Path, size: str = "16k", fails: bool = False) -> int:
    """The exit code, with a stand-in for the client that notes what it was asked."""
    client = folder / "hf"
    client.write_text(_STAND_IN.format(log=folder / "log", weights=folder / "weights"))
    client.chmod(0o755)
    (folder / "weights").mkdir(exist_ok=True)
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "REPO": "some/weights", "REVISION": "v1/x", "VIQ_SIZE": size}
    return subprocess.run(["/bin/sh", "-euc", script], env=own | {"EXIT": str(int(fails))}, timeout=20).returncode


def test_weights_are_fetched_once_for_each_size(script: str, tmp_path: Path) -> None:
    assert [_run(script, tmp_path), _run(script, tmp_path), _run(script, tmp_path, "4k")] == [0, 0, 0]
    asked = (tmp_path / "log").read_text().splitlines()
    assert asked == [
        f"download some/weights --revision v1/x --include converted_{size}/* --local-dir {tmp_path}/weights"
        for size in ("16k", "4k")
    ]


def test_a_failed_fetch_fails_the_container_and_is_tried_again(script: str, tmp_path: Path) -> None:
    assert _run(script, tmp_path, fails=True) == 1
    assert _run(script, tmp_path) == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_the_hubs_client_has_these_options(root: Path) -> None:
    client = root / ".venv" / "bin" / "hf"
    if not client.exists():
        pytest.skip("the hub's client is not installed in .venv")
    told = subprocess.run([client, "download", "--help"], capture_output=True, text=True, timeout=60).stdout
    assert all(option in told for option in ("--revision", "--include", "--local-dir"))
