"""`viq bench` at a real service through every door, at foreign servers, and on its own results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.bench.foreign import foreign, plain

from viq_serving.bench.own_server import Running
from viq_serving.cli.main import main

VIQ = Path(sys.executable).with_name("viq")
SHORT = ("--pictures", 4, "--mix", "64x48,32x32", "--warm-up", 0, "--timeout", 120)


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["bench", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


Bench = Callable[..., tuple[int, str, str]]


def measured(bench: Bench, *arguments: object) -> dict[str, Any]:
    code, out, err = bench("--json", *SHORT, *arguments)
    assert code == 0, out + err
    held: dict[str, Any] = json.loads(out)
    return held


def test_every_door_gives_the_same_codes_and_its_figures(service: Running, bench: Bench, tmp_path: Path) -> None:
    doors = ["rest", "grpc", "grpc-stream", "oip-http", "oip-grpc"]
    path = tmp_path / "made" / "result.json"
    found = measured(
        bench, "--url", service.url, "--grpc", service.grpc, "--door", ",".join(doors), "--in-flight", 3,
        "--requests", 12, "--check-all", "--name", "all doors", "--server-pid", service.pid, "-o", path,
    )  # fmt: skip
    assert json.loads(path.read_text()) == found
    assert [run["door"] for run in found["runs"]] == doors
    assert {run["codes"]["digest"] for run in found["runs"]} != {None}
    assert len({run["codes"]["digest"] for run in found["runs"]}) == 1
    for run in found["runs"]:
        assert (run["requests"], run["answered"], run["errors"], run["rejects"]["count"]) == (12, 12, {}, 0)
        assert run["codes"]["pictures"] == 4
        assert run["codes"]["unstable"] == 0
        assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99_9"] <= run["latency_ms"]["max"]
        assert run["corrected_ms"]["max"] == run["latency_ms"]["max"]
        rates = run["achieved"]
        # Seconds are given to a millisecond, of which so short a run has few.
        assert 12 / rates["images_per_s"] == pytest.approx(run["seconds"], abs=0.0006, rel=0.001)
        assert rates["patches_per_s"] == pytest.approx(8 * rates["images_per_s"], rel=0.01)  # 12 and 4 patches
        assert rates["received_bytes_per_s"] >= 8 * rates["patches_per_s"] * 0.99
        assert run["server"]["peak_memory_bytes"] > 2**20
    model = found["target"]["models"][0]
    assert model["size"] == "nano"
    assert model["fingerprint"]
    assert "serve" in found["target"]["command"]
    assert found["mix"]["seed"] == 0
    assert found["made"]["machine"]["cores"] >= 1


@pytest.mark.parametrize("method", ["embed", "decode"])
def test_codes_are_embedded_and_decoded_through_every_door(service: Running, bench: Bench, method: str) -> None:
    doors = ["rest", "grpc", "grpc-stream", "oip-http", "oip-grpc"]
    found = measured(
        bench, "--url", service.url, "--grpc", service.grpc, "--door", ",".join(doors), "--method", method,
        "--in-flight", 2, "--requests", 4,
    )  # fmt: skip
    for run in found["runs"]:
        assert (run["answered"], run["errors"]) == (4, {})
        each = {
            what: run["achieved"][f"{what}_bytes_per_s"] / run["achieved"]["images_per_s"]
            for what in ("sent", "received")
        }
        # Of 12 and 4 patches, in turn: 8 bytes of codes a patch, 128 floats, or a picture.
        assert each["sent"] == pytest.approx(64, rel=0.01) if "oip" not in run["door"] else each["sent"] > 64
        assert each["received"] > (8 * 128 * 4 if method == "embed" else 100)


def test_an_open_loop_sends_at_the_rate_and_a_share_is_of_what_callers_achieve(service: Running, bench: Bench) -> None:
    found = measured(bench, "--grpc", service.grpc, "--in-flight", 4, "--rates", "20,50%", "--duration", 0.4)
    closed, plain_, share = found["runs"]
    assert (closed["loop"], closed["load"], closed["rate"]) == ("closed", "4 in flight", None)
    assert (plain_["loop"], plain_["load"], plain_["rate"]) == ("open", "20", 20.0)
    assert 1 <= plain_["requests"] <= 25
    assert plain_["answered"] == plain_["requests"]
    assert share["rate"] == pytest.approx(closed["achieved"]["images_per_s"] / 2, rel=0.01)
    assert plain_["generator"]["lag_ms"]["p99"] is not None


def test_order_and_arrivals_may_follow_from_another_seed_than_the_pictures(bench: Bench) -> None:
    codes, sent, said = plain("200 OK", bytes(8)), list[list[bytes]](), list[Any]()
    for seeds in (("--seed", 3), ("--seed", 3, "--arrival-seed", 3), ("--seed", 3, "--arrival-seed", 8)):
        with foreign(lambda number: codes) as server:
            arguments = ("--door", "http", "--url", server.url, "--in-flight", 1, "--requests", 12)
            found = measured(bench, *arguments, *seeds)
            sent.append(server.requests)
            said.append((found["mix"]["digest"], found["runs"][0]["arrival_seed"]))
    assert sent[0] == sent[1] != sent[2]
    assert sorted(sent[0]) == sorted(sent[2])
    assert said == [(said[0][0], 3), (said[0][0], 3), (said[0][0], 8)]


def test_an_open_loop_may_be_told_how_many_requests(bench: Bench) -> None:
    codes = plain("200 OK", bytes(8))
    with foreign(lambda number: codes) as server:
        (run,) = measured(bench, "--door", "http", "--url", server.url, "--rate", 100, "--requests", 23)["runs"]
        assert len(server.requests) == 23
    assert (run["loop"], run["requests"], run["answered"]) == ("open", 23, 23)


def test_a_door_that_answers_nothing_has_no_share_and_is_an_error(bench: Bench, tmp_path: Path) -> None:
    arguments = ("--door", "http", "--url", "http://127.0.0.1:9/x", "--in-flight", 2, "--rates", "50%", "--requests", 2)
    code, out, _ = bench("--json", *SHORT, *arguments)
    assert code == 1
    (run,) = json.loads(out)["runs"]
    assert (run["loop"], run["answered"]) == ("closed", 0)
    assert sum(run["errors"].values()) == 2
    code, out, err = bench("--json", *SHORT, *arguments, "--rates", "25%,50%", "--plot", tmp_path / "none.png")
    assert (code, len(json.loads(out)["runs"])) == (1, 1)
    assert f"{tmp_path / 'none.png'} is not drawn: nothing" in err


def test_answers_that_come_after_the_window_are_no_rate_to_have_a_share_of(bench: Bench, tmp_path: Path) -> None:
    def late(number: int) -> list[bytes]:
        threading.Event().wait(0.5)
        return plain("200 OK", bytes(8))

    with foreign(late) as server:
        target, path = ("--door", "http", "--url", server.url), tmp_path / "held.json"
        code, _, err = bench(*SHORT, *target, "--in-flight", 1, "--rates", "50%", "--duration", 0.1, "-o", path)
        assert code == 2
        assert "no answer came in time" in err
        assert json.loads(path.read_text())["runs"][0]["answered"] == 1
        (run,) = measured(bench, *target, "--rate", 100, "--requests", 5)["runs"]
    assert run["answered"] == 5
    assert 0 < run["achieved"]["images_per_s"] < 10  # all of them, until the last


@pytest.mark.parametrize(
    "load", [("--in-flight", 3, "--requests", 9), ("--rate", 40, "--duration", 0.3), ("--rate", 90, "--requests", 9)]
)
def test_several_processes_share_a_load(bench: Bench, load: tuple[object, ...]) -> None:
    codes = plain("200 OK", bytes(8))
    with foreign(lambda number: codes) as server:
        (run,) = measured(bench, "--door", "http", "--url", server.url, "--processes", 2, *load)["runs"]
    assert run["generator"]["processes"] == 2
    assert run["answered"] == run["requests"] == len(server.requests) > 0
    assert run["requests"] == 9 or "--duration" in load


def test_a_server_that_is_full_is_told_from_one_that_fails(bench: Bench) -> None:
    codes = np.arange(4, dtype="<u2").tobytes()
    full, failed = "429 Too Many Requests", ("500 Oops", "503 Gone")
    replies = [plain("200 OK", codes), plain(full, b"", "Retry-After-Ms: 20"), plain(full, b"")]
    replies += [plain(status, b"") for status in failed]
    with foreign(lambda number: replies[number % 5]) as server:
        code, out, _ = bench(
            "--json", *SHORT, "--door", "http", "--url", server.url, "--in-flight", 1, "--requests", 20
        )
    (run,) = json.loads(out)["runs"]
    assert code == 1
    assert run["requests"] == 20
    rejects, errors = run["rejects"], run["errors"]
    assert (rejects["with_hint"], rejects["without_hint"]) == (4, 4)
    assert rejects["hint_ms"]["p99"] == 20.0
    assert errors == {"500": 4, "503": 4}
    assert run["answered"] == 4
    assert json.loads(out)["target"]["models"] is None


def test_codes_that_change_from_answer_to_answer_are_noticed(bench: Bench) -> None:
    with foreign(lambda number: plain("200 OK", np.array([number] * 4, "<u2").tobytes())) as server:
        _, out, _ = bench(
            "--json", *SHORT, "--check-all", "--door", "http", "--url", server.url, "--in-flight", 1, "--requests", 8
        )
    assert json.loads(out)["runs"][0]["codes"]["unstable"] == 4


def test_a_server_of_its_own_ends_with_it_also_when_it_is_killed(tmp_path: Path) -> None:
    """The address is in the result, which is written after each run."""
    path = tmp_path / "result.json"
    command = [
        str(VIQ),
        "bench",
        "--serve",
        "",
        "--door",
        "rest",
        "--in-flight",
        "1,1",
        "--duration",
        "0.2",
        "-o",
        str(path),
    ]
    command += ["--rounds", "999", *map(str, SHORT)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not path.exists():
            assert process.poll() is None
            threading.Event().wait(0.02)
        server = next(pid for pid in _children(process.pid) if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes())
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        while os.path.exists(f"/proc/{server}") and _state(server) != "Z":  # noqa: PTH110
            threading.Event().wait(0.02)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_two_results_are_compared_by_ratios(bench: Bench, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    codes = plain("200 OK", np.arange(4, dtype="<u2").tobytes())
    with foreign(lambda number: codes) as server:
        for path in (first, second):
            code, _, err = bench(
                *SHORT, "--door", "http", "--url", server.url, "--in-flight", 2, "--requests", 8, "-o", path
            )
            assert code == 0, err
    held = json.loads(second.read_text())
    run = held["runs"][0]
    run["achieved"]["images_per_s"] = 2 * json.loads(first.read_text())["runs"][0]["achieved"]["images_per_s"]
    held["mix"]["digest"] = "other"
    second.write_text(json.dumps(held))
    code, out, _ = bench("compare", first, second, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["rows"][0]["images_per_s"][2] == 2.0
    assert found["rows"][0]["codes_equal"] is True
    assert found["differences"] == [f"pictures: {json.loads(first.read_text())['mix']['digest']} and other"]
    code, out, _ = bench("compare", first, second)
    assert "2.000×" in out


def test_a_sweep_is_drawn(bench: Bench, tmp_path: Path) -> None:
    codes, sweep = plain("200 OK", bytes(8)), tmp_path / "sweep.png"
    with foreign(lambda number: codes) as server:
        target = ("--door", "http", "--url", server.url, "--duration", 0.1)
        assert bench(*SHORT, *target, "--rates", "50,100", "--plot", sweep)[0] == 0
        path = tmp_path / "sizes.json"
        assert bench(*SHORT, *target, "--each-size", "--in-flight", 2, "-o", path)[0] == 0
    assert [run["size"] for run in json.loads(path.read_text())["runs"]] == ["64x48", "32x32"]
    assert bench("plot", path, "-o", tmp_path / "sizes.png")[0] == 0
    for name in (sweep, tmp_path / "sizes.png"):
        with Image.open(name) as image:
            assert image.size == (720, 800)
            assert len(image.convert("RGB").getcolors(2**16) or ()) > 20


def test_pictures_are_written_as_they_are_sent(bench: Bench, tmp_path: Path) -> None:
    code, *_ = bench("pictures", "--mix", "40x24", "--pictures", 2, "--seed", 9, "-o", tmp_path / "set")
    rows = json.loads((tmp_path / "set" / "pictures.json").read_text())
    assert code == 0
    assert [(row["file"], row["width"], row["patches"]) for row in rows] == [("00000.jpg", 40, 6), ("00001.jpg", 40, 6)]
    codes = plain("200 OK", bytes(8))
    with foreign(lambda number: codes) as server:
        arguments = ("--mix", "40x24", "--pictures", 2, "--seed", 9, "--door", "http", "--url", server.url)
        bench(*arguments, "--in-flight", 1, "--requests", 2, "--warm-up", 0)
        assert set(server.requests) == {(tmp_path / "set" / row["file"]).read_bytes() for row in rows}


def test_options_may_stand_in_a_file(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "short.args"
    path.write_text("# a scenario\n--mix '40x24'\n--pictures 2 --requests 3\n")
    codes = plain("200 OK", bytes(8))
    with foreign(lambda number: codes) as server:
        code, out, _ = bench(
            f"@{path}", "--door", "http", "--url", server.url, "--in-flight", 1, "--json", "--warm-up", 0
        )
    assert code == 0
    assert json.loads(out)["runs"][0]["answered"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mix", "nothing", "--grpc", "localhost:1"], "mix 'nothing' is none of"),
        (["--door", "telnet"], "'telnet' is no door"),
        (["--rate", "0"], "'0' is no rate"),
        (["--in-flight", "0"], "'0' is no whole number from 1 on"),
        (["--duration", "1", "--requests", "2", "--grpc", "localhost:1"], "exclude one another"),
        (["--door", "grpc"], "nothing to measure"),
        (["--serve", "", "--url", "http://localhost"], "excludes"),
        (["--processes", "9", "--in-flight", "8", "--grpc", "localhost:1"], "cannot share 8"),
        (["--door", "http", "--method", "decode", "--url", "http://localhost"], "no method decode"),
        (["--door", "http", "--grpc", "localhost:1"], "this door needs --url"),
        (["--door", "oip-grpc", "--model", "x", "--url", "http://localhost"], "needs --grpc HOST:PORT"),
        (["compare", "a.json"], "there are compare A.json B.json"),
        (["compare", "nothing.json", "nothing.json"], "nothing.json: No such file"),
        (["plot", "nothing.json"], "plot needs -o"),
        (["--plot", "x.png", "--grpc", "localhost:1"], "--plot takes two rates"),
        (["-o", "/", "--grpc", "localhost:1"], "is a folder"),
        (["--rate", "999999", "--grpc", "localhost:1"], "the limit is 5000000"),
        (["--pictures", "999999", "--grpc", "localhost:1"], "the limit is 100000"),
    ],
)
def test_what_cannot_be_meant_is_told(bench: Bench, arguments: list[str], said: str) -> None:
    code, _, err = bench(*arguments)
    assert code == 2
    assert said in err


def test_an_output_that_cannot_be_written_is_told_before_anything_is_measured(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = bench("-o", tmp_path / "file" / "x.json", "--grpc", "localhost:1")
    assert code == 2
    assert f"{tmp_path / 'file' / 'x.json'} cannot be written" in err
    for path in ("/proc/x.json", "x" * 300, str(tmp_path / ("x" * 250))):
        code, _, err = bench("-o", path, "--grpc", "localhost:1")
        assert code == 2
        assert f"{path} cannot be written: " in err


def test_what_is_no_result_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, said in (("{}", "is no result of viq bench"), ("[", "is no JSON"), ("\x00", "is no JSON")):
        path.write_text(text)
        code, _, err = bench("plot", path, "-o", tmp_path / "x.png")
        assert code == 2
        assert said in err
    path.write_text('{"format": "viq-bench/1", "runs": [{"door": "grpc"}]}')
    assert bench("plot", path, "-o", tmp_path / "x.png")[0] == 2
    assert bench("compare", path, path)[0] == 2


def test_a_server_that_is_not_there_is_unusable(bench: Bench) -> None:
    code, _, err = bench(*SHORT, "--grpc", "127.0.0.1:9", "--timeout", 1, "--requests", 1)
    assert code == 3
    assert "127.0.0.1:9" in err


def test_the_generator_imports_no_torch() -> None:
    code = "import sys; from viq_serving.bench import processes, plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
