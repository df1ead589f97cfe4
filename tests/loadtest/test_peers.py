"""The comparison with other servers, as far as it can be looked at without them: parts, table, process groups."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).parents[2] / "loadtest" / "peers"


def run(code: str, *arguments: str) -> str:
    """What `code` prints, run beside the peers' modules."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=PEERS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_peer_has_requirements_with_one_version_and_a_program_of_its_own() -> None:
    names = run("import rows; print(*{row.kind for row in rows.ROWS.values() if row.is_peer})").split()
    assert sorted(names) == ["bentoml", "litserve", "mosec", "ray", "triton"]
    for name in names:
        wanted = (PEERS / "requirements" / f"{name}.txt").read_text().splitlines()
        assert wanted[0] == "-r common.txt"
        assert re.fullmatch(r"[a-z-]+(\[serve\])?==[0-9.]+", wanted[-1])
        program = "triton/viq-encode/1/model.py" if name == "triton" else f"servers/behind_{name}.py"
        ast.parse((PEERS / program).read_text())


def test_all_peers_have_the_torch_that_is_installed_first() -> None:
    (torch,) = (line for line in (PEERS / "requirements/common.txt").read_text().splitlines() if "torch" in line[:5])
    assert run("import environments; print(environments.TORCH)").strip() == torch


LEAVES_CHILDREN = """
import os, signal, subprocess, sys
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
signal.sigwait({signal.SIGTERM})
"""
STARTS_AND_STOPS = """
import os, pathlib, sys, threading
from processes import Memory, adopt_orphans, group, tree
adopt_orphans()
log = pathlib.Path(sys.argv[2])
with group([sys.executable, "-c", sys.argv[1]], env=os.environ, cwd=pathlib.Path("."), log=log) as leader:
    while not log.read_text().strip():
        threading.Event().wait(0.02)
    child = int(log.read_text())
    memory = Memory(leader.pid)
    print(child in tree(leader.pid), memory.peak() > 5 * 2**20)
    memory.close()
print(leader.poll() is not None, pathlib.Path(f"/proc/{child}").exists(), tree(os.getpid()) == {os.getpid()})
"""


def test_a_server_is_ended_with_children_that_ignore_it_and_lead_sessions_of_their_own(tmp_path: Path) -> None:
    shown = run(STARTS_AND_STOPS, LEAVES_CHILDREN, str(tmp_path / "log"))
    assert shown.split("\n")[:2] == ["True True", "True False True"]


def result(digest: str, rate: float, errors: int = 0) -> dict[str, object]:
    closed = {
        "achieved": {"images_per_s": rate}, "latency_ms": {"p50": 100.0, "p99": 200.0, "mean": 20_000.0 / rate},
        "in_flight": 16,
        "errors": {"500": errors} if errors else {}, "rejects": {"count": 0},
        "codes": {"digest": digest, "pictures": 24, "unstable": 0},
    }  # fmt: skip
    return {
        "workers": 2, "threads": 1, "closed": closed, "open": closed,
        "resident_bytes": 2**30, "reference_ms": [200.0, 210.0],
    }  # fmt: skip


def test_the_table_says_of_every_row_whether_codes_are_equal_and_what_was_not_answered(tmp_path: Path) -> None:
    bare = {"images_per_s": 10.0, "latency_ms": {"p50": 1.0, "p99": 2.0}, "codes": {"digest": "a", "pictures": 24}}
    results = {
        "load": {"pictures": 24, "seed": 7, "callers": 16, "share": 0.7}, "weights": "nano",
        "machine": {"cores": 2, "cpu": "some"}, "versions": {"mosec": {"mosec": "0.9.8"}},
        "rates": {"512x512": 7.0}, "digests": {"512x512": {"digest": "a", "pictures": 24}},
        "rows": {
            "bare model": {"512x512": {"1": {**result("a", 10.0), "closed": bare}}},
            "mosec": {"512x512": {"1": result("a", 8.0), "2": result("a", 12.0), "3": result("a", 11.0)}},
            "other": {"512x512": {"1": result("b", 5.0, errors=3)}},
        },
    }  # fmt: skip
    results["failed"] = {
        "Triton": {"512x512": {"1": "x", "2": "not ready: no | such\nfile"}, "other mix": {"1": "x"}},
        "other": {"512x512": {"2": "ended"}},
        "mosec": {"512x512": {}},
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    table = run("import table; table.main()", str(path))
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert rows["other, 1 round"].startswith("| other, 1 round | failed: ended |")
    assert "mosec, 0 rounds" not in rows
    assert "| 11.00 | 8.80 | 0.88 | 100, 200 | 100, 200 | 0 | yes | 1024 |" in rows["mosec"]
    assert "| 5.00 | 5.00 | 0.50 | 100, 200 | 100, 200 | 6 | **no** | 1024 |" in rows["other"]
    assert rows["Triton"].startswith("| Triton | failed: not ready: no / such file |")
    assert rows["Triton"].count("|") == rows["other"].count("|")


def test_rows_that_were_asked_in_turns_are_compared_round_by_round(tmp_path: Path) -> None:
    def slower(by: float) -> dict[str, object]:
        one = result("a", 12.0 / by)
        return {**one, "open": {"latency_ms": {"p99": 200.0 * by}}, "beside": ["us", "them"]}

    # The machine is twice as slow in the second round and thrice in the third: ratios do not show it.
    ours, theirs = ({number: slower(of * times) for number, of in (("1", 1), ("2", 2), ("3", 3))} for times in (1, 1.1))
    files = []
    for number, rows in enumerate(
        (
            {"us": {"mix": ours}, "them": {"mix": theirs}},
            {"us": {"mix": {"1": slower(1)}}, "them": {"mix": {"1": slower(1.5)}}},
        )
    ):
        rows["bare model"] = {"mix": {"1": {"closed": {"images_per_s": 10.0}}}}
        rows["late"] = {"mix": {"9": slower(1)}}  # in no round of ours
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"rows": rows}))
    shown = run("import paired; paired.main()", "us", *map(str, files)).splitlines()
    mean, half = (3 * math.log(1.1) + math.log(1.5)) / 4, 3.18 * 0.155077 / 2  # t(3) times the deviation over root 4
    assert len(shown) == 3
    low, middle, high = (f"{math.exp(mean + by):.2f}" for by in (-half, 0, half))
    over = [f"{math.exp(-mean + by):.2f}" for by in (-half, 0, half)]
    assert shown[2] == f"| mix | them | 4 | {middle} ({low} to {high}) | {over[1]} ({over[0]} to {over[2]}) |"
    alone = run("import paired; paired.main()", "us", str(files[1])).splitlines()
    assert alone[2] == "| mix | them | 1 | 1.50 | 0.67 |"
    later = run("import paired; paired.main()", "us", "--from-round", "3", *map(str, files)).splitlines()
    assert later[2:] == ["| mix | them | 1 | 1.10 | 0.91 |"]


def test_rows_that_were_not_up_together_or_not_all_answered_are_no_pairs(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    for beside, errors in (([], 0), (["us", "them"], 1)):
        one = {**result("a", 12.0), "beside": ["us", "them"]}
        other = {**result("a", 12.0, errors=errors), "beside": beside}
        path.write_text(json.dumps({"rows": {"us": {"mix": {"1": one}}, "them": {"mix": {"1": other}}}}))
        assert len(run("import paired; paired.main()", "us", str(path)).splitlines()) == 2
    asked = [sys.executable, "-c", "import paired; paired.main()", "nobody", str(path)]
    done = subprocess.run(asked, cwd=PEERS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no row 'nobody'; there are them, us" in done.stderr


def test_rows_that_were_up_one_after_the_other_are_compared_if_that_is_asked_for(tmp_path: Path) -> None:
    def p99(ms: float) -> dict[str, object]:
        return {**result("a", 12.0), "open": {"latency_ms": {"p99": ms}}}

    in_turns = {**p99(800.0), "beside": ["us", "them"]}
    loop = {"closed": {"images_per_s": 10.0, "latency_ms": {"p50": 100.0}}}
    rows = {
        "us": {"mix": {"1": p99(100.0), "2": in_turns}},
        "them": {"mix": {"1": p99(200.0), "2": {**in_turns, "beside": ["us", "them"]}}},
        "a loop": {"mix": {"1": loop}},
    }
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"rows": rows}))
    for ways, ratio in (((), "1.00"), (("--apart",), "0.50")):
        printed = run("import paired; paired.main()", "us", str(path), *ways)
        assert printed.splitlines()[2:] == [f"| mix | them | 1 | 1.00 | {ratio} |"]


def test_codes_of_answers_that_cannot_be_read_are_not_equal() -> None:
    said = """
import table
codes = {"digest": "a", "pictures": 24}
whole = {"digest": "a", "pictures": 24}
for change in ({}, {"unreadable": "3 answers without codes"}, {"unstable": 1}, {"pictures": 23}):
    closed = {**whole, **change}
    print(table.equal({"closed": {"codes": closed}}, codes))
"""
    assert run(said).split() == ["True", "False", "False", "False"]


PLACES = """
import pathlib
from rows import ROWS, Ports, start
names = ["viq serve, REST", "mosec", "viq serve, gRPC"]
begun = [start(ROWS[name], "", "", pathlib.Path("."), place) for place, name in enumerate(names)]
print([Ports(place).http for place in range(3)], [one.ready for one in begun], begun[1].env["PEER_PORT"])
"""


def test_servers_that_are_up_together_have_ports_of_their_own() -> None:
    shown = run(PLACES).strip()
    ports = [18400, 18410, 18420]
    ready = [
        f"http://127.0.0.1:{port}/{path}" for port, path in zip(ports, ("readyz", "encode", "readyz"), strict=True)
    ]
    assert shown == f"{ports} {ready} 18410"


def test_what_has_no_server_cannot_be_up_beside_servers(tmp_path: Path) -> None:
    asked = ["--together", "--rows", "bare model", "mosec", "--out", str(tmp_path / "results.json")]
    done = subprocess.run(
        [sys.executable, "measure.py", *asked], cwd=PEERS, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "--together is for servers, not for bare model" in done.stderr


HELD = """
import pathlib, sys
import measure
measure.Results(pathlib.Path(sys.argv[1]), measure.Load(), "").save()
"""


def test_rounds_of_other_callers_are_not_added_to_results(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run(HELD, str(results))
    held = results.read_bytes()
    asked = [sys.executable, "measure.py", "--callers", "3", "--rows", "mosec", "--out", str(results)]
    done = subprocess.run(asked, cwd=PEERS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.search(
        r"measured with .*'callers': 16.* asked for is .*'callers': 3\b.*choose another --out", done.stderr
    )
    assert results.read_bytes() == held


TOGETHER = """
import pathlib, sys
from contextlib import ExitStack
from types import SimpleNamespace
import measure
from rows import ROWS
results = measure.Results(pathlib.Path(sys.argv[1]), measure.Load(), "")
results.all["rates"] = {"512x512": 5.0}
started, asked = [], []

class Quick(measure.Run):
    def _up(self, row, stack, place=0):
        if row.name == sys.argv[2]:
            raise RuntimeError("not ready: why")
        started.append((row.name, place))
        return measure.Up(row, [], SimpleNamespace(pid=0, poll=lambda: None))

def served(up, mix, *rest):
    asked.append(up.row.name)
    return {"closed": {"images_per_s": 1.0, "latency_ms": {"p50": 1.0, "p99": 1.0}}}

measure.served = served
rows = [ROWS["mosec"], ROWS["Triton"]]

def run(rounds, end=1e12):
    started.clear(), asked.clear()
    Quick(results, measure.Load(), {}, SimpleNamespace(ms=lambda: 1.0), pathlib.Path("."), "", "", end).together(
        rows, ["512x512"], rounds
    )
    print("told", started, asked)

run(1)
run(3)
run(3)
run(4, end=0)
kept = [one for of in results.all["rows"].values() for one in of["512x512"].values()]
print("told", {one["beside"] == ["mosec", "Triton"] for one in kept})
"""


def test_servers_up_together_are_asked_in_turns_there_and_back_and_not_again(tmp_path: Path) -> None:
    shown = [line for line in run(TOGETHER, str(tmp_path / "results.json"), "").splitlines() if line[:4] == "told"]
    started = "[('mosec', 0), ('Triton', 1)]"
    assert shown[0] == f"told {started} ['mosec', 'Triton']"
    assert shown[1] == f"told {started} ['Triton', 'mosec', 'mosec', 'Triton']"
    assert shown[2] == shown[3] == "told [] []"
    assert shown[4] == "told {True}"


def test_a_server_that_does_not_start_ends_what_others_were_to_be_measured_beside(tmp_path: Path) -> None:
    asked = [sys.executable, "-c", TOGETHER, str(tmp_path / "results.json"), "Triton"]
    done = subprocess.run(asked, cwd=PEERS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip() == "Triton, which was to be up together with others: not ready: why"


FAILS = """
import pathlib, sys
from types import SimpleNamespace
import measure
from rows import ROWS
results = measure.Results(pathlib.Path(sys.argv[1]), measure.Load(), "")
quick = SimpleNamespace(ms=lambda: 1.0)
one = measure.Run(results, measure.Load(), {}, quick, pathlib.Path("."), "", "", 1e12)
def broken():
    raise RuntimeError("no such server")
row = ROWS["mosec"]
one._keep(row, "512x512", 1, broken)
print(measure.json.loads(pathlib.Path(sys.argv[1]).read_text())["failed"])
one._keep(row, "512x512", 2, broken)
one._keep(row, "512x512", 1, lambda: {"closed": {"images_per_s": 1.0, "latency_ms": {"p50": 1.0, "p99": 1.0}}})
print(measure.json.loads(pathlib.Path(sys.argv[1]).read_text())["failed"])
"""


def test_a_row_that_fails_is_in_the_results_until_it_does_not(tmp_path: Path) -> None:
    shown = run(FAILS, str(tmp_path / "results.json")).splitlines()
    assert shown[0] == "{'mosec': {'512x512': {'1': 'RuntimeError: no such server'}}}"
    assert shown[-1] == "{'mosec': {'512x512': {'2': 'RuntimeError: no such server'}}}"
