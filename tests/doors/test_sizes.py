"""Several sizes behind one port, from the first moment on: loading, not ready, ready."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from PIL import Image

from viq import Codes, ViQ
from viq_serving.pb import open_inference_pb2 as oip
from viq_serving.pb import viq_pb2 as pb
from viq_serving.pb.open_inference_pb2_grpc import GRPCInferenceServiceStub
from viq_serving.pb.viq_pb2_grpc import ViQStub

if TYPE_CHECKING:
    from tests.doors.conftest import Reply, Server

MakePng = Callable[..., bytes]
Start = Callable[..., "Server"]

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
GOLDEN = Path(__file__).parent.parent / "golden"
SIZES = ("64k", "16k")
PIXELS = np.random.default_rng(3).integers(0, 256, (50, 33, 3), np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights root with both golden models in the released layout."""
    import torch

    root = tmp_path_factory.mktemp("weights")
    for size in SIZES:
        folder = root / f"converted_{size}"
        folder.mkdir()
        (folder / "viq.json").write_text('{"num_heads": 4}\n')
        parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "embedder": {}, "drawer": {}}
        with np.load(GOLDEN / f"{size}_weights.npz") as archive:
            for key in archive.files:
                part, name = key.split("/", 1)
                parts[part][name] = torch.from_numpy(archive[key])
        parts["drawer"] |= parts["embedder"]
        for stem, part in ((f"model_viq_fsq_{size}", "encoder"), ("embedder", "embedder"), ("index_drawer", "drawer")):
            torch.save(parts[part], folder / f"{stem}.pth")
    return root


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, ViQ]:
    """Both in-process."""
    return {size: ViQ.from_pretrained(root, size) for size in SIZES}


class Early:
    """What was seen before a server was ready."""

    def __init__(self, server: Server, image: bytes) -> None:
        self.replies = {door: server.ask(door, "encode", [image], request_id="early") for door in DOORS}
        paths = ("/readyz", "/livez", "/startupz", "/v2/health/live", "/v2/health/ready", "/v1/models")
        self.statuses = {path: server.http.get(path).status_code for path in paths}
        self.health = HealthStub(server.channel).Check(HealthCheckRequest()).status
        self.live = GRPCInferenceServiceStub(server.channel).ServerLive(oip.ServerLiveRequest()).live
        self.ready = GRPCInferenceServiceStub(server.channel).ServerReady(oip.ServerReadyRequest()).ready
        self.metric = server.metric("viq_ready")


@contextmanager
def loading_waits(root: Path) -> Iterator[None]:
    """A server that is started inside the `with` block does not get beyond the manifest of 64k before its end."""
    manifest = root / "converted_64k" / "viq.json"
    contents = manifest.read_bytes()
    manifest.unlink()
    os.mkfifo(manifest)  # who reads it waits for somebody to write
    yield
    with manifest.open("wb") as pipe:
        manifest.unlink()
        manifest.write_bytes(contents)
        pipe.write(contents)


@pytest.fixture(scope="module")
def early(start: Start, root: Path, models: dict[str, ViQ], make_png: MakePng) -> tuple[Server, Early]:
    """A server of both, whose loading waited until it had been looked at. The first size is the default."""
    sizes = [word for size in SIZES for word in ("--size", size)]
    with loading_waits(root):
        server = start("--weights-root", str(root), *sizes, "--drain-delay", "0").open()
        seen = Early(server, make_png())
    return server.ready(), seen


@pytest.fixture(scope="module")
def server(early: tuple[Server, Early]) -> Server:
    return early[0]


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("door", DOORS)
def test_while_loading_every_door_is_not_ready(early: tuple[Server, Early], door: str) -> None:
    reply: Reply = early[1].replies[door]
    assert reply.status in (503, "UNAVAILABLE")
    assert reply.code == ("" if door == "oip_http" else "not_ready")
    assert "loading" in reply.message
    assert reply.headers["x-request-id"] == "early"
    assert reply.fingerprint == ""  # there is none yet
    if "http" in door:
        assert int(reply.headers["retry-after"]) >= 1


def test_grpc_connections_can_be_refused_while_loading_and_the_address_is_known_by_then(
    start: Start, root: Path, image: bytes
) -> None:
    with loading_waits(root):
        server = start("--weights-root", str(root), "--size", "64k", "--grpc-when-loaded", "--drain-delay", "0").open()
        host, port = server.grpc.rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 60)
        assert server.http.get("/readyz").status_code == 503
    assert server.ready().ask("grpc", "encode", [image]).status == "OK"
    assert server.end() == 0


def test_while_loading_it_is_alive_and_says_that_it_is_not_ready(early: tuple[Server, Early]) -> None:
    server, seen = early
    assert (seen.statuses["/livez"], seen.statuses["/v2/health/live"], seen.live) == (200, 200, True)
    assert {seen.statuses[path] for path in ("/readyz", "/startupz", "/v2/health/ready", "/v1/models")} == {503}
    assert (seen.health, seen.ready, seen.metric) == (HealthCheckResponse.NOT_SERVING, False, 0.0)
    assert HealthStub(server.channel).Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
    assert server.http.get("/startupz").status_code == 200
    assert server.metric("viq_ready") == 1.0


@pytest.mark.parametrize("door", DOORS)
def test_each_size_answers_when_named_and_the_first_one_when_not(
    server: Server, door: str, models: dict[str, ViQ], image: bytes
) -> None:
    for asked, size in (("", "64k"), ("64k", "64k"), ("16k", "16k")):
        reply = server.ask(door, "encode", [image], size=asked)
        assert reply.items == models[size].encode_pixels([PIXELS])
        assert (reply.size, reply.fingerprint) == (size, models[size].fingerprint)


@pytest.mark.parametrize("door", DOORS)
def test_codes_of_each_size_become_features_and_pictures_of_that_size(
    server: Server, door: str, models: dict[str, ViQ]
) -> None:
    for size, model in models.items():
        codes = model.encode_pixels([PIXELS])
        asked = {"size": size} if door.startswith("oip") else {}  # elsewhere the codes say what they are
        features = server.ask(door, "embed", codes, **asked)
        np.testing.assert_array_equal(features.items[0], model.embed(codes)[0].numpy())
        picture = server.ask(door, "decode", codes, **asked)
        np.testing.assert_allclose(picture.items[0], model.decode(codes)[0], atol=1)
        assert {features.size, picture.size} == {size}


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_codes_of_one_size_are_not_read_as_another(server: Server, door: str, models: dict[str, ViQ]) -> None:
    codes = models["16k"].encode_pixels([PIXELS])
    reply = server.ask(door, "decode", codes, size="64k")
    assert (reply.status, reply.code) in (
        (409, "fingerprint_mismatch"),
        ("FAILED_PRECONDITION", "fingerprint_mismatch"),
    )
    forced = server.ask(door, "decode", codes, size="64k", any_fingerprint=True)
    assert (forced.status, forced.code) in ((422, "invalid_input"), ("INVALID_ARGUMENT", "invalid_input"))


@pytest.mark.parametrize("door", DOORS)
def test_a_code_that_the_size_does_not_have_is_invalid_input(server: Server, door: str) -> None:
    """64k has 64,000 codes and its numbers go to 65,535."""
    message = _out_of_range(server, door)
    assert "64500" in message
    assert "63999" in message


def _out_of_range(server: Server, door: str) -> str:
    data = np.array([1, 2, 3, 64_500], "<u2").tobytes()
    if door == "http":
        headers = {"Content-Type": "application/octet-stream", "ViQ-Grid": "1,1"}
        reply = server.post("/v1/decode", content=data, headers=headers)
        assert (reply.status, reply.code) == (422, "invalid_input")
        return reply.message
    if door == "grpc":
        request = pb.DecodeRequest(items=[pb.Item(codes=pb.Codes(data=data, h=1, w=1))])
        (result,) = ViQStub(server.channel).Decode(request).results
        assert (result.status.code, result.status.grpc_code) == ("invalid_input", 3)
        return str(result.status.message)
    if door == "oip_http":
        inputs = [
            {"name": "codes", "datatype": "UINT16", "shape": [4], "data": [1, 2, 3, 64_500]},
            {"name": "grid_hw", "datatype": "INT32", "shape": [1, 2], "data": [1, 1]},
        ]
        reply = server.post("/v2/models/viq-decode/infer", json={"inputs": inputs})
        assert reply.status == 422
        return reply.message
    infer = oip.ModelInferRequest(model_name="viq-decode")
    infer.inputs.add(name="codes", datatype="UINT16", shape=[4])
    infer.inputs.add(name="grid_hw", datatype="INT32", shape=[1, 2])
    infer.raw_input_contents.extend([data, np.array([1, 1], "<i4").tobytes()])
    with pytest.raises(grpc.RpcError) as caught:
        GRPCInferenceServiceStub(server.channel).ModelInfer(infer)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


def test_every_door_lists_both_sizes_the_default_first(server: Server, models: dict[str, ViQ]) -> None:
    rows = server.http.get("/v1/models").json()["models"]
    assert [(row["size"], row["default"]) for row in rows] == [("64k", True), ("16k", False)]
    info = ViQStub(server.channel).Info(pb.InfoRequest())
    assert [(one.model.size, one.is_default) for one in info.models] == [("64k", True), ("16k", False)]
    assert [one.model.fingerprint for one in info.models] == [models[size].fingerprint for size in SIZES]
    assert dict(info.limits) == rows[0]["limits"]
    described = server.http.get("/v2/models/viq-encode").json()
    metadata = GRPCInferenceServiceStub(server.channel).ModelMetadata(oip.ModelMetadataRequest(name="viq-encode"))
    assert described["versions"] == list(metadata.versions) == list(SIZES)


def test_plan_says_the_same_at_both_ports(server: Server) -> None:
    sides = [(640, 480), (1, 1), (10_000, 10_000)]
    body = {"images": [{"width": width, "height": height} for width, height in sides]}
    rows = server.http.post("/v1/plan", json=body).json()["results"]
    asked = pb.PlanRequest(images=[pb.ImageSize(width=width, height=height) for width, height in sides])
    plans = ViQStub(server.channel).Plan(asked).results
    for row, plan in zip(rows, plans, strict=True):
        assert row["grid"] == [plan.h, plan.w]
        assert row["image_size"] == [plan.height, plan.width]
        assert [row[name] for name in ("patches", "codes", "cost", "fits")] == [
            plan.patches, plan.codes, plan.cost, plan.fits,
        ]  # fmt: skip
        assert row.get("limit", "") == plan.limit


def test_codes_of_both_sizes_in_one_request_are_answered_or_refused_alike(
    server: Server, models: dict[str, ViQ]
) -> None:
    codes: list[Codes] = [models[size].encode_pixels([PIXELS])[0] for size in SIZES]
    items = [one.to_dict("base64") for one in codes]
    reply = server.post("/v1/decode", json={"results": items})
    assert (reply.status, reply.code) in ((409, "fingerprint_mismatch"), (422, "invalid_input")), reply
    assert json.dumps(reply.message)
    grpc_reply = server.ask("grpc", "decode", codes)
    assert grpc_reply.code in ("fingerprint_mismatch", "invalid_input")


def test_the_http_port_is_open_before_anything_is_loaded(early: tuple[Server, Early]) -> None:
    assert httpx.get(f"{early[0].url}/livez", trust_env=False).status_code == 200
