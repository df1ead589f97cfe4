"""The parameters of a request: what may be asked beside the tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from viq_serving.errors import InvalidInput
from viq_serving.oip.quoting import quoted
from viq_serving.oip.tensors import Parameter
from viq_serving.types import Alpha, FeatureDtype, Method, PixelOptions, Priority

FEATURE_DTYPES: Mapping[str, FeatureDtype] = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16"}
"""Values of `features_dtype`, which are the datatypes of the output."""

_ANY_METHOD = frozenset({"priority", "timeout", "expect_fingerprint"})
_OF_CODES = frozenset({"fingerprint", "allow_fingerprint_mismatch", "any_fingerprint"})
_OF_METHOD: Mapping[Method, frozenset[str]] = {
    "encode": _ANY_METHOD | {"exif", "alpha"},
    "embed": _ANY_METHOD | _OF_CODES | {"features_dtype"},
    "decode": _ANY_METHOD | _OF_CODES,
}
# What Triton's clients send unasked. No model here keeps state, and the front end has seen to the outputs' form.
_WITHOUT_MEANING = frozenset({"sequence_id", "sequence_start", "sequence_end", "binary_data_output"})
_TRITONS_OWN = "triton_"
_LARGEST = 2**64

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The parameters in the domain's words; None is for what was left to the front end's headers."""

    priority: Priority | None
    timeout_s: float
    expect_fingerprint: str | None
    pixels: PixelOptions
    fingerprint: str
    any_fingerprint: bool
    features_datatype: str

    @classmethod
    def of(cls, method: Method, parameters: Mapping[str, Parameter]) -> Options:
        """The options of a request; raises `InvalidInput` for what `method` does not know or no value it can have."""
        known = _OF_METHOD[method]
        for name in parameters:
            if name not in known and name not in _WITHOUT_MEANING and not name.startswith(_TRITONS_OWN):
                raise InvalidInput(f"unknown parameter {quoted(name)}; viq-{method} has {', '.join(sorted(known))}")

        def get(name: str, read: Callable[[str, Parameter], T], default: T) -> T:
            return read(name, parameters[name]) if name in parameters else default

        return cls(
            priority=get("priority", _priority, None),
            timeout_s=get("timeout", _timeout_s, math.inf),
            expect_fingerprint=get("expect_fingerprint", _text, None),
            pixels=PixelOptions(get("exif", _flag, True), get("alpha", _alpha, "white")),
            fingerprint=get("fingerprint", _text, ""),
            any_fingerprint=get("allow_fingerprint_mismatch", _flag, False) or get("any_fingerprint", _flag, False),
            features_datatype=get("features_dtype", _features_datatype, "FP32"),
        )


def _priority(name: str, value: Parameter) -> Priority | None:
    """0 is the protocol's word for no wish, 1 its highest priority."""
    level = _whole(name, value)
    return None if level == 0 else "interactive" if level == 1 else "bulk"


def _timeout_s(name: str, value: Parameter) -> float:
    """0 is the protocol's word for none."""
    microseconds = _whole(name, value)
    return microseconds / 1e6 if microseconds else math.inf


def _alpha(name: str, value: Parameter) -> Alpha:
    return cast(Alpha, _one_of(name, value, ("white", "drop")))


def _features_datatype(name: str, value: Parameter) -> str:
    return _one_of(name, value, tuple(FEATURE_DTYPES))


def _one_of(name: str, value: Parameter, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise InvalidInput(f"parameter {name} is {quoted(value)}; there are {', '.join(choices)}")
    return value


def _text(name: str, value: Parameter) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"parameter {name} is {quoted(value)}, expected a string")
    return value


def _flag(name: str, value: Parameter) -> bool:
    if value not in (True, False) or isinstance(value, float):  # 1 and 0 are among these
        raise InvalidInput(f"parameter {name} is {quoted(value)}, expected true or false")
    return bool(value)


def _whole(name: str, value: Parameter) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise InvalidInput(f"parameter {name} is {quoted(value)}, expected a whole number from 0 on")
    return value
