"""Keys with fewer rights, over HTTP: lanes, limits, and limits that change under way."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
from tests.waiting import until

MakeImage = Callable[..., bytes]
Serve = Callable[..., AbstractContextManager[httpx.Client]]

LINES = """
free
slow lanes=bulk
few max-requests=1
little max-patches=6
"""


class Limited:
    """A server whose keys have rights, and the file of them."""

    def __init__(self, client: httpx.Client, path: Path) -> None:
        self.client, self.path = client, path

    def encode(self, key: str, image: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/v1/encode", content=image, headers={**bearer(key), **named})

    def count(self, **labels: str) -> float:
        """Requests counted with these labels."""
        text = self.client.get("/metrics", headers=bearer("free")).text
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith("viq_requests_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(one in line for one in wanted))

    @contextmanager
    def under_way(self, key: str) -> Iterator[None]:
        """A request whose body is not all there yet."""
        address = (self.client.base_url.host, self.client.base_url.port or 0)
        with socket.create_connection(address, timeout=60) as wire:
            head = f"POST /v1/encode HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 9\r\n"
            wire.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert wire.recv(65536).startswith(b"HTTP/1.1 100 ")  # so it is let in
            yield
            wire.sendall(b"no image!")
            assert wire.recv(65536).startswith(b"HTTP/1.1 422 ")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def limited(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(LINES)
    with serve(api_keys_file=str(path)) as client:
        yield Limited(client, path)


@pytest.fixture
def image(make_image: MakeImage) -> bytes:
    """Six patches."""
    return make_image()


def test_a_key_of_the_bulk_lane_may_not_ask_for_the_other(limited: Limited, image: bytes) -> None:
    before = limited.count(outcome="forbidden", priority="interactive")
    reply = limited.encode("slow", image, ViQ_Priority="interactive")
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "forbidden")
    assert "interactive" in reply.json()["error"]["message"]
    assert limited.count(outcome="forbidden", priority="interactive") == before + 1
    assert limited.encode("free", image, ViQ_Priority="interactive").status_code == 200


@pytest.mark.parametrize("headers", [{}, {"ViQ_Priority": "bulk"}])
def test_a_key_of_the_bulk_lane_gets_it_also_without_asking(
    limited: Limited, image: bytes, headers: dict[str, str]
) -> None:
    before = limited.count(outcome="ok", priority="bulk", method="encode")
    assert limited.encode("slow", image, **headers).status_code == 200
    assert limited.count(outcome="ok", priority="bulk", method="encode") == before + 1


@pytest.mark.parametrize("path", ["/v1/plan", "/v1/models", "/v1/decode", "/v1/embed", "/v1/reconstruct"])
def test_every_method_minds_the_lane(limited: Limited, path: str) -> None:
    verb = "GET" if path == "/v1/models" else "POST"
    headers = {**bearer("slow"), "ViQ-Priority": "interactive"}
    assert limited.client.request(verb, path, headers=headers).status_code == 403


def test_requests_over_the_limit_of_a_key_are_429_before_their_body_is_read(limited: Limited, image: bytes) -> None:
    with limited.under_way("few"):
        reply = limited.encode("few", image)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")
        assert "1 requests of this key are held and 1 more asked for, the limit is 1" in reply.text
        assert int(reply.headers["Retry-After"]) >= 1
        assert int(reply.headers["Retry-After-Ms"]) >= 1
        assert limited.client.get("/docs", headers=bearer("few")).status_code == 200  # no work
        assert limited.encode("free", image).status_code == 200
    assert limited.encode("few", image).status_code == 200


def test_a_request_of_more_patches_than_a_key_may_ever_hold_is_413(
    limited: Limited, image: bytes, make_image: MakeImage
) -> None:
    assert limited.encode("little", image).status_code == 200
    for larger in (make_image(40, 33), make_image(50, 24)):
        reply = limited.encode("little", larger)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
        assert "the key may have 6 at one time" in reply.json()["error"]["message"]


def test_limits_of_a_file_that_changes_hold_within_a_second_and_count_what_is_under_way(
    limited: Limited, image: bytes
) -> None:
    def rewrite(lines: str) -> None:
        fresh = limited.path.with_suffix(".new")
        fresh.write_text(lines)
        fresh.replace(limited.path)

    with limited.under_way("few"):
        assert limited.encode("few", image).status_code == 429
        rewrite(LINES.replace("max-requests=1", "max-requests=2"))
        until(lambda: limited.encode("few", image).status_code != 429, "the larger limit")
        with limited.under_way("few"):
            reply = limited.encode("few", image)
            assert "2 requests of this key are held and 1 more asked for, the limit is 2" in reply.text
            rewrite(LINES)
            said = "2 requests of this key are held and 1 more asked for, the limit is 1"
            until(lambda: said in limited.encode("few", image).text, "the smaller limit")


def test_the_log_names_the_caller_and_not_the_key(
    limited: Limited, image: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for key in ("free", "slow", "unknown"):
        limited.encode(key, image, X_Request_ID=f"by-{key}")
    lines: dict[str, dict[str, str]] = {}
    while not {"by-free", "by-slow", "by-unknown"} <= lines.keys():
        fields = [getattr(record, "fields", {}) for record in caplog.records if record.name == "viq.access"]
        lines = {line["request_id"]: line for line in fields}
    callers = {lines[name]["caller"] for name in ("by-free", "by-slow")}
    assert len(callers) == 2
    assert all(len(name) == 16 and int(name, 16) for name in callers)
    assert "caller" not in lines["by-unknown"]
