"""/v1/plan and /v1/models: what is known without running anything."""

from __future__ import annotations

import httpx
import pytest

from viq.cost import encode_cost


def test_plan_tells_grid_codes_and_cost(client: httpx.Client) -> None:
    reply = client.post("/v1/plan", json={"images": [{"width": 640, "height": 479}, {"width": 1, "height": 1}]})
    first, second = reply.json()["results"]
    assert first == {
        "grid": [30, 40],
        "image_size": [479, 640],
        "patches": 1200,
        "codes": 4800,
        "cost": encode_cost(1200),
        "fits": True,
    }
    assert (second["grid"], second["patches"]) == ([1, 1], 1)


@pytest.mark.parametrize(
    ("width", "height", "limit"),
    [(2048, 2048, None), (2049, 2048, "max_patches"), (30000, 30000, "max_pixels")],
)
def test_plan_names_the_limit_that_an_image_is_over(
    client: httpx.Client, width: int, height: int, limit: str | None
) -> None:
    (result,) = client.post("/v1/plan", json={"images": [{"width": width, "height": height}]}).json()["results"]
    assert result["fits"] is (limit is None)
    assert result.get("limit") == limit


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"images": []},
        {"images": [{"width": 0, "height": 1}]},
        {"images": [{"width": 1}]},
        {"images": [{"width": "1", "height": 1}]},
        {"images": [{"width": 1, "height": 1, "depth": 1}]},
        {"images": [{"width": 1, "height": 1}], "more": 1},
    ],
)
def test_plan_refuses_what_is_no_plan(client: httpx.Client, body: object) -> None:
    reply = client.post("/v1/plan", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_input")


def test_plan_takes_a_loaded_size_only(client: httpx.Client) -> None:
    images = [{"width": 1, "height": 1}]
    assert client.post("/v1/plan", json={"images": images, "size": "nano"}).status_code == 200
    reply = client.post("/v1/plan", json={"images": images, "size": "16k"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_model")


def test_plan_takes_as_many_images_as_a_request_may_have(client: httpx.Client) -> None:
    one = {"width": 1, "height": 1}
    assert client.post("/v1/plan", json={"images": [one] * 64}).status_code == 200
    assert client.post("/v1/plan", json={"images": [one] * 65}).status_code == 413


def test_models_lists_what_is_loaded_with_the_limits(client: httpx.Client) -> None:
    reply = client.get("/v1/models")
    (model,) = reply.json()["models"]
    assert (model["size"], model["default"], model["device"], model["dtype"]) == ("nano", True, "cpu", "float32")
    assert model["fingerprint"] == reply.headers["ViQ-Fingerprint"]
    assert model["levels"]
    assert model["codebook_size"] == 64000
    assert model["limits"]["max_body_bytes"] == 64 * 2**20
    assert model["limits"]["max_images"] == 64
    assert model["limits"]["max_pixels"] == 50_000_000
    assert model["limits"]["max_patches"] == 16_384
    assert model["limits"]["body_read_timeout_s"] == 30
