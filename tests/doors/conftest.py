"""Real server processes, a gate before their device, and one way to ask through every door."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from viq import Codes, ViQ
from viq.config import CODES_PER_PATCH
from viq_serving.pb import open_inference_pb2 as oip
from viq_serving.pb import viq_pb2 as pb

DOORS = ("http", "grpc", "oip_http", "oip_grpc")
GOLDEN = Path(__file__).parent.parent / "golden"
SECONDS = 60.0

# The service as it is, with a gate between its queue and its device, a brake on the device, and a count of what passed.
# An image of 5x1 patches makes every batch that holds it fail.
GATED = """
import sys, threading, time
from pathlib import Path
import viq_serving.tokenizer
from viq.model import ViQ
from viq_serving.cli.main import main
from viq_serving.engine.engine import Engine

folder = Path(sys.argv.pop(1))
take, launch, decode = Engine.take, ViQ.launch_encode, viq_serving.tokenizer.decode
counts, lock = {"taken": 0, "launched": 0, "decoded": 0}, threading.Lock()

def count(name):
    with lock:
        counts[name] += 1
        (folder / f".{name}").write_text(str(counts[name]))
        (folder / f".{name}").replace(folder / name)

def pause(name):
    count(name)
    limit = folder / f"{name}.most"
    while True:
        try:
            if counts[name] <= int(limit.read_text()):
                return
        except FileNotFoundError:
            return
        time.sleep(0.002)

def gated(self, *, wait):
    batch = take(self, wait=wait)
    if batch is not None:
        pause("taken")
    return batch

def braked(self, images):
    pause("launched")
    if any(image.grid == (5, 1) for image in images):
        raise RuntimeError("secret of the device")
    return launch(self, images)

def counted(*arguments, **options):
    count("decoded")
    return decode(*arguments, **options)

Engine.take, ViQ.launch_encode, viq_serving.tokenizer.decode = gated, braked, counted
sys.exit(main(sys.argv[1:]))
"""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for `condition`; fail, saying `what` did not come true, if it takes a minute."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, what
        threading.Event().wait(0.005)


@dataclass
class Reply:
    """What came back through a door: `items` on success, else the error's code, where the door says it, and message.

    `status` is a number on HTTP and a name on gRPC. `headers` are headers or trailing metadata, in lower case.
    """

    status: int | str
    code: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    size: str = ""
    items: list[Any] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.status in (200, "OK")


@dataclass
class Gate:
    """Lets the device of a server through, or not."""

    folder: Path

    def count(self, name: str) -> int:
        """How many batches were `taken` from the queue or `launched` on the device, or images `decoded`."""
        try:
            return int((self.folder / name).read_text())
        except FileNotFoundError:
            return 0

    def close(self, more: int = 0, name: str = "taken") -> None:
        """Let so many more batches pass the gate, or the brake if `name` is "launched", and then none."""
        unfinished = self.folder / f".{name}.most"
        unfinished.write_text(str(self.count(name) + more))
        unfinished.replace(self.folder / f"{name}.most")

    def open(self, *names: str) -> None:
        for name in names or ("taken", "launched"):
            (self.folder / f"{name}.most").unlink(missing_ok=True)


class Server:
    """A server process, and the doors of it."""

    def __init__(self, folder: Path, *flags: str, gated: bool = False, environment: Mapping[str, str] = {}) -> None:
        folder.mkdir(exist_ok=True)
        self.gate, self._log = Gate(folder), folder / "server.log"
        script = [sys.executable, "-c", GATED, str(folder)]
        command = script if gated else [str(Path(sys.executable).with_name("viq"))]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
        self._lines = 3 if "--metrics-port" in flags else 2
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "serve", "--http-port", "0", "--grpc-port", "0", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Beside other work on the same cores, threads of one product wait for each other.
                env={**plain, "OMP_NUM_THREADS": "1", **environment},
            )
        self._opened = False

    def open(self) -> Server:
        """Wait for the addresses, which are there before the models are loaded."""
        if not self._opened:
            assert self.process.stdout is not None
            lines = [self.process.stdout.readline().split() for _ in range(self._lines)]
            assert all(lines), self.log()
            self.url, self.grpc, self.metrics = (*(line[-1] for line in lines), "")[:3]
            self.http = httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False)
            self.channel = grpc.insecure_channel(self.grpc, options=[("grpc.max_send_message_length", -1)])
            self._opened = True
        return self

    def ready(self) -> Server:
        """Wait until it is ready."""
        self.open()
        until(lambda: self.http.get("/readyz").status_code == 200, f"readiness of {self.log()}")
        return self

    def log(self) -> str:
        return self._log.read_text()

    def access(self) -> dict[str, str]:
        """Outcome of every request in the log, by request id."""
        lines = (json.loads(line) for line in self.log().splitlines() if line.startswith("{"))
        return {line["request_id"]: line["outcome"] for line in lines if line["logger"] == "viq.access"}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of `name` that have these labels."""
        text = self.http.get("/metrics", headers={"Authorization": "Bearer good"}).text
        samples = (one for family in text_string_to_metric_families(text) for one in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def waits(self, images: int) -> None:
        """Wait until so many images are queued."""
        until(lambda: self.metric("viq_queue_requests") == images, f"{images} images in the queue")

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        if self._opened:
            self.http.close()
            self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def ask(self, door: str, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        """Encode image files, or embed or decode codes, through `door`.

        Options: size, timeout_ms, expect, any_fingerprint, request_id, key, and `bogus` for one there is not.
        """
        if door == "http":
            return self._http(method, inputs, **asked)
        if door == "grpc":
            return self._grpc(method, inputs, **asked)
        if door == "oip_http":
            return self._oip_http(method, inputs, **asked)
        return self._oip_grpc(method, inputs, **asked)

    def post(self, path: str, **request: Any) -> Reply:
        """An HTTP request as it is; its error, if that is what comes."""
        return _of_http(self.http.request(request.pop("method", "POST"), path, **request))

    def call(self, path: str, message: bytes, **options: Any) -> Reply:
        """A gRPC call of raw bytes; the reply's are its only item."""
        ask: Any = self.channel.unary_unary(f"/{path}")
        try:
            reply, call = ask.with_call(message, **options)
        except grpc.RpcError as error:
            return _of_grpc(error)
        trailers = _trailers(call)
        return Reply("OK", headers=trailers, fingerprint=trailers.get("viq-fingerprint", ""), items=[reply])

    def _http(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        query = {"format": "json"} if method != "encode" else {"codes": "base64"}
        query |= {"size": asked["size"]} if asked.get("size") else {}
        query |= {"any_fingerprint": "1"} if asked.get("any_fingerprint") else {}
        query |= {"bogus": "1"} if asked.get("bogus") else {}
        headers = _headers(asked)
        if method == "encode" and len(inputs) == 1:
            reply = self.http.post("/v1/encode", content=inputs[0], params=query, headers=headers)
        elif method == "encode":
            parts = [("image", (str(index), one)) for index, one in enumerate(inputs)]
            reply = self.http.post("/v1/encode", files=parts, params=query, headers=headers)
        else:
            results = [one.to_dict("base64") for one in inputs]
            known = {name: results[0][name] for name in ("size", "fingerprint")}
            rows = [{k: v for k, v in row.items() if k not in known} for row in results]
            reply = self.http.post(
                f"/v1/{method}", json={"model": known, "results": rows}, params=query, headers=headers
            )
        answer = _of_http(reply)
        if answer.good:
            body = reply.json()
            answer.size = body["model"]["size"]
            assert body["model"]["fingerprint"] == answer.fingerprint
            known = {"size": answer.size, "fingerprint": answer.fingerprint}
            answer.items = [_json_item(method, row, known) for row in body["results"]]
        return answer

    def _grpc(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        items = [pb.Item(key=str(i), image=one) if isinstance(one, bytes) else _codes_item(str(i), one)
                 for i, one in enumerate(inputs)]  # fmt: skip
        kinds: dict[str, Any] = {"encode": pb.EncodeRequest, "embed": pb.EmbedRequest, "decode": pb.DecodeRequest}
        request = kinds[method](items=items, size=asked.get("size", ""))
        if method != "encode":
            request.allow_fingerprint_mismatch = bool(asked.get("any_fingerprint"))
        timeout = asked.get("timeout_ms")
        answer = self.call(
            f"viq.v1.ViQ/{method.capitalize()}",
            request.SerializeToString(),
            metadata=_metadata({**asked, "timeout_ms": None}),
            timeout=SECONDS if timeout is None else timeout / 1000,
        )
        if not answer.good:
            return answer
        replies: dict[str, Any] = {"encode": pb.EncodeResponse, "embed": pb.EmbedResponse, "decode": pb.DecodeResponse}
        message = replies[method].FromString(answer.items[0])
        assert [one.key for one in message.results] == [item.key for item in items]
        assert message.model.fingerprint == answer.fingerprint
        answer.size, answer.items = message.model.size, [_grpc_item(one) for one in message.results]
        if len(answer.items) == 1 and isinstance(answer.items[0], Reply):  # one image: its error is the reply's
            answer.items[0].headers, answer.items[0].fingerprint = answer.headers, answer.fingerprint
            return answer.items[0]
        return answer

    def _oip_http(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        described, binary = [], b""
        for name, datatype, shape, data in _tensors(method, inputs):
            parameters = {"binary_data_size": len(data)}
            described.append({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters})
            binary += data
        parameters = {**_parameters(method, inputs, asked), "binary_data_output": True}
        head = json.dumps({"inputs": described, "parameters": parameters}).encode()
        version = f"/versions/{asked['size']}" if asked.get("size") else ""
        headers = {**_headers({**asked, "timeout_ms": None, "expect": None})}
        headers["Inference-Header-Content-Length"] = str(len(head))
        reply = self.http.post(f"/v2/models/viq-{method}{version}/infer", content=head + binary, headers=headers)
        answer = _of_http(reply)
        if not answer.good:
            return answer
        end = int(reply.headers["Inference-Header-Content-Length"])
        body, rest = json.loads(reply.content[:end]), io.BytesIO(reply.content[end:])
        raw = {one["name"]: rest.read(one["parameters"]["binary_data_size"]) for one in body["outputs"]}
        shapes = {one["name"]: one["shape"] for one in body["outputs"]}
        return _unpacked(method, answer, raw, shapes, body["model_version"], body["parameters"]["fingerprint"])

    def _oip_grpc(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        request = oip.ModelInferRequest(model_name=f"viq-{method}", model_version=asked.get("size", ""))
        for name, datatype, shape, data in _tensors(method, inputs):
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.raw_input_contents.append(data)
        for name, value in _parameters(method, inputs, asked).items():
            kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
            setattr(request.parameters[name], f"{kind}_param", value)
        metadata = _metadata({**asked, "timeout_ms": None, "expect": None})
        answer = self.call("inference.GRPCInferenceService/ModelInfer", request.SerializeToString(), metadata=metadata)
        if not answer.good:
            return answer
        message = oip.ModelInferResponse.FromString(answer.items.pop())
        raw = {one.name: data for one, data in zip(message.outputs, message.raw_output_contents, strict=True)}
        shapes = {one.name: list(one.shape) for one in message.outputs}
        assert message.parameters["fingerprint"].string_param == answer.fingerprint
        return _unpacked(method, answer, raw, shapes, message.model_version, answer.fingerprint)


def _headers(asked: Mapping[str, Any]) -> dict[str, str]:
    names = {"timeout_ms": "ViQ-Timeout-Ms", "expect": "ViQ-Expect-Fingerprint", "request_id": "X-Request-ID"}
    headers = {header: str(asked[name]) for name, header in names.items() if asked.get(name) is not None}
    return headers | ({"Authorization": f"Bearer {asked['key']}"} if asked.get("key") else {})


def _metadata(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in _headers(asked).items()]


def _parameters(method: str, inputs: Sequence[Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request parameters of the Open Inference Protocol."""
    parameters: dict[str, Any] = {}
    if asked.get("timeout_ms") is not None:
        parameters["timeout"] = 1000 * asked["timeout_ms"]
    if asked.get("expect") is not None:
        parameters["expect_fingerprint"] = asked["expect"]
    if asked.get("any_fingerprint"):
        parameters["allow_fingerprint_mismatch"] = True
    if asked.get("bogus"):
        parameters["bogus"] = 1
    if method != "encode" and inputs[0].fingerprint:
        parameters["fingerprint"] = inputs[0].fingerprint
    return parameters


def _tensors(method: str, inputs: Sequence[Any]) -> list[tuple[str, str, list[int], bytes]]:
    """Name, datatype, shape and bytes of each input tensor."""
    if method == "encode":
        data = b"".join(len(one).to_bytes(4, "little") + one for one in inputs)
        return [("image", "BYTES", [len(inputs)], data)]
    flat = b"".join(one.to_bytes() for one in inputs)
    grids, pixels = (np.array(pairs, "<i4") for pairs in zip(*((c.grid, c.image_size) for c in inputs), strict=True))
    tensors = [
        ("codes", "UINT16", [len(flat) // 2], flat),
        ("grid_hw", "INT32", [len(inputs), 2], grids.tobytes()),
        ("image_hw", "INT32", [len(inputs), 2], pixels.tobytes()),
    ]
    return tensors[:2] if method == "embed" else tensors


def _unpacked(
    method: str, answer: Reply, raw: Mapping[str, bytes], shapes: Mapping[str, list[int]], size: str, fingerprint: str
) -> Reply:
    """The items in the packed outputs of the Open Inference Protocol."""
    assert fingerprint == answer.fingerprint
    answer.size = size
    if method == "decode":
        data = raw["image"]
        while data:
            length = int.from_bytes(data[:4], "little")
            answer.items.append(_pixels(data[4 : 4 + length]))
            data = data[4 + length :]
        assert len(answer.items) == shapes["image"][0]
        return answer
    bounds = np.frombuffer(raw["cu_seqlens"], "<i4").tolist()
    spans = list(pairwise(bounds))
    if method == "embed":
        features = np.frombuffer(raw["features"], "<f4").reshape(shapes["features"])
        answer.items = [features[begin:end] for begin, end in spans]
        return answer
    flat, pairs = np.frombuffer(raw["codes"], "<u2"), {}
    for name in ("grid_hw", "image_hw"):
        pairs[name] = np.frombuffer(raw[name], "<i4").reshape(-1, 2).tolist()
    for (begin, end), grid, pixels in zip(spans, pairs["grid_hw"], pairs["image_hw"], strict=True):
        assert end - begin == CODES_PER_PATCH * grid[0] * grid[1]
        answer.items.append(Codes.from_flat(flat[begin:end], grid, size, pixels, fingerprint))
    return answer


def _of_http(reply: httpx.Response) -> Reply:
    headers = {name.lower(): value for name, value in reply.headers.items()}
    answer = Reply(reply.status_code, headers=headers, fingerprint=headers.get("viq-fingerprint", ""))
    if not answer.good and reply.content:
        error = reply.json()["error"]
        if isinstance(error, str):
            answer.message = error
        else:
            answer.code, answer.message = error["code"], error["message"]
            assert error.get("request_id", headers["x-request-id"]) == headers["x-request-id"]
    return answer


def _of_grpc(error: Any) -> Reply:
    trailers = _trailers(error)
    code = trailers.get("viq-error-code", "")
    return Reply(error.code().name, code, error.details() or "", trailers, trailers.get("viq-fingerprint", ""))


def _trailers(call: Any) -> dict[str, str]:
    return {name: str(value) for name, value in call.trailing_metadata() or ()}


def _json_item(method: str, row: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    if "error" in row:
        return Reply(0, row["error"]["code"], row["error"]["message"])
    if method == "encode":
        return Codes.from_dict({**{k: v for k, v in row.items() if k != "name"}, **known})
    if method == "embed":
        return np.array(row["features"], np.float32)
    return _pixels(base64.b64decode(row["image_b64"]))


def _codes_item(key: str, one: Codes) -> pb.Item:
    (h, w), (height, width) = one.grid, one.image_size
    codes = pb.Codes(
        data=one.to_bytes(), h=h, w=w, height=height, width=width, size=one.size, fingerprint=one.fingerprint
    )
    return pb.Item(key=key, codes=codes)


def _grpc_item(result: pb.Result) -> Any:
    kind = result.WhichOneof("content")
    if kind is None:
        (name,) = (one.name for one in grpc.StatusCode if one.value[0] == result.status.grpc_code)
        return Reply(name, result.status.code, result.status.message)
    if kind == "codes":
        one = result.codes
        return Codes.from_bytes(one.data, (one.h, one.w), one.size, (one.height, one.width), one.fingerprint)
    if kind == "features":
        assert result.features.last
        return np.frombuffer(result.features.data, "<f4").reshape(result.features.n, result.features.c)
    return _pixels(result.image)


def _pixels(file: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(file)))


MakePng = Callable[..., bytes]
Start = Callable[..., Server]


@pytest.fixture(scope="session")
def model() -> ViQ:
    """The packaged nano, in-process."""
    return ViQ.from_pretrained()


@pytest.fixture(scope="session")
def make_png() -> MakePng:
    """The file of an image of noise, of `height` x `width` pixels."""

    def make(height: int = 24, width: int = 40, seed: int = 0) -> bytes:
        pixels = np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a server with these flags; it ends with the tests, unless they end it themselves."""
    started: list[Server] = []

    def run(*flags: str, **options: Any) -> Server:
        started.append(Server(tmp_path_factory.mktemp("server"), *flags, **options))
        return started[-1]

    yield run
    for server in started:
        server.gate.open()
        server.end()


@pytest.fixture(scope="session")
def gated(start: Start) -> Server:
    """A server of nano with small limits and a gate before its device."""
    limits = {"max-queue-patches": 600, "max-batch-patches": 128, "max-patches": 512, "max-pixels": 200_000}
    limits |= {"max-images": 8, "max-body-bytes": 600_000, "max-message-bytes": 600_000, "drain-delay": 0}
    return start(*(word for name, value in limits.items() for word in (f"--{name}", str(value))), gated=True)


@pytest.fixture
def server(gated: Server) -> Iterator[Server]:
    """That server, ready, with its gate open and nothing under way before and after the test."""
    gated.ready()
    yield gated
    gated.gate.open()
    gated.waits(0)
