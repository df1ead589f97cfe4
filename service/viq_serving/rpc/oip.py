"""The Open Inference Protocol v2 on the gRPC port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from viq_serving.errors import InvalidInput
from viq_serving.oip import metadata
from viq_serving.oip.handler import infer
from viq_serving.oip.quoting import quoted
from viq_serving.oip.tensors import InferRequest, InferResponse, Parameter, Tensor
from viq_serving.pb import open_inference_pb2 as pb
from viq_serving.pb.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from viq_serving.rpc import heavy
from viq_serving.rpc.call import Call
from viq_serving.settings import Settings
from viq_serving.tokenizer import Tokenizer

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
"""The name of the service."""

# Some clients of both protocols say these on either.
_OF_HTTP = ("binary_data", "binary_data_size")

# Which field of the contents holds the elements. The 16-bit floats have none and come in binary form only.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def add_oip(server: grpc.aio.Server, tokenizer: Tokenizer, settings: Settings) -> None:
    """Serve the protocol on `server`, whose envelope calls each method."""
    add_GRPCInferenceServiceServicer_to_server(OpenInference(tokenizer, settings), server)


class OpenInference(GRPCInferenceServiceServicer):
    """The methods as the envelope calls them: they raise domain errors, and reply with a message or its bytes."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer, self._settings = tokenizer, settings

    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:  # noqa: N802
        """True for as long as a restart would not help."""
        return pb.ServerLiveResponse(live=self._tokenizer.state != "lost")

    async def ServerReady(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:  # noqa: N802
        """Whether new requests are welcome."""
        return pb.ServerReadyResponse(ready=self._tokenizer.state == "ready")

    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether requests for that model and version are welcome; no for what there is not."""
        return pb.ModelReadyResponse(ready=metadata.model_ready(self._tokenizer, request.name, request.version))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return ParseDict(metadata.server_metadata(), pb.ServerMetadataResponse())

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, call: Call
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        described = metadata.model_metadata(self._tokenizer, request.name, request.version)
        return ParseDict(described, pb.ModelMetadataResponse())

    async def ModelConfig(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:  # noqa: N802
        """A model as Triton's configuration would describe it."""
        config = metadata.model_config(self._tokenizer, request.name, request.version)
        return pb.ModelConfigResponse(config=ParseDict(config, pb.ModelConfig()))

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        """All models and versions."""
        index = metadata.repository_index(self._tokenizer, request.ready)
        return ParseDict({"models": index}, pb.RepositoryIndexResponse())

    async def ModelInfer(self, request: pb.ModelInferRequest, call: Call) -> bytes:  # noqa: N802
        """Tensors in, tensors out."""
        asked, limit = await heavy.run(call.size, request_of, request), self._settings.max_message_bytes
        answer = await infer(self._tokenizer, asked, call.exchange, call.terms, call.expect, limit)
        return await heavy.run(answer.bytes_held, reply_of, answer)


def request_of(message: pb.ModelInferRequest) -> InferRequest:
    """The request in `message`; raises `InvalidInput` for what is served nowhere here."""
    for output in message.outputs:
        _no_parameters(output.parameters, f"output {quoted(output.name)}")
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        inputs=_inputs(message),
        id=message.id,
        parameters=_parameters(message.parameters, "the request"),
        outputs=[output.name for output in message.outputs],
    )


def reply_of(answer: InferResponse) -> bytes:
    """The message that says `answer`: every output in binary form."""
    message = pb.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    for name, value in answer.parameters.items():
        message.parameters[name].string_param = value
    for output in answer.outputs:
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        message.raw_output_contents.append(output.raw())
    return message.SerializeToString()


def _inputs(message: pb.ModelInferRequest) -> list[Tensor]:
    raw, given = message.raw_input_contents, message.inputs
    if raw and len(raw) != len(given):
        raise InvalidInput(f"raw_input_contents holds {len(raw)} inputs, the request has {len(given)}")
    tensors = []
    for index, one in enumerate(given):
        _no_parameters(one.parameters, f"input {quoted(one.name)}")
        if raw and one.HasField("contents"):
            raise InvalidInput(f"input {quoted(one.name)} has contents, and raw_input_contents is there, too")
        data = memoryview(raw[index]) if raw else _elements(one)
        tensors.append(Tensor(one.name, one.datatype, tuple(one.shape), data))
    return tensors


def _elements(one: pb.ModelInferRequest.InferInputTensor) -> Sequence[object]:
    """The elements of an input that has its contents; those of another datatype would be a mistake, not nothing."""
    filled = [field.name for field, _ in one.contents.ListFields()]
    expected = _CONTENTS.get(one.datatype)
    if any(name != expected for name in filled):
        raise InvalidInput(
            f"input {quoted(one.name)} is {quoted(one.datatype)} and has {', '.join(filled)}, expected {expected}"
        )
    return list(getattr(one.contents, expected)) if expected else []


def _parameters(given: Mapping[str, pb.InferParameter], where: str) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, value in given.items():
        choice: Any = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"parameter {quoted(name)} of {where} has no value")
        parameters[name] = getattr(value, choice)
    return parameters


def _no_parameters(given: Mapping[str, pb.InferParameter], where: str) -> None:
    for name in given:
        if name in _OF_HTTP:
            continue
        if name.startswith("shared_memory"):
            raise InvalidInput(f"{where} is in shared memory, which is not served here")
        raise InvalidInput(f"unknown parameter {quoted(name)} of {where}")
