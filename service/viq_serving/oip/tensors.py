"""Tensors, requests and replies of the Open Inference Protocol, before JSON or protobuf and after."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from viq_serving.errors import InvalidInput

Parameter = bool | int | float | str

NUMBERS: dict[str, np.dtype[np.generic]] = {
    "UINT16": np.dtype("<u2"),
    "INT32": np.dtype("<i4"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),  # numpy has no such type: its bits
}
"""The datatypes whose elements all take the same space, those that our models use."""

HEAVY_BYTES = 256 * 2**10
"""What takes a fraction of a millisecond to copy; more is worth a thread."""

_MANY = 4096  # elements
_LONGEST = 2**31  # of a dimension; products of larger ones could not even be shown in a message
_PREFIX = 4  # bytes of length, little-endian, before each element of BYTES


@dataclass(frozen=True)
class Tensor:
    """An input as it came: `data` is the binary form, or the elements, flat or nested as `shape` is.

    Elements of BYTES are bytes, or strings in base64, the form they have in JSON. What came may be of any size
    and nonsense; it is looked at only when asked for.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | Sequence[object]

    @property
    def count(self) -> int:
        """How many elements `shape` speaks of; raises `InvalidInput` if it cannot be."""
        if any(not 0 <= side < _LONGEST for side in self.shape):
            raise InvalidInput(f"input {self.name} has shape {list(self.shape)}: a dimension is 0 to {_LONGEST - 1}")
        return math.prod(self.shape)

    @property
    def heavy(self) -> bool:
        """Whether looking at it takes so long that the event loop should not wait for it."""
        if isinstance(self.data, memoryview):
            return len(self.data) > HEAVY_BYTES
        lengths = (len(one) if isinstance(one, (bytes, str, list)) else 8 for one in self.data[:_MANY])
        return len(self.data) > _MANY or sum(lengths) > HEAVY_BYTES

    def numbers(self) -> npt.NDArray[np.generic]:
        """The elements, flat; raises `InvalidInput` if they are not `shape` many whole numbers that fit."""
        dtype = NUMBERS[self.datatype]
        if isinstance(self.data, memoryview):
            expected = self.count * dtype.itemsize
            if len(self.data) != expected:
                raise InvalidInput(f"{self._shaped()} takes {expected} bytes, got {len(self.data)}")
            return np.frombuffer(self.data, dtype) if expected else np.zeros(0, dtype)
        elements = self._flattened(self.data)
        if any(kind is not int for kind in set(map(type, elements))):
            raise InvalidInput(f"{self._shaped()} holds what is no whole number")
        low, high = min(elements, default=0), max(elements, default=0)
        limits = np.iinfo(dtype.name)
        if low < limits.min or high > limits.max:
            raise InvalidInput(f"{self._shaped()} holds a number outside {limits.min} to {limits.max}")
        return np.array(elements, dtype)

    def strings(self) -> list[bytes]:
        """The elements of BYTES, flat; raises `InvalidInput` if they are not `shape` many, or not base64."""
        if isinstance(self.data, memoryview):
            return self._framed(self.data)
        return [self._string(index, one) for index, one in enumerate(self._flattened(self.data))]

    def _flattened(self, data: Sequence[object]) -> list[Any]:
        """The elements, flat and as many as `shape` says."""
        count, level = self.count, list(data)
        for side in self.shape[1:] if level and isinstance(level[0], list) else ():
            inner = [one for one in level if isinstance(one, list) and len(one) == side]
            if len(inner) < len(level):
                raise InvalidInput(f"{self._shaped()} has data nested in another way")
            level = [one for row in inner for one in row]
        if len(level) != count:
            raise InvalidInput(f"{self._shaped()} takes {count} elements, got {len(level)}")
        return level

    def _framed(self, data: memoryview) -> list[bytes]:
        """Elements that have their length before them."""
        found: list[bytes] = []
        if self.count * _PREFIX > len(data):
            raise InvalidInput(f"{self._shaped()} takes {self.count * _PREFIX} bytes or more, got {len(data)}")
        at = 0
        for index in range(self.count):
            begin = at + _PREFIX
            at = begin + int.from_bytes(data[at:begin], "little")
            if begin > len(data) or at > len(data):
                raise InvalidInput(f"{self._shaped()} ends within element {index}")
            found.append(bytes(data[begin:at]))
        if at != len(data):
            raise InvalidInput(f"{self._shaped()} has {len(data) - at} bytes after its last element")
        return found

    def _string(self, index: int, one: object) -> bytes:
        if isinstance(one, bytes):
            return one
        if not isinstance(one, str):
            raise InvalidInput(f"input {self.name}: element {index} is no string")
        try:
            return base64.b64decode(one, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"input {self.name}: element {index} is no base64: {error}") from None

    def _shaped(self) -> str:
        return f"input {self.name} of {self.datatype} {list(self.shape)}"


@dataclass(frozen=True)
class Output:
    """A result: `data` holds the numbers in `shape`, or the elements of BYTES."""

    name: str
    datatype: str
    data: npt.NDArray[np.generic] | Sequence[bytes]

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        return self.data.shape if isinstance(self.data, np.ndarray) else (len(self.data),)

    @property
    def bytes_held(self) -> int:
        """The length of its binary form."""
        if isinstance(self.data, np.ndarray):
            return self.data.nbytes
        return sum(_PREFIX + len(one) for one in self.data)

    def raw(self) -> bytes:
        """The binary form: little-endian, row-major; elements of BYTES with their length before them."""
        if isinstance(self.data, np.ndarray):
            return self.data.astype(NUMBERS[self.datatype], copy=False).tobytes()
        return b"".join(part for one in self.data for part in (len(one).to_bytes(_PREFIX, "little"), one))

    def elements(self) -> list[object]:
        """The elements, flat, as JSON can hold them: BYTES in base64. Raises `InvalidInput` for infinite numbers."""
        if not isinstance(self.data, np.ndarray):
            return [base64.b64encode(one).decode("ascii") for one in self.data]
        array = self.data.reshape(-1)
        if self.datatype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInput(
                f"{self.name} is not finite in {self.datatype}, which JSON cannot hold; ask for binary data"
            )
        elements: list[object] = array.tolist()
        return elements


@dataclass(frozen=True)
class InferRequest:
    """What is asked. No `version`: the first that is loaded; no `outputs`: all of them."""

    model: str
    version: str
    inputs: Sequence[Tensor]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    outputs: Sequence[str] = ()


@dataclass(frozen=True)
class InferResponse:
    """What is answered; `version` is always filled."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, str]
    outputs: Sequence[Output]

    @property
    def bytes_held(self) -> int:
        """The length of all outputs in their binary form."""
        return sum(output.bytes_held for output in self.outputs)
