"""What a step found, on disk as soon as it is known, and what it was found on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_LONGEST = 300
_PACKAGES = re.compile(r"nvidia-(cublas|cudnn|cuda-runtime).*|(pytorch-)?triton|numpy")


class Record:
    """A JSON file that grows with every row, so that a step that is ended keeps what it had.

    Where `path` holds a result that was done, another is written beside it, as `….unfinished.json`, and takes its place
    only when it is done, too.
    """

    def __init__(self, path: Path, **head: Any) -> None:
        self._final, self._begun = path, time.monotonic()
        self._path = path.with_suffix(".unfinished.json") if _status(path) == "done" else path
        self._content: dict[str, Any] = {**head, "status": "running", "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def path(self) -> Path:
        """Where it is written now."""
        return self._path

    def add(self, **row: Any) -> None:
        """A row more."""
        self._content["rows"].append({name: _plain(value) for name, value in row.items()})
        self._write()

    @contextmanager
    def tried(self, **row: Any) -> Iterator[None]:
        """A part of a step whose failure is a row, so that the others still run: no memory, no kernel, no import."""
        try:
            yield
        except ImportError as error:
            self.add(**row, skipped=f"this lacks {error.name or error}")
        except Exception as error:  # noqa: BLE001  # torch raises RuntimeError, also when memory is out; Triton its own
            if not isinstance(error, RuntimeError):
                traceback.print_exc()  # a compiler says in its last line what it did not like
            self.add(**row, error=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:_LONGEST])
        else:
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def end(self, status: str, reason: str = "") -> None:
        """No more rows: `done`, `skipped` or `failed`, and why."""
        self._content |= {"status": status, "reason": reason}
        if "clocks" in self._content.get("machine", {}):
            self._content["machine"]["clocks_at_the_end"] = clocks()
        self._write()
        if status == "done" and self._path != self._final:
            self._path.replace(self._final)
            self._path = self._final

    def summary(self) -> dict[str, Any]:
        """A line about it."""
        held = self._content
        told = {"step": held["step"], "status": held["status"], "rows": len(held["rows"]), "file": str(self._path)}
        lacking = sum("error" in row or "skipped" in row for row in held["rows"])
        broken = sum(row.get("holds") is False for row in held["rows"])
        told |= {"rows_that_failed": lacking} if lacking else {}
        return told | ({"promises_that_do_not_hold": broken} if broken else {})

    def _write(self) -> None:
        self._content["seconds"] = round(time.monotonic() - self._begun, 2)
        _written(self._path, self._content)


def cut_off(path: Path, reason: str) -> None:
    """Say in the file of a step that it did not come to its end; nothing where it did, or never began."""
    if _status(path) == "running":
        content = json.loads(path.read_text(encoding="utf-8"))
        _written(path, {**content, "status": "ended", "reason": reason})


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
            "clocks": clocks(),
        }
    return facts


def clocks() -> str:
    """Clock of the multiprocessors now and at most, temperature, power drawn and allowed."""
    return _smi("clocks.sm,clocks.max.sm,temperature.gpu,power.draw,power.limit")


def _status(path: Path) -> object:
    """What the file of a step says of its end; nothing if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("status") if isinstance(content, dict) else None


def _written(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


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
