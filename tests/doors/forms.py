"""The forms that requests and replies take at each door."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import grpc
import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from viq import Codes
from viq.config import CODES_PER_PATCH
from viq_serving.pb import viq_pb2 as pb


@dataclass
class Reply:
    """What came back through a door: `items` on success, else the error's code, where the door says it, and message.

    `status` is a number on HTTP and a name on gRPC. `headers` are headers or trailing metadata, in lower case.
    """

    status: int | str
    code: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    size: str = ""
    items: list[Any] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.status in (200, "OK")


def headers_of(asked: Mapping[str, Any]) -> dict[str, str]:
    names = {"timeout_ms": "ViQ-Timeout-Ms", "expect": "ViQ-Expect-Fingerprint", "request_id": "X-Request-ID"}
    headers = {header: str(asked[name]) for name, header in names.items() if asked.get(name) is not None}
    headers |= asked.get("headers", {})
    return headers | ({"Authorization": f"Bearer {asked['key']}"} if asked.get("key") else {})


def metadata_of(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in headers_of(asked).items()]


def parameters_of(method: str, inputs: Sequence[Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request parameters of the Open Inference Protocol."""
    parameters: dict[str, Any] = {}
    if asked.get("timeout_ms") is not None:
        parameters["timeout"] = 1000 * asked["timeout_ms"]
    if asked.get("expect") is not None:
        parameters["expect_fingerprint"] = asked["expect"]
    if asked.get("priority") is not None:
        parameters["priority"] = asked["priority"]
    if asked.get("any_fingerprint"):
        parameters["allow_fingerprint_mismatch"] = True
    if asked.get("bogus"):
        parameters["bogus"] = 1
    if method != "encode" and inputs[0].fingerprint:
        parameters["fingerprint"] = inputs[0].fingerprint
    return parameters


def tensors_of(method: str, inputs: Sequence[Any]) -> list[tuple[str, str, list[int], bytes]]:
    """Name, datatype, shape and bytes of each input tensor."""
    if method == "encode":
        data = b"".join(len(one).to_bytes(4, "little") + one for one in inputs)
        return [("image", "BYTES", [len(inputs)], data)]
    flat = b"".join(one.to_bytes() for one in inputs)
    grids, pixels = (np.array(pairs, "<i4") for pairs in zip(*((c.grid, c.image_size) for c in inputs), strict=True))
    tensors = [
        ("codes", "UINT16", [len(flat) // 2], flat),
        ("grid_hw", "INT32", [len(inputs), 2], grids.tobytes()),
        ("image_hw", "INT32", [len(inputs), 2], pixels.tobytes()),
    ]
    return tensors[:2] if method == "embed" else tensors


def unpacked(
    method: str, answer: Reply, raw: Mapping[str, bytes], shapes: Mapping[str, list[int]], size: str, fingerprint: str
) -> Reply:
    """The items in the packed outputs of the Open Inference Protocol."""
    assert fingerprint == answer.fingerprint
    answer.size = size
    if method == "decode":
        data = raw["image"]
        while data:
            length = int.from_bytes(data[:4], "little")
            answer.items.append(pixels_of(data[4 : 4 + length]))
            data = data[4 + length :]
        assert len(answer.items) == shapes["image"][0]
        return answer
    bounds = np.frombuffer(raw["cu_seqlens"], "<i4").tolist()
    spans = list(pairwise(bounds))
    if method == "embed":
        features = np.frombuffer(raw["features"], "<f4").reshape(shapes["features"])
        answer.items = [features[begin:end] for begin, end in spans]
        return answer
    flat, pairs = np.frombuffer(raw["codes"], "<u2"), {}
    for name in ("grid_hw", "image_hw"):
        pairs[name] = np.frombuffer(raw[name], "<i4").reshape(-1, 2).tolist()
    for (begin, end), grid, pixels in zip(spans, pairs["grid_hw"], pairs["image_hw"], strict=True):
        assert end - begin == CODES_PER_PATCH * grid[0] * grid[1]
        answer.items.append(Codes.from_flat(flat[begin:end], grid, size, pixels, fingerprint))
    return answer


def of_http(reply: httpx.Response) -> Reply:
    headers = {name.lower(): value for name, value in reply.headers.items()}
    answer = Reply(reply.status_code, headers=headers, fingerprint=headers.get("viq-fingerprint", ""))
    if not answer.good and reply.content:
        error = reply.json()["error"]
        if isinstance(error, str):
            answer.message = error
        else:
            answer.code, answer.message = error["code"], error["message"]
            assert error.get("request_id", headers["x-request-id"]) == headers["x-request-id"]
    return answer


def of_grpc(error: Any) -> Reply:
    trailers = trailers_of(error)
    code = trailers.get("viq-error-code", "")
    return Reply(error.code().name, code, error.details() or "", trailers, trailers.get("viq-fingerprint", ""))


def trailers_of(call: Any) -> dict[str, str]:
    return {name: str(value) for name, value in call.trailing_metadata() or ()}


def json_item(method: str, row: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    if "error" in row:
        return Reply(0, row["error"]["code"], row["error"]["message"])
    if method == "encode":
        return Codes.from_dict({**{k: v for k, v in row.items() if k != "name"}, **known})
    if method == "embed":
        return np.array(row["features"], np.float32)
    return pixels_of(base64.b64decode(row["image_b64"]))


def codes_item(key: str, one: Codes) -> pb.Item:
    (h, w), (height, width) = one.grid, one.image_size
    codes = pb.Codes(
        data=one.to_bytes(), h=h, w=w, height=height, width=width, size=one.size, fingerprint=one.fingerprint
    )
    return pb.Item(key=key, codes=codes)


def grpc_item(result: pb.Result) -> Any:
    kind = result.WhichOneof("content")
    if kind is None:
        (name,) = (one.name for one in grpc.StatusCode if one.value[0] == result.status.grpc_code)
        return Reply(name, result.status.code, result.status.message)
    if kind == "codes":
        one = result.codes
        return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)
    if kind == "features":
        assert result.features.last
        return np.frombuffer(result.features.data, "<f4").reshape(result.features.n, result.features.c)
    return pixels_of(result.image)


def pixels_of(file: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(file)))
