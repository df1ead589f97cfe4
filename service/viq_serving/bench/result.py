"""The file that a benchmark leaves: what was measured where, with what, and every run."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from viq import __version__
from viq.errors import InvalidInput
from viq_serving.processors import processors

FORMAT = "viq-bench/1"

_PACKAGES = ("grpcio", "numpy", "pillow", "protobuf", "uvloop")
_KEYS = re.compile(r"--api-keys(?=[=\s])")
_MAX_BYTES = 256 * 2**20


def begun(name: str, target: Mapping[str, Any]) -> dict[str, Any]:
    """A result without runs yet."""
    return {
        "format": FORMAT,
        "name": name,
        "made": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": masked(["viq", *sys.argv[1:]]),
            "versions": _versions(),
            "machine": machine(),
        },
        "target": dict(target),
        "mix": None,
        "runs": [],
    }


def machine() -> dict[str, Any]:
    """What can be said of the machine without any package: the generator's, which may not be the server's."""
    return {
        "processor": _processor(),
        "cores": processors(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def masked(command: Sequence[str]) -> str:
    """A command line without the keys that it may hold: also those among the flags that are one word of it."""
    return shlex.join(_masked(command))


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, in one step: a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a result; raises `InvalidInput` for what is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInput(f"{path}: {path.stat().st_size} bytes, the limit for a result is {_MAX_BYTES}")
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InvalidInput(f"{path} is no JSON") from None
    if not isinstance(held, dict) or held.get("format") != FORMAT or not isinstance(held.get("runs"), list):
        raise InvalidInput(f"{path} is no result of viq bench, whose format is {FORMAT}")
    return held


def _masked(words: Sequence[str]) -> list[str]:
    shown = list[str]()
    for word in words:
        found = _KEYS.search(word)
        if shown[-1:] == ["--api-keys"]:
            shown.append("***")
        elif found is None:
            shown.append(word)
        elif word.startswith("--api-keys=") and len(word.split()) == 1:
            shown.append("--api-keys=***")
        else:
            shown.append(word[: found.start()] + _flags_masked(word[found.start() :]))
    return shown


def _flags_masked(flags: str) -> str:
    """Flags as a shell reads them, from `--api-keys` on; nothing of what cannot be read so."""
    try:
        return shlex.join(_masked(shlex.split(flags)))
    except ValueError:
        return "--api-keys ***"


def _versions() -> dict[str, str]:
    found = {"viq-serving": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
