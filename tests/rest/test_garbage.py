"""What a request leaves behind: nothing that only a collection of garbage, and the pause that it is, would free."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from tests.garbage import left_behind

MakeImage = Callable[..., bytes]

OURS = ("viq.", "viq_serving.", "uvicorn.", "starlette.", "fastapi.", "PIL.")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/encode", "image", 200),
        ("/v1/embed", "image", 200),
        ("/v1/reconstruct", "image", 200),
        ("/v1/encode", "no image", 422),
        ("/v1/encode", "head of an image", 422),
        ("/v1/encode", "half an image", 422),
        ("/v1/encode", "nothing", 422),
        ("/v1/decode", "no codes", 422),
        ("/v1/encode?size=huge", "image", 404),
        ("/v1/encode?exif=x", "image", 422),
        ("/v2/models/viq-encode/infer", "image", 400),
        ("/v1/none", "image", 404),
    ],
)
def test_a_request_leaves_no_cycle(
    client: httpx.Client, make_image: MakeImage, path: str, body: str, status: int
) -> None:
    image = make_image()
    bodies = {
        "image": image, "no image": b"no image " * 1000, "head of an image": image[:24], "nothing": b"",
        "half an image": image[: len(image) // 2], "no codes": b"{}",
    }  # fmt: skip
    kind = "application/json" if body == "no codes" else "application/octet-stream"

    def ask(times: int) -> None:
        for _ in range(times):
            reply = client.post(path, content=bodies[body], headers={"Content-Type": kind})
            assert reply.status_code == status, reply.text
        assert client.get("/livez").status_code == 200  # on the same connection: those before it are over

    ask(2)  # what is made once is not meant
    with left_behind() as found:
        ask(5)
    kinds = sorted({f"{type(one).__module__}.{type(one).__qualname__}" for one in found})
    assert not [kind for kind in kinds if kind.startswith(OURS)], kinds
