"""The description of the API, for people and for machines."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

Serve = Callable[..., AbstractContextManager[httpx.Client]]

HEADERS = {"ViQ-Timeout-Ms", "ViQ-Priority", "ViQ-Expect-Fingerprint", "X-Request-ID"}
METHODS = ("encode", "decode", "embed", "reconstruct", "plan", "models")


@pytest.fixture(scope="module")
def openapi(client: httpx.Client) -> dict[str, Any]:
    description: dict[str, Any] = client.get("/openapi.json").json()
    return description


def operations(openapi: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(path, operation) for path, verbs in openapi["paths"].items() for operation in verbs.values()]


def test_every_method_is_named_with_its_options(openapi: dict[str, Any]) -> None:
    paths = {path for path in openapi["paths"] if path.startswith("/v1/")}
    assert {f"/v1/{method}" for method in METHODS} <= paths
    encode = openapi["paths"]["/v1/encode"]["post"]
    options = {parameter["name"] for parameter in encode["parameters"] if parameter.get("in") == "query"}
    assert options == {"size", "codes", "exif", "alpha"}
    assert "multipart/form-data" in encode["requestBody"]["content"]


def test_every_method_names_the_headers_it_heeds(openapi: dict[str, Any]) -> None:
    declared = openapi["components"]["parameters"]
    assert {about["name"] for about in declared.values()} == HEADERS
    assert all(about["in"] == "header" and about["description"] for about in declared.values())
    for method in METHODS:
        (operation,) = openapi["paths"][f"/v1/{method}"].values()
        references = {one["$ref"] for one in operation["parameters"] if "$ref" in one}
        assert references == {f"#/components/parameters/{name}" for name in HEADERS}


def test_reconstruct_says_what_its_headers_mean(openapi: dict[str, Any], client: httpx.Client) -> None:
    operation = openapi["paths"]["/v1/reconstruct"]["post"]
    headers = operation["responses"]["200"]["headers"]
    assert set(headers) == {"ViQ-PSNR", "ViQ-SSIM", "ViQ-Grid", "ViQ-Image-Size"}
    options = {parameter["name"] for parameter in operation["parameters"] if parameter.get("in") == "query"}
    assert options == {"size", "format", "exif", "alpha"}
    page = client.get("/docs").text
    assert all(name in page for name in headers)


def test_references_lead_somewhere(openapi: dict[str, Any]) -> None:
    for reference in re.findall(r"'\$ref': '#/([^']+)'", repr(openapi)):
        found = openapi
        for step in reference.split("/"):
            found = found[step]


def test_a_key_is_asked_for_by_all_but_the_probes(openapi: dict[str, Any]) -> None:
    assert openapi["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert {"key": []} in openapi["security"]
    open_paths = {path for path, operation in operations(openapi) if operation.get("security") == []}
    assert open_paths == {"/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready"}


def test_the_page_needs_no_other_host(client: httpx.Client) -> None:
    reply = client.get("/docs")
    assert reply.headers["Content-Type"].startswith("text/html")
    assert "POST /v1/encode" in reply.text
    assert all(name in reply.text for name in HEADERS)
    assert "http" not in re.sub(r"<title>.*?</title>", "", reply.text).lower().replace("<!doctype html>", "")
    assert "<script" not in reply.text
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert reply.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/livez", "/v1/models", "/metrics", "/docs", "/nothing", "/v1/nothing", "/v2/nothing"]
)
def test_replies_are_not_to_be_stored(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/models/viq-encode/infer", "/v2/models/nothing", "/v2/health/x"])
def test_errors_of_the_open_inference_protocol_are_a_string(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code in (404, 405)
    assert list(reply.json()) == ["error"]
    assert isinstance(reply.json()["error"], str)
    assert reply.headers["X-Request-ID"]
