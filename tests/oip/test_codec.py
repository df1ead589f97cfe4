"""Bodies of the Open Inference Protocol over HTTP: JSON and binary tensors, sound and hostile."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq_serving.errors import InvalidInput, Malformed
from viq_serving.oip.tensors import InferRequest, InferResponse, Output
from viq_serving.rest.oip_codec import Form, decode, encode

IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES"}


def body(fields: object, *binary: bytes) -> tuple[bytes, str]:
    """A body and its header."""
    head = json.dumps(fields).encode()
    return b"".join((head, *binary)), str(len(head))


def decoded(fields: object, *binary: bytes) -> tuple[InferRequest, Form]:
    data, length = body(fields, *binary)
    return decode(data, length if binary else None, "viq-encode", "16k")


def test_binary_inputs_follow_each_other_after_the_json() -> None:
    inputs = [{**IMAGE, "name": name, "parameters": {"binary_data_size": size}} for name, size in (("a", 3), ("b", 2))]
    request, _ = decoded({"inputs": inputs}, b"123", b"45")
    assert [bytes(one.data) for one in request.inputs if isinstance(one.data, memoryview)] == [b"123", b"45"]
    assert (request.model, request.version) == ("viq-encode", "16k")


def test_json_and_binary_inputs_mix() -> None:
    inputs = [{**IMAGE, "data": ["YQ=="]}, {**IMAGE, "name": "b", "parameters": {"binary_data_size": 1}}]
    request, _ = decoded({"inputs": inputs, "id": "7"}, b"x")
    assert request.inputs[0].data == ["YQ=="]
    assert request.inputs[1].data == memoryview(b"x")
    assert request.id == "7"


def test_a_header_of_0_makes_the_body_one_image_answered_in_binary_form() -> None:
    request, form = decode(b"\x89PNG", "0", "viq-encode", "")
    assert [(one.name, one.datatype, one.shape, one.strings()) for one in request.inputs] == [
        ("image", "BYTES", (1,), [b"\x89PNG"])
    ]
    assert form.is_binary(Output("codes", "UINT16", np.zeros(1, np.uint16)))


@pytest.mark.parametrize(
    ("asked", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "codes"}]}, False),
        ({"outputs": [{"name": "codes"}], "parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "codes", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "outputs": [{"name": "codes", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
    ],
)
def test_an_output_is_binary_if_it_says_so_or_else_the_request_does(asked: dict[str, object], binary: bool) -> None:
    _, form = decoded({"inputs": [], **asked})
    assert form.is_binary(Output("codes", "UINT16", np.zeros(1, np.uint16))) is binary


def test_a_reply_holds_json_outputs_and_then_the_binary_ones() -> None:
    outputs = [
        Output("codes", "UINT16", np.array([1, 2], np.uint16)),
        Output("grid_hw", "INT32", np.array([[1, 2]], np.int32)),
        Output("image", "BYTES", [b"ab"]),
    ]
    answer = InferResponse("viq-encode", "16k", "7", {"fingerprint": "f.m"}, outputs)
    data, length = encode(answer, Form(of_output={"codes": True, "image": True}))
    assert length is not None
    assert json.loads(data[:length]) == {
        "model_name": "viq-encode",
        "model_version": "16k",
        "id": "7",
        "parameters": {"fingerprint": "f.m"},
        "outputs": [
            {"name": "codes", "datatype": "UINT16", "shape": [2], "parameters": {"binary_data_size": 4}},
            {"name": "grid_hw", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]},
            {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
        ],
    }
    assert data[length:] == b"\1\0\2\0" + b"\2\0\0\0ab"
    data, length = encode(answer, Form())
    assert length is None
    assert json.loads(data)["outputs"][2]["data"] == ["YWI="]


def test_a_reply_to_a_request_without_an_id_has_none() -> None:
    data, _ = encode(InferResponse("viq-encode", "16k", "", {}, []), Form())
    assert "id" not in json.loads(data)


@pytest.mark.parametrize("header", ["-1", "1e3", "", "99999", "٣", "9" * 5000, " 1"])
def test_a_header_that_is_no_length_within_the_body_is_malformed(header: str) -> None:
    with pytest.raises(Malformed, match="Inference-Header-Content-Length"):
        decode(b'{"inputs":[]}', header, "viq-encode", "")


@pytest.mark.parametrize(
    ("sizes", "binary", "said"),
    [
        ((5,), b"123", "binary_data_size of input 'a' is 5, 3 bytes are left"),
        ((2, 2), b"123", "binary_data_size of input 'b' is 2, 1 bytes are left"),
        ((2**70,), b"123", "3 bytes are left"),
        ((1,), b"123", "2 bytes of the body belong to no input"),
        ((), b"123", "3 bytes of the body belong to no input"),
    ],
)
def test_binary_sizes_that_do_not_add_up_are_malformed(sizes: tuple[int, ...], binary: bytes, said: str) -> None:
    inputs = [
        {**IMAGE, "name": name, "parameters": {"binary_data_size": size}}
        for name, size in zip("abc", sizes, strict=False)
    ]
    with pytest.raises(Malformed) as caught:
        decoded({"inputs": inputs}, binary)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "expected an object"),
        ({"inptus": []}, "unknown field 'inptus'"),
        ({"inputs": {}}, "inputs is no list of objects"),
        ({"inputs": [3]}, "inputs is no list of objects"),
        ({"inputs": [{**IMAGE, "name": 3, "data": []}]}, "string as name"),
        ({"inputs": [{**IMAGE, "shape": "1", "data": []}]}, "whole numbers as shape"),
        ({"inputs": [{**IMAGE, "shape": [1.0], "data": []}]}, "whole numbers as shape"),
        ({"inputs": [{**IMAGE, "shape": [True], "data": []}]}, "whole numbers as shape"),
        ({"inputs": [{**IMAGE, "datatype": None, "data": []}]}, "string as datatype"),
        ({"inputs": [IMAGE]}, "needs a list as data"),
        ({"inputs": [{**IMAGE, "data": "YQ=="}]}, "needs a list as data"),
        ({"inputs": [{**IMAGE, "data": [], "parameters": {"binary_data_size": 0}}]}, "both data and binary_data_size"),
        ({"inputs": [{**IMAGE, "parameters": {"binary_data_size": -1}}]}, "no whole number from 0 on"),
        ({"inputs": [{**IMAGE, "parameters": {"binary_data_size": True}}]}, "no whole number from 0 on"),
        ({"inputs": [{**IMAGE, "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
        ({"inputs": [{**IMAGE, "data": [], "parameters": {"x": 1}}]}, "unknown parameter 'x' of input 'image'"),
        ({"inputs": [{**IMAGE, "data": [], "colour": 1}]}, "unknown field 'colour'"),
        ({"inputs": [], "id": 7}, "string as id"),
        ({"inputs": [], "parameters": []}, "parameters of the request are no object"),
        ({"inputs": [], "parameters": {"x": None}}, "'x' of the request is no number"),
        ({"inputs": [], "parameters": {"x": [1]}}, "'x' of the request is no number"),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({"inputs": [], "outputs": [{"name": "codes", "parameters": {"binary_data": 1}}]}, "must be true or false"),
        ({"inputs": [], "outputs": [{"name": "codes", "parameters": {"classification": 3}}]}, "'classification'"),
        ({"inputs": [], "outputs": [{"name": "codes"}, {"name": "codes"}]}, "'codes' is asked for twice"),
        ({"inputs": [], "outputs": [{}]}, "string as name"),
    ],
)
def test_fields_that_are_none_are_named(fields: object, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decoded(fields)
    assert said in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"[" * 100_000, b'{"inputs":[{"shape":[' + b"9" * 5000 + b"]}]}"])
def test_what_is_no_json_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, None, "viq-encode", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["inputs", "outputs", "parameters", "name", "shape", "data", "binary_data_size"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, st.binary(max_size=16), st.integers(-2, 200))
def test_any_body_is_taken_apart_or_refused_but_never_crashes(fields: object, binary: bytes, off: int) -> None:
    data, length = body(fields, binary)
    for header in (length, str(off), None):
        with suppress(Malformed, InvalidInput):
            request, _ = decode(data, header, "viq-encode", "")
            assert request.model == "viq-encode"
