"""Several devices behind one queue: the same codes from each, and one that fails takes only its own work with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from viq import Codes, ViQ
from viq.launched import Launched
from viq.patches import Patches
from viq_serving.engine.engine import EngineLimits
from viq_serving.engine.work import Flow
from viq_serving.errors import Internal, NotReady, WeightsError
from viq_serving.images import ImageLimits, decode, encode_picture
from viq_serving.metrics import Metrics
from viq_serving.tokenizer import Tokenizer
from viq_serving.types import ImageFile, Results

T = TypeVar("T")
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Replica:
    """The real model as one of several, with a fault that the test throws into its encode; its batches are noted."""

    def __init__(self, model: ViQ, device: str = "cpu") -> None:
        self._model, self.device = model, device
        self.batches: list[int] = []
        self.fault: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def launch_encode(self, images: Sequence[Patches]) -> Launched[Codes]:
        self.batches.append(len(images))
        self.fault()
        return self._model.launch_encode(images)


class Gate:
    """Keeps a replica busy from the moment it is entered until it is opened."""

    def __init__(self) -> None:
        self.entered, self._open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


Ask = Callable[..., Any]


@pytest.fixture
def ask(nano: ViQ) -> Ask:
    """Run a coroutine over a ready tokenizer with replicas on two devices, and these limits of the engine."""

    def run(question: Callable[[Tokenizer, list[Replica], Metrics], Awaitable[T]], **limits: Any) -> T:
        async def live() -> T:
            replicas, metrics = [Replica(nano, "cpu"), Replica(nano, "cpu:0")], Metrics("test")
            tokenizer = Tokenizer(ImageLimits(), 64, metrics, EngineLimits(**limits))
            await tokenizer.load(lambda: replicas)  # type: ignore[arg-type, return-value]
            for replica in replicas:
                replica.batches.clear()
            try:
                return await question(tokenizer, replicas, metrics)
            finally:
                if tokenizer.state != "lost":
                    tokenizer.close()

        return asyncio.run(live())

    return run


def image(height: int = 32, width: int = 32, shade: int = 99) -> ImageFile:
    return ImageFile(encode_picture(np.full((height, width, 3), shade, np.uint8), "png"))


def codes_of(result: Results[Codes] | BaseException) -> Codes:
    assert isinstance(result, Results), result
    (codes,) = result.items
    assert isinstance(codes, Codes), codes
    return codes


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # a gauge tells nobody that it changed
            await asyncio.sleep(0.001)


def value(metrics: Metrics, series: str) -> float:
    lines = metrics.text().decode().splitlines()
    return float(next(line for line in lines if line.startswith(series + " ")).split()[-1])


def encode(tokenizer: Tokenizer, file: ImageFile) -> asyncio.Task[Results[Codes]]:
    return asyncio.create_task(tokenizer.encode([file], tokenizer.model()))


async def all_busy(tokenizer: Tokenizer, replicas: list[Replica]) -> tuple[list[Gate], list[asyncio.Task[Any]]]:
    """Each replica with one image of its own that it does not finish; replicas are sorted by which was first."""
    gates, tasks = {replica: Gate() for replica in replicas}, list[asyncio.Task[Any]]()
    order: list[Replica] = []
    for replica in replicas:
        replica.fault = gates[replica]
    for shade in range(len(replicas)):
        tasks.append(encode(tokenizer, image(shade=shade)))
        await until(lambda: sum(gate.entered.is_set() for gate in gates.values()) == len(tasks))
        order += [replica for replica in replicas if gates[replica].entered.is_set() and replica not in order]
    replicas[:] = order
    return [gates[replica] for replica in order], tasks


def test_two_replicas_compute_at_the_same_time_and_what_waits_goes_to_the_one_that_is_free(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        gates, busy = await all_busy(tokenizer, replicas)
        waiting = [encode(tokenizer, image(shade=100 + n)) for n in range(5)]
        await until(lambda: value(metrics, "viq_queue_requests") == 5)
        gates[1].open()
        for result in await asyncio.gather(busy[1], *waiting):
            codes_of(result)
        assert replicas[0].batches == [1]
        assert replicas[1].batches[0] == 1
        assert sum(replicas[1].batches) == 6
        gates[0].open()
        codes_of(await busy[0])

    ask(question)


def test_codes_are_the_same_whichever_replica_made_them(ask: Ask, nano: ViQ) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*rng.integers(16, 130, 2), 3), np.uint8) for _ in range(40)]
    files = [ImageFile(encode_picture(picture, "png")) for picture in pictures]
    alone = [nano.encode_pixels([decode(file.data, ImageLimits())])[0] for file in files]

    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        for _ in range(2):
            results = await asyncio.gather(*(encode(tokenizer, file) for file in files))
            assert [codes_of(result) for result in results] == alone
        assert all(replica.batches for replica in replicas)

    ask(question, batch_patches=64)


def test_one_model_computes_on_two_threads_at_once_what_it_computes_on_one(nano: ViQ) -> None:
    """What replicas on a CPU share, with new grids among the pictures: codes, features and pixels, to the bit."""
    rng = np.random.default_rng(1)
    packs = [[rng.integers(0, 256, (*rng.integers(16, 100, 2), 3), np.uint8) for _ in range(3)] for _ in range(8)]

    def compute(model: ViQ, pack: list[Pixels]) -> tuple[list[Codes], list[bytes], list[bytes]]:
        codes = model.encode_pixels(pack)
        features = [one.numpy().tobytes() for one in model.embed(codes)]
        return codes, features, [one.tobytes() for one in model.decode(codes)]

    def thread(number: int) -> list[Any]:
        begin.wait(60)
        return [compute(fresh, pack) for pack in packs]

    before = torch.get_num_threads()
    torch.set_num_threads(2)  # of each of them: their number moves a pixel's value by a bit
    try:
        alone = [compute(nano, pack) for pack in packs]
        fresh, begin = ViQ.from_pretrained(), threading.Barrier(2)  # with no grid seen yet
        with ThreadPoolExecutor(2) as pool:
            for made in pool.map(thread, range(2)):
                assert made == alone
    finally:
        torch.set_num_threads(before)


def ends() -> None:
    raise SystemExit(1)


def fails() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("fault", [ends, fails])
def test_a_device_that_fails_under_load_takes_only_its_own_batch_with_it(
    ask: Ask, caplog: pytest.LogCaptureFixture, fault: Callable[[], None]
) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        states: list[str] = []
        tokenizer.listen(states.append)
        gates, busy = await all_busy(tokenizer, replicas)
        waiting = [encode(tokenizer, image(shade=100 + n)) for n in range(30)]
        await until(lambda: value(metrics, "viq_queue_requests") == 30)
        broken, sound = replicas
        broken.fault = fault
        gates[0].open()  # the image that it has is answered; with the next batch it fails
        await until(lambda: up(metrics, broken) == 0)
        gates[1].open()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        lost = [one for one in results if not answered(one)]
        assert 0 < len(lost) == broken.batches[1] < 30
        assert [codes_of(await task) for task in busy]
        assert (tokenizer.state, states, up(metrics, sound)) == ("ready", ["ready"], 1)
        codes_of(await encode(tokenizer, image()))
        assert tokenizer._engine.admission.patches == 0

    ask(question, batch_patches=40)
    assert "is lost, 1 go on without it" in caplog.text


def test_a_device_that_hangs_is_given_up_and_its_late_answers_go_nowhere(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        gates, (hung, other) = await all_busy(tokenizer, replicas)
        gates[1].open()
        codes_of(await other)
        with pytest.raises(NotReady, match=r"no progress for 0\.3 s"):
            await hung
        assert (tokenizer.state, up(metrics, replicas[0]), tokenizer.hung) == ("ready", 0, True)
        codes_of(await encode(tokenizer, image()))
        batches = len(replicas[0].batches)
        gates[0].open()
        await until(lambda: not tokenizer.hung)
        codes_of(await encode(tokenizer, image()))
        assert len(replicas[0].batches) == batches  # it computes no more
        assert tokenizer._engine.admission.patches == 0

    ask(question, stall_timeout_s=0.3)


def test_when_the_last_device_is_lost_all_who_wait_hear_so(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        gates, busy = await all_busy(tokenizer, replicas)
        waiting = [encode(tokenizer, image(shade=100 + n)) for n in range(10)]
        await until(lambda: value(metrics, "viq_queue_requests") == 10)
        for replica, gate in zip(replicas, gates, strict=True):
            replica.fault = ends
            gate.open()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert not any(answered(result) for result in results)
        assert tokenizer.state == "lost"
        with pytest.raises(NotReady, match="the device is lost"):
            await encode(tokenizer, image())
        await asyncio.gather(*busy, return_exceptions=True)

    ask(question, batch_patches=4)


def test_what_is_expected_counts_the_devices_that_work(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        engine, flow = tokenizer._engine, Flow("encode", "nano")
        both_s = engine._expected_s(flow, 100_000)
        replicas[0].fault = replicas[1].fault = ends
        with pytest.raises(NotReady):
            await encode(tokenizer, image())
        assert engine._expected_s(flow, 100_000) == pytest.approx(2 * both_s)

    ask(question)


def test_all_work_that_was_asked_for_before_the_end_is_answered_by_all(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        gates, busy = await all_busy(tokenizer, replicas)
        waiting = [encode(tokenizer, image(shade=100 + n)) for n in range(10)]
        await until(lambda: value(metrics, "viq_queue_requests") == 10)
        tokenizer.stop()
        finishing = asyncio.create_task(tokenizer.finish())
        for gate in gates:
            gate.open()
        await finishing
        for result in await asyncio.gather(*busy, *waiting):
            codes_of(result)

    ask(question)


def test_the_models_are_shown_with_their_devices_and_replicas(ask: Ask) -> None:
    async def question(tokenizer: Tokenizer, replicas: list[Replica], metrics: Metrics) -> None:
        (model,) = tokenizer.models()
        assert (model.device, model.replicas) == ("cpu,cpu:0", 2)
        for replica in replicas:
            assert up(metrics, replica) == 1
            assert f'device="{replica.device}",dtype' in metrics.text().decode()

    ask(question)


class Foreign(Replica):
    fingerprint = "0123456789abcdef.01234567"


def test_replicas_that_would_make_different_codes_are_refused_naming_both(nano: ViQ) -> None:
    async def live() -> None:
        tokenizer = Tokenizer(ImageLimits(), 64, Metrics("test"))
        models: Any = [nano, Foreign(nano, "cuda:1")]
        with pytest.raises(WeightsError) as error:
            await tokenizer.load(lambda: models)
        for part in ("nano", nano.fingerprint, Foreign.fingerprint, "cpu", "cuda:1"):
            assert part in str(error.value)
        tokenizer.close()

    asyncio.run(live())


def up(metrics: Metrics, replica: Replica) -> float:
    number = {"cpu": 0, "cpu:0": 1}[replica.device]
    return value(metrics, f'viq_device_up{{device="{replica.device}",replica="{number}"}}')


def answered(result: Results[Codes] | BaseException) -> bool:
    """Whether codes came; what came otherwise must say that the device is at fault."""
    if isinstance(result, Results) and isinstance(result.items[0], Codes):
        return True
    error = result.items[0] if isinstance(result, Results) else result
    assert isinstance(error, (NotReady, Internal)), error
    return False
