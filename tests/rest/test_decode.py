"""/v1/decode: codes in every form, pictures in every form, codes that do not fit."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ

MakeImage = Callable[..., bytes]
RAW, NPZ = "application/octet-stream", "application/x-npz"


def pixels_of(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def raw_headers(codes: Codes) -> dict[str, str]:
    return {
        "Content-Type": RAW,
        "ViQ-Grid": f"{codes.grid[0]},{codes.grid[1]}",
        "ViQ-Image-Size": f"{codes.image_size[0]},{codes.image_size[1]}",
        "ViQ-Size": codes.size,
        "ViQ-Fingerprint": codes.fingerprint,
    }


@pytest.fixture
def picture(codes: Codes) -> np.ndarray[Any, Any]:
    """What the library makes of the codes, but for a rounding that threads and batches may move."""
    return ViQ.from_pretrained().decode([codes])[0]


@pytest.mark.parametrize("form", ["list", "base64"])
@pytest.mark.parametrize("accept", ["*/*", "application/json", "image/png", "text/html, */*;q=0.1"])
def test_the_json_reply_of_encode_comes_back_as_a_picture(
    client: httpx.Client, make_image: MakeImage, picture: np.ndarray[Any, Any], form: str, accept: str
) -> None:
    encoded = client.post(f"/v1/encode?codes={form}", content=make_image())
    headers = {"Content-Type": "application/json", "Accept": accept}
    reply = client.post("/v1/decode", content=encoded.content, headers=headers)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "image/png")
    np.testing.assert_allclose(pixels_of(reply.content), picture, atol=1)


def test_raw_codes_with_the_reply_headers_decode(
    client: httpx.Client, codes: Codes, picture: np.ndarray[Any, Any]
) -> None:
    reply = client.post("/v1/decode", content=codes.to_bytes(), headers=raw_headers(codes))
    np.testing.assert_allclose(pixels_of(reply.content), picture, atol=1)


def test_raw_codes_need_only_their_grid(client: httpx.Client, codes: Codes) -> None:
    reply = client.post("/v1/decode", content=codes.to_bytes(), headers={"ViQ-Grid": "2,3"})
    assert pixels_of(reply.content).shape == (32, 48, 3)


def test_the_npz_decodes(client: httpx.Client, codes: Codes, picture: np.ndarray[Any, Any]) -> None:
    reply = client.post("/v1/decode", content=codes.npz_bytes(), headers={"Content-Type": NPZ})
    np.testing.assert_allclose(pixels_of(reply.content), picture, atol=1)


def test_one_codes_dict_by_itself_decodes(client: httpx.Client, codes: Codes, picture: np.ndarray[Any, Any]) -> None:
    reply = client.post("/v1/decode", json=codes.to_dict("base64"))
    np.testing.assert_allclose(pixels_of(reply.content), picture, atol=1)


@pytest.mark.parametrize(("accept", "format"), [("image/jpeg", "JPEG"), ("image/webp", "WEBP"), ("image/*", "PNG")])
def test_the_picture_comes_in_the_format_asked(client: httpx.Client, codes: Codes, accept: str, format: str) -> None:
    reply = client.post("/v1/decode", json=codes.to_dict(), headers={"Accept": accept})
    assert reply.headers["Content-Type"] == f"image/{format.lower()}"
    with Image.open(io.BytesIO(reply.content)) as image:
        assert (image.format, image.size) == (format, (40, 24))


def test_a_picture_says_what_made_it(client: httpx.Client, codes: Codes) -> None:
    reply = client.post("/v1/decode", json=codes.to_dict())
    assert reply.headers["ViQ-Size"] == "nano"
    assert reply.headers["ViQ-Image-Size"] == "24,40"
    assert reply.headers["ViQ-Fingerprint"] == codes.fingerprint


def test_one_result_is_json_when_asked(client: httpx.Client, codes: Codes, picture: np.ndarray[Any, Any]) -> None:
    reply = client.post("/v1/decode?format=json", json=codes.to_dict(), headers={"Accept": "image/jpeg"})
    (result,) = reply.json()["results"]
    assert result["image_size"] == [24, 40]
    np.testing.assert_allclose(pixels_of(base64.b64decode(result["image_b64"])), picture, atol=1)


def test_several_results_are_json_in_order_with_their_names(client: httpx.Client, make_image: MakeImage) -> None:
    parts = [("image", (f"{n}.png", make_image(16 * n, 16, seed=n))) for n in (2, 1)]
    encoded = client.post("/v1/encode", files=parts)
    reply = client.post("/v1/decode", content=encoded.content, headers={"Content-Type": "application/json"})
    results = reply.json()["results"]
    assert [(result["name"], result["image_size"]) for result in results] == [("2.png", [16, 32]), ("1.png", [16, 16])]
    assert pixels_of(base64.b64decode(results[0]["image_b64"])).shape == (16, 32, 3)


def test_a_failed_result_of_encode_fails_alone(client: httpx.Client, make_image: MakeImage) -> None:
    encoded = client.post("/v1/encode", files=[("image", b"no image"), ("image", make_image())])
    reply = client.post("/v1/decode", content=encoded.content, headers={"Content-Type": "application/json"})
    bad, good = reply.json()["results"]
    assert reply.status_code == 200
    assert bad["error"]["code"] == "invalid_input"
    assert "image_b64" in good


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"codes": [64000] * 24}, "out of range"),
        ({"codes": [-1] * 24}, "out of range"),
        ({"codes": [70000] * 24}, "out of range"),
        ({"codes": [0] * 23}, "23 codes"),
        ({"codes": [0] * 25}, "25 codes"),
        ({"codes": []}, "0 codes"),
        ({"codes": [0.5] * 24}, "whole numbers"),
        ({"codes": [True] * 24}, "whole numbers"),
        ({"codes": ["0"] * 24}, "whole numbers"),
        ({"codes": [10**30] * 24}, "whole numbers"),
        ({"codes": [[0]] * 24}, "flat list"),
        ({"codes": "AAAA"}, "list of whole numbers"),
        ({"codes": [0] * 24, "codes_b64": ""}, "exactly one"),
        ({"grid": [3, 2]}, "does not fit"),
        ({"grid": [0, 0]}, "grid"),
        ({"grid": [2, -3]}, "grid"),
        ({"grid": [2]}, "grid"),
        ({"grid": [10**4000, 10**4000]}, "grid"),
        ({"image_size": [10**4000, 1]}, "image_size"),
        ({"grid": "2,3"}, "grid"),
        ({"image_size": [33, 40]}, "does not fit"),
        ({"image_size": [16, 40]}, "does not fit"),
        ({"image_size": [24.5, 40]}, "whole numbers"),
        ({"image_size": [24, 40, 3]}, "two whole numbers"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_codes_that_do_not_fit_are_refused(
    client: httpx.Client, codes: Codes, change: dict[str, object], words: str
) -> None:
    result: dict[str, object] = {"image_size": [24, 40], "grid": [2, 3], "codes": codes.flat.tolist(), **change}
    reply = client.post("/v1/decode", json={"model": {"size": "nano"}, "results": [result]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")
    assert words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"results": []},
        {"results": {}},
        {"results": [1]},
        {"results": [], "more": 1},
        {"results": [{}], "model": []},
        {"results": [{}], "model": {"colour": 1}},
        {"results": [{}], "model": {"size": 7}},
        [],
        {},
        "codes",
    ],
)
def test_json_of_another_shape_is_refused(client: httpx.Client, body: object) -> None:
    reply = client.post("/v1/decode", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "ViQ-Grid"),
        ({"ViQ-Grid": "2x3"}, "ViQ-Grid"),
        ({"ViQ-Grid": "2,3,4"}, "ViQ-Grid"),
        ({"ViQ-Grid": "-2,-3"}, "ViQ-Grid"),
        ({"ViQ-Grid": "2,4"}, "24 codes"),
        ({"ViQ-Grid": "2,3", "ViQ-Image-Size": "1,1"}, "does not fit"),
    ],
)
def test_raw_codes_with_wrong_headers_are_refused(
    client: httpx.Client, codes: Codes, headers: dict[str, str], words: str
) -> None:
    reply = client.post("/v1/decode", content=codes.to_bytes(), headers={"Content-Type": RAW, **headers})
    assert reply.status_code == 422
    assert words in reply.json()["error"]["message"]


def test_half_a_code_is_refused(client: httpx.Client, codes: Codes) -> None:
    reply = client.post("/v1/decode", content=codes.to_bytes()[:-1], headers=raw_headers(codes))
    assert reply.status_code == 422


@pytest.mark.parametrize("keep", [0, 30, -30])
def test_a_damaged_npz_is_refused(client: httpx.Client, codes: Codes, keep: int) -> None:
    reply = client.post("/v1/decode", content=codes.npz_bytes()[:keep], headers={"Content-Type": NPZ})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")


def test_codes_of_an_image_over_the_patch_limit_are_refused(client: httpx.Client) -> None:
    codes = Codes(np.zeros((129, 128, 4), np.uint16), (129 * 16, 128 * 16), "nano")
    reply = client.post("/v1/decode", json=codes.to_dict("base64"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    assert "16384" in reply.json()["error"]["message"]


def test_codes_of_other_weights_are_refused_unless_allowed(client: httpx.Client, codes: Codes) -> None:
    foreign = {**codes.to_dict(), "fingerprint": "0123456789abcdef.01234567"}
    refused = client.post("/v1/decode", json=foreign)
    allowed = client.post("/v1/decode?any_fingerprint=1", json=foreign)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "fingerprint_mismatch")
    assert "0123456789abcdef" in refused.json()["error"]["message"]
    assert allowed.status_code == 200


def test_only_the_family_of_codes_counts(client: httpx.Client, codes: Codes) -> None:
    elsewhere = {**codes.to_dict(), "fingerprint": f"{codes.family}.00000000"}
    assert client.post("/v1/decode", json=elsewhere).status_code == 200


def test_codes_without_a_fingerprint_are_taken(client: httpx.Client, codes: Codes) -> None:
    bare = {key: value for key, value in codes.to_dict().items() if key != "fingerprint"}
    assert client.post("/v1/decode", json=bare).status_code == 200


def test_codes_of_a_size_that_is_not_loaded_are_refused(client: httpx.Client, codes: Codes) -> None:
    for size in ("16k", "17k"):
        reply = client.post("/v1/decode", json={**codes.to_dict(), "fingerprint": "", "size": size, "codes": [0] * 24})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_model")


def test_webp_says_when_a_side_is_too_long_for_it(client: httpx.Client) -> None:
    codes = Codes(np.zeros((1, 1025, 4), np.uint16), (1, 1025 * 16), "nano")
    reply = client.post("/v1/decode", json=codes.to_dict("base64"), headers={"Accept": "image/webp"})
    assert reply.status_code == 422
    assert "16383" in reply.json()["error"]["message"]
