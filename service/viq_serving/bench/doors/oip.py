"""The Open Inference Protocol as its stock clients write it, by HTTP with binary tensors and by gRPC."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from viq_serving.bench.doors.door import Answer, Method, Target
from viq_serving.bench.doors.failures import failure
from viq_serving.bench.doors.http1 import Reply
from viq_serving.bench.doors.native import address_of, channel_of, metadata_of
from viq_serving.bench.doors.payload import Payload
from viq_serving.bench.doors.plain import PlainDoor
from viq_serving.pb import open_inference_pb2 as pb

_LENGTH = "Inference-Header-Content-Length"
_INFER = "/inference.GRPCInferenceService/ModelInfer"

Tensor = tuple[str, str, tuple[int, ...], bytes]
"""Name, datatype, shape, and the bytes as they travel."""


class OipGrpcDoor:
    """`ModelInfer` with raw contents."""

    def __init__(self, target: Target, payload: Payload, method: Method) -> None:
        """Raises `InvalidInput` if the target has no address."""
        self._target = target
        self._address, self._metadata = address_of(target), metadata_of(target)
        requests = _requests(target, payload, method)
        self._sizes = [sum(len(data) for *_, data in tensors) for tensors in requests]
        self._messages = [self._message(target, method, tensors) for tensors in requests]

    @staticmethod
    def _message(target: Target, method: Method, tensors: Sequence[Tensor]) -> bytes:
        described = [
            pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
            for name, datatype, shape, _ in tensors
        ]
        request = pb.ModelInferRequest(
            model_name=target.model or f"viq-{method}",
            model_version=target.size,
            inputs=described,
            raw_input_contents=[data for *_, data in tensors],
        )
        return request.SerializeToString()

    async def open(self) -> None:
        """Connect."""
        self._channel = channel_of(self._target, self._address)
        self._call: Any = self._channel.unary_unary(_INFER)

    async def ask(self, index: int) -> Answer:
        """Call with request `index`."""
        try:
            data = await self._call(self._messages[index], metadata=self._metadata, timeout=self._target.timeout_s)
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is counted by its kind
            return failure(error)
        return Answer("", len(data), content=data)

    def codes_of(self, answer: Answer) -> bytes:
        """The raw contents of the output `codes`."""
        if not isinstance(answer.content, bytes):
            raise ValueError("no answer")
        reply = pb.ModelInferResponse.FromString(answer.content)
        for output, data in zip(reply.outputs, reply.raw_output_contents, strict=False):
            if output.name == "codes":
                return data
        raise ValueError("the reply has no raw output `codes`")

    def sent_bytes(self, index: int) -> int:
        """Bytes of all tensors of request `index`."""
        return self._sizes[index]

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class OipHttpDoor(PlainDoor):
    """`/v2/models/…/infer` with binary tensors both ways."""

    def __init__(self, target: Target, payload: Payload, method: Method) -> None:
        """As `PlainDoor`; `url` is that of the server."""
        requests = [_body(tensors) for tensors in _requests(target, payload, method)]
        version = f"/versions/{target.size}" if target.size else ""
        self._begin(target, requests, f"/v2/models/{target.model or f'viq-{method}'}{version}/infer")

    def codes_of(self, answer: Answer) -> bytes:
        """The binary output `codes`."""
        reply = answer.content
        if not isinstance(reply, Reply):
            raise ValueError("no answer")
        end = int(reply.headers.get(_LENGTH.lower(), len(reply.body)))
        head, rest = json.loads(reply.body[:end]), io.BytesIO(reply.body[end:])
        for output in head["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if output["name"] != "codes":
                rest.seek(size or 0, io.SEEK_CUR)
            else:
                return rest.read(size) if size is not None else np.asarray(output["data"]).astype("<u2").tobytes()
        raise ValueError("the reply has no output `codes`")


def _requests(target: Target, payload: Payload, method: Method) -> list[list[Tensor]]:
    if method == "encode":
        return [
            [(target.oip_input, "BYTES", target.oip_shape, len(file.data).to_bytes(4, "little") + file.data)]
            for file in payload.files
        ]
    return [
        [
            ("codes", "UINT16", (one.array.size,), one.to_bytes()),
            ("grid_hw", "INT32", (1, 2), np.array(one.grid, "<i4").tobytes()),
            *([("image_hw", "INT32", (1, 2), np.array(one.image_size, "<i4").tobytes())] if method == "decode" else []),
        ]
        for one in payload.codes
    ]


def _body(tensors: Sequence[Tensor]) -> tuple[Mapping[str, str], bytes]:
    """Headers and body: JSON that describes the tensors, and the tensors after it."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in tensors
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return headers, head + b"".join(data for *_, data in tensors)
