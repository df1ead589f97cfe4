"""`viq tune`: a quick round with nano, and its choices on numbers known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from viq import ViQ
from viq_serving.bench.arrivals import Closed, Poisson
from viq_serving.bench.load import Span
from viq_serving.bench.mixes import mix_of
from viq_serving.bench.pictures import pictures_of
from viq_serving.cli.main import main
from viq_serving.engine.child import ProcessEnded
from viq_serving.settings import Settings
from viq_serving.tune.advice import Advice
from viq_serving.tune.forms import written
from viq_serving.tune.measurement import Measurement, Setting, TuningFailed


def run_of(rate: float) -> dict[str, Any]:
    latency = {"p50": 10.0, "p90": 20.0, "p99": 30.0}
    return {
        "achieved": {"images_per_s": rate, "patches_per_s": 100 * rate},
        "latency_ms": latency,
        "offered_per_s": rate,
    }


@pytest.fixture
def advice() -> Advice:
    mix = {"name": "photos", "pictures": 4, "mean_patches": 100.0}
    model = {"size": "16k", "dtype": "bfloat16", "device": "cuda", "head": "eager"}
    return Advice(mix, model, {"cores": 8, "processor": "some"})


def test_the_smallest_budget_that_is_nearly_the_best_wins(advice: Advice) -> None:
    rates = {256: [80, 90, 85], 512: [98, 97, 40], 1024: [99, 100, 98], 2048: [100, 99, 101]}
    advice.budgets = {budget: [run_of(rate) for rate in runs] for budget, runs in rates.items()}
    advice.choose_budget()
    assert advice.setting == Setting(512)  # a median of 97 is enough, one bad round is not counted
    assert advice.capacity == 97


def test_replicas_must_be_worth_it(advice: Advice) -> None:
    advice.setting = Setting(512)
    advice.replicas = {1: [run_of(100)], 2: [run_of(104)]}
    advice.choose_replicas()
    assert advice.setting == Setting(512, 1)
    advice.replicas = {2: [run_of(130)], 4: [run_of(131)], 1: [run_of(100)]}
    advice.choose_replicas()
    assert advice.setting == Setting(512, 2)
    assert advice.capacity == 130


def test_processes_must_be_worth_it_too(advice: Advice) -> None:
    advice.setting = Setting(512)
    advice.replicas = {1: [run_of(100)], 2: [run_of(120)]}
    advice.processes = {1: [run_of(101)], 2: [run_of(125)]}
    advice.choose_replicas()
    assert advice.setting == Setting(512, 2, processes=False)
    advice.processes = {1: [run_of(127)], 2: [run_of(140)]}
    advice.choose_replicas()
    assert advice.setting == Setting(512, 2, processes=True)
    assert advice.capacity == 140
    assert advice.settings()["VIQ_REPLICA_PROCESSES"] == "true"
    assert "processes" in written(advice, "text")


def test_the_queue_holds_what_is_computed_in_its_age_within_bounds(advice: Advice) -> None:
    for rate, patches in ((1.0, 16_384), (100.0, 100_352), (10_000.0, 262_144)):
        advice.budgets, advice.setting = {512: [run_of(rate)]}, Setting(512)
        assert advice.queue_patches == patches


def test_advice_is_read_by_systemd_and_kubernetes(advice: Advice) -> None:
    advice.budgets, advice.setting, advice.loads = {512: [run_of(50)]}, Setting(512, 1), {0.9: run_of(45)}
    settings = {"VIQ_MAX_BATCH_PATCHES": "512", "VIQ_REPLICAS": "1", "VIQ_REPLICA_PROCESSES": "false"}
    settings["VIQ_MAX_QUEUE_PATCHES"] = "50176"
    lines = [line for line in written(advice, "env").splitlines() if not line.startswith("#")]
    assert dict(line.split("=") for line in lines) == settings
    assert yaml.safe_load(written(advice, "configmap"))["data"] == settings
    assert "p99 30 ms" in written(advice, "text")


def test_advice_holds_for_the_model_that_was_asked_for(advice: Advice) -> None:
    advice.budgets, advice.setting = {512: [run_of(1)]}, Setting(512)
    advice.asked, advice.rough = {"VIQ_SIZE": "16k", "VIQ_HEAD": "compile"}, True
    settings = yaml.safe_load(written(advice, "configmap"))["data"]
    assert (settings["VIQ_SIZE"], settings["VIQ_HEAD"]) == ("16k", "compile")
    assert "VIQ_SIZE=16k\n" in written(advice, "env")
    said = written(advice, "text")
    assert "rough" in said
    assert "The queue holds what is computed in 164 s" in said  # the largest image, which takes longer than its age
    advice.budgets = {512: [run_of(25_600)]}
    assert "The queue holds what is computed in 0.102 s" in written(advice, "text")


def test_a_quick_round_measures_this_machine(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    arguments = [
        "tune",
        "--quick",
        "--dtype",
        "float32",
        "--mix",
        "48x32",
        "--pictures",
        "2",
        "--budgets",
        "64,128",
        "--replicas",
        "1",
        "--replica-processes",
        "--json",
        "-o",
        str(tmp_path / "found.json"),
    ]
    assert main(arguments) == 0
    shown = capfd.readouterr().out
    assert [path.read_text() for path in tmp_path.iterdir()] == [shown]
    found = json.loads(shown)
    assert found["model"]["size"] == "nano"
    assert found["rough"] is True
    assert found["settings"]["VIQ_DTYPE"] == "float32"
    assert "VIQ_HEAD" not in found["settings"]
    assert found["settings"]["VIQ_MAX_BATCH_PATCHES"] in ("64", "128")
    assert list(found["measured"]["budgets"]) == ["64", "128"]
    assert list(found["measured"]["replicas"]) == list(found["measured"]["processes"]) == ["1"]
    assert found["settings"]["VIQ_REPLICA_PROCESSES"] in ("true", "false")
    assert found["expected"]["images_per_s"] > 0
    assert list(found["expected"]["latency_ms_at_load"]) == ["50%", "90%"]
    assert found["expected"]["latency_ms_at_load"]["90%"]["p99"] > 0


def test_what_is_expected_of_several_replicas_was_measured_with_them(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    choices = ("--budgets", "64", "--replicas", "2", "--no-replica-processes", "--loads", "50%")
    assert main(["tune", "--quick", "--mix", "48x32", "--pictures", "2", *choices, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    (run,) = found["measured"]["replicas"]["2"]
    assert found["settings"]["VIQ_REPLICAS"] == "2"
    assert found["expected"]["images_per_s"] == pytest.approx(run["achieved"]["images_per_s"], rel=0.01)
    assert not found["measured"]["processes"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mix", "nothing"], "mix 'nothing'"),
        (["--loads", "12"], "expected shares"),
        (["--server", "http://localhost"], "use viq bench"),
        (["-o", "/nowhere/x.env"], "/nowhere/x.env cannot be written: No such file"),
        (["-o", "/"], "is a folder"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize(("budget", "rate"), [(1, 1e-6), (512, 50.0), (2**40, 1e9)])
def test_the_service_takes_what_is_advised(
    advice: Advice, budget: int, rate: float, processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice.budgets, advice.loads, advice.processes = {budget: [run_of(rate)]}, {0.9: run_of(rate)}, {2: [run_of(rate)]}
    advice.setting = Setting(budget, 2, processes)
    for line in written(advice, "env").splitlines():
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("="))
    settings = Settings.load({})
    assert (settings.max_batch_patches, settings.replicas, settings.replica_processes) == (budget, 2, processes)
    assert settings.max_queue_patches == advice.queue_patches


def test_a_slow_machine_is_measured_for_longer_and_one_that_is_too_slow_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    model, files = ViQ.from_pretrained(device="cpu"), pictures_of(mix_of("32x32"), 2, 0)
    short = Measurement(model, files, Span(0.0, 0.05), 0, 1)
    assert short.run(Setting(64), Poisson(20.0))["seconds"] == 0.4  # 20 arrivals, but no more than 8 times as long
    hopeless = Measurement(model, files, Span(0.0, 1e-6), 0, 1)
    with pytest.raises(TuningFailed, match="--duration"):
        hopeless.run(Setting(64), Closed(1))


@pytest.mark.parametrize("error", [ProcessEnded(7), MemoryError("no room")])
def test_processes_that_end_while_they_load_are_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    monkeypatch.setattr("viq_serving.tune.measurement.in_processes", fails)
    model, files = ViQ.from_pretrained(device="cpu"), pictures_of(mix_of("32x32"), 2, 0)
    measurement = Measurement(model, files, Span(0.0, 0.05), 0, 1)
    with pytest.raises(TuningFailed, match=f"2 replicas in processes.*{error}.*--no-replica-processes"):
        measurement.run(Setting(64, 2, processes=True), Closed(1))


def test_where_advice_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "no" / "viq.env"):
        assert main(["tune", "--quick", "-o", str(place)]) == 2
        told = capfd.readouterr().err
        assert f"{place} is a folder" in told or f"{place} cannot be written: No such file" in told


@pytest.mark.parametrize("asked", [False, True])
def test_processes_that_cannot_be_loaded_lose_nothing_unless_they_were_asked_for(
    asked: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: Any) -> Any:
        raise ProcessEnded(123)

    monkeypatch.delenv("VIQ_WEIGHTS_ROOT", raising=False)
    monkeypatch.setattr("viq_serving.tune.measurement.in_processes", killed)
    arguments = ["tune", "--quick", "--mix", "32x32", "--pictures", "1", "--budgets", "64", "--replicas", "1", "--json"]
    code = main([*arguments, *(["--replica-processes"] if asked else [])])
    shown = capfd.readouterr()
    assert "process 123" in shown.err
    if asked:
        assert code == 3
        return
    found = json.loads(shown.out)
    assert code == 0
    assert found["measured"]["processes"] == {}
    assert found["settings"]["VIQ_REPLICA_PROCESSES"] == "false"
