"""The doors on the gRPC port: the native service and the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from viq.codes import Codes
from viq.errors import ViQError
from viq_serving.client.errors import UNREACHABLE, ServerError
from viq_serving.errors import Overloaded
from viq_serving.pb import open_inference_pb2 as oip
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from viq_serving.pb.viq_pb2_grpc import ViQStub
from viq_serving.verify.http_doors import unpacked

_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_PUSHBACK, _FINGERPRINT = "grpc-retry-pushback-ms", "viq-fingerprint"
_OUTPUTS = {"codes": "<u2", "grid_hw": "<i4", "image_hw": "<i4"}

Metadata = Mapping[str, str | bytes]


class Grpc:
    """A server's gRPC port; as `Http` of the other one."""

    def __init__(self, address: str, size: str, headers: Mapping[str, str], timeout_s: float) -> None:
        self._address, self._size, self._timeout_s = address, size, timeout_s
        self._metadata = [(name.lower(), value) for name, value in headers.items()]
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._viq, self._inference = ViQStub(self._channel), GRPCInferenceServiceStub(self._channel)
        self.doors = {"gRPC": self.native, "OIP gRPC": self.oip}

    def native(self, files: Sequence[bytes]) -> Sequence[Codes | ViQError]:
        """The native service."""
        items = [pb.Item(key=str(index), image=file) for index, file in enumerate(files)]
        reply, trailers = self._ask(self._viq.Encode, pb.EncodeRequest(items=items, size=self._size))
        if [result.key for result in reply.results] != [item.key for item in items]:
            return [ServerError("order", "the results are not in the order of the items")] * len(files)
        return [_codes(result, str(trailers.get(_FINGERPRINT, ""))) for result in reply.results]

    def oip(self, files: Sequence[bytes]) -> Sequence[Codes]:
        """The Open Inference Protocol."""
        tensor = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        image = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[len(files)])
        request = oip.ModelInferRequest(
            model_name="viq-encode", model_version=self._size, inputs=[image], raw_input_contents=[tensor]
        )
        reply, _ = self._ask(self._inference.ModelInfer, request)
        arrays = {
            output.name: np.frombuffer(data, _OUTPUTS[output.name]).reshape(output.shape)
            for output, data in zip(reply.outputs, reply.raw_output_contents, strict=True)
            if output.name in _OUTPUTS
        }
        return unpacked(arrays, reply.model_version, reply.parameters["fingerprint"].string_param)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _ask(self, method: Callable[..., Any], request: object) -> tuple[Any, Metadata]:
        try:
            reply, call = method.with_call(request, timeout=self._timeout_s, metadata=self._metadata)  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            raise self._error(error) from None
        return reply, dict(call.trailing_metadata())

    def _error(self, error: Any) -> ViQError:
        trailers, status = dict(error.trailing_metadata() or ()), error.code()
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and _PUSHBACK in trailers:
            return Overloaded("the server is full", int(trailers[_PUSHBACK]) / 1000)
        if "x-request-id" not in trailers:
            return ServerError(UNREACHABLE, f"no answer from {self._address}: {status.name}: {error.details()}")
        return ServerError(status.name, error.details())


def _codes(result: pb.Result, fingerprint: str) -> Codes | ViQError:
    """The codes of an item; `fingerprint` is what the call's trailing metadata says."""
    if not result.HasField("codes"):
        return ServerError(result.status.code or "empty", result.status.message)
    one = result.codes
    if one.fingerprint != fingerprint:
        return ServerError("fingerprint", f"metadata says {fingerprint or 'nothing'}, the codes {one.fingerprint}")
    return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)
