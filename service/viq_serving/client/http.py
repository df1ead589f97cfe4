"""The synchronous client over HTTP: one request an image, one connection."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from viq.codes import Codes
from viq.errors import InvalidInput
from viq.pixels import to_rgb
from viq_serving.client.errors import UNREACHABLE, ServerError, error_of

Picture: TypeAlias = bytes | str | Path | Image.Image | npt.NDArray[np.uint8]
"""An encoded image file as bytes or path, a Pillow image, or a uint8 array `(H, W, 3)`."""

_NPZ, _NPY, _PNG, _BYTES = "application/x-npz", "application/x-npy", "image/png", "application/octet-stream"


class Client:
    """A ViQ service at `http://host:port`.

    Methods raise what the same mistake raises in-process (`InvalidInput`, `TooLarge`, `UnknownModel`,
    `FingerprintMismatch`), else `ServerError` with the server's code, `unreachable` if nothing answered.
    """

    def __init__(self, url: str, *, timeout: float = 600.0) -> None:
        """`timeout` is in seconds, for each request."""
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"server {url!r}: {error}") from None
        if address.scheme not in ("http", "https") or not address.host:
            raise InvalidInput(f"server {url!r}, expected http://host:port")
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(base_url=self.url, timeout=timeout)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ServerError(UNREACHABLE, f"the proxy that the environment names cannot be used: {error}") from None

    def encode(
        self, images: Iterable[Picture], *, size: str | None = None, exif: bool = True, alpha: str = "white"
    ) -> list[Codes]:
        """Codes of each image. `exif` and `alpha` are those of `viq.pixels.to_rgb`."""
        query = query_of(size=size, exif=exif, alpha=alpha)
        return [
            Codes.from_npz(self._post("/v1/encode", file_of(image, exif, alpha), _BYTES, _NPZ, query))
            for image in images
        ]

    def embed(
        self,
        inputs: Iterable[Codes | Picture],
        *,
        size: str | None = None,
        exif: bool = True,
        alpha: str = "white",
        any_fingerprint: bool = False,
    ) -> list[npt.NDArray[np.float32]]:
        """Features, float32 `(h*w, C)`, of each of codes or images."""
        features = []
        for one in inputs:
            if isinstance(one, Codes):
                body, kind, query = one.npz_bytes(), _NPZ, query_of(size=size, any_fingerprint=any_fingerprint)
            else:
                body, kind, query = file_of(one, exif, alpha), _BYTES, query_of(size=size, exif=exif, alpha=alpha)
            reply = self._post("/v1/embed", body, kind, _NPY, query)
            features.append(array_of(reply))
        return features

    def decode(self, codes: Iterable[Codes], *, any_fingerprint: bool = False) -> list[npt.NDArray[np.uint8]]:
        """Pictures, uint8 `(H, W, 3)`, of each of `codes`."""
        query = query_of(any_fingerprint=any_fingerprint)
        replies = (self._post("/v1/decode", one.npz_bytes(), _NPZ, _PNG, query) for one in codes)
        return [to_rgb(opened_png(reply)) for reply in replies]

    def models(self) -> list[dict[str, Any]]:
        """The loaded sizes as `GET /v1/models` describes them, one dict each."""
        return self._list(self._send("GET", "/v1/models"), "models")

    def plan(self, sizes: Sequence[tuple[int, int]], *, size: str | None = None) -> list[dict[str, Any]]:
        """What images of `(width, height)` pixels would take, one dict each; nothing is computed."""
        request: dict[str, object] = {"images": [{"width": w, "height": h} for w, h in sizes]}
        return self._list(self._send("POST", "/v1/plan", json=request | query_of(size=size)), "results")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, path: str, body: bytes, kind: str, accept: str, query: Mapping[str, str]) -> bytes:
        headers = {"content-type": kind, "accept": accept}
        return self._send("POST", path, content=body, headers=headers, params=query).content

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(UNREACHABLE, f"no answer from {self.url}: {reason}") from None
        if response.status_code != 200:
            raise error_of(json_of(response), response.status_code)
        return response

    def _list(self, response: httpx.Response, key: str) -> list[dict[str, Any]]:
        body = json_of(response)
        rows = body.get(key) if isinstance(body, dict) else None
        if not isinstance(rows, list):
            raise error_of(body, response.status_code)
        return rows


def file_of(image: Picture, exif: bool, alpha: str) -> bytes:
    """The bytes to send. Pixels in memory go as a PNG of what they are in RGB, so nothing is lost or done twice."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    file = io.BytesIO()
    Image.fromarray(to_rgb(image, exif=exif, alpha=alpha)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def opened_png(reply: bytes) -> Image.Image:
    """A picture that came as an answer."""
    return Image.open(io.BytesIO(reply), formats=["PNG"])


def array_of(reply: bytes) -> npt.NDArray[np.float32]:
    """An array that came as an answer; raises `ServerError` if it is none."""
    try:
        array: npt.NDArray[np.float32] = np.load(io.BytesIO(reply), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ServerError(UNREACHABLE, f"the answer is no array: {error}") from None
    return array


def query_of(
    *, size: str | None = None, exif: bool = True, alpha: str = "white", any_fingerprint: bool = False
) -> dict[str, str]:
    """Only what differs from the server's defaults."""
    query = {} if size is None else {"size": size}
    query |= {} if exif else {"exif": "0"}
    query |= {} if alpha == "white" else {"alpha": alpha}
    return query | ({"any_fingerprint": "1"} if any_fingerprint else {})


def json_of(response: httpx.Response) -> object:
    """The JSON of an answer, None if it has none."""
    try:
        body: object = response.json()
    except ValueError:
        return None
    return body
