"""Tensors of the Open Inference Protocol against their wire forms, sound and hostile."""

from __future__ import annotations

import base64
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viq_serving.errors import InvalidInput
from viq_serving.oip.tensors import NUMBERS, Output, Tensor

WIRE = st.one_of(
    st.binary(max_size=64).map(lambda data: memoryview(data)),
    st.lists(st.integers() | st.binary() | st.text(), max_size=8),
)
SHAPES = st.lists(st.integers(-3, 9) | st.integers(), max_size=4).map(tuple)


def framed(*elements: bytes) -> memoryview:
    return memoryview(b"".join(struct.pack("<I", len(one)) + one for one in elements))


def test_numbers_are_read_from_their_bytes_and_from_elements_flat_or_nested() -> None:
    array = np.array([[1, 2], [3, -4], [5, 6]], np.int32)
    for data in (memoryview(array.tobytes()), array.reshape(-1).tolist(), array.tolist()):
        assert Tensor("grid_hw", "INT32", (3, 2), data).numbers().tolist() == [1, 2, 3, -4, 5, 6]


def test_bytes_are_read_with_their_lengths_as_bytes_and_as_base64() -> None:
    elements = [b"", b"\x89PNG", b"x" * 300]
    texts = [base64.b64encode(one).decode() for one in elements]
    for data in (framed(*elements), elements, texts):
        assert Tensor("image", "BYTES", (3,), data).strings() == elements


def test_a_tensor_of_no_elements_is_empty_in_every_form() -> None:
    for data in (memoryview(b""), list[object]()):
        assert Tensor("codes", "UINT16", (0,), data).numbers().size == 0
        assert Tensor("image", "BYTES", (0,), data).strings() == []


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "said"),
    [
        ("UINT16", (2,), memoryview(b"123"), "takes 4 bytes, got 3"),
        ("UINT16", (2,), [1], "takes 2 elements, got 1"),
        ("UINT16", (1,), [65536], "outside 0 to 65535"),
        ("UINT16", (1,), [-1], "outside 0 to 65535"),
        ("INT32", (1,), [2**31], "outside -2147483648 to 2147483647"),
        ("INT32", (1,), [10**400], "outside"),
        ("INT32", (1,), [1.0], "no whole number"),
        ("INT32", (1,), [True], "no whole number"),
        ("INT32", (1,), ["1"], "no whole number"),
        ("INT32", (1,), [None], "no whole number"),
        ("INT32", (2, 2), [[1, 2], [3]], "nested in another way"),
        ("INT32", (2, 2), [[1, 2], 3, 4], "nested in another way"),
        ("INT32", (1, 1), [[[1]]], "no whole number"),
        ("INT32", (-1, 2), memoryview(b""), "a dimension is 0 to"),
        ("INT32", (2**31, 2), memoryview(b""), "a dimension is 0 to"),
        ("INT32", (2**31 - 1, 2**31 - 1), memoryview(b""), "takes 18446744056529682436 bytes, got 0"),
    ],
)
def test_numbers_that_do_not_fit_their_tensor_are_named(
    datatype: str, shape: tuple[int, ...], data: memoryview | list[object], said: str
) -> None:
    with pytest.raises(InvalidInput, match=r"input t .*") as caught:
        Tensor("t", datatype, shape, data).numbers()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("count", "data", "said"),
    [
        (1, memoryview(b"\x01"), "takes 4 bytes or more, got 1"),
        (1, memoryview(b"\x05\0\0\0abc"), "ends within element 0"),
        (2, memoryview(b"\x04\0\0\0abcd"), "ends within element 1"),
        (1, memoryview(b"\xff\xff\xff\xffabc"), "ends within element 0"),
        (1, memoryview(b"\x01\0\0\0ab"), "1 bytes after its last element"),
        (2**31 - 1, memoryview(b"\0" * 64), "bytes or more, got 64"),
        (1, ["@@@"], "element 0 is no base64"),
        (1, ["YQ"], "element 0 is no base64"),
        (1, ["ü"], "element 0 is no base64"),
        (1, [7], "element 0 is no string"),
        (1, [], "takes 1 elements, got 0"),
    ],
)
def test_bytes_that_do_not_fit_their_tensor_are_named(count: int, data: memoryview | list[object], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Tensor("t", "BYTES", (count,), data).strings()
    assert said in str(caught.value)


@given(SHAPES, WIRE)
def test_any_nonsense_is_read_or_refused_but_never_crashes(shape: tuple[int, ...], data: memoryview) -> None:
    for datatype, read in (("INT32", Tensor.numbers), ("UINT16", Tensor.numbers), ("BYTES", Tensor.strings)):
        tensor = Tensor("t", datatype, shape, data)
        with suppress(InvalidInput):
            assert len(read(tensor)) == tensor.count


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_bytes_come_back_as_they_went(elements: list[bytes]) -> None:
    output = Output("image", "BYTES", elements)
    raw = output.raw()
    assert output.bytes_held == len(raw)
    assert Tensor("image", "BYTES", output.shape, memoryview(raw)).strings() == elements
    assert Tensor("image", "BYTES", output.shape, output.elements()).strings() == elements


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_go_out_little_endian_and_as_json_values(datatype: str) -> None:
    values = np.array([[0, 1], [2, 500]])
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if datatype == "BF16" else None
    output = Output("t", datatype, values.astype(NUMBERS[datatype]) if bits is None else bits)
    assert output.shape == (2, 2)
    assert output.elements() == [0, 1, 2, 500]
    assert output.raw() == (output.data if bits is None else bits).tobytes()  # type: ignore[union-attr]
    big_endian = Output("t", datatype, np.asarray(output.data).astype(NUMBERS[datatype].newbyteorder(">")))
    assert big_endian.raw() == output.raw()


def test_what_json_cannot_hold_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidInput, match="ask for binary data"):
        Output("features", "FP16", np.array([np.inf], np.float16)).elements()
    with pytest.raises(InvalidInput, match="BF16"):
        Output("features", "BF16", np.array([0x7F80], np.uint16)).elements()


def test_large_tensors_are_known_to_be_heavy() -> None:
    assert not Tensor("t", "BYTES", (1,), ["a" * 1000]).heavy
    assert Tensor("t", "BYTES", (1,), ["a" * 2**20]).heavy
    assert Tensor("t", "UINT16", (1,), memoryview(bytes(2**20))).heavy
    assert Tensor("t", "UINT16", (10_000,), [0] * 10_000).heavy
