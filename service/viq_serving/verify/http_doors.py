"""The doors on the HTTP port: every form of the native API, and the Open Inference Protocol."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from viq.codes import Codes
from viq.config import CODES_PER_PATCH
from viq.errors import InvalidInput, ViQError
from viq_serving.client.errors import UNREACHABLE, ServerError, error_of
from viq_serving.errors import Overloaded

_JSON, _BYTES, _NPZ = "application/json", "application/octet-stream", "application/x-npz"
_LENGTH = "Inference-Header-Content-Length"
_OUTPUTS = {"codes": "<u2", "grid_hw": "<i4", "image_hw": "<i4"}


class Http:
    """A server's HTTP port. Methods return codes of image files, and raise an error or return it in an item's place."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        """Raises `InvalidInput` for what is no address."""
        if not re.match(r"https?://[^/]", url):
            raise InvalidInput(f"server {url!r}, expected http://host:port")
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise ServerError(UNREACHABLE, f"{url} cannot be asked: {error}") from None
        self._size = ""
        self.single = {
            "HTTP npz": self.as_npz,
            "HTTP raw": self.as_raw,
            "HTTP JSON": self.as_json,
            "HTTP base64": self.as_base64,
            "HTTP multipart": self.multipart,
            "OIP HTTP JSON": self.oip_json,
            "OIP HTTP binary": self.oip_binary,
            "OIP HTTP image": self.oip_image,
        }
        self.several = {
            "HTTP multipart": self.multipart,
            "OIP HTTP JSON": self.oip_json,
            "OIP HTTP binary": self.oip_binary,
        }

    def choose(self, size: str | None) -> dict[str, Any]:
        """The description of the model of that size, the default for none, which answers from now on."""
        reply = self._send("GET", "/v1/models")
        try:
            models: dict[str, dict[str, Any]] = {row["size"]: row for row in reply.json()["models"]}
            default = next(name for name, row in models.items() if row["default"])
        except (ValueError, KeyError, TypeError, StopIteration):
            raise error_of(None, reply.status_code) from None
        self._size = size or default
        if self._size not in models:
            raise ServerError("unknown_model", f"size {size} is not served; there are {', '.join(models)}")
        return models[self._size]

    def batches(self) -> tuple[float, float] | None:
        """Images computed and batches they went in since the server began; None if it does not tell."""
        try:
            lines = self._send("GET", "/metrics").text.splitlines()
        except ViQError:
            return None
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("viq_batch_images_"))
        try:
            return float(values["viq_batch_images_sum"]), float(values["viq_batch_images_count"])
        except (KeyError, ValueError):
            return None

    def as_json(self, files: Sequence[bytes]) -> Sequence[Codes | ViQError]:
        """One image, codes as numbers in JSON."""
        return self._listed(self._post("/v1/encode", _whole(files), _JSON))

    def as_base64(self, files: Sequence[bytes]) -> Sequence[Codes | ViQError]:
        """One image, codes as base64 in JSON."""
        return self._listed(self._post("/v1/encode", _whole(files), _JSON, codes="base64"))

    def as_raw(self, files: Sequence[bytes]) -> Sequence[Codes]:
        """One image, codes as bytes."""
        reply = self._post("/v1/encode", _whole(files), _BYTES)
        grid, pixels = ([int(n) for n in reply.headers[name].split(",")] for name in ("ViQ-Grid", "ViQ-Image-Size"))
        size, fingerprint = reply.headers["ViQ-Size"], reply.headers["ViQ-Fingerprint"]
        return [Codes.from_bytes(reply.content, grid, size, pixels, fingerprint)]

    def as_npz(self, files: Sequence[bytes]) -> Sequence[Codes]:
        """One image, codes as the file that `viq encode` writes."""
        return [Codes.from_npz(self._post("/v1/encode", _whole(files), _NPZ).content)]

    def multipart(self, files: Sequence[bytes]) -> Sequence[Codes | ViQError]:
        """Several images as the parts of one body."""
        parts = [("image", (f"{index}.png", file, "image/png")) for index, file in enumerate(files)]
        return self._listed(self._send("POST", "/v1/encode", files=parts, params={"size": self._size}))

    def oip_json(self, files: Sequence[bytes]) -> Sequence[Codes]:
        """The Open Inference Protocol in JSON alone."""
        texts = [base64.b64encode(file).decode("ascii") for file in files]
        reply = self._infer({"inputs": [_image(files, data=texts)]})
        body = reply.json()
        arrays = {one["name"]: np.array(one["data"], np.int64).reshape(one["shape"]) for one in body["outputs"]}
        return unpacked(arrays, body["model_version"], body["parameters"]["fingerprint"])

    def oip_binary(self, files: Sequence[bytes]) -> Sequence[Codes]:
        """The Open Inference Protocol with binary tensors both ways."""
        tensor = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        image = _image(files, parameters={"binary_data_size": len(tensor)})
        return self._unpacked(self._infer({"inputs": [image], "parameters": {"binary_data_output": True}}, tensor))

    def oip_image(self, files: Sequence[bytes]) -> Sequence[Codes]:
        """The Open Inference Protocol with a body that is one image and nothing else."""
        return self._unpacked(self._infer(None, _whole(files)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _unpacked(self, reply: httpx.Response) -> Sequence[Codes]:
        """The codes in a reply whose tensors follow its JSON."""
        head = int(reply.headers[_LENGTH])
        body, rest, arrays = json.loads(reply.content[:head]), io.BytesIO(reply.content[head:]), {}
        for one in body["outputs"]:
            data = rest.read(one["parameters"]["binary_data_size"])
            if one["name"] in _OUTPUTS:
                arrays[one["name"]] = np.frombuffer(data, _OUTPUTS[one["name"]]).reshape(one["shape"])
        return unpacked(arrays, body["model_version"], body["parameters"]["fingerprint"])

    def _infer(self, head: Mapping[str, object] | None, tensor: bytes = b"") -> httpx.Response:
        data = b"" if head is None else json.dumps(head).encode()
        headers = {_LENGTH: str(len(data))} if tensor else {}
        path = f"/v2/models/viq-encode/versions/{self._size}/infer"
        return self._send("POST", path, content=data + tensor, headers=headers)

    def _post(self, path: str, body: bytes, accept: str, **query: str) -> httpx.Response:
        headers = {"Content-Type": "image/png", "Accept": accept}
        return self._send("POST", path, content=body, headers=headers, params={"size": self._size, **query})

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(UNREACHABLE, f"no answer from {self._http.base_url}: {reason}") from None
        if reply.status_code == 200:
            return reply
        if reply.status_code == 429 and "Retry-After-Ms" in reply.headers:
            raise Overloaded("the server is full", int(reply.headers["Retry-After-Ms"]) / 1000)
        raise _error(reply)

    def _listed(self, reply: httpx.Response) -> Sequence[Codes | ViQError]:
        body, fingerprint = reply.json(), reply.headers["ViQ-Fingerprint"]
        known = {"size": body["model"]["size"], "fingerprint": fingerprint}
        return [
            error_of(one, 200) if "error" in one else Codes.from_dict({**_nameless(one), **known})
            for one in body["results"]
        ]


def unpacked(arrays: Mapping[str, np.ndarray[Any, Any]], size: str, fingerprint: str) -> list[Codes]:
    """The codes of each image in the packed outputs of the Open Inference Protocol."""
    codes, begin, flat = [], 0, arrays["codes"]
    for grid, pixels in zip(arrays["grid_hw"].tolist(), arrays["image_hw"].tolist(), strict=True):
        end = begin + CODES_PER_PATCH * grid[0] * grid[1]
        codes.append(Codes.from_flat(flat[begin:end], grid, size, pixels, fingerprint))
        begin = end
    return codes


def _image(files: Sequence[bytes], **content: object) -> dict[str, object]:
    return {"name": "image", "datatype": "BYTES", "shape": [len(files)], **content}


def _whole(files: Sequence[bytes]) -> bytes:
    (file,) = files
    return file


def _nameless(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "name"}


def _error(reply: httpx.Response) -> ViQError:
    """The error of a reply; those of the Open Inference Protocol hold a message alone."""
    try:
        body = reply.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        return ServerError(f"status {reply.status_code}", body["error"])
    return error_of(body, reply.status_code)
