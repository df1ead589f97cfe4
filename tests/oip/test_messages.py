"""The protocol's messages: equal to the public ones, and every way they can be filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from viq_serving.errors import InvalidInput
from viq_serving.oip.tensors import InferResponse, Output
from viq_serving.pb import open_inference_pb2 as pb
from viq_serving.rpc.oip import reply_of, request_of

if TYPE_CHECKING:
    from tests.oip.conftest import ImportStock

Rows = set[tuple[object, ...]]


def described(*modules: Any) -> Rows:
    """Every field, enum value and method, with name, number and type."""
    rows: Rows = set()

    def enums(path: str, owner: Any) -> None:
        rows.update((path, enum.name, value.name, value.number) for enum in owner.enum_type for value in enum.value)

    def messages(path: str, found: Any) -> None:
        for one in found:
            name = f"{path}.{one.name}"
            rows.update((name, f.name, f.number, f.type, f.label, f.type_name) for f in one.field)
            enums(name, one)
            messages(name, one.nested_type)

    for module in modules:
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        enums(file.package, file)
        messages(file.package, file.message_type)
        for service in file.service:
            for one in service.method:
                ways = one.client_streaming, one.server_streaming
                rows.add((file.package, service.name, one.name, one.input_type, one.output_type, *ways))
    return rows


def test_all_names_numbers_and_types_are_those_of_the_stock_client(import_stock: ImportStock) -> None:
    theirs = described(import_stock("grpc.service_pb2"), import_stock("grpc.model_config_pb2"))
    ours = described(pb)
    assert len(ours) > 100
    assert ours - theirs == set()


def infer_request(**tensor: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="viq-decode", inputs=[pb.ModelInferRequest.InferInputTensor(name="t", **tensor)]
    )


@pytest.mark.parametrize(
    ("datatype", "contents"),
    [("UINT16", {"uint_contents": [1, 2]}), ("INT32", {"int_contents": [1, 2]})],
)
def test_numbers_may_come_as_typed_contents(datatype: str, contents: dict[str, list[int]]) -> None:
    tensor = {"datatype": datatype, "shape": [2], "contents": pb.InferTensorContents(**contents)}  # type: ignore[arg-type]
    assert request_of(infer_request(**tensor)).inputs[0].numbers().tolist() == [1, 2]


def test_bytes_may_come_as_typed_contents() -> None:
    contents = pb.InferTensorContents(bytes_contents=[b"a", b"YQ=="])
    request = request_of(infer_request(datatype="BYTES", shape=[2], contents=contents))
    assert request.inputs[0].strings() == [b"a", b"YQ=="]  # never base64 here


def test_raw_contents_are_read_in_the_order_of_the_inputs() -> None:
    message = infer_request(datatype="UINT16", shape=[1])
    message.inputs.add(name="u", datatype="UINT16", shape=[1])
    message.raw_input_contents.extend([b"\1\0", b"\2\0"])
    assert [one.numbers().tolist() for one in request_of(message).inputs] == [[1], [2]]


def test_parameters_of_every_kind_are_taken() -> None:
    message = infer_request(datatype="UINT16", shape=[0])
    message.parameters["a"].bool_param = True
    message.parameters["b"].int64_param = -3
    message.parameters["c"].string_param = "x"
    message.parameters["d"].double_param = 0.5
    message.parameters["e"].uint64_param = 2**63
    message.outputs.add(name="image").parameters["binary_data"].bool_param = True
    request = request_of(message)
    assert request.parameters == {"a": True, "b": -3, "c": "x", "d": 0.5, "e": 2**63}
    assert request.outputs == ["image"]


def test_contents_that_contradict_themselves_are_refused() -> None:
    contents = pb.InferTensorContents(uint_contents=[1])
    both = infer_request(datatype="UINT16", shape=[1], contents=contents)
    both.raw_input_contents.append(b"\1\0")
    few = infer_request(datatype="UINT16", shape=[1])
    few.raw_input_contents.extend([b"\1\0", b"\1\0"])
    other = infer_request(datatype="INT32", shape=[1], contents=contents)
    unnamed = infer_request(datatype="FP16", shape=[1], contents=contents)
    valueless = infer_request(datatype="UINT16", shape=[1], contents=contents)
    valueless.parameters["x"].SetInParent()
    strange = infer_request(datatype="UINT16", shape=[1], contents=contents)
    strange.inputs[0].parameters["x"].bool_param = True
    for message, said in (
        (both, "raw_input_contents is there, too"),
        (few, "raw_input_contents holds 2 inputs, the request has 1"),
        (other, "is 'INT32' and has uint_contents, expected int_contents"),
        (unnamed, "is 'FP16' and has uint_contents"),
        (valueless, "parameter 'x' of the request has no value"),
        (strange, "unknown parameter 'x' of input 't'"),
    ):
        with pytest.raises(InvalidInput) as caught:
            request_of(message)
        assert said in str(caught.value)


def test_replies_fill_raw_contents_for_every_output() -> None:
    outputs = [Output("codes", "UINT16", np.zeros(0, np.uint16)), Output("image", "BYTES", [b"ab"])]
    message = pb.ModelInferResponse.FromString(reply_of(InferResponse("m", "16k", "7", {"fingerprint": "f"}, outputs)))
    assert list(message.raw_output_contents) == [b"", b"\2\0\0\0ab"]
    assert [(one.name, one.datatype, list(one.shape)) for one in message.outputs] == [
        ("codes", "UINT16", [0]),
        ("image", "BYTES", [1]),
    ]
    assert message.parameters["fingerprint"].string_param == "f"
    assert (message.model_name, message.model_version, message.id) == ("m", "16k", "7")
