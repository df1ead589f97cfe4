"""Stock clients, unchanged, against a running server: what they ask is answered as the protocol has it."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from viq import Codes, ViQ

if TYPE_CHECKING:
    from tests.oip.conftest import Address, Array, MakePixels, MakePng, Stock

FEATURES = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16"}


@pytest.fixture(scope="module")
def models(weights: Path) -> dict[str, ViQ]:
    """The served models, in-process."""
    return {size: ViQ.from_pretrained(str(weights), size) for size in ("16k", "64k")}


@pytest.fixture(scope="module")
def expected(models: dict[str, ViQ], make_pixels: MakePixels, shapes: list[tuple[int, int]]) -> dict[str, list[Codes]]:
    """The codes of the images, by size, each encoded alone in-process."""
    return {size: [model.encode([make_pixels(*shape)])[0] for shape in shapes] for size, model in models.items()}


def unpacked(result: Any, size: str) -> list[Codes]:
    """The codes in a result of viq-encode."""
    ends = result.as_numpy("cu_seqlens")
    codes, fingerprint = result.as_numpy("codes"), ""
    rows = zip(ends[:-1], ends[1:], result.as_numpy("grid_hw"), result.as_numpy("image_hw"), strict=True)
    return [
        Codes.from_flat(codes[a:b], grid.tolist(), size, pixels.tolist(), fingerprint) for a, b, grid, pixels in rows
    ]


def packed(codes: list[Codes]) -> dict[str, Array]:
    """Inputs of viq-decode."""
    return {
        "codes": np.concatenate([one.flat for one in codes]),
        "grid_hw": np.array([one.grid for one in codes], np.int32),
        "image_hw": np.array([one.image_size for one in codes], np.int32),
    }


def picture(file: bytes) -> Array:
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def same(found: list[Codes], wanted: list[Codes]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.image_size == other.image_size
        assert np.array_equal(one.array, other.array)


def test_the_server_and_its_models_are_alive_and_ready(client: Stock) -> None:
    assert client.call("is_server_live")
    assert client.call("is_server_ready")
    for model in ("viq-encode", "viq-embed", "viq-decode"):
        assert client.call("is_model_ready", model)
        assert client.call("is_model_ready", model, "64k")


def test_models_and_versions_that_there_are_not_are_not_ready(client: Stock) -> None:
    assert not client.call("is_model_ready", "resnet")
    assert not client.call("is_model_ready", "viq-encode", "4k")


def test_the_server_lists_its_extensions_and_no_statistics(client: Stock) -> None:
    found = client.metadata("get_server_metadata")
    assert found["name"] == "viq-serving"
    assert found["version"]
    assert "binary_tensor_data" in found["extensions"]
    assert "statistics" not in found["extensions"]


def test_model_metadata_names_versions_and_tensors(client: Stock, models: dict[str, ViQ]) -> None:
    found = client.metadata("get_model_metadata", "viq-embed", "64k")
    assert (found["name"], found["versions"]) == ("viq-embed", ["16k", "64k"])
    tensors = {one["name"]: (one["datatype"], [int(side) for side in one["shape"]]) for one in found["inputs"]}
    assert tensors == {"codes": ("UINT16", [-1]), "grid_hw": ("INT32", [-1, 2])}
    tensors = {one["name"]: (one["datatype"], [int(side) for side in one["shape"]]) for one in found["outputs"]}
    assert tensors == {"features": ("FP32", [-1, models["64k"].width]), "cu_seqlens": ("INT32", [-1])}
    inputs = client.metadata("get_model_metadata", "viq-encode")["inputs"]
    assert [(one["name"], one["datatype"]) for one in inputs] == [("image", "BYTES")]


def test_the_configuration_has_no_batch_dimension_and_an_optional_input(client: Stock) -> None:
    found = client.metadata("get_model_config", "viq-decode")
    config = found if client.is_http else found["config"]
    assert config["name"] == "viq-decode"
    assert config["platform"] == config["backend"] == "viq"
    assert config.get("max_batch_size", 0) == 0
    assert config["version_policy"] == {"all": {}}
    assert [one["data_type"] for one in config["input"]] == ["TYPE_UINT16", "TYPE_INT32", "TYPE_INT32"]
    assert [one["name"] for one in config["input"] if one.get("optional")] == ["image_hw"]
    assert [(one["name"], one["data_type"]) for one in config["output"]] == [("image", "TYPE_STRING")]


def test_the_repository_index_lists_every_model_and_version(client: Stock) -> None:
    found = client.metadata("get_model_repository_index")
    rows = found if client.is_http else found["models"]
    assert {(row["name"], row["version"], row["state"]) for row in rows} == {
        (model, size, "READY") for model in ("viq-encode", "viq-embed", "viq-decode") for size in ("16k", "64k")
    }


@pytest.mark.parametrize("version", ["", "16k", "64k"])
def test_codes_are_those_of_the_library_bit_for_bit(
    client: Stock, images: Array, expected: dict[str, list[Codes]], models: dict[str, ViQ], version: str
) -> None:
    size = version or "16k"
    result = client.infer("viq-encode", {"image": images}, model_version=version, request_id="seven")
    same(unpacked(result, size), expected[size])
    reply = client.reply(result)
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("viq-encode", size, "seven")
    assert reply["parameters"]["fingerprint"] == models[size].fingerprint
    assert reply["parameters"]["request_id"]
    assert result.as_numpy("codes").dtype == np.uint16
    assert result.as_numpy("grid_hw").dtype == result.as_numpy("image_hw").dtype == np.int32


def test_one_image_is_a_tensor_of_one(client: Stock, make_png: MakePng, expected: dict[str, list[Codes]]) -> None:
    result = client.infer("viq-encode", {"image": np.array([make_png()], object)})
    same(unpacked(result, "16k"), expected["16k"][:1])
    assert result.as_numpy("cu_seqlens").tolist() == [0, 24]


def test_64_images_are_answered_in_order(
    client: Stock, make_png: MakePng, models: dict[str, ViQ], make_pixels: MakePixels
) -> None:
    seeds = range(64)
    result = client.infer("viq-encode", {"image": np.array([make_png(16, 16, seed) for seed in seeds], object)})
    same(unpacked(result, "16k"), models["16k"].encode([make_pixels(16, 16, seed) for seed in seeds]))


@pytest.mark.parametrize("datatype", FEATURES)
def test_features_are_those_of_the_library_in_each_datatype(
    client: Stock, expected: dict[str, list[Codes]], models: dict[str, ViQ], datatype: str
) -> None:
    import torch

    codes = expected["64k"]
    inputs = {name: array for name, array in packed(codes).items() if name != "image_hw"}
    parameters = {"features_dtype": datatype}
    result = client.infer("viq-embed", inputs, model_version="64k", parameters=parameters)
    wanted = torch.cat(models["64k"].embed(codes)).to(getattr(torch, FEATURES[datatype]))
    found = result.as_numpy("features")
    assert found.dtype.name == FEATURES[datatype]
    assert np.array_equal(found.astype(np.float32), wanted.float().numpy())
    assert result.as_numpy("cu_seqlens").tolist() == np.cumsum([0, *(one.flat.size // 4 for one in codes)]).tolist()


def test_pictures_are_those_of_the_library(
    client: Stock, expected: dict[str, list[Codes]], models: dict[str, ViQ]
) -> None:
    result = client.infer("viq-decode", packed(expected["16k"]))
    wanted = models["16k"].decode(expected["16k"])
    for file, pixels in zip(result.as_numpy("image"), wanted, strict=True):
        assert np.array_equal(picture(file), pixels)


def test_without_image_hw_pictures_are_of_the_whole_grid(client: Stock, expected: dict[str, list[Codes]]) -> None:
    inputs = packed(expected["16k"][:1])
    del inputs["image_hw"]
    assert picture(client.infer("viq-decode", inputs).as_numpy("image")[0]).shape == (32, 48, 3)


def test_only_the_outputs_that_are_asked_for_come_and_in_that_order(client: Stock, images: Array) -> None:
    outputs = [client.output("image_hw"), client.output("codes")]
    result = client.infer("viq-encode", {"image": images}, outputs=outputs)
    assert [one["name"] for one in client.reply(result)["outputs"]] == ["image_hw", "codes"]
    assert result.as_numpy("grid_hw") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_requests_may_be_compressed(
    client: Stock, images: Array, expected: dict[str, list[Codes]], algorithm: str
) -> None:
    how = {"compression_algorithm": algorithm}
    if client.is_http:
        how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    same(unpacked(client.infer("viq-encode", {"image": images}, **how), "16k"), expected["16k"])


def test_priority_timeout_and_a_sequence_are_taken_as_clients_send_them(client: Stock, images: Array) -> None:
    for priority in (0, 1, 2, 7):
        result = client.infer(
            "viq-encode", {"image": images}, priority=priority, timeout=60_000_000, sequence_id=5, sequence_start=True
        )
        assert result.as_numpy("codes").size


def test_a_request_may_expect_a_fingerprint(client: Stock, images: Array, models: dict[str, ViQ]) -> None:
    for fingerprint in (models["16k"].fingerprint, models["16k"].family):
        parameters = {"expect_fingerprint": fingerprint}
        assert client.infer("viq-encode", {"image": images}, parameters=parameters).as_numpy("codes").size


def test_codes_of_another_family_pass_if_that_is_allowed(
    client: Stock, expected: dict[str, list[Codes]], models: dict[str, ViQ]
) -> None:
    inputs = packed(expected["16k"][:1])
    own = {"fingerprint": models["16k"].fingerprint}
    allowed = {"fingerprint": models["64k"].fingerprint, "allow_fingerprint_mismatch": True}
    for parameters in (own, allowed):
        assert client.infer("viq-decode", inputs, parameters=parameters).as_numpy("image").size == 1


def test_pixel_options_are_parameters(client: Stock, models: dict[str, ViQ]) -> None:
    turned, buffer = Image.new("RGBA", (40, 24), (255, 0, 0, 0)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    turned.save(buffer, "PNG", exif=exif)
    tensor = {"image": np.array([buffer.getvalue()], object)}
    assert client.infer("viq-encode", tensor).as_numpy("image_hw").tolist() == [[40, 24]]
    result = client.infer("viq-encode", tensor, parameters={"exif": False, "alpha": "drop"})
    red = np.zeros((24, 40, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    same(unpacked(result, "16k"), models["16k"].encode([red]))


# What the two HTTP clients can say and the gRPC ones cannot.


@pytest.fixture(params=["http", "http.aio"])
def http_client(request: pytest.FixtureRequest, address: Address, make_stock: Any) -> Stock:
    stock: Stock = make_stock(request.param, address)
    return stock


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_come_in_binary_form_or_as_json(
    http_client: Stock, images: Array, expected: dict[str, list[Codes]], binary: bool
) -> None:
    names = ("codes", "cu_seqlens", "grid_hw", "image_hw")
    outputs = [http_client.output(name, binary_data=binary) for name in names]
    result = http_client.infer("viq-encode", {"image": images}, outputs=outputs)
    same(unpacked(result, "16k"), expected["16k"])
    assert all(("data" in one) is not binary for one in http_client.reply(result)["outputs"])


def test_binary_and_json_outputs_mix(http_client: Stock, images: Array, expected: dict[str, list[Codes]]) -> None:
    names = ("codes", "cu_seqlens", "grid_hw", "image_hw")
    outputs = [http_client.output(name, binary_data=index % 2 == 1) for index, name in enumerate(names)]
    same(unpacked(http_client.infer("viq-encode", {"image": images}, outputs=outputs), "16k"), expected["16k"])


def test_images_are_base64_in_json_both_ways(
    http_client: Stock, images: Array, expected: dict[str, list[Codes]], models: dict[str, ViQ]
) -> None:
    texts = np.array([base64.b64encode(one).decode() for one in images], object)
    result = http_client.call("infer", "viq-encode", [http_client.tensor("image", texts, binary_data=False)])
    same(unpacked(result, "16k"), expected["16k"])
    inputs = [http_client.tensor(name, array, binary_data=False) for name, array in packed(expected["16k"]).items()]
    outputs = [http_client.output("image", binary_data=False)]
    files = http_client.call("infer", "viq-decode", inputs, outputs=outputs).as_numpy("image")
    for file, pixels in zip(files, models["16k"].decode(expected["16k"]), strict=True):
        assert np.array_equal(picture(base64.b64decode(file)), pixels)


@pytest.mark.parametrize("datatype", FEATURES)
def test_features_as_json_are_exact(
    http_client: Stock, expected: dict[str, list[Codes]], models: dict[str, ViQ], datatype: str
) -> None:
    import torch

    inputs = {name: array for name, array in packed(expected["16k"]).items() if name != "image_hw"}
    outputs = [http_client.output("features", binary_data=False)]
    result = http_client.infer("viq-embed", inputs, outputs=outputs, parameters={"features_dtype": datatype})
    wanted = torch.cat(models["16k"].embed(expected["16k"])).to(getattr(torch, FEATURES[datatype]))
    assert np.array_equal(result.as_numpy("features").astype(np.float32), wanted.float().numpy())


# What no stock client sends, but the protocol has.


def test_a_body_without_json_is_one_image(
    address: Address, make_png: MakePng, expected: dict[str, list[Codes]]
) -> None:
    reply = httpx.post(
        f"{address.url}/v2/models/viq-encode/infer",
        content=make_png(),
        headers={"Inference-Header-Content-Length": "0"},
    )
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    outputs = json.loads(reply.content[:length])["outputs"]
    codes = reply.content[length : length + outputs[0]["parameters"]["binary_data_size"]]
    assert codes == expected["16k"][0].to_bytes()


def test_curl_can_ask_in_plain_json(address: Address, make_png: MakePng, expected: dict[str, list[Codes]]) -> None:
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(make_png()).decode()]}
    reply = httpx.post(f"{address.url}/v2/models/viq-encode/versions/16k/infer", json={"inputs": [image]})
    assert reply.headers["content-type"] == "application/json"
    assert "content-encoding" not in reply.headers
    found = {one["name"]: one["data"] for one in reply.json()["outputs"]}
    assert found["codes"] == expected["16k"][0].flat.tolist()
    assert (found["grid_hw"], found["image_hw"], found["cu_seqlens"]) == ([2, 3], [24, 40], [0, 24])
    assert "id" not in reply.json()


def test_every_reply_carries_fingerprint_and_request_id(address: Address, models: dict[str, ViQ]) -> None:
    for path in ("/v2", "/v2/health/live", "/v2/models/viq-encode", "/v2/nowhere"):
        reply = httpx.get(f"{address.url}{path}", headers={"X-Request-ID": "mine.1"})
        assert reply.headers["x-request-id"] == "mine.1"
        assert reply.headers["viq-fingerprint"] == models["16k"].fingerprint


def test_the_index_lists_those_that_are_ready_if_asked(address: Address) -> None:
    reply = httpx.post(f"{address.url}/v2/repository/index", json={"ready": True})
    assert len(reply.json()) == 6


def test_inferences_count_as_their_methods_at_their_doors(client: Stock, address: Address, images: Array) -> None:
    door = "oip_http" if client.is_http else "oip_grpc"
    series = f'viq_requests_total{{door="{door}",method="encode",outcome="ok",priority="bulk",size="64k"}}'

    def count() -> float:
        lines = httpx.get(f"{address.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(series))

    before = count()
    client.infer("viq-encode", {"image": images}, model_version="64k", priority=2)
    assert count() == before + 1
