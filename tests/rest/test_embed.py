"""/v1/embed: of images and of codes, as npy, npz and JSON, in each type."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from viq import Codes, ViQ

MakeImage = Callable[..., bytes]
Array = np.ndarray[Any, Any]


def npy(data: bytes) -> Array:
    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))


@pytest.fixture
def expected(codes: Codes) -> Array:
    """What the library makes of the codes."""
    return np.asarray(ViQ.from_pretrained().embed([codes])[0].float().numpy())


def test_an_image_gives_npy_of_its_features(client: httpx.Client, make_image: MakeImage, expected: Array) -> None:
    reply = client.post("/v1/embed", content=make_image())
    assert reply.headers["Content-Type"] == "application/x-npy"
    assert (reply.headers["ViQ-Dtype"], reply.headers["ViQ-Grid"]) == ("float32", "2,3")
    assert reply.headers["ViQ-Image-Size"] == "24,40"
    features = npy(reply.content)
    assert features.dtype == np.float32
    assert np.array_equal(features, expected)


def test_codes_in_every_form_give_the_same_features(
    client: httpx.Client, make_image: MakeImage, codes: Codes, expected: Array
) -> None:
    reply = client.post("/v1/encode", content=make_image())
    bodies = [
        (reply.content, {"Content-Type": "application/json"}),
        (codes.npz_bytes(), {"Content-Type": "application/x-npz"}),
        (codes.to_bytes(), {"Content-Type": "application/octet-stream", "ViQ-Grid": "2,3", "ViQ-Image-Size": "24,40"}),
    ]
    for body, headers in bodies:
        embedded = client.post("/v1/embed", content=body, headers=headers)
        assert embedded.headers["Content-Type"] == "application/x-npy"
        assert np.array_equal(npy(embedded.content), expected)


def test_octet_stream_without_a_grid_is_an_image(client: httpx.Client, make_image: MakeImage, expected: Array) -> None:
    reply = client.post("/v1/embed", content=make_image(), headers={"Content-Type": "application/octet-stream"})
    assert np.array_equal(npy(reply.content), expected)


def test_several_images_give_one_packed_npz(client: httpx.Client, make_image: MakeImage, expected: Array) -> None:
    parts = [("image", make_image()), ("image", make_image(16, 33, seed=1))]
    reply = client.post("/v1/embed", files=parts)
    assert reply.headers["Content-Type"] == "application/x-npz"
    with np.load(io.BytesIO(reply.content), allow_pickle=False) as arrays:
        assert set(arrays.files) == {"features", "cu_seqlens", "grid_hw"}
        assert arrays["cu_seqlens"].tolist() == [0, 6, 9]
        assert arrays["grid_hw"].tolist() == [[2, 3], [3, 1]]
        assert arrays["features"].shape == (9, expected.shape[1])
        assert np.array_equal(arrays["features"][:6], expected)


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "<f4"), ("float16", "<f2"), ("bfloat16", "<u2")])
def test_features_come_in_the_type_asked(
    client: httpx.Client, make_image: MakeImage, expected: Array, dtype: str, stored: str
) -> None:
    reply = client.post(f"/v1/embed?dtype={dtype}", content=make_image())
    features = npy(reply.content)
    assert reply.headers["ViQ-Dtype"] == dtype
    assert features.dtype == np.dtype(stored)
    if dtype == "bfloat16":
        features = (features.astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(features, expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_json_holds_the_numbers(client: httpx.Client, make_image: MakeImage, expected: Array, dtype: str) -> None:
    body = client.post(f"/v1/embed?format=json&dtype={dtype}", files={"image": ("a.png", make_image())}).json()
    (result,) = body["results"]
    assert (result["name"], result["grid"], result["image_size"]) == ("a.png", [2, 3], [24, 40])
    assert np.allclose(result["features"], expected, rtol=2**-7, atol=1e-6)


def test_json_answers_the_good_images_beside_a_bad_one(client: httpx.Client, make_image: MakeImage) -> None:
    parts = [("image", make_image()), ("image", b"no image")]
    good, bad = client.post("/v1/embed?format=json", files=parts).json()["results"]
    assert len(good["features"]) == 6
    assert bad["error"]["code"] == "invalid_input"


def test_npz_cannot_hold_an_error_and_says_which_image_it_is(client: httpx.Client, make_image: MakeImage) -> None:
    reply = client.post("/v1/embed", files=[("image", make_image()), ("image", b"no image")])
    assert reply.status_code == 422
    assert "item 1" in reply.json()["error"]["message"]


def test_codes_of_other_weights_are_refused_unless_allowed(client: httpx.Client, codes: Codes) -> None:
    foreign = {**codes.to_dict(), "fingerprint": "0123456789abcdef.01234567"}
    assert client.post("/v1/embed", json=foreign).status_code == 409
    assert client.post("/v1/embed?any_fingerprint=1", json=foreign).status_code == 200


def test_only_octet_stream_can_be_raw_codes(client: httpx.Client, make_image: MakeImage, expected: Array) -> None:
    reply = client.post("/v1/embed", content=make_image(), headers={"Content-Type": "image/png", "ViQ-Grid": "2,3"})
    assert np.array_equal(np.load(io.BytesIO(reply.content)), expected)
