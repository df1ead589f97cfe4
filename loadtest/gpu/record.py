"""What a step found, on disk as soon as it is known, and what it was found on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = re.compile(r"nvidia-(cublas|cudnn|cuda-runtime).*|(pytorch-)?triton|numpy")


class Record:
    """A JSON file that grows with every row, so that a step that is ended keeps what it had."""

    def __init__(self, path: Path, **head: Any) -> None:
        self._path, self._begun = path, time.monotonic()
        self._content: dict[str, Any] = {**head, "status": "running", "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, **row: Any) -> None:
        """A row more."""
        self._content["rows"].append({name: _plain(value) for name, value in row.items()})
        self._write()

    def end(self, status: str, reason: str = "") -> None:
        """No more rows: `done`, `skipped` or `failed`, and why."""
        self._content |= {"status": status, "reason": reason}
        self._write()

    def summary(self) -> dict[str, Any]:
        """A line about it."""
        held = self._content
        return {"step": held["step"], "status": held["status"], "rows": len(held["rows"]), "file": str(self._path)}

    def _write(self) -> None:
        self._content["seconds"] = round(time.monotonic() - self._begun, 2)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        part.replace(self._path)


def machine(device: torch.device) -> dict[str, Any]:
    """Device, driver and versions: results hold for these only."""
    facts: dict[str, Any] = {
        "device": platform.machine() + " cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "packages": {
            one.metadata["Name"]: one.version for one in metadata.distributions() if _PACKAGES.fullmatch(_name(one))
        },
        "variables": {k: v for k, v in os.environ.items() if k.startswith(("CUBLAS", "TORCH_", "CUDA_"))},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "compute": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _smi("driver_version"),
            "clocks": _smi("clocks.sm,clocks.max.sm,power.limit"),
        }
    return facts


def slug(name: str) -> str:
    """A device's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _name(package: metadata.Distribution) -> str:
    return (package.metadata["Name"] or "").lower()


def _smi(query: str) -> str:
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
