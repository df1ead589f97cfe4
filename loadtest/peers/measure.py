"""The same network behind other servers, and without one, fed with the same pictures in one run.

    python loadtest/peers/measure.py --out loadtest/results/peers.json [--rows mosec Triton] [--mixes 512x512]

Every row, mix and round is written as soon as it is measured; what the file already holds is not measured again, so
the command can be stopped and run anew, or be given some rows at a time (`--minutes` ends it between two of them).
On a machine whose speed changes from minute to minute, `--together` has the named servers up all at once and asks one
after the other for the same mix, there and back, so that what is compared was measured within a minute or two.
`make peers` makes the environments first and the table (`table.py`) afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep, strftime
from typing import Any

import httpx
from environments import CHECKOUT, HERE, versions
from PIL import Image
from processes import Memory, adopt_orphans, group
from rows import ROWS, VARIANTS, Row, start

VIQ = str(Path(sys.executable).with_name("viq"))


@dataclass(frozen=True)
class Mix:
    """Arguments of `viq bench` that name it, and seconds of a load: more where pictures are large and answers few."""

    asked: tuple[str, ...]
    seconds: float


MIXES = {
    "thumbnails": Mix(("--mix", "thumbnails"), 5.0),
    "photos / 2": Mix(("--mix", "photos", "--scale", "0.5"), 6.0),
    "documents / 2": Mix(("--mix", "documents", "--scale", "0.5"), 6.0),
    "uniform 64-1024": Mix(("--mix", "uniform"), 10.0),
    "512x512": Mix(("--mix", "512x512"), 6.0),
}
"""Photographs and pages at half their sides, or two cores answer less than two a second."""

READY_S, ANSWER_S = 180.0, 10.0
_LONGEST = 600


@dataclass(frozen=True)
class Up:
    """A server that answers, and the arguments that point `viq bench` at it."""

    row: Row
    asked: list[str]
    leader: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Load:
    """What every row is given: pictures and their seed, callers, how much longer than usual.

    Order and arrivals are another in each round, the same for every row: `orders` says so, for files of older results,
    where they were those of the first round in all. `started_s` is how long a server is asked when it has started, so
    that all its processes are ready; `share` what the open loop asks for, of what the per-image loop computes.
    """

    pictures: int = 24
    seed: int = 7
    callers: int = 16
    started_s: float = 8.0
    warm_up_s: float = 2.0
    longer: float = 1.0
    share: float = 0.7
    orders: str = "by round"

    def seconds(self, mix: str) -> float:
        """How long a mix is measured, each way."""
        return MIXES[mix].seconds * self.longer


class Results:
    """The file of results, written anew after each."""

    def __init__(self, path: Path, load: Load, weights: str) -> None:
        self._path = path
        asked = {"load": asdict(load), "weights": Path(weights).name if weights else "nano"}
        self.all: dict[str, Any] = {
            **asked,
            "machine": machine(),
            "versions": {},
            "rates": {},
            "digests": {},
            "rows": {},
        }
        if path.exists():
            self.all = json.loads(path.read_text())
            held = {name: self.all[name] for name in asked}
            if held != asked:
                raise SystemExit(f"{path} was measured with {held}, asked for is {asked}: choose another --out")

    def has(self, row: Row, mix: str, number: int) -> bool:
        """Whether this was measured already."""
        return str(number) in self.all["rows"].get(row.name, {}).get(mix, {})

    def put(self, row: Row, mix: str, number: int, result: dict[str, Any]) -> None:
        """Keep one result."""
        self.all["rows"].setdefault(row.name, {}).setdefault(mix, {})[str(number)] = result
        self.all.get("failed", {}).get(row.name, {}).get(mix, {}).pop(str(number), None)
        self.save()
        print(json.dumps({"row": row.name, "mix": mix, "round": number, **_brief(result)}), flush=True)

    def fail(self, row: Row, mix: str, number: int, reason: str) -> None:
        """Keep why a round has no result: a row that fails is in the table, too."""
        rounds = self.all.setdefault("failed", {}).setdefault(row.name, {}).setdefault(mix, {})
        rounds[str(number)] = reason[-_LONGEST:]
        self.save()
        print(f"{row.name}, {mix}: {reason}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Write the file whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        half = self._path.with_suffix(".half")
        half.write_text(json.dumps(self.all, indent=1) + "\n")
        half.replace(self._path)


def machine() -> dict[str, Any]:
    """What it ran on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """What is measured, as git describes it, and whether files differ from that; None without git."""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class Reference:
    """The machine's speed now, see `reference.py`."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "reference.py")], env=env, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ms(self) -> float:
        """Milliseconds of one encode."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def pictures(mix: str, load: Load, folder: Path) -> Path:
    """The files of a mix, drawn once."""
    if not (folder / "pictures.json").exists():
        drawn = ["--seed", str(load.seed), "--pictures", str(load.pictures), "-o", str(folder)]
        subprocess.run([VIQ, "bench", "pictures", *MIXES[mix].asked, *drawn], check=True, stdout=subprocess.DEVNULL)
    return folder


def loop(row: Row, mix: str, load: Load, env: dict[str, str], folder: Path) -> dict[str, Any]:
    """A row without a server."""
    command = [sys.executable, str(HERE / "loops.py"), str(folder), "--way", row.way]
    command += ["--seconds", str(load.seconds(mix)), "--processes", str(row.workers)]
    env = {**env, "PEER_THREADS": str(row.threads), "OMP_NUM_THREADS": str(row.threads)}
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    memory = Memory(process.pid)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    memory.close()
    if process.wait() != 0:
        raise RuntimeError(f"{row.name}: loops.py ended with {process.returncode}")
    return {"closed": json.loads(lines[-1]), "resident_bytes": memory.peak()}


def ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; raises `RuntimeError` with the end of its log if it ends or takes too long."""
    end = monotonic() + READY_S
    while monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if _takes_an_image(url) if url.endswith("/encode") else _says_ready(url):
                return
        except httpx.HTTPError:
            pass
        sleep(0.2)
    raise RuntimeError(f"not ready: {' | '.join(log.read_text(errors='replace').splitlines()[-8:])}")


def _says_ready(url: str) -> bool:
    return httpx.get(url, trust_env=False, timeout=ANSWER_S).status_code == 200


def _takes_an_image(url: str) -> bool:
    """Whether a door that only takes images gives the codes of one, 64x64."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    headers = {"Content-Type": "image/png"}
    reply = httpx.post(url, content=buffer.getvalue(), headers=headers, trust_env=False, timeout=READY_S)
    return reply.status_code == 200 and len(reply.content) == 4 * 4 * 4 * 2


def bench(up: Up, mix: str, load: Load, number: int, how: list[str], out: Path) -> dict[str, Any]:
    """One run of the generator in round `number`: the entry of its result, without what is the same for all."""
    drawn = ["--seed", str(load.seed), "--arrival-seed", str(load.seed + number), "--pictures", str(load.pictures)]
    about = ["--server-pid", str(up.leader.pid), "--name", up.row.name]
    command = [VIQ, "bench", "--door", up.row.door, *up.asked, *MIXES[mix].asked, *drawn, *about, *how, "-o", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not out.exists():
        raise RuntimeError(f"viq bench ended with {done.returncode}: {done.stderr[-600:]}")
    (run,) = json.loads(out.read_text())["runs"]
    out.unlink()
    if not run["answered"]:
        raise RuntimeError(f"nothing answered of {run['requests']} requests: {run['errors']}")
    dropped = ("door", "method", "size")
    return {name: value for name, value in run.items() if name not in dropped}


def served(up: Up, mix: str, load: Load, number: int, rate: float, scratch: Path) -> dict[str, Any]:
    """Closed loop, then open loop at the rate that all rows of the mix are given."""
    memory, warm = Memory(up.leader.pid), ["--warm-up", str(load.warm_up_s)]
    try:
        closed = ["--in-flight", str(load.callers), "--duration", str(load.seconds(mix)), *warm]
        result = {"closed": bench(up, mix, load, number, closed, scratch / "closed.json")}
        opened = ["--rate", str(rate), "--duration", str(load.seconds(mix)), "--warm-up", "1"]
        result["open"] = bench(up, mix, load, number, opened, scratch / "open.json")
        return {**result, "resident_bytes": memory.peak()}
    finally:
        memory.close()


@contextmanager
def environment(weights: str, size: str) -> Iterator[tuple[dict[str, str], Reference]]:
    """The variables of the plain loops, and the reference."""
    paths = os.pathsep.join(str(CHECKOUT / part) for part in ("models", "service", "loadtest/peers"))
    dropped = ("VIQ_", "PEER_", "OMP_", "GOMP_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    env |= {"PYTHONPATH": paths, "PEER_WEIGHTS": weights, "PEER_SIZE": size}
    reference = Reference({**env, "PEER_THREADS": "1", "OMP_NUM_THREADS": "1"})
    try:
        yield env, reference
    finally:
        reference.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *VARIANTS], default=list(ROWS), metavar="ROW")
    parser.add_argument("--mixes", nargs="+", choices=list(MIXES), default=list(MIXES), metavar="MIX")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so long")
    parser.add_argument("--longer", type=float, default=1.0, help="times the usual seconds of each measurement")
    parser.add_argument(
        "--callers", type=int, default=Load.callers, help="who wait for their answers; default: %(default)d"
    )
    parser.add_argument(
        "--together", action="store_true", help="servers only: all are up at once, in turns for each mix"
    )
    parser.add_argument("--weights-root", default="", help="default: the packaged nano")
    parser.add_argument("--size", default="")
    args = parser.parse_args()
    load = Load(longer=args.longer, callers=args.callers)
    loops = [name for name in args.rows if name in ROWS and ROWS[name].kind == "loop"]
    if args.together and loops:
        parser.error(f"--together is for servers, not for {', '.join(loops)}: name servers with --rows")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    adopt_orphans()
    results, end = Results(args.out, load, args.weights_root), monotonic() + 60 * args.minutes
    rows = [{**ROWS, **VARIANTS}[name] for name in args.rows]
    with environment(args.weights_root, args.size) as (env, reference), TemporaryDirectory() as scratch:
        run = Run(results, load, env, reference, Path(scratch), args.weights_root, args.size, end)
        for mix in args.mixes:
            run.base(mix)
        if args.together:
            run.together(rows, args.mixes, args.rounds)
            return
        for number in range(1, args.rounds + 1):
            for row in rows:
                run.row(row, args.mixes, number)


class Run:
    """One call of this command."""

    def __init__(
        self, results: Results, load: Load, env: dict[str, str], reference: Reference, scratch: Path,
        weights: str, size: str, end: float,
    ) -> None:  # fmt: skip
        self._results, self._load, self._env, self._reference = results, load, env, reference
        self._scratch, self._weights, self._size, self._end = scratch, weights, size, end
        self._code = commit()

    def base(self, mix: str) -> None:
        """What the rows of a mix are compared by: the bare model's codes, and the rate of the open loop."""
        for name in ("bare model", "per-image loop"):
            self.row(ROWS[name], [mix], 1)
        held, rows = self._results.all, self._results.all["rows"]
        if mix in held["rates"] or not all(mix in rows.get(name, {}) for name in ("bare model", "per-image loop")):
            return
        held["digests"][mix] = rows["bare model"][mix]["1"]["closed"]["codes"]
        held["rates"][mix] = round(self._load.share * rows["per-image loop"][mix]["1"]["closed"]["images_per_s"], 3)
        self._results.save()

    def row(self, row: Row, mixes: list[str], number: int) -> None:
        """Measure what is not yet measured of a row; one that fails is written down as that, and the next goes on."""
        left = [mix for mix in mixes if not self._results.has(row, mix, number)]
        if not left or monotonic() > self._end:
            return
        if row.kind == "loop":
            for mix in left:
                if monotonic() < self._end:
                    folder = pictures(mix, self._load, self._scratch / mix.replace("/", "_"))
                    self._keep(row, mix, number, lambda m=mix, f=folder: loop(row, m, self._load, self._env, f))
            return
        with ExitStack() as stack:
            try:
                up = self._up(row, stack)
            except RuntimeError as error:
                for mix in left:
                    self._results.fail(row, mix, number, str(error))
                return
            for mix in left:
                self._ask(up, mix, number)

    def together(self, rows: list[Row], mixes: list[str], rounds: int) -> None:
        """Measure servers that are all up at once: mix by mix one after the other, every second round backwards."""
        numbers = range(1, rounds + 1)
        done = all(self._results.has(row, mix, number) for row in rows for mix in mixes for number in numbers)
        if done or monotonic() > self._end:
            return
        with ExitStack() as stack:
            up = list[Up]()
            for place, row in enumerate(rows):
                try:
                    up.append(self._up(row, stack, place))
                except RuntimeError as error:
                    raise SystemExit(f"{row.name}, which was to be up together with others: {error}") from error
            beside = [one.row.name for one in up]
            for number in numbers:
                for mix in mixes:
                    for one in up if number % 2 else reversed(up):
                        if not self._results.has(one.row, mix, number):
                            self._ask(one, mix, number, beside)

    def _up(self, row: Row, stack: ExitStack, place: int = 0) -> Up:
        """Start a server, which ends with `stack`; raises `RuntimeError` if it does not become ready."""
        scratch = self._scratch / str(place)
        scratch.mkdir(exist_ok=True)
        begin, log = start(row, self._weights, self._size, scratch, place), scratch / "server.log"
        self._results.all["versions"][row.kind] = (
            versions(row.kind) if row.is_peer else {"viq-serving": version("viq-serving")}
        )
        leader = stack.enter_context(group(begin.command, env=begin.env, cwd=begin.cwd, log=log))
        ready(begin.ready, leader, log)
        first = ["--in-flight", str(self._load.callers), "--duration", str(self._load.started_s)]
        up = Up(row, begin.asked, leader)
        bench(up, "thumbnails", self._load, 0, first, scratch / "first.json")
        return up

    def _ask(self, up: Up, mix: str, number: int, beside: Sequence[str] = ()) -> None:
        rate = self._results.all["rates"].get(mix)
        if rate is None or monotonic() > self._end:
            return

        def measure() -> dict[str, Any]:
            result = served(up, mix, self._load, number, rate, self._scratch)
            if up.leader.poll() is not None:
                raise RuntimeError(f"the server ended with {up.leader.returncode} meanwhile")
            return {**result, "beside": list(beside)} if beside else result

        self._keep(up.row, mix, number, measure)

    def _keep(self, row: Row, mix: str, number: int, measure: Any) -> None:
        try:
            before = self._reference.ms()
            result = measure()
            reference = [before, self._reference.ms()]
        except (RuntimeError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self._results.fail(row, mix, number, f"{type(error).__name__}: {error}")
            return
        told = {"reference_ms": reference, "at": strftime("%Y-%m-%dT%H:%M:%S%z"), "code": self._code}
        self._results.put(row, mix, number, {"workers": row.workers, "threads": row.threads, **result, **told})


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    closed, opened = result["closed"], result.get("open", {})
    rate = closed["images_per_s"] if "images_per_s" in closed else closed["achieved"]["images_per_s"]
    latency = (opened or closed)["latency_ms"]
    return {
        "images_per_s": round(rate, 2), "p50": round(latency["p50"], 1), "p99": round(latency["p99"], 1),
        "errors": {**closed.get("errors", {}), **opened.get("errors", {})}, "reference_ms": result["reference_ms"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
