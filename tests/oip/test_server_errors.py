"""Errors of a server as it is: its limits, its keys, loading, draining, full or failing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from tests.oip.refusing import INFER, KINDS, Refused, codes, ints

from viq_serving.errors import Internal, Overloaded
from viq_serving.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.oip.conftest import Array, MakePng, MakeStock, OpenDoors, Serve


def test_over_a_limit_is_413_with_the_limit_in_the_message(
    serve: Serve, make_stock: MakeStock, exception: Any, make_png: MakePng
) -> None:
    flags = ("--max-images", "2", "--max-patches", "8", "--max-body-bytes", "20000", "--max-message-bytes", "20000")
    small, large = make_png(16, 16), make_png(64, 64)
    with serve(*flags) as address:
        for kind in KINDS:
            refused = Refused(make_stock(kind, address), exception)
            many = np.array([small] * 3, object)
            refused(413, "3 images in one request, the limit is 2", "viq-encode", {"image": many})
            refused(413, "the limit is 2", "viq-decode", {"codes": codes(12), "grid_hw": ints([1, 1], [1, 1], [1, 1])})
            refused(413, "image 1: ", "viq-encode", {"image": np.array([small, large], object)})
            refused(413, "the limit is 8", "viq-encode", {"image": np.array([large], object)})
            refused(413, "20000", "viq-encode", {"image": np.array([bytes(21000)], object)})


def test_with_keys_on_only_health_is_open(
    serve: Serve, make_stock: MakeStock, exception: Any, image: dict[str, Array]
) -> None:
    with serve("--api-keys", "sesame") as address:
        for kind in KINDS:
            client = make_stock(kind, address)
            if client.is_http:  # on gRPC it is grpc.health.v1 that is open
                assert client.call("is_server_live")
                assert client.call("is_server_ready")
            Refused(client, exception)(401, "key", "viq-encode", image)
            wrong = {"authorization": "Bearer sesamo"}
            Refused(client, exception)(401, "key", "viq-encode", image, headers=wrong)
            with pytest.raises(exception):
                client.call("get_server_metadata")
            right = {"authorization": "Bearer sesame"}
            assert client.call("get_server_metadata", headers=right)
            assert client.infer("viq-encode", image, headers=right).as_numpy("codes").size


def test_while_it_loads_the_server_is_alive_but_refuses_with_503(
    open_doors: OpenDoors, make_stock: MakeStock, exception: Any, image: dict[str, Array]
) -> None:
    with open_doors(load=False) as address:
        for kind in KINDS:
            client = make_stock(kind, address)
            assert client.call("is_server_live")
            assert not client.call("is_server_ready")
            assert not client.call("is_model_ready", "viq-encode")
            assert client.metadata("get_server_metadata")["name"] == "viq-serving"
            index = client.metadata("get_model_repository_index")
            assert {one["state"] for one in (index if client.is_http else index["models"])} == {"LOADING"}
            Refused(client, exception)(503, "still loading", "viq-encode", image)
            with pytest.raises(exception) as caught:
                client.call("get_model_metadata", "viq-encode")
            assert caught.value.status() == ("503" if client.is_http else "StatusCode.UNAVAILABLE")


def test_while_it_drains_the_server_is_not_ready_but_still_answers(
    open_doors: OpenDoors, make_stock: MakeStock, image: dict[str, Array]
) -> None:
    with open_doors(change=Tokenizer.drain) as address:
        for kind in KINDS:
            client = make_stock(kind, address)
            assert not client.call("is_server_ready")
            assert not client.call("is_model_ready", "viq-encode")
            assert client.infer("viq-encode", image).as_numpy("codes").size


def failing(error: Exception) -> Callable[[Tokenizer], None]:
    """Make every encode fail with `error`."""

    async def encode(*arguments: object) -> object:
        raise error

    return lambda tokenizer: setattr(tokenizer, "encode", encode)


@pytest.mark.parametrize("error", [RuntimeError("secret"), Internal()])
def test_what_nobody_foresaw_is_500_without_details(
    open_doors: OpenDoors, make_stock: MakeStock, exception: Any, image: dict[str, Array], error: Exception
) -> None:
    with open_doors(change=failing(error)) as address:
        for kind in KINDS:
            client = make_stock(kind, address)
            with pytest.raises(exception) as caught:
                client.infer("viq-encode", image)
            assert caught.value.status() == ("500" if client.is_http else "StatusCode.INTERNAL")
            assert caught.value.message() == "internal error"


def test_no_room_is_429(open_doors: OpenDoors, make_stock: MakeStock, exception: Any, image: dict[str, Array]) -> None:
    with open_doors(change=failing(Overloaded("the queue is full", 2.5))) as address:
        for kind in KINDS:
            Refused(make_stock(kind, address), exception)(429, "the queue is full", "viq-encode", image)


def test_no_room_says_when_to_come_again(open_doors: OpenDoors, make_png: MakePng) -> None:
    with open_doors(change=failing(Overloaded("the queue is full", 2.5))) as address:
        headers = {"Inference-Header-Content-Length": "0"}
        reply = httpx.post(f"{address.url}{INFER}", content=make_png(), headers=headers)
        assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("3", "2500")
