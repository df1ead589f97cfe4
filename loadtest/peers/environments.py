"""A virtual environment for each peer under `build/peers`, made once.

    python loadtest/peers/environments.py [litserve mosec …]

torch first, at one version everywhere, then what the peer's requirements name. Triton's embedded interpreter is older
than the standard library of later 3.11 releases: its environment is of `/usr/bin/python3.11` (Debian's, 3.11.2).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
NAMES = ("litserve", "ray", "bentoml", "mosec", "triton")
TORCH = "torch==2.13.0"
PACKAGES = {"litserve": "litserve", "ray": "ray", "bentoml": "bentoml", "mosec": "mosec", "triton": "nvidia-pytriton"}


def folder(name: str) -> Path:
    """Where the environment of a peer is; PEERS_DIR names another place than `build/peers` for all."""
    return Path(os.environ.get("PEERS_DIR") or CHECKOUT / "build" / "peers") / name


def python(name: str) -> Path:
    """Its interpreter."""
    return folder(name) / "bin" / "python"


def make(name: str) -> None:
    """Make the environment unless it is whole; raises `CalledProcessError` if a package cannot be had."""
    done, requirements = folder(name) / ".installed", HERE / "requirements" / f"{name}.txt"
    if done.exists() and done.stat().st_mtime >= requirements.stat().st_mtime:
        return
    interpreter = "/usr/bin/python3.11" if name == "triton" else sys.executable
    print(f"{name}: installing into {folder(name)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder(name), ignore_errors=True)
    subprocess.run([interpreter, "-m", "venv", str(folder(name))], check=True)
    pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--requirement", str(requirements)], check=True)
    done.touch()


def versions(name: str) -> dict[str, str]:
    """Versions of the peer and of torch in its environment."""
    paths = [str(path) for path in (folder(name) / "lib").glob("python3*/site-packages")]
    installed = {one.metadata["Name"].lower(): one.version for one in distributions(path=paths)}
    return {package: installed[package] for package in (PACKAGES[name], "torch") if package in installed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no peer named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in args.names or NAMES:
        make(name)
        print(json.dumps({name: versions(name)}))


if __name__ == "__main__":
    main()
