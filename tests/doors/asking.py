"""One way to ask through every door."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import grpc
import httpx
from tests.doors import forms
from tests.doors.forms import Reply

from viq_serving.pb import open_inference_pb2 as oip
from viq_serving.pb import viq_pb2 as pb

SECONDS = 60.0


class Asker:
    """Asks a server over an HTTP client and a gRPC channel."""

    http: httpx.Client
    channel: grpc.Channel

    def ask(self, door: str, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        """Encode image files, or embed or decode codes, through `door`.

        Options: size, timeout_ms, expect, any_fingerprint, request_id, key, headers, and `bogus` for one there is not.
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
        return forms.of_http(self.http.request(request.pop("method", "POST"), path, **request))

    def call(self, path: str, message: bytes, **options: Any) -> Reply:
        """A gRPC call of raw bytes; the reply's are its only item."""
        ask: Any = self.channel.unary_unary(f"/{path}")
        try:
            reply, call = ask.with_call(message, **options)
        except grpc.RpcError as error:
            return forms.of_grpc(error)
        trailers = forms.trailers_of(call)
        return Reply("OK", headers=trailers, fingerprint=trailers.get("viq-fingerprint", ""), items=[reply])

    def _http(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        query = {"format": "json"} if method != "encode" else {"codes": "base64"}
        query |= {"size": asked["size"]} if asked.get("size") else {}
        query |= {"any_fingerprint": "1"} if asked.get("any_fingerprint") else {}
        query |= {"bogus": "1"} if asked.get("bogus") else {}
        headers = forms.headers_of(asked)
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
        answer = forms.of_http(reply)
        if answer.good:
            body = reply.json()
            answer.size = body["model"]["size"]
            assert body["model"]["fingerprint"] == answer.fingerprint
            known = {"size": answer.size, "fingerprint": answer.fingerprint}
            answer.items = [forms.json_item(method, row, known) for row in body["results"]]
        return answer

    def _grpc(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        items = [pb.Item(key=str(i), image=one) if isinstance(one, bytes) else forms.codes_item(str(i), one)
                 for i, one in enumerate(inputs)]  # fmt: skip
        kinds: dict[str, Any] = {"encode": pb.EncodeRequest, "embed": pb.EmbedRequest, "decode": pb.DecodeRequest}
        request = kinds[method](items=items, size=asked.get("size", ""))
        if method != "encode":
            request.allow_fingerprint_mismatch = bool(asked.get("any_fingerprint"))
        timeout = asked.get("timeout_ms")
        answer = self.call(
            f"viq.v1.ViQ/{method.capitalize()}",
            request.SerializeToString(),
            metadata=forms.metadata_of({**asked, "timeout_ms": None}),
            timeout=SECONDS if timeout is None else timeout / 1000,
        )
        if not answer.good:
            return answer
        replies: dict[str, Any] = {"encode": pb.EncodeResponse, "embed": pb.EmbedResponse, "decode": pb.DecodeResponse}
        message = replies[method].FromString(answer.items[0])
        assert [one.key for one in message.results] == [item.key for item in items]
        assert message.model.fingerprint == answer.fingerprint
        answer.size, answer.items = message.model.size, [forms.grpc_item(one) for one in message.results]
        if len(answer.items) == 1 and isinstance(answer.items[0], Reply):  # one image: its error is the reply's
            answer.items[0].headers, answer.items[0].fingerprint = answer.headers, answer.fingerprint
            return answer.items[0]
        return answer

    def _oip_http(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        described, binary = [], b""
        for name, datatype, shape, data in forms.tensors_of(method, inputs):
            parameters = {"binary_data_size": len(data)}
            described.append({"name": name, "datatype": datatype, "shape": shape, "parameters": parameters})
            binary += data
        parameters = {**forms.parameters_of(method, inputs, asked), "binary_data_output": True}
        head = json.dumps({"inputs": described, "parameters": parameters}).encode()
        version = f"/versions/{asked['size']}" if asked.get("size") else ""
        headers = {**forms.headers_of({**asked, "timeout_ms": None, "expect": None})}
        headers["Inference-Header-Content-Length"] = str(len(head))
        reply = self.http.post(f"/v2/models/viq-{method}{version}/infer", content=head + binary, headers=headers)
        answer = forms.of_http(reply)
        if not answer.good:
            return answer
        end = int(reply.headers["Inference-Header-Content-Length"])
        body, rest = json.loads(reply.content[:end]), io.BytesIO(reply.content[end:])
        raw = {one["name"]: rest.read(one["parameters"]["binary_data_size"]) for one in body["outputs"]}
        shapes = {one["name"]: one["shape"] for one in body["outputs"]}
        return forms.unpacked(method, answer, raw, shapes, body["model_version"], body["parameters"]["fingerprint"])

    def _oip_grpc(self, method: str, inputs: Sequence[Any], **asked: Any) -> Reply:
        request = oip.ModelInferRequest(model_name=f"viq-{method}", model_version=asked.get("size", ""))
        for name, datatype, shape, data in forms.tensors_of(method, inputs):
            request.inputs.add(name=name, datatype=datatype, shape=shape)
            request.raw_input_contents.append(data)
        for name, value in forms.parameters_of(method, inputs, asked).items():
            kind = "bool" if isinstance(value, bool) else "int64" if isinstance(value, int) else "string"
            setattr(request.parameters[name], f"{kind}_param", value)
        metadata = forms.metadata_of({**asked, "timeout_ms": None, "expect": None})
        answer = self.call("inference.GRPCInferenceService/ModelInfer", request.SerializeToString(), metadata=metadata)
        if not answer.good:
            return answer
        message = oip.ModelInferResponse.FromString(answer.items.pop())
        raw = {one.name: data for one, data in zip(message.outputs, message.raw_output_contents, strict=True)}
        shapes = {one.name: list(one.shape) for one in message.outputs}
        assert message.parameters["fingerprint"].string_param == answer.fingerprint
        return forms.unpacked(method, answer, raw, shapes, message.model_version, answer.fingerprint)
