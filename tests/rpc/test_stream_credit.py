"""How much of a stream is taken before its answers are: bounds by items, bytes and patches, and whom they spare."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import grpc
import pytest
from PIL import Image

from viq_serving.pb import viq_pb2 as pb
from viq_serving.rpc.credit import Credit, Weight

if TYPE_CHECKING:
    from tests.rpc.conftest import Door, Stuck, Talk

    from viq_serving.tokenizer import Tokenizer

MakeImage = Callable[..., bytes]
Open = Callable[..., AbstractContextManager["Door"]]
Begin = Callable[..., "Talk"]


def items(image: bytes, *keys: object) -> list[pb.Item]:
    return [pb.Item(key=str(key), image=image) for key in keys]


async def _until_idle() -> None:
    """Let every task go on until none can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _taking(credit: Credit, *weights: Weight) -> tuple[list[int], asyncio.Task[None]]:
    taken: list[int] = []

    async def take() -> None:
        for number, weight in enumerate(weights):
            await credit.room()
            await credit.take(weight)
            taken.append(number)

    task = asyncio.create_task(take())
    await _until_idle()
    return taken, task


@pytest.mark.parametrize("weight", [Weight(40, 1, 1), Weight(1, 4, 1), Weight(1, 1, 1)])
def test_credit_is_up_when_any_of_its_limits_is_and_comes_back_with_each_answer(weight: Weight) -> None:
    async def run() -> None:
        credit = Credit(Weight(100, 10, 3))
        most = 3 if weight == Weight(1, 1, 1) else 2
        taken, task = await _taking(credit, *[weight] * 5)
        for answered in range(5 - most):
            assert len(taken) == most + answered
            credit.give(weight)
            await _until_idle()
        await task
        for _ in range(most):
            credit.give(weight)
        assert credit.held == Weight(0, 0, 0)

    asyncio.run(run())


def test_what_is_over_a_limit_goes_alone() -> None:
    async def run() -> None:
        credit = Credit(Weight(100, 10, 3))
        small, large = Weight(10, 1), Weight(1000, 1)
        taken, task = await _taking(credit, small, large, small)
        assert taken == [0]
        credit.give(small)
        await _until_idle()
        assert taken == [0, 1]
        credit.give(large)
        await task
        assert taken == [0, 1, 2]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("flags", "most"),
    [({"stream_max_items": 7}, 7), ({"stream_max_patches": 20}, 3), ({"stream_max_bytes": 10_000}, 3)],
    ids=["items", "patches", "bytes"],
)
def test_no_more_is_begun_than_the_limits_allow_until_answers_are_taken(
    open_door: Open, talk: Begin, make_image: MakeImage, stuck: Stuck, flags: dict[str, int], most: int
) -> None:
    image = make_image(40, 24)  # 6 patches
    if "stream_max_bytes" in flags:
        image += bytes(3000 - len(image))  # what follows the end of a PNG is ignored
    with open_door(change=stuck.into, **flags) as door:
        stream = talk(door, "Encode")
        for n in range(30):
            stream.send(*items(image, n))
        neighbour = talk(door, "Encode").send(*items(image, "other"))
        door.until(lambda: stuck.begun >= most + 1)
        for _ in range(10):  # time to begin more, if there was nothing in the way
            door.viq.Info(pb.InfoRequest())
        assert stuck.begun == most + 1  # with the neighbour's
        assert door.tokenizer.bodies.held_now < (most + 1) * (len(image) + 20)
        door.inside(stuck.let_go.set)
        assert len(neighbour.end().rest()) == 1
        assert len(stream.end().rest()) == 30
        assert stuck.begun == 31


def test_patches_of_files_whose_size_is_not_seen_at_once_count_too(open_door: Open, talk: Begin, stuck: Stuck) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "WEBP")  # 12 patches
    with open_door(change=stuck.into, stream_max_patches=30) as door:
        stream = talk(door, "Encode").send(*items(buffer.getvalue(), *range(8))).end()
        door.until(lambda: stuck.begun == 2)
        door.inside(stuck.let_go.set)
        assert len(stream.rest()) == 8


def test_an_image_over_the_limits_of_a_stream_is_answered_alone(
    open_door: Open, talk: Begin, make_image: MakeImage
) -> None:
    with open_door(stream_max_patches=4, stream_max_bytes=200) as door:
        stream = talk(door, "Encode").send(*items(make_image(160, 160), *range(3))).end()
        assert sorted(result.codes.h for result in stream.rest()) == [10, 10, 10]


def test_a_client_that_reads_nothing_is_held_up_and_nobody_else_is(
    open_door: Open, talk: Begin, make_image: MakeImage
) -> None:
    image, count = make_image(320, 320), 40  # 400 patches, 200 kB of features
    with open_door(stream_max_patches=4000) as door:
        deaf = talk(door, "Embed", channel=door.dial_small())
        for n in range(count):
            deaf.send(*items(image, n))
        done = {"method": "embed", "size": "nano"}
        door.until(lambda: door.sample("viq_images_total", **done) >= 10 and door.tokenizer.bodies.held_now == 0)
        neighbour = talk(door, "Embed", channel=door.dial()).send(*items(make_image(), *range(30))).end()
        assert len(neighbour.rest()) == 30
        assert door.viq.Encode(pb.EncodeRequest(items=items(image, "one"))).results[0].codes.data
        # What was computed is what fits, and what the transport holds beside that; nothing of it waits for the device.
        computed = door.sample("viq_images_total", **done) - 30
        assert computed < count
        assert door.tokenizer.bodies.held_now == 0
        assert door.sample("viq_queue_requests") == 0
        assert len({result.key for result in deaf.end().rest()}) == count


def test_when_the_bytes_of_all_requests_are_held_a_stream_waits_and_is_not_refused(
    open_door: Open, talk: Begin, make_image: MakeImage
) -> None:
    image = make_image()
    with open_door() as door:
        bodies = door.tokenizer.bodies
        door.inside(bodies.take, bodies.limit)
        stream = talk(door, "Encode").send(*items(image, *range(5))).end()
        refused = door.viq.Encode.future(pb.EncodeRequest(items=items(image, "one")))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert bodies.held_now == bodies.limit
        door.inside(bodies.give, bodies.limit)
        assert len(stream.rest()) == 5
        assert bodies.held_now == 0


def test_streams_leave_a_part_of_the_bytes_of_all_requests_to_those_that_do_not_wait(
    open_door: Open, talk: Begin, make_image: MakeImage, stuck: Stuck
) -> None:
    image = make_image()
    each = items(image, 10)[0].ByteSize()

    def change(tokenizer: Tokenizer) -> None:
        tokenizer.bodies.resize(12 * each)
        stuck.into(tokenizer)

    with open_door(change=change) as door:
        bodies = door.tokenizer.bodies
        streams = [talk(door, "Encode").send(*items(image, *range(10, 30))).end() for _ in range(2)]
        door.until(lambda: stuck.begun == 9)
        features = door.viq.Embed(pb.EmbedRequest(items=items(image, "one"))).results[0].features
        assert features.n == 6
        assert (stuck.begun, bodies.held_now) == (9, 9 * each)
        door.inside(stuck.let_go.set)
        assert [len(stream.rest()) for stream in streams] == [20, 20]
        assert bodies.held_now == 0
