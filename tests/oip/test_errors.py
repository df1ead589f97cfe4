"""Each row of the table of errors that can come through the Open Inference Protocol, as stock clients see it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import pytest
from tests.oip.refusing import INFER, Refused, codes, ints

from viq_serving.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.oip.conftest import Address, Array, MakeStock, OpenDoors, Stock


@pytest.fixture
def refused(client: Stock, exception: Any) -> Refused:
    return Refused(client, exception)


def test_a_model_or_version_that_there_is_not_is_404(refused: Refused, image: dict[str, Array]) -> None:
    refused(404, "model 'resnet' does not exist; there are viq-encode", "resnet", image)
    refused(404, "size '4k' is not loaded", "viq-encode", image, model_version="4k")
    refused(404, "size '9k' does not exist", "viq-encode", image, model_version="9k")


def test_metadata_of_what_there_is_not_is_404(client: Stock, exception: Any) -> None:
    for method in ("get_model_metadata", "get_model_config"):
        for what in (("resnet",), ("viq-encode", "4k")):
            with pytest.raises(exception) as caught:
                client.call(method, *what)
            assert caught.value.status() == ("404" if client.is_http else "StatusCode.NOT_FOUND")


def test_what_is_not_served_is_not_found(client: Stock, exception: Any) -> None:
    for method, what in (("load_model", ("viq-encode",)), ("get_trace_settings", ()), ("get_log_settings", ())):
        with pytest.raises(exception) as caught:
            client.call(method, *what)
        assert caught.value.status() == ("404" if client.is_http else "StatusCode.UNIMPLEMENTED")


def test_an_undecodable_or_empty_image_fails_the_request_and_its_index_is_named(
    refused: Refused, image: dict[str, Array]
) -> None:
    good = image["image"][0]
    for bad in (b"no image", b"", good[:40]):
        refused(422, "image 2: ", "viq-encode", {"image": np.array([good, good, bad, good], object)})
    refused(422, "image 0: ", "viq-encode", {"image": np.array([b"no image"], object)})


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        ("viq-encode", {"picture": np.array([b""], object)}, "unknown input 'picture'; viq-encode has image"),
        ("viq-encode", {}, "viq-encode needs input image"),
        ("viq-encode", {"image": np.array([], object)}, "no image"),
        ("viq-encode", {"image": np.array([[b"a"]], object)}, "input image has shape [1, 1], expected [-1]"),
        ("viq-encode", {"image": codes(4)}, "input image is 'UINT16', expected BYTES"),
        ("viq-decode", {"codes": codes(4)}, "viq-decode needs input grid_hw"),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([1, 1]).astype(np.int64)}, "'INT64', expected INT32"),
        ("viq-decode", {"codes": codes(4), "grid_hw": np.ones((1, 3), np.int32)}, "[1, 3], expected [-1, 2]"),
        ("viq-decode", {"codes": codes(4), "grid_hw": np.ones(2, np.int32)}, "shape [2], expected [-1, 2]"),
        ("viq-decode", {"codes": codes(5), "grid_hw": ints([1, 1])}, "codes has 5 elements, the grids in grid_hw"),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([1, 1], [1, 1])}, "grids in grid_hw take 8"),
        ("viq-decode", {"codes": codes(0), "grid_hw": ints()}, "no image and no codes"),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([1, 1], [-1, 1])}, "image 1: grid -1x1 has no patches"),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([0, 5])}, "image 0: grid 0x5 has no patches"),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([-2, -2])}, "image 0: grid -2x-2 has no patches"),
        ("viq-embed", {"codes": codes(4) + np.uint16(16384), "grid_hw": ints([1, 1])}, "image 0: code 16384 is out of"),
        (
            "viq-decode",
            {"codes": codes(8), "grid_hw": ints([1, 1], [1, 1]), "image_hw": ints([16, 16], [16, 17])},
            "image 1: image width 17 does not fit 1 patches",
        ),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([1, 1]), "image_hw": ints()}, "image_hw has 0 rows"),
        ("viq-decode", {"codes": codes(4), "grid_hw": ints([1, 1]), "image_hw": ints([-1, 16])}, "image height -1"),
        ("viq-embed", {"codes": codes(4), "grid_hw": ints([1, 1]), "image_hw": ints([16, 16])}, "unknown input"),
    ],
)
def test_inputs_that_do_not_fit_the_model_are_422(
    refused: Refused, model: str, inputs: dict[str, Array], said: str
) -> None:
    refused(422, said, model, inputs)


def test_unknown_outputs_and_parameters_are_422(client: Stock, refused: Refused, image: dict[str, Array]) -> None:
    refused(422, "unknown output 'code'", "viq-encode", image, outputs=[client.output("code")])
    twice = [client.output("codes"), client.output("codes")]
    refused(422, "asked for twice", "viq-encode", image, outputs=twice)
    classes = [client.output("codes", class_count=3)]
    refused(422, "unknown parameter 'classification'", "viq-encode", image, outputs=classes)
    refused(422, "unknown parameter 'sise'", "viq-encode", image, parameters={"sise": "64k"})
    refused(422, "there are FP32, FP16, BF16", "viq-embed", image, parameters={"features_dtype": "INT8"})
    refused(422, "expected a whole number", "viq-encode", image, timeout=-1)


def test_shared_memory_is_said_not_to_be_served(client: Stock, exception: Any) -> None:
    tensor = client.tensor("image", np.array([b""], object))
    tensor.set_shared_memory("region", 64)
    with pytest.raises(exception, match="shared memory, which is not served here"):
        client.call("infer", "viq-encode", [tensor])


def test_another_fingerprint_than_expected_is_409(refused: Refused, image: dict[str, Array]) -> None:
    refused(409, "expected fingerprint 0123", "viq-encode", image, parameters={"expect_fingerprint": "0123"})
    foreign = {"codes": codes(4), "grid_hw": ints([1, 1])}
    for model in ("viq-decode", "viq-embed"):
        refused(409, "codes are of family 0123", model, foreign, parameters={"fingerprint": "0123.4567"})


def test_the_fingerprint_may_be_expected_in_a_header_too(refused: Refused, image: dict[str, Array]) -> None:
    refused(409, "expected fingerprint 0123", "viq-encode", image, headers={"viq-expect-fingerprint": "0123"})


def test_a_deadline_that_cannot_be_met_is_504(refused: Refused, image: dict[str, Array]) -> None:
    refused(504, "deadline", "viq-encode", image, timeout=1)


def test_one_patch_limit_holds_for_codes_before_they_are_looked_at(refused: Refused) -> None:
    huge = ints([2**31 - 1, 2**31 - 1])
    refused(413, "patches, the limit is 16384", "viq-decode", {"codes": codes(4), "grid_hw": huge})


# What no stock client sends.


@pytest.mark.parametrize(
    ("verb", "path", "content", "headers", "status"),
    [
        ("POST", INFER, b"{", {}, 400),
        ("POST", INFER, b"", {}, 400),
        ("POST", INFER, b'{"inputs":[]}', {"Inference-Header-Content-Length": "9999"}, 400),
        ("POST", INFER, b'{"inputs":[]}', {"Inference-Header-Content-Length": "-1"}, 400),
        ("POST", INFER, b'{"inputs":[]}', {"Inference-Header-Content-Length": "x"}, 400),
        ("POST", INFER, b'{"inputs":[]}rest', {"Inference-Header-Content-Length": "13"}, 400),
        ("POST", INFER, b"\x1f\x8bno", {"Content-Encoding": "gzip"}, 400),
        ("POST", INFER, gzip.compress(b'{"inputs":[]}', mtime=0)[:-4], {"Content-Encoding": "gzip"}, 400),
        ("POST", INFER, b"{}", {"Content-Encoding": "br"}, 415),
        ("POST", INFER, b"[]", {}, 422),
        ("POST", INFER, b'{"input":[]}', {}, 422),
        ("POST", INFER, b"", {"Inference-Header-Content-Length": "0"}, 422),
        ("POST", INFER, b"{}", {"ViQ-Priority": "now"}, 422),
        ("POST", "/v2/models/viq-decode/infer", b"\x89PNG", {"Inference-Header-Content-Length": "0"}, 422),
        ("POST", "/v2/repository/index", b"{", {}, 400),
        ("POST", "/v2/models/resnet/infer", b"{", {}, 404),
        ("POST", "/v2/models/viq-encode/versions/4k/infer", b'{"inputs":[]}', {}, 404),
        ("GET", "/v2/nowhere", b"", {}, 404),
        ("GET", "/v2/models/viq-encode/stats", b"", {}, 404),
        ("GET", "/v2/models//infer", b"", {}, 404),
        ("GET", INFER, b"", {}, 405),
        ("DELETE", "/v2", b"", {}, 405),
        ("GET", "/v2/repository/index", b"", {}, 405),
    ],
)
def test_errors_on_v2_are_a_string_in_an_object_whoever_makes_them(
    address: Address, verb: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    reply = httpx.request(verb, f"{address.url}{path}", content=content, headers=headers)
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert body["error"]
    assert reply.headers["x-request-id"]


def test_a_zip_bomb_is_413_with_the_limit_in_the_message(address: Address) -> None:
    bomb = gzip.compress(bytes(256 * 2**20), 9)
    reply = httpx.post(f"{address.url}{INFER}", content=bomb, headers={"Content-Encoding": "gzip"}, timeout=60)
    assert reply.status_code == 413
    assert str(64 * 2**20) in reply.json()["error"]


def test_features_over_the_message_limit_are_refused_before_they_are_computed(
    open_doors: OpenDoors, make_stock: MakeStock, exception: Any
) -> None:
    def forbid(tokenizer: Tokenizer) -> None:
        tokenizer.embed = None  # type: ignore[method-assign,assignment]  # whoever calls it fails

    inputs = {"codes": codes(4 * 64), "grid_hw": ints([8, 8])}
    with open_doors(change=forbid, max_message_bytes=20_000) as address:
        for kind in ("grpc", "grpc.aio"):
            said = "outputs of 32768 bytes, the limit (max_message_bytes) is 20000"
            Refused(make_stock(kind, address), exception)(413, said, "viq-embed", inputs)
            half = {"parameters": {"features_dtype": "FP16"}}
            Refused(make_stock(kind, address), exception)(500, "internal error", "viq-embed", inputs, **half)


def test_what_callers_sent_is_quoted_cut_short(client: Stock, exception: Any) -> None:
    long = "x" * 100_000
    asks: list[tuple[str, dict[str, Array], dict[str, object]]] = [
        (long, {}, {}),
        ("viq-encode", {long: codes(1)}, {}),
        ("viq-encode", {"image": codes(1)}, {"parameters": {long: 1}}),
        ("viq-decode", {"codes": np.zeros([1] * 60, np.uint16), "grid_hw": ints([1, 1])}, {}),
    ]
    for model, inputs, asked in asks:
        with pytest.raises(exception) as caught:
            client.infer(model, inputs, **asked)
        assert len(caught.value.message()) < 500


def test_numbers_of_thousands_of_digits_are_refused(address: Address) -> None:
    tensor = {"name": "image", "shape": [10**4000], "datatype": "BYTES", "data": ["YQ=="]}
    for fields in (
        {"inputs": [tensor]},
        {"inputs": [{**tensor, "shape": [1]}], "parameters": {"timeout": 10**4000}},
        {"inputs": [{**tensor, "parameters": {"binary_data_size": 10**4000}, "data": None}]},
    ):
        reply = httpx.post(f"{address.url}{INFER}", content=json.dumps(fields))
        assert reply.status_code in (400, 422)
        assert len(reply.content) < 2000


@pytest.mark.parametrize("count", [0, 2**20, 2**31 - 1, 2**62, -1])
def test_shapes_that_claim_much_cost_nothing(address: Address, count: int) -> None:
    tensor = {"name": "image", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = httpx.post(f"{address.url}{INFER}", content=head + bytes(8), headers=headers)
    assert reply.status_code == (413 if 64 < count < 2**31 else 422)


def test_a_broken_message_is_an_invalid_argument(address: Address) -> None:
    with grpc.insecure_channel(address.grpc) as channel:
        ask: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"\xff\xff\xff no message", timeout=60)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
