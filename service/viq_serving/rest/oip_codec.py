"""Bodies of the Open Inference Protocol: JSON, and binary tensors after it. Plain computation, fit for a thread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from viq_serving.errors import InvalidInput, Malformed
from viq_serving.oip.quoting import quoted
from viq_serving.oip.tensors import InferRequest, InferResponse, Output, Parameter, Tensor
from viq_serving.rest.body import parse_json

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes of the body are JSON."""

_REQUEST = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT = frozenset({"name", "parameters"})


@dataclass(frozen=True)
class Form:
    """Which outputs are to be answered in binary form."""

    binary: bool = False
    of_output: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, output: Output) -> bool:
        """Whether that one is."""
        return self.of_output.get(output.name, self.binary)


def decode(body: bytes, header_length: str | None, model: str, version: str) -> tuple[InferRequest, Form]:
    """The request in `body`, and the form of its answer.

    `header_length` is the header of that name: without it the body is all JSON, and if it is 0 the body is one
    image. Raises `Malformed` for what cannot be taken apart, `InvalidInput` for fields that are none.
    """
    length = len(body) if header_length is None else _length(header_length, len(body))
    if length == 0 and header_length is not None:
        whole = Tensor("image", "BYTES", (1,), [body])
        return InferRequest(model, version, (whole,)), Form(binary=True)
    fields = parse_json(body[:length])
    _only(fields, _REQUEST, "the request")
    parameters = _parameters(fields, "the request")
    form = Form(_flag(parameters, "binary_data_output"), _outputs(fields))
    inputs = _inputs(fields, memoryview(body)[length:])
    identity = _text(fields, "id", "the request", "")
    return InferRequest(model, version, inputs, identity, parameters, tuple(form.of_output)), form


def encode(response: InferResponse, form: Form) -> tuple[bytes, int | None]:
    """The body of the answer, and how much of it is JSON if not all is."""
    outputs: list[dict[str, object]] = []
    binary: list[bytes] = []
    for output in response.outputs:
        described = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if form.is_binary(output):
            binary.append(output.raw())
            outputs.append({**described, "parameters": {"binary_data_size": len(binary[-1])}})
        else:
            outputs.append({**described, "data": output.elements()})
    fields = {
        "model_name": response.model,
        "model_version": response.version,
        **({"id": response.id} if response.id else {}),
        "parameters": response.parameters,
        "outputs": outputs,
    }
    head = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((head, *binary)), len(head) if binary else None


def _length(header: str, body_length: int) -> int:
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 20 else -1
    if not 0 <= length <= body_length:
        raise Malformed(f"{HEADER_LENGTH} is {quoted(header)}, the body has {body_length} bytes")
    return length


def _inputs(fields: Mapping[str, object], binary: memoryview) -> tuple[Tensor, ...]:
    """The inputs; those in binary form follow each other after the JSON."""
    inputs, at = [], 0
    for entry in _objects(fields, "inputs"):
        _only(entry, _INPUT, "an input")
        name = _text(entry, "name", "an input")
        where = f"input {quoted(name)}"
        parameters = _parameters(entry, where)
        size = parameters.pop("binary_data_size", None)
        _no_other(parameters, where)
        datatype, shape = _text(entry, "datatype", where), _shape(entry, where)
        data: object = entry.get("data")
        if size is None:
            if not isinstance(data, list):
                raise InvalidInput(f"{where} needs a list as data, or the parameter binary_data_size")
            inputs.append(Tensor(name, datatype, shape, data))
            continue
        if data is not None:
            raise InvalidInput(f"{where} has both data and binary_data_size")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidInput(f"binary_data_size of {where} is no whole number from 0 on")
        if at + size > len(binary):
            raise Malformed(
                f"binary_data_size of {where} is {quoted(size)}, {len(binary) - at} bytes are left of the body"
            )
        inputs.append(Tensor(name, datatype, shape, binary[at : at + size]))
        at += size
    if at != len(binary):
        raise Malformed(f"{len(binary) - at} bytes of the body belong to no input")
    return tuple(inputs)


def _outputs(fields: Mapping[str, object]) -> dict[str, bool]:
    """The outputs asked for by name, and whether each in binary form."""
    default = _flag(_parameters(fields, "the request"), "binary_data_output")
    wanted: dict[str, bool] = {}
    for entry in _objects(fields, "outputs"):
        _only(entry, _OUTPUT, "an output")
        name = _text(entry, "name", "an output")
        if name in wanted:
            raise InvalidInput(f"output {quoted(name)} is asked for twice")
        parameters = _parameters(entry, f"output {quoted(name)}")
        wanted[name] = _flag(parameters, "binary_data") if "binary_data" in parameters else default
        parameters.pop("binary_data", None)
        _no_other(parameters, f"output {quoted(name)}")
    return wanted


def _objects(fields: Mapping[str, object], name: str) -> list[dict[str, object]]:
    entries = fields.get(name)
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise InvalidInput(f"{name} is no list of objects")
    return entries


def _parameters(fields: Mapping[str, object], where: str) -> dict[str, Parameter]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInput(f"parameters of {where} are no object")
    for name, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            raise InvalidInput(f"parameter {quoted(name)} of {where} is no number, string, true or false")
    return dict(parameters)


def _no_other(parameters: Mapping[str, Parameter], where: str) -> None:
    for name in parameters:
        if name.startswith("shared_memory"):
            raise InvalidInput(f"{where} is in shared memory, which is not served here")
        raise InvalidInput(f"unknown parameter {quoted(name)} of {where}")


def _flag(parameters: Mapping[str, Parameter], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name} must be true or false")
    return value


def _shape(entry: Mapping[str, object], where: str) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or any(isinstance(side, bool) or not isinstance(side, int) for side in shape):
        raise InvalidInput(f"{where} needs a list of whole numbers as shape")
    return tuple(shape)


def _text(fields: Mapping[str, object], name: str, where: str, default: str | None = None) -> str:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InvalidInput(f"{where} needs a string as {name}")
    return value


def _only(given: Mapping[str, object], allowed: frozenset[str], where: str) -> None:
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise InvalidInput(
            f"unknown field {', '.join(map(quoted, unknown[:3]))} of {where}; there are {sorted(allowed)}"
        )
