"""What the methods of the native service answer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from viq import Codes, ViQ
from viq_serving.images import ImageLimits, decode, encode_picture
from viq_serving.pb import viq_pb2 as pb

if TYPE_CHECKING:
    from tests.rpc.conftest import Door

MakeImage = Callable[..., bytes]

JUNK = b"no image at all"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return decode(data, ImageLimits())


def codes_in(result: pb.Result) -> Codes:
    one = result.codes
    return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)


def codes_message(one: Codes) -> pb.Codes:
    (h, w), (height, width) = one.grid, one.image_size
    data, size, fingerprint = one.to_bytes(), one.size, one.fingerprint
    return pb.Codes(data=data, h=h, w=w, height=height, width=width, size=size, fingerprint=fingerprint)


def rows(chunk: pb.FeatureChunk) -> npt.NDArray[np.generic]:
    kind = {1: np.float32, 2: np.float16, 3: np.uint16}[chunk.dtype]
    return np.frombuffer(chunk.data, kind).reshape(chunk.n, chunk.c)


def bits(tensor: torch.Tensor, dtype: str) -> npt.NDArray[np.generic]:
    cast = tensor.detach().to(getattr(torch, dtype))
    return cast.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else cast.numpy()


@pytest.fixture(scope="module")
def images(make_image: MakeImage) -> list[bytes]:
    shapes = ((40, 24, "PNG"), (16, 16, "JPEG"), (33, 70, "WEBP"))
    return [make_image(width, height, form, seed) for seed, (width, height, form) in enumerate(shapes)]


@pytest.fixture(scope="module")
def codes(model: ViQ, images: list[bytes]) -> list[Codes]:
    return [model.encode([pixels(image)])[0] for image in images]


def test_encode_gives_the_codes_of_the_library(door: Door, images: list[bytes], codes: list[Codes]) -> None:
    reply = door.viq.Encode(pb.EncodeRequest(items=[pb.Item(image=image) for image in images]))
    assert [codes_in(result) for result in reply.results] == codes
    info = door.tokenizer.model()
    assert (reply.model.size, reply.model.fingerprint) == (info.size, info.fingerprint)
    assert (reply.model.codebook_size, tuple(reply.model.levels)) == (info.codebook_size, info.levels)
    assert not reply.model.untrained
    assert reply.timings.compute_ms > 0


def test_results_keep_the_requests_order_and_keys_though_keys_are_equal(
    door: Door, images: list[bytes], codes: list[Codes]
) -> None:
    keys = ["same", "", "same", "ключ"]
    order = [0, 1, 2, 0]
    items = [pb.Item(key=key, image=images[which]) for key, which in zip(keys, order, strict=True)]
    results = door.viq.Encode(pb.EncodeRequest(items=items)).results
    assert [result.key for result in results] == keys
    assert [codes_in(result) for result in results] == [codes[which] for which in order]


def test_one_bad_item_among_good_ones_fails_alone(door: Door, make_image: MakeImage) -> None:
    good = make_image(16, 16)
    items = [pb.Item(key=str(index), image=good) for index in range(64)]
    items[17] = pb.Item(key="bad", image=JUNK)
    results = door.viq.Encode(pb.EncodeRequest(items=items)).results
    assert len(results) == 64
    assert [index for index, result in enumerate(results) if result.HasField("status")] == [17]
    assert all(result.WhichOneof("content") == "codes" for result in results if result.key != "bad")
    bad = results[17]
    assert (bad.key, bad.status.code, bad.status.grpc_code) == ("bad", "invalid_input", 3)
    assert "not an image" in bad.status.message
    assert bad.WhichOneof("content") is None


def test_a_request_whose_items_all_fail_is_answered_and_counted_as_the_first_ones_error(door: Door) -> None:
    labels = {"method": "encode", "door": "grpc", "size": "nano", "priority": "interactive"}
    before = door.sample("viq_requests_total", **labels, outcome="invalid_input")
    reply = door.viq.Encode(pb.EncodeRequest(items=[pb.Item(image=JUNK), pb.Item(image=b"")]))
    assert [result.status.code for result in reply.results] == ["invalid_input"] * 2
    assert door.sample("viq_requests_total", **labels, outcome="invalid_input") == before + 1


@pytest.mark.parametrize("method", ["Encode", "Embed"])
def test_exif_and_alpha_are_options_of_each_item(door: Door, model: ViQ, method: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tall, clear = io.BytesIO(), io.BytesIO()
    noise = np.random.default_rng(5).integers(0, 256, (32, 16, 4), np.uint8)
    Image.fromarray(noise[..., :3]).save(tall, "PNG", exif=exif)
    Image.fromarray(noise, "RGBA").save(clear, "PNG")
    options = [
        (tall, None),
        (tall, pb.ItemOptions()),
        (tall, pb.ItemOptions(exif=True)),
        (tall, pb.ItemOptions(exif=False)),
        (clear, None),
        (clear, pb.ItemOptions(alpha=pb.ALPHA_WHITE)),
        (clear, pb.ItemOptions(alpha=pb.ALPHA_DROP)),
    ]
    items = [pb.Item(image=file.getvalue(), options=option) for file, option in options]
    results = getattr(door.viq, method)({"Encode": pb.EncodeRequest, "Embed": pb.EmbedRequest}[method](items=items))
    turned, plain = np.rot90(noise[..., :3], -1), noise[..., :3]
    white = decode(clear.getvalue(), ImageLimits(), alpha="white")
    expected = model.encode([np.ascontiguousarray(one) for one in (turned, plain, white, plain)])
    order = [0, 0, 0, 1, 2, 2, 3]
    assert not np.array_equal(white, plain)
    if method == "Encode":
        assert [codes_in(result) for result in results.results] == [expected[which] for which in order]
    else:
        features = [model.embed([expected[which]])[0].numpy() for which in order]
        for result, wanted in zip(results.results, features, strict=True):
            assert np.array_equal(rows(result.features), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_of_images_and_of_codes_are_bit_equal_to_the_library(
    door: Door, model: ViQ, images: list[bytes], codes: list[Codes], dtype: str
) -> None:
    items = [pb.Item(image=image) for image in images] + [pb.Item(codes=codes_message(one)) for one in codes]
    name = f"FEATURE_DTYPE_{dtype.upper()}"
    reply = door.viq.Embed(pb.EmbedRequest(items=items, dtype=name))
    expected = [bits(model.embed([one])[0], dtype) for one in codes] * 2
    for result, wanted in zip(reply.results, expected, strict=True):
        chunk = result.features
        assert (chunk.dtype, chunk.row_offset, chunk.last) == (pb.FeatureDtype.Value(name), 0, True)
        assert rows(chunk).dtype == DTYPES[dtype]
        assert np.array_equal(rows(chunk), wanted)


def test_features_are_float32_unless_asked_otherwise(door: Door, images: list[bytes]) -> None:
    reply = door.viq.Embed(pb.EmbedRequest(items=[pb.Item(image=images[0])]))
    assert reply.results[0].features.dtype == pb.FEATURE_DTYPE_FLOAT32


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_decode_gives_the_pictures_of_the_library(door: Door, model: ViQ, codes: list[Codes], form: str) -> None:
    items = [pb.Item(key=str(index), codes=codes_message(one)) for index, one in enumerate(codes)]
    asked = pb.DecodeRequest(items=items, format=f"PICTURE_FORMAT_{form}")
    results = door.viq.Decode(asked).results
    for one, result in zip(codes, results, strict=True):
        assert Image.open(io.BytesIO(result.image)).format == form
        wanted = encode_picture(model.decode([one])[0], form.lower())  # type: ignore[arg-type]
        # Threads and batches move a value by a bit, rounding makes that one, and lossy formats some more.
        np.testing.assert_allclose(pixels(result.image), pixels(wanted), atol=1 if form == "PNG" else 16)
    assert [result.key for result in results] == ["0", "1", "2"]


def test_what_encode_gave_can_be_decoded_as_it_is(door: Door, images: list[bytes]) -> None:
    made = door.viq.Encode(pb.EncodeRequest(items=[pb.Item(image=images[2])])).results[0].codes
    picture = door.viq.Decode(pb.DecodeRequest(items=[pb.Item(codes=made)])).results[0].image
    assert Image.open(io.BytesIO(picture)).size == (33, 70)


def test_codes_need_say_neither_size_nor_pixels_nor_fingerprint(door: Door, model: ViQ, codes: list[Codes]) -> None:
    one = codes[2]
    bare = pb.Codes(data=one.to_bytes(), h=one.grid[0], w=one.grid[1])
    picture = door.viq.Decode(pb.DecodeRequest(items=[pb.Item(codes=bare)])).results[0].image
    whole = Codes(one.array, (16 * one.grid[0], 16 * one.grid[1]), "nano")
    np.testing.assert_allclose(pixels(picture), model.decode([whole])[0], atol=1)


def test_plan_is_what_the_tokenizer_plans(door: Door) -> None:
    sides = [(480, 640), (1, 1), (5000, 5000), (9000, 9000), (2**31 - 1, 2**31 - 1)]
    reply = door.viq.Plan(pb.PlanRequest(images=[pb.ImageSize(height=h, width=w) for h, w in sides]))
    assert reply.model.size == "nano"
    for (height, width), answer in zip(sides, reply.results, strict=True):
        plan = door.tokenizer.plan(height, width)
        assert ((answer.h, answer.w), (answer.height, answer.width)) == (plan.grid, plan.image_size)
        assert (answer.patches, answer.codes, answer.cost) == (plan.patches, plan.codes, min(plan.cost, 2**64 - 1))
        assert (answer.fits, answer.limit) == (plan.limit is None, plan.limit or "")
    assert [answer.fits for answer in reply.results] == [True, True, False, False, False]


def test_info_tells_the_loaded_sizes_and_every_limit(door: Door) -> None:
    reply, model = door.viq.Info(pb.InfoRequest()), door.tokenizer.model()
    (row,) = reply.models
    assert (row.model.size, row.model.fingerprint) == (model.size, model.fingerprint)
    assert (row.dtype, row.device, row.width, row.is_default) == (model.dtype, model.device, model.width, True)
    assert dict(reply.limits) == door.settings.limits()
    assert reply.limits["max_message_bytes"] == 64 * 2**20
