"""A device that is busy: what is refused, what is given up, who is unharmed. The gate before the device decides."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from viq_serving.pb import open_inference_pb2 as oip
from viq_serving.pb import viq_pb2 as pb

if TYPE_CHECKING:
    from tests.doors.conftest import Reply, Server

MakePng = Callable[..., bytes]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
ROOM = 600  # patches that the queue of the server holds


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Callers beside the test."""
    with ThreadPoolExecutor(64) as pool:
        yield pool


@pytest.fixture
def busy(server: Server, pool: ThreadPoolExecutor, make_png: MakePng) -> Iterator[Server]:
    """The server, its device held by an image of one patch; whoever comes now waits until the gate is opened."""
    before = server.gate.count("taken")
    server.gate.close()
    plug = pool.submit(server.ask, "http", "encode", [make_png(16, 16)])
    _until(lambda: server.gate.count("taken") == before + 1)
    yield server
    server.gate.open()
    assert plug.result().good


def _until(condition: Callable[[], object]) -> None:
    ends = monotonic() + 60
    while not condition():
        assert monotonic() < ends
        Event().wait(0.005)


def fill(server: Server, pool: ThreadPoolExecutor, images: Sequence[bytes]) -> list[Future[Reply]]:
    """Requests of one image each, through all doors in turn, that wait in the queue."""
    waiting = server.metric("viq_queue_requests")
    asked = [pool.submit(server.ask, DOORS[n % 4], "encode", [one]) for n, one in enumerate(images)]
    server.waits(int(waiting) + len(images))
    return asked


@pytest.mark.parametrize("door", DOORS)
def test_a_full_queue_refuses_at_once_says_when_to_come_again_and_harms_nobody(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng, door: str
) -> None:
    images = [make_png(160, 160, seed=n) for n in range(5)]  # 500 patches
    waiting = fill(busy, pool, images)
    late = make_png(176, 160)
    reply = busy.ask(door, "encode", [late])  # 110 more
    assert reply.status == (429 if "http" in door else "RESOURCE_EXHAUSTED")
    assert reply.code == ("" if door == "oip_http" else "overloaded")
    assert f"the limit is {ROOM}" in reply.message
    assert "110 more" in reply.message
    if "http" in door:
        wait_ms = int(reply.headers["retry-after-ms"])
        assert int(reply.headers["retry-after"]) == -(-wait_ms // 1000)
    else:
        wait_ms = int(reply.headers["grpc-retry-pushback-ms"])
    assert 0 < wait_ms <= 60_000
    assert reply.fingerprint
    assert busy.http.get("/readyz").status_code == 200
    small = pool.submit(busy.ask, door, "encode", [make_png(16, 16)])  # what fits is still welcome
    busy.waits(6)
    busy.gate.open()
    assert all(one.result().good for one in (*waiting, small))
    assert busy.ask(door, "encode", [late]).good


@pytest.mark.parametrize("door", DOORS)
def test_a_request_of_several_images_is_admitted_whole_or_not_at_all(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng, door: str
) -> None:
    waiting = fill(busy, pool, [make_png(160, 160, seed=n) for n in range(5)])
    decoded = busy.gate.count("decoded")
    reply = busy.ask(door, "encode", [make_png(80, 96)] * 4)  # 30 patches each, of 99 left
    assert reply.status in (429, "RESOURCE_EXHAUSTED")
    assert busy.metric("viq_queue_requests") == 5
    assert busy.gate.count("decoded") == decoded
    busy.gate.open()
    assert all(one.result().good for one in waiting)


def test_a_burst_of_large_images_is_refused_before_any_is_decoded(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng
) -> None:
    waiting = fill(busy, pool, [make_png(160, 160, seed=n) for n in range(5)])
    decoded, taken = busy.gate.count("decoded"), busy.gate.count("taken")
    refused = busy.metric("viq_rejected_total", reason="overloaded")
    large = make_png(320, 320)
    burst = [pool.submit(busy.ask, DOORS[n % 4], "encode", [large]) for n in range(48)]
    assert {one.result().status for one in burst} == {429, "RESOURCE_EXHAUSTED"}
    assert (busy.gate.count("decoded"), busy.gate.count("taken")) == (decoded, taken)
    assert busy.metric("viq_rejected_total", reason="overloaded") == refused + 48
    busy.gate.open()
    assert all(one.result().good for one in waiting)
    assert busy.gate.count("decoded") == decoded


@pytest.mark.parametrize("door", DOORS)
def test_a_deadline_that_passes_in_the_queue_ends_the_request_alone(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng, door: str
) -> None:
    neighbours = fill(busy, pool, [make_png(48, 48, seed=n) for n in range(4)])
    names = {"http": "http", "grpc": "grpc", "oip_http": "oip_http", "oip_grpc": "oip_grpc"}
    labels = {"method": "encode", "door": names[door], "outcome": "deadline_exceeded"}
    before = busy.metric("viq_requests_total", **labels)
    reply = busy.ask(door, "encode", [make_png()], timeout_ms=1500)
    assert reply.status in (504, "DEADLINE_EXCEEDED"), reply
    if door != "grpc":  # there the client's own clock may be first
        assert "deadline" in reply.message
    _until(lambda: busy.metric("viq_requests_total", **labels) == before + 1)
    busy.waits(4)
    busy.gate.open()
    assert all(one.result().good for one in neighbours)


@pytest.mark.parametrize("door", DOORS)
def test_a_deadline_that_has_passed_or_cannot_be_met_is_refused_before_decoding(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng, door: str
) -> None:
    neighbours = fill(busy, pool, [make_png(160, 160, seed=n) for n in range(4)])
    decoded = busy.gate.count("decoded")
    reply = busy.ask(door, "encode", [make_png(160, 160)], timeout_ms=1)
    assert reply.status in (504, "DEADLINE_EXCEEDED"), reply
    assert busy.gate.count("decoded") == decoded
    busy.gate.open()
    assert all(one.result().good for one in neighbours)


def call(server: Server, door: str, image: bytes) -> Callable[[], object]:
    """Begin a request through `door`; what comes back makes the client vanish."""
    if door in ("grpc", "oip_grpc"):
        if door == "grpc":
            path, message = "viq.v1.ViQ/Encode", pb.EncodeRequest(items=[pb.Item(image=image)]).SerializeToString()
        else:
            tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
            infer = oip.ModelInferRequest(model_name="viq-encode", inputs=[tensor])
            infer.raw_input_contents.append(len(image).to_bytes(4, "little") + image)
            path, message = "inference.GRPCInferenceService/ModelInfer", infer.SerializeToString()
        channel = grpc.insecure_channel(server.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
        method: Any = channel.unary_unary(f"/{path}")
        asked = method.future(message)
        return lambda: (asked.done(), channel.close())  # a call that nobody holds would be cancelled at once
    host, port = server.url.removeprefix("http://").split(":")
    path = "/v1/encode" if door == "http" else "/v2/models/viq-encode/infer"
    length = "" if door == "http" else "Inference-Header-Content-Length: 0\r\n"
    wire = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}Content-Length: {len(image)}\r\n\r\n"
    wire.sendall(head.encode() + image)
    return wire.close


@pytest.mark.parametrize("where", ["in the queue", "in the batch"])
@pytest.mark.parametrize("door", DOORS)
def test_a_client_that_vanishes_is_counted_and_its_neighbours_are_answered(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng, door: str, where: str
) -> None:
    labels = {"method": "encode", "door": door, "outcome": "cancelled"}
    before = busy.metric("viq_requests_total", **labels)
    patches = busy.metric("viq_patches_total", method="encode")
    vanish = call(busy, door, make_png(32, 32, seed=9))
    busy.waits(1)
    neighbours = fill(busy, pool, [make_png(48, 48, seed=n) for n in range(4)])
    if where == "in the batch":
        launched = busy.gate.count("launched")
        busy.gate.close(1, "launched")  # the plug goes on, and all that waits becomes the batch after it
        busy.gate.open("taken")
        _until(lambda: busy.gate.count("launched") == launched + 2)
        busy.waits(0)
    vanish()
    _until(lambda: busy.metric("viq_requests_total", **labels) == before + 1)
    busy.waits(0 if where == "in the batch" else 4)
    busy.gate.open()
    assert all(one.result().good for one in neighbours)
    busy.waits(0)
    assert busy.metric("viq_queue_patches") == 0
    done = busy.metric("viq_patches_total", method="encode") - patches
    assert done == 4 * 9 + 1  # neighbours and plug: nothing was answered to the one who left
    whole = busy.ask(door, "encode", [make_png(320, 352)])  # 440 patches: its room was given back
    assert whole.good


def test_an_exploding_image_fails_alone_and_its_batch_is_answered(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng
) -> None:
    good = fill(busy, pool, [make_png(48, 48, seed=n) for n in range(4)])
    bad = fill(busy, pool, [make_png(80, 16)] * 4)  # 5x1 patches
    more = fill(busy, pool, [make_png(48, 48, seed=n) for n in range(4)])
    busy.gate.open()
    assert all(one.result().good for one in (*good, *more))
    assert [one.result().items for one in good] == [one.result().items for one in more]
    statuses: list[Any] = [one.result().status for one in bad]
    assert statuses == [500, "INTERNAL", 500, "INTERNAL"]


def test_a_corrupt_image_among_63_good_ones_fails_alone(
    busy: Server, pool: ThreadPoolExecutor, make_png: MakePng
) -> None:
    good = fill(busy, pool, [make_png(32, 48, seed=n) for n in range(63)])
    broken = make_png(64, 64)[:-4000]
    reply = busy.ask("grpc", "encode", [broken])
    assert (reply.status, reply.code) == ("INVALID_ARGUMENT", "invalid_input")
    busy.gate.open()
    assert all(one.result().good for one in good)
