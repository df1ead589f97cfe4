"""/v1/encode: every form of a reply, several images, options, caching."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import httpx
import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]
RAW, NPZ = "application/octet-stream", "application/x-npz"


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", None])
def test_json_reply_has_the_promised_shape(
    client: httpx.Client, make_image: MakeImage, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    reply = client.post("/v1/encode", content=make_image(40, 24), headers=headers)
    body = reply.json()
    assert reply.status_code == 200
    assert set(body) == {"model", "results", "timings_ms"}
    assert body["model"]["size"] == "nano"
    assert body["model"]["fingerprint"] == reply.headers["ViQ-Fingerprint"]
    assert body["model"]["codebook_size"] == np.prod(body["model"]["levels"])
    assert set(body["timings_ms"]) == {"preprocess", "queue", "transfer", "compute", "postprocess"}
    assert body["timings_ms"]["compute"] > 0
    (result,) = body["results"]
    assert set(result) == {"image_size", "grid", "codes"}
    assert (result["image_size"], result["grid"], len(result["codes"])) == ([24, 40], [2, 3], 24)


def test_a_service_in_fp8_says_so_and_gives_the_codes_of_the_library(serve: Serve, make_image: MakeImage) -> None:
    expected = ViQ.from_pretrained(dtype="fp8", parts=("encoder",)).encode([Image.open(io.BytesIO(make_image()))])
    with serve(dtype="fp8") as server:
        (model,) = server.get("/v1/models").json()["models"]
        assert (model["dtype"], model["fingerprint"]) == ("fp8", expected[0].fingerprint)
        reply = server.post("/v1/encode", content=make_image(), headers={"Accept": NPZ})
        assert Codes.from_npz(reply.content) == expected[0]
        reply = server.post("/v1/embed?dtype=bfloat16", content=make_image())
        assert (reply.status_code, reply.headers["ViQ-Dtype"]) == (200, "bfloat16")


def test_codes_are_those_of_the_library(client: httpx.Client, make_image: MakeImage, codes: Codes) -> None:
    with Image.open(io.BytesIO(make_image())) as image:
        (expected,) = ViQ.from_pretrained().encode([image])
    assert codes == expected


def test_every_form_holds_the_same_codes(client: httpx.Client, make_image: MakeImage, codes: Codes) -> None:
    image = make_image()
    listed = client.post("/v1/encode", content=image).json()["results"][0]["codes"]
    packed = client.post("/v1/encode?codes=base64", content=image).json()["results"][0]
    raw = client.post("/v1/encode", content=image, headers={"Accept": RAW})
    assert listed == codes.flat.tolist()
    assert "codes" not in packed
    assert base64.b64decode(packed["codes_b64"]) == codes.to_bytes() == raw.content
    assert raw.headers["Content-Type"] == RAW
    assert (raw.headers["ViQ-Grid"], raw.headers["ViQ-Image-Size"]) == ("2,3", "24,40")
    assert (raw.headers["ViQ-Size"], raw.headers["ViQ-Fingerprint"]) == ("nano", codes.fingerprint)


def test_npz_reply_is_the_file_that_the_command_writes(
    client: httpx.Client, make_image: MakeImage, codes: Codes
) -> None:
    reply = client.post("/v1/encode", content=make_image(), headers={"Accept": NPZ})
    assert reply.headers["Content-Type"] == NPZ
    assert reply.content == codes.npz_bytes()


def test_untrained_weights_say_so_in_json_and_in_headers(client: httpx.Client, make_image: MakeImage) -> None:
    untrained = ViQ.from_pretrained().untrained
    body = client.post("/v1/encode", content=make_image()).json()
    raw = client.post("/v1/encode", content=make_image(), headers={"Accept": RAW})
    assert body["model"].get("untrained", False) is untrained
    assert raw.headers.get("ViQ-Untrained") == ("true" if untrained else None)


def test_several_images_come_back_in_order_with_their_names(client: httpx.Client, make_image: MakeImage) -> None:
    files = [make_image(16 * n, 16, seed=n) for n in (3, 1, 2)]
    parts = [("image", (f"{n}.png", file, "image/png")) for n, file in enumerate(files)]
    results = client.post("/v1/encode", files=parts).json()["results"]
    alone = [client.post("/v1/encode", content=file).json()["results"][0]["codes"] for file in files]
    assert [result["name"] for result in results] == ["0.png", "1.png", "2.png"]
    assert [result["codes"] for result in results] == alone


def test_requests_at_the_same_time_get_their_own_codes(client: httpx.Client, make_image: MakeImage) -> None:
    files = [make_image(16 + n, 40, seed=n) for n in range(8)]

    def codes(file: bytes) -> object:
        return client.post("/v1/encode", content=file).json()["results"][0]["codes"]

    alone = [codes(file) for file in files]
    with ThreadPoolExecutor(8) as together:
        assert list(together.map(codes, files)) == alone


def test_one_bad_part_fails_alone(client: httpx.Client, make_image: MakeImage) -> None:
    parts = [("image", ("a.png", make_image())), ("image", ("b.png", b"")), ("image", ("c.png", make_image(17, 17)))]
    reply = client.post("/v1/encode", files=parts)
    first, second, third = reply.json()["results"]
    assert reply.status_code == 200
    assert (first["grid"], third["grid"]) == ([2, 3], [2, 2])
    assert second["name"] == "b.png"
    assert second["error"]["code"] == "invalid_input"
    assert "codes" not in second


def test_when_every_part_fails_the_first_gives_the_status(client: httpx.Client) -> None:
    huge = b"P6\n30000 30000\n255\n" + bytes(100)
    reply = client.post("/v1/encode", files=[("image", ("a", huge)), ("image", ("b", b""))])
    body = reply.json()
    assert reply.status_code == 413
    assert [result["error"]["code"] for result in body["results"]] == ["too_large", "invalid_input"]
    assert body["error"]["code"] == "too_large"


@pytest.mark.parametrize("accept", [RAW, NPZ])
def test_binary_forms_refuse_several_images_and_name_the_way_out(
    client: httpx.Client, make_image: MakeImage, accept: str
) -> None:
    parts = [("image", make_image()), ("image", make_image())]
    reply = client.post("/v1/encode", files=parts, headers={"Accept": accept})
    assert reply.status_code == 422
    assert "?codes=base64" in reply.json()["error"]["message"]


def test_one_multipart_image_may_have_a_binary_reply(client: httpx.Client, make_image: MakeImage, codes: Codes) -> None:
    reply = client.post("/v1/encode", files={"image": make_image()}, headers={"Accept": RAW})
    assert reply.content == codes.to_bytes()


@pytest.mark.parametrize(("width", "height", "grid"), [(1, 1, [1, 1]), (1, 4096, [256, 1]), (4096, 1, [1, 256])])
def test_the_thinnest_images_work(
    client: httpx.Client, make_image: MakeImage, width: int, height: int, grid: list[int]
) -> None:
    reply = client.post("/v1/encode", content=make_image(width, height))
    assert reply.status_code == 200
    assert reply.json()["results"][0]["grid"] == grid


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_of_the_list_is_read(client: httpx.Client, make_image: MakeImage, format: str) -> None:
    reply = client.post("/v1/encode", content=make_image(format=format))
    assert reply.status_code == 200, reply.text
    assert reply.json()["results"][0]["image_size"] == [24, 40]


def test_a_format_outside_the_list_is_refused(client: httpx.Client, make_image: MakeImage) -> None:
    for format in ("EPS", "TGA", "PCX", "ICO"):
        reply = client.post("/v1/encode", content=make_image(format=format))
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")


def test_exif_orientation_is_applied_unless_asked_not_to(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), "red").save(buffer, "JPEG", exif=exif)
    turned = client.post("/v1/encode", content=buffer.getvalue()).json()["results"][0]
    stored = client.post("/v1/encode?exif=0", content=buffer.getvalue()).json()["results"][0]
    assert (turned["image_size"], stored["image_size"]) == ([40, 24], [24, 40])


def test_alpha_is_laid_over_white_unless_dropped(client: httpx.Client, make_image: MakeImage) -> None:
    clear = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(clear, "PNG")
    white, black = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(white, "PNG")
    Image.new("RGB", (16, 16), "black").save(black, "PNG")

    def codes(file: io.BytesIO, query: str = "") -> object:
        return client.post(f"/v1/encode{query}", content=file.getvalue()).json()["results"][0]["codes"]

    assert codes(clear) == codes(white) != codes(black)
    assert codes(clear, "?alpha=drop") == codes(black)


def test_a_matching_etag_is_answered_304(client: httpx.Client, make_image: MakeImage) -> None:
    first = client.post("/v1/encode", content=make_image())
    tag = first.headers["ETag"]
    again = client.post("/v1/encode", content=make_image(), headers={"If-None-Match": f'"other", W/{tag}'})
    assert tag.startswith('"')
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == tag
    assert again.headers["ViQ-Fingerprint"] == first.headers["ViQ-Fingerprint"]


def test_etags_differ_by_image_option_and_form(client: httpx.Client, make_image: MakeImage) -> None:
    image = make_image()
    replies = [
        client.post("/v1/encode", content=image),
        client.post("/v1/encode", content=make_image(seed=1)),
        client.post("/v1/encode?exif=0", content=image),
        client.post("/v1/encode?alpha=drop", content=image),
        client.post("/v1/encode?codes=base64", content=image),
        client.post("/v1/encode", content=image, headers={"Accept": RAW}),
        client.post("/v1/encode", files={"image": ("cat.png", image)}),
    ]
    tags = [reply.headers["ETag"] for reply in replies]
    assert len(set(tags)) == len(tags)


def test_errors_and_several_images_carry_no_etag(client: httpx.Client, make_image: MakeImage) -> None:
    broken = client.post("/v1/encode", content=b"no image", headers={"If-None-Match": "*"})
    several = client.post("/v1/encode", files=[("image", make_image()), ("image", make_image())])
    assert broken.status_code == 422
    assert "ETag" not in broken.headers
    assert "ETag" not in several.headers
