"""What a server answers beside work: health, metrics, documentation."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

MakeImage = Callable[..., bytes]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
def test_a_warm_server_is_alive_started_and_ready(client: httpx.Client, path: str) -> None:
    reply = client.get(path)
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
    assert reply.headers["ViQ-Fingerprint"]
    assert reply.headers["X-Request-ID"]


def sample(client: httpx.Client, series: str) -> float:
    """The value of the series that starts so, 0 if there is none."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_metrics_count_requests_images_pixels_patches_and_codes(client: httpx.Client, make_image: MakeImage) -> None:
    names = (
        'viq_requests_total{door="http",method="encode",outcome="ok",priority="interactive",size="nano"}',
        'viq_images_total{method="encode",size="nano"}',
        "viq_pixels_total",
        'viq_patches_total{method="encode"}',
        "viq_codes_total",
        'viq_request_duration_seconds_count{door="http",method="encode"}',
        'viq_stage_duration_seconds_count{method="encode",stage="compute"}',
    )
    before = [sample(client, name) for name in names]
    client.post("/v1/encode", files=[("image", make_image(40, 24)), ("image", make_image(16, 16)), ("image", b"no")])
    after = [sample(client, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 2, 40 * 24 + 256, 7, 28, 1, 1]


def test_metrics_tell_readiness_build_and_model(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    model = client.get("/v1/models").json()["models"][0]
    assert "viq_ready 1.0" in text
    assert re.search(r'viq_build_info{python="3[^"]*",version="[^"]+"} 1\.0', text)
    untrained = str(model.get("untrained", False)).lower()
    assert f'fingerprint="{model["fingerprint"]}",size="nano",untrained="{untrained}"}} 1.0' in text


def test_refusals_are_counted_by_reason_and_labels_never_hold_what_callers_send(client: httpx.Client) -> None:
    before = sample(client, 'viq_rejected_total{reason="unknown_model"}')
    client.post("/v1/encode?size=my-own-label", content=b"")
    client.get("/v1/my-own-path", headers={"X-Request-ID": "my-own-id"})
    text = client.get("/metrics").text
    assert sample(client, 'viq_rejected_total{reason="unknown_model"}') == before + 1
    assert "my-own" not in text


def test_curl_pipes_encode_into_decode(client: httpx.Client, make_image: MakeImage, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(make_image(50, 30, "JPEG"))
    url = str(client.base_url).rstrip("/")
    pipe = f"curl -sSf -F image=@cat.jpg {url}/v1/encode | curl -sSf --json @- {url}/v1/decode -o cat.png"
    subprocess.run(["bash", "-o", "pipefail", "-c", pipe], cwd=tmp_path, check=True, timeout=60)
    with Image.open(tmp_path / "cat.png") as image:
        assert (image.format, image.size) == ("PNG", (50, 30))
