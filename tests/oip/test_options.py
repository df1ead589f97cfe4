"""The parameters of a request to the Open Inference Protocol."""

from __future__ import annotations

import math

import pytest

from viq_serving.errors import InvalidInput
from viq_serving.oip.options import Options
from viq_serving.oip.tensors import Parameter
from viq_serving.types import Method, PixelOptions

METHODS: tuple[Method, ...] = ("encode", "embed", "decode")


def test_a_request_without_parameters_has_the_defaults() -> None:
    for method in METHODS:
        assert Options.of(method, {}) == Options(None, math.inf, None, PixelOptions(), "", False, "FP32")


@pytest.mark.parametrize(("level", "lane"), [(0, None), (1, "interactive"), (2, "bulk"), (2**64 - 1, "bulk")])
def test_priority_1_is_interactive_higher_numbers_are_bulk_and_0_says_nothing(level: int, lane: str | None) -> None:
    assert Options.of("encode", {"priority": level}).priority == lane


def test_the_timeout_is_in_microseconds_and_0_is_none() -> None:
    assert Options.of("decode", {"timeout": 1_500_000}).timeout_s == 1.5
    assert Options.of("decode", {"timeout": 0}).timeout_s == math.inf


def test_each_method_takes_its_own_parameters() -> None:
    assert Options.of("encode", {"exif": False, "alpha": "drop"}).pixels == PixelOptions(False, "drop")
    assert Options.of("encode", {"exif": 0}).pixels == PixelOptions(False)
    assert Options.of("embed", {"features_dtype": "BF16"}).features_datatype == "BF16"
    for name in ("allow_fingerprint_mismatch", "any_fingerprint"):
        assert Options.of("decode", {"fingerprint": "f", name: True}).any_fingerprint


def test_what_tritons_clients_send_unasked_has_no_meaning() -> None:
    sent: dict[str, Parameter] = {"sequence_id": 3, "sequence_start": True, "sequence_end": False}
    sent |= {"binary_data_output": True, "triton_enable_empty_final_response": True}
    for method in METHODS:
        assert Options.of(method, sent) == Options.of(method, {})


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        ("encode", {"prioritty": 1}, "unknown parameter 'prioritty'"),
        ("encode", {"features_dtype": "FP16"}, "unknown parameter 'features_dtype'"),
        ("decode", {"exif": False}, "unknown parameter 'exif'"),
        ("embed", {"features_dtype": "fp16"}, "there are FP32, FP16, BF16"),
        ("embed", {"features_dtype": 16}, "there are FP32, FP16, BF16"),
        ("encode", {"alpha": "keep"}, "there are white, drop"),
        ("encode", {"exif": "no"}, "expected true or false"),
        ("encode", {"exif": 2}, "expected true or false"),
        ("encode", {"exif": 0.0}, "expected true or false"),
        ("encode", {"priority": -1}, "expected a whole number"),
        ("encode", {"priority": True}, "expected a whole number"),
        ("encode", {"priority": "1"}, "expected a whole number"),
        ("encode", {"priority": 1.0}, "expected a whole number"),
        ("encode", {"timeout": -5}, "expected a whole number"),
        ("encode", {"timeout": 10**400}, "expected a whole number"),
        ("encode", {"expect_fingerprint": 1}, "expected a string"),
        ("decode", {"fingerprint": True}, "expected a string"),
        ("decode", {"alpha" * 400: 1}, "unknown parameter"),
    ],
)
def test_unknown_parameters_and_impossible_values_are_named(
    method: Method, parameters: dict[str, Parameter], said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Options.of(method, parameters)
    assert said in str(caught.value)
