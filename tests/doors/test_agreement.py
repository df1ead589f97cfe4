"""One image through every door: equal codes, features and pictures, and the fingerprint on every reply."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ

if TYPE_CHECKING:
    from tests.doors.conftest import Server

MakePng = Callable[..., bytes]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
SHAPES = ((24, 40), (1, 1), (130, 67), (16, 200))


@pytest.fixture(scope="module")
def images(make_png: MakePng) -> list[bytes]:
    return [make_png(*shape) for shape in SHAPES]


@pytest.fixture(scope="module")
def codes(model: ViQ, images: list[bytes]) -> list[Codes]:
    """What the library makes of each image by itself."""
    return [model.encode([Image.open(io.BytesIO(one))])[0] for one in images]


@pytest.mark.parametrize("door", DOORS)
def test_codes_are_those_of_the_library_alone_and_several_at_a_time(
    server: Server, door: str, images: list[bytes], codes: list[Codes]
) -> None:
    together = server.ask(door, "encode", images)
    assert together.items == codes
    for image, expected in zip(images, codes, strict=True):
        assert server.ask(door, "encode", [image]).items == [expected]


@pytest.mark.parametrize("door", DOORS)
def test_features_are_those_of_the_library(server: Server, door: str, model: ViQ, codes: list[Codes]) -> None:
    expected = [one.numpy() for one in model.embed(codes)]
    for count in (1, len(codes)):
        reply = server.ask(door, "embed", codes[:count])
        assert reply.good, reply
        for found, features in zip(reply.items, expected, strict=False):
            np.testing.assert_array_equal(found, features)
        assert len(reply.items) == count


def test_pictures_are_the_same_through_every_door(server: Server, model: ViQ, codes: list[Codes]) -> None:
    replies = [server.ask(door, "decode", codes) for door in DOORS]
    for index, one in enumerate(codes):
        first, *others = [reply.items[index] for reply in replies]
        for other in others:
            np.testing.assert_array_equal(first, other)
        # The promise is about codes: how a picture's sums are rounded depends on the number of threads.
        np.testing.assert_allclose(first, model.decode([one])[0], atol=1)
    assert {len(reply.items) for reply in replies} == {len(codes)}


@pytest.mark.parametrize("form", ["application/json", "application/octet-stream", "application/x-npz"])
def test_every_form_of_the_http_reply_holds_the_same_codes(
    server: Server, form: str, images: list[bytes], codes: list[Codes]
) -> None:
    reply = server.http.post("/v1/encode", content=images[2], headers={"Accept": form})
    if form == "application/x-npz":
        assert Codes.from_npz(reply.content) == codes[2]
    elif form == "application/octet-stream":
        assert reply.content == codes[2].to_bytes()
        assert reply.headers["ViQ-Grid"] == "{},{}".format(*codes[2].grid)
        assert reply.headers["ViQ-Image-Size"] == "{},{}".format(*codes[2].image_size)
    else:
        (result,) = reply.json()["results"]
        assert result == {
            "codes": codes[2].flat.tolist(),
            "grid": list(codes[2].grid),
            "image_size": list(codes[2].image_size),
        }
    assert reply.headers["ViQ-Fingerprint"] == codes[2].fingerprint


@pytest.mark.parametrize("door", DOORS)
def test_good_and_bad_replies_carry_fingerprint_and_request_id(
    server: Server, door: str, model: ViQ, images: list[bytes]
) -> None:
    for inputs, good in ((images[:1], True), ([b"no image"], False)):
        reply = server.ask(door, "encode", inputs, request_id="my-request.1")
        assert reply.good is good
        assert reply.fingerprint == model.fingerprint
        assert reply.headers["x-request-id"] == "my-request.1"
        made = server.ask(door, "encode", inputs, request_id="not well formed")
        assert made.headers["x-request-id"] not in ("", "not well formed")


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("part", ["family", "whole"])
def test_an_expected_fingerprint_that_is_met_changes_nothing(
    server: Server, door: str, model: ViQ, images: list[bytes], codes: list[Codes], part: str
) -> None:
    expect = model.fingerprint if part == "whole" else model.family
    assert server.ask(door, "encode", images[:1], expect=expect).items == codes[:1]


def test_what_one_door_made_another_one_reads(server: Server, images: list[bytes], model: ViQ) -> None:
    picture = model.decode(model.encode_pixels([np.full((24, 40, 3), 7, np.uint8)]))[0].shape
    for maker, reader in zip(DOORS, (*DOORS[1:], DOORS[0]), strict=True):
        made = server.ask(maker, "encode", images[:1]).items
        (back,) = server.ask(reader, "decode", made).items
        assert back.shape == picture
