"""Replicas in processes of their own: the same codes to the bit, errors told apart, and none outlives its parent."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from tests.waiting import until

from viq import ViQ
from viq.errors import InvalidInput, UnknownModel
from viq.patches import Patches
from viq_serving.engine.child import Child, ChildModel, ProcessEnded, in_processes
from viq_serving.engine.engine import EngineLimits
from viq_serving.errors import NotReady, WeightsError
from viq_serving.images import ImageLimits, encode_picture
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile

ASKED: dict[str, Any] = {"root": None, "size": None, "dtype": "float32"}


@contextmanager
def child(**asked: Any) -> Iterator[ChildModel]:
    (model,) = in_processes([{**ASKED, **asked}], "cpu", 1)
    try:
        yield model
    finally:
        model.close()


def pictures() -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in ((32, 32), (17, 70), (96, 48))]


def test_a_model_in_another_process_has_the_same_facts_and_computes_the_same_to_the_bit(nano: ViQ) -> None:
    with child() as model:
        for name in ("size", "fingerprint", "family", "codebook_size", "width", "dtype", "device", "untrained"):
            assert getattr(model, name) == getattr(nano, name), name
        assert tuple(model.levels) == tuple(nano.levels)
        here = nano.encode_pixels(pictures())
        codes = model.launch_encode([Patches.of(one) for one in pictures()]).results()
        assert codes == here
        assert [one.fingerprint for one in codes] == [one.fingerprint for one in here]
        assert all(
            torch.equal(a, b) and a.dtype == b.dtype
            for a, b in zip(model.launch_embed(codes).results(), nano.embed(here), strict=True)
        )
        for a, b in zip(model.launch_decode(codes).results(), nano.decode(here), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_features_of_a_type_that_numpy_has_not_come_whole(dtype: str) -> None:
    half = ViQ.from_pretrained(dtype=dtype)
    codes = half.encode_pixels(pictures())
    with child(dtype=dtype) as model:
        assert (model.dtype, model.fingerprint) == (dtype, half.fingerprint)
        assert model.launch_encode([Patches.of(one) for one in pictures()]).results() == codes
        for a, b in zip(model.launch_embed(codes).results(), half.embed(codes), strict=True):
            assert a.dtype == b.dtype == torch.bfloat16
            assert torch.equal(a, b)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="3k"):
        in_processes([{**ASKED, "size": "3k"}], "cpu", 2)
    with pytest.raises(WeightsError, match=str(tmp_path)):
        in_processes([{**ASKED, "root": str(tmp_path)}], "cpu", 1)
    with pytest.raises(InvalidInput, match="cuda"):
        in_processes([ASKED], "cuda:77", 1)


def test_work_that_fails_there_fails_here_and_the_process_goes_on(nano: ViQ) -> None:
    with child() as model:
        with pytest.raises(RuntimeError, match="AttributeError"):
            model.launch_encode(["no patches"])
        good = [Patches.of(one) for one in pictures()]
        assert model.launch_encode(good).results() == nano.encode_pixels(pictures())


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no prlimit to take memory from a process with")
def test_memory_that_runs_out_there_is_told_as_such_and_the_process_goes_on(
    nano: ViQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left must do for a thread that takes over from the one that met the limit: none is to be had for others.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with child() as model:
        pid = model._child.process.pid
        held = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmSize"))
        most = int(held.split()[1]) * 1024 + 64 * 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        with pytest.raises(MemoryError):
            model.launch_encode([Patches.of(np.zeros((1536, 1536, 3), np.uint8))])
        good = [Patches.of(one) for one in pictures()]
        assert model.launch_encode(good).results() == nano.encode_pixels(pictures())


def test_a_process_that_is_killed_is_told_apart_from_work_that_fails() -> None:
    with child() as model:
        model.close()
        with pytest.raises(ProcessEnded):
            model.launch_encode([Patches.of(one) for one in pictures()])


Question = Callable[[Tokenizer, list[ChildModel]], Awaitable[None]]


def over_two(question: Question, **limits: Any) -> None:
    """Run a coroutine over a ready tokenizer with two replicas in processes."""

    async def live() -> None:
        models = await asyncio.to_thread(in_processes, [ASKED], "cpu", 2)
        tokenizer = Tokenizer(ImageLimits(), 64, Metrics("test"), EngineLimits(**limits))
        try:
            await tokenizer.load(lambda: models)
            await question(tokenizer, models)
        finally:
            if tokenizer.state != "lost":
                tokenizer.close()
        assert all(model._child.process.poll() is not None for model in models)

    asyncio.run(live())


def encode(tokenizer: Tokenizer, side: int = 32) -> asyncio.Task[Any]:
    file = ImageFile(encode_picture(np.full((side, side, 3), 99, np.uint8), "png"))
    return asyncio.create_task(tokenizer.encode([file], tokenizer.model()))


def test_a_process_that_is_killed_takes_only_its_own_batch_with_it(nano: ViQ) -> None:
    expected = nano.encode_pixels([np.full((32, 32, 3), 99, np.uint8)])

    async def question(tokenizer: Tokenizer, models: list[ChildModel]) -> None:
        models[0]._child.process.kill()
        results = await asyncio.gather(*(encode(tokenizer) for _ in range(40)), return_exceptions=True)
        failed = [one for one in results if isinstance(one, BaseException)]
        assert all(isinstance(one, NotReady) for one in failed), failed
        assert [one.items for one in results if not isinstance(one, BaseException)] == [expected] * (40 - len(failed))
        while tokenizer._engine._crew.workers[0].alive() and tokenizer._engine._crew.workers[1].alive():
            await asyncio.gather(*(encode(tokenizer) for _ in range(8)), return_exceptions=True)
        assert (await encode(tokenizer)).items == expected
        assert tokenizer.state == "ready"

    over_two(question, batch_patches=16)


def test_a_process_that_hangs_is_ended_and_the_others_go_on() -> None:
    async def question(tokenizer: Tokenizer, models: list[ChildModel]) -> None:
        stopped = models[0]._child.process
        stopped.send_signal(signal.SIGSTOP)
        results = await asyncio.gather(*(encode(tokenizer) for _ in range(16)), return_exceptions=True)
        while stopped.poll() is None:
            results += await asyncio.gather(*(encode(tokenizer) for _ in range(4)), return_exceptions=True)
        failed = [one for one in results if isinstance(one, BaseException)]
        assert failed
        assert all(isinstance(one, NotReady) for one in failed), failed
        await encode(tokenizer)
        assert (tokenizer.state, tokenizer.hung) == ("ready", False)

    over_two(question, batch_patches=8, stall_timeout_s=1.0)


@pytest.fixture
def served() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`viq serve` with two replicas in processes, in a process group of its own, and its address."""
    command = [str(Path(sys.executable).with_name("viq")), "serve", "--http-port", "0", "--grpc-port", "0"]
    flags = ["--replica-processes", "--replicas", "2", "--drain-delay", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        until(lambda: httpx.get(f"{address}/readyz").status_code == 200, "the service is ready")
        yield process, address
        if process.poll() is None:
            process.kill()


def children(pid: int) -> list[int]:
    listed = (Path(path).read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(one) for part in listed for one in part.split()]


def ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc to see child processes in")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_service_and_a_signal_to_all_of_them_still_drains(
    served: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, address = served
    made = children(process.pid)
    assert len(made) == 2
    picture = encode_picture(np.full((64, 48, 3), 7, np.uint8), "png")
    assert httpx.post(f"{address}/v1/encode", content=picture, headers={"content-type": "image/png"}).status_code == 200
    if number is signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    assert process.wait(60) == (-number if number is signal.SIGKILL else 0)
    until(lambda: all(ended(pid) for pid in made), "the replicas' processes have ended")


def test_a_child_that_is_never_asked_ends_with_whoever_made_it() -> None:
    made = Child([{**ASKED, "device": "cpu"}])
    made.close()
    assert made.process.returncode == -signal.SIGKILL
