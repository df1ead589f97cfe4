"""A server of our own to measure: `viq serve`, started on ports that the system chooses, ended afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep

import httpx

from viq_serving.client.errors import UNREACHABLE, ServerError

_READY_S, _END_S, _ASK_EVERY_S = 600.0, 30.0, 0.05

# It asks the system to end it with whoever started it: a killed benchmark must not leave a server on all cores.
_START = """
import ctypes, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except (AttributeError, OSError):
    pass
from viq_serving.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Running:
    """A server that is ready. `command` is what a user would have typed."""

    url: str
    grpc: str
    pid: int
    command: Sequence[str]


@contextmanager
def serving(flags: Sequence[str]) -> Iterator[Running]:
    """`viq serve` with `flags`. Raises `ServerError` if it ends before it is ready, or never is."""
    given = ["--http-port", "0", "--grpc-port", "0", "--drain-delay", "0", "--log-level", "warning", *flags]
    command = [sys.executable, "-c", _START, "serve", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            http, grpc = (process.stdout.readline().split()[-1:] if process.stdout else [] for _ in range(2))
            if not http or not grpc:
                raise ServerError(UNREACHABLE, f"viq serve ended with code {process.wait()} before it listened")
            _await_ready(http[0], process)
            yield Running(http[0], grpc[0], process.pid, ["viq", "serve", *given])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_ready(url: str, process: subprocess.Popen[str]) -> None:
    ends = monotonic() + _READY_S
    while True:
        try:
            ready = httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
        except httpx.HTTPError as error:
            raise ServerError(UNREACHABLE, f"viq serve does not answer at {url}: {error}") from None
        if ready:
            return
        if process.poll() is not None or monotonic() > ends:
            raise ServerError(UNREACHABLE, "viq serve was not ready in time, or ended")
        sleep(_ASK_EVERY_S)
