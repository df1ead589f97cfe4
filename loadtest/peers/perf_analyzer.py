"""NVIDIA's own load generator against the real Triton and against this service's Open Inference Protocol door.

    python loadtest/peers/perf_analyzer.py --out loadtest/results/peers_perf_analyzer.json [--seconds 8] [--side 512]

Both serve the same network over gRPC, both are asked for the codes of one picture by so many callers at once.
perf_analyzer's wheel needs glibc 2.38. Where the system's is older it is run in the libraries of a minimal Debian
trixie, which debootstrap (as root) puts beside the peers' environments; where that cannot be had, this says so.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

from environments import folder, versions
from measure import VIQ, machine, ready
from processes import adopt_orphans, group
from rows import ROWS, VARIANTS, Ports, start

VERSION, NEEDED_GLIBC = "2.60.0", (2, 38)
TOOLS = folder("perf_analyzer")
SERVERS = ("Triton", "viq serve, OIP gRPC", "viq serve, OIP gRPC, processes")


def program() -> list[str]:
    """How perf_analyzer is started; installs it on first use. Raises `SystemExit` saying what is missing."""
    binary = TOOLS / "perf_analyzer"
    if not binary.exists():
        _download(binary)
    _, version = platform.libc_ver()
    if tuple(map(int, version.split(".")[:2])) >= NEEDED_GLIBC:
        return [str(binary)]
    root = TOOLS / "trixie"
    loader = root / "usr/lib64/ld-linux-x86-64.so.2"
    if not loader.exists():
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            raise SystemExit(
                "perf_analyzer: glibc is older than 2.38, and a Debian trixie root needs root and debootstrap"
            )
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", "--include=libssl3t64", "trixie", str(root)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    libraries = ":".join(str(root / part) for part in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
    return [str(loader), "--library-path", libraries, str(binary)]


def _download(binary: Path) -> None:
    TOOLS.mkdir(parents=True, exist_ok=True)
    # pip would take a stub of an older version where the platform is not named.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", "manylinux_2_38_x86_64", "--dest", str(TOOLS), f"perf-analyzer=={VERSION}"]
    subprocess.run(command, check=True)
    (wheel,) = TOOLS.glob(f"perf_analyzer-{VERSION}-*.whl")
    with ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.rpartition("/")[2] == "perf_analyzer")
        binary.write_bytes(archive.read(name))
    binary.chmod(0o755)


def question(picture: bytes, path: Path) -> Path:
    """The request's data; a BYTES element is its length in four bytes and itself."""
    element = len(picture).to_bytes(4, "little") + picture
    content = {"content": {"b64": base64.b64encode(element).decode()}, "shape": [1]}
    path.write_text(json.dumps({"data": [{"image": content}]}))
    return path


def asked(analyzer: list[str], data: Path, callers: int, seconds: float, out: Path) -> dict[str, float]:
    """perf_analyzer's own figures: of three windows, which on a machine that others share are seldom within a tenth."""
    command = [
        *analyzer, "-m", "viq-encode", "-u", f"127.0.0.1:{Ports().grpc}", "-i", "grpc", "--input-data", str(data),
        "--concurrency-range", str(callers), "--measurement-interval", str(int(1000 * seconds)),
        "--stability-percentage", "100", "--max-trials", "10", "--percentile", "99", "-f", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0 or not out.exists():
        raise RuntimeError(f"perf_analyzer ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    (row,) = csv.DictReader(out.read_text().splitlines())
    out.unlink()
    return {
        "images_per_s": float(row["Inferences/Second"]),
        "p50_ms": float(row["p50 latency"]) / 1000,
        "p99_ms": float(row["p99 latency"]) / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    adopt_orphans()
    analyzer = program()
    result: dict[str, Any] = {
        "machine": machine(), "versions": {**versions("triton"), "perf-analyzer": VERSION},
        "callers": args.callers, "runs": [],
    }  # fmt: skip
    with TemporaryDirectory() as name:
        scratch = Path(name)
        for number in range(1, args.rounds + 1):
            for server in SERVERS:
                result["runs"] += of_server(server, number, args, analyzer, scratch)
                args.out.write_text(json.dumps(result, indent=1) + "\n")


def of_server(
    server: str, number: int, args: argparse.Namespace, analyzer: list[str], scratch: Path
) -> list[dict[str, Any]]:
    """All sizes of one server."""
    begin = start({**ROWS, **VARIANTS}[server], "", "", scratch)
    log, runs = scratch / "server.log", list[dict[str, Any]]()
    with group(begin.command, env=begin.env, cwd=begin.cwd, log=log) as leader:
        ready(begin.ready, leader, log)
        for side in args.sides:
            drawn = scratch / f"{side}"
            if not drawn.exists():
                mix = ["--mix", f"{side}x{side}", "--seed", "7", "--pictures", "1", "-o", str(drawn)]
                subprocess.run([VIQ, "bench", "pictures", *mix], check=True, stdout=subprocess.DEVNULL)
            (picture,) = drawn.glob("*.jpg")
            data = question(picture.read_bytes(), scratch / "data.json")
            figures = asked(analyzer, data, args.callers, args.seconds, scratch / "out.csv")
            runs.append({"server": server, "side": side, "round": number, **figures})
            print(json.dumps(runs[-1]), flush=True)
    return runs


if __name__ == "__main__":
    main()
