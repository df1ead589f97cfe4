"""What calls leave behind: nothing of this project that only a collection of garbage would free."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.garbage import left_behind

from viq_serving.pb import viq_pb2 as pb

if TYPE_CHECKING:
    from tests.rpc.conftest import Door

MakeImage = Callable[..., bytes]

OURS = ("viq.", "viq_serving.rpc", "viq_serving.exchange", "viq_serving.types", "viq_serving.bombs", "PIL.")


@pytest.mark.parametrize(
    ("size", "sound", "status"),
    [
        ("", True, grpc.StatusCode.OK),
        ("", False, grpc.StatusCode.OK),  # the item's own error
        ("huge", True, grpc.StatusCode.NOT_FOUND),
    ],
)
def test_a_call_leaves_no_cycle(
    door: Door, make_image: MakeImage, size: str, sound: bool, status: grpc.StatusCode
) -> None:
    asked = pb.EncodeRequest(items=[pb.Item(image=make_image() if sound else b"no image " * 1000)], size=size)

    def ask(times: int) -> None:
        for _ in range(times):
            if status is grpc.StatusCode.OK:
                assert door.viq.Encode(asked).results[0].HasField("codes") is sound
                continue
            with pytest.raises(grpc.RpcError) as raised:
                door.viq.Encode(asked)
            assert raised.value.code() is status
        door.sample("viq_requests_total")  # the loop has done what it had put off

    ask(2)  # what is made once is not meant
    with left_behind() as found:
        ask(5)
    kinds = sorted({f"{type(one).__module__}.{type(one).__qualname__}" for one in found})
    assert not [kind for kind in kinds if kind.startswith(OURS)], kinds
