"""/v1/reconstruct: an image through its codes and back, and how like it is."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from viq import Codes
from viq_serving.similarity import psnr, ssim

MakeImage = Callable[..., bytes]
PATH = "/v1/reconstruct"


def pixels_of(file: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def decoded(client: httpx.Client, image: bytes, query: str = "") -> npt.NDArray[np.uint8]:
    """What encode and decode make of `image`."""
    codes = client.post(f"/v1/encode{query}", content=image)
    reply = client.post("/v1/decode", content=codes.content, headers={"Content-Type": "application/json"})
    return pixels_of(reply.content)


def sample(client: httpx.Client, series: str) -> float:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("accept", ["*/*", "application/json", "image/png"])
def test_an_image_comes_back_as_its_codes_show_it(client: httpx.Client, make_image: MakeImage, accept: str) -> None:
    image = make_image()
    reply = client.post(PATH, content=image, headers={"Accept": accept})
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "image/png")
    picture = pixels_of(reply.content)
    assert np.array_equal(picture, decoded(client, image))
    before = pixels_of(image)
    assert float(reply.headers["ViQ-PSNR"]) == pytest.approx(psnr(before, picture), abs=1e-4)
    assert float(reply.headers["ViQ-SSIM"]) == pytest.approx(ssim(before, picture), abs=1e-6)


def test_the_reply_says_what_made_it(client: httpx.Client, make_image: MakeImage, codes: Codes) -> None:
    headers = client.post(PATH, content=make_image()).headers
    assert (headers["ViQ-Grid"], headers["ViQ-Image-Size"], headers["ViQ-Size"]) == ("2,3", "24,40", "nano")
    assert headers["ViQ-Fingerprint"] == codes.fingerprint
    assert "ETag" not in headers


@pytest.mark.parametrize(("accept", "format"), [("image/jpeg", "JPEG"), ("image/webp", "WEBP")])
def test_a_lossy_picture_does_not_count_against_the_codes(
    client: httpx.Client, make_image: MakeImage, accept: str, format: str
) -> None:
    exact = client.post(PATH, content=make_image())
    lossy = client.post(PATH, content=make_image(), headers={"Accept": accept})
    assert lossy.headers["Content-Type"] == accept
    with Image.open(io.BytesIO(lossy.content)) as picture:
        assert (picture.format, picture.size) == (format, (40, 24))
    for name in ("ViQ-PSNR", "ViQ-SSIM"):
        assert lossy.headers[name] == exact.headers[name]


def test_one_image_is_json_when_asked(client: httpx.Client, make_image: MakeImage) -> None:
    plain = client.post(PATH, content=make_image())
    body = client.post(f"{PATH}?format=json", content=make_image(), headers={"Accept": "image/jpeg"}).json()
    (result,) = body["results"]
    assert list(result) == ["image_size", "image_b64", "grid", "psnr", "ssim"]
    assert base64.b64decode(result["image_b64"]) == plain.content
    assert (result["image_size"], result["grid"]) == ([24, 40], [2, 3])
    assert f"{result['psnr']:.4f}" == plain.headers["ViQ-PSNR"]
    assert f"{result['ssim']:.6f}" == plain.headers["ViQ-SSIM"]
    assert body["model"]["fingerprint"] == plain.headers["ViQ-Fingerprint"]
    assert body["timings_ms"]["compute"] > 0
    assert body["timings_ms"]["postprocess"] > 0


def test_several_images_keep_their_places_and_names_and_fail_alone(client: httpx.Client, make_image: MakeImage) -> None:
    parts: list[tuple[str, Any]] = [("image", ("a.png", make_image())), ("image", ("b.png", b"no image"))]
    parts.append(("image", make_image(17, 33)))
    first, second, third = client.post(PATH, files=parts).json()["results"]
    assert (first["name"], first["grid"], third["grid"], third["image_size"]) == ("a.png", [2, 3], [3, 2], [33, 17])
    assert (second["name"], second["error"]["code"]) == ("b.png", "invalid_input")
    assert math.isfinite(first["psnr"])


def test_an_image_smaller_than_the_window_has_psnr_only(client: httpx.Client, make_image: MakeImage) -> None:
    reply = client.post(PATH, content=make_image(10, 40))
    assert reply.headers["ViQ-SSIM"] == "nan"
    assert math.isfinite(float(reply.headers["ViQ-PSNR"]))
    (result,) = client.post(f"{PATH}?format=json", content=make_image(10, 40)).json()["results"]
    assert result["ssim"] is None
    assert math.isfinite(result["psnr"])


def test_options_say_what_the_image_is_compared_with(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    gradient = np.tile(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (24, 1, 3))
    Image.fromarray(gradient).save(turned, "PNG", exif=exif)
    sizes = [client.post(f"{PATH}{query}", content=turned.getvalue()).headers for query in ("", "?exif=0")]
    assert [one["ViQ-Image-Size"] for one in sizes] == ["40,24", "24,40"]
    clear, black = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(clear, "PNG")
    Image.new("RGB", (16, 16), "black").save(black, "PNG")

    def likeness(file: io.BytesIO, query: str = "") -> str:
        return client.post(f"{PATH}{query}", content=file.getvalue()).headers["ViQ-PSNR"]

    assert likeness(clear, "?alpha=drop") == likeness(black) != likeness(clear)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"no image"}, 422, "invalid_input"),
        ({"content": b""}, 422, "invalid_input"),
        ({"json": {}}, 415, "unsupported_media_type"),
        ({"content": b"x", "params": {"codes": "base64"}}, 422, "invalid_input"),
        ({"content": b"x", "params": {"size": "17k"}}, 404, "unknown_model"),
        ({"content": b"x", "headers": {"Accept": "text/plain"}}, 406, "not_acceptable"),
        ({"content": b"x", "headers": {"ViQ-Expect-Fingerprint": "0" * 16}}, 409, "fingerprint_mismatch"),
        ({"content": b"P6\n30000 30000\n255\n"}, 413, "too_large"),
    ],
)
def test_errors_are_those_of_the_other_methods(
    client: httpx.Client, request_: dict[str, Any], status: int, code: str
) -> None:
    reply = client.post(PATH, **request_)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert client.get(PATH).status_code == 405


def test_it_is_counted_by_its_own_name(client: httpx.Client, make_image: MakeImage) -> None:
    series = 'viq_requests_total{door="http",method="reconstruct",outcome="ok",priority="bulk",size="nano"}'
    before = sample(client, series)
    assert client.post(PATH, content=make_image(), headers={"ViQ-Priority": "bulk"}).status_code == 200
    assert sample(client, series) == before + 1


def test_infinity_is_a_word_in_headers_and_null_in_json() -> None:
    """No image that a network decodes is exactly itself, so the reply is made of a result by hand."""
    from viq_serving.exchange import Exchange
    from viq_serving.reconstruction import Reconstruction
    from viq_serving.rest.replies import reconstructed
    from viq_serving.types import ModelInfo, Picture, Results, Timings

    model = ModelInfo("nano", "family.mode", "family", (8,), 512, 32, "float32", "cpu", untrained=False)
    one = Reconstruction(Picture(b"png", "png", (16, 16)), (1, 1), math.inf, 1.0)
    results, exchange = Results(model, [one], Timings()), Exchange.begin("http")
    headers = reconstructed(results, [None], False, exchange).headers
    assert (headers["viq-psnr"], headers["viq-ssim"]) == ("inf", "1.000000")
    body = bytes(reconstructed(results, [None], True, exchange).body)
    assert b'"psnr":null,"ssim":1.0' in body
