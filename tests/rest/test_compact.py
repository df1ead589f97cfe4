"""The compact form of codes over HTTP: what `viq encode --format viq` writes goes out and comes in."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np
import pytest

from viq import Codes
from viq.config import VARIANTS

MakeImage = Callable[..., bytes]
KIND = {"Content-Type": "application/x-viq"}


def test_the_reply_is_the_file_that_the_command_writes(
    client: httpx.Client, make_image: MakeImage, codes: Codes
) -> None:
    asked = {"Accept": "application/x-viq"}
    reply = client.post("/v1/encode", content=make_image(), headers=asked)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "application/x-viq")
    assert reply.content == codes.viq_bytes()
    assert Codes.from_viq(reply.content) == codes
    assert reply.headers["ViQ-Fingerprint"] == codes.fingerprint
    known = {**asked, "If-None-Match": reply.headers["ETag"]}
    assert client.post("/v1/encode", content=make_image(), headers=known).status_code == 304
    several = client.post("/v1/encode", files=[("image", make_image())] * 2, headers=asked)
    assert (several.status_code, "?codes=base64" in several.text) == (422, True)


def test_codes_in_it_are_what_they_are_in_any_other_form(client: httpx.Client, codes: Codes) -> None:
    for path in ("/v1/decode", "/v1/embed"):
        plain = client.post(path, content=codes.npz_bytes(), headers={"Content-Type": "application/x-npz"})
        assert plain.status_code == 200
        for compress in ("never", "always"):
            reply = client.post(path, content=codes.viq_bytes(compress), headers=KIND)
            assert reply.headers["Content-Type"] == plain.headers["Content-Type"]
            if path == "/v1/embed":
                assert reply.content == plain.content


@pytest.mark.parametrize("path", ["/v1/decode", "/v1/embed"])
def test_what_is_none_or_not_for_here_is_refused(client: httpx.Client, codes: Codes, path: str) -> None:
    data = codes.viq_bytes("never")
    foreign = Codes(codes.array, codes.image_size, codes.size, f"{'0' * 16}.00000000")
    large = Codes(np.zeros((129, 128, 4), np.uint16), (129 * 16, 128 * 16), codes.size)
    other = Codes(np.zeros((1, 1, 4), np.uint16), (16, 16), next(size for size in VARIANTS if size != codes.size))
    for body, status, words in (
        (data[:-1], 422, "cut short"),
        (data[:4] + b"\x09" + data[5:], 422, "of version 9"),
        (b"", 422, "no .viq file"),
        (foreign.viq_bytes(), 409, "0000"),
        (large.viq_bytes(), 413, "16384"),
        (other.viq_bytes(), 404, other.size),
    ):
        reply = client.post(path, content=body, headers=KIND)
        assert (reply.status_code, words in reply.text) == (status, True), reply.text
    assert client.post("/v1/encode", content=data, headers=KIND).status_code == 415
    assert client.post(f"{path}?any_fingerprint=1", content=foreign.viq_bytes(), headers=KIND).status_code == 200


def test_the_description_names_it(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "application/x-viq" in paths["/v1/encode"]["post"]["responses"]["200"]["content"]
    for path in ("/v1/decode", "/v1/embed"):
        assert "application/x-viq" in paths[path]["post"]["requestBody"]["content"]
