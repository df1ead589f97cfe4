"""The clients against real services: the same over gRPC and HTTP as here, whatever becomes of a replica."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from viq import Codes, ViQ
from viq.errors import FingerprintMismatch, InvalidInput, TooLarge, UnknownModel, ViQError
from viq_serving.client import AsyncClient, Client, ServerError, Tls
from viq_serving.client.targets import targets_of

Png = Callable[..., bytes]


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, servers: list[Any]) -> Iterator[Client]:
    with Client(getattr(servers[0], request.param), timeout=120) as made:
        yield made


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_all_three_methods_give_what_the_library_gives(client: Client, model: ViQ, png: Png, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png(1))
    image = pixels(png(1))
    expected = model.encode([image])
    forms = [tmp_path / "cat.png", str(tmp_path / "cat.png"), png(1), Image.open(tmp_path / "cat.png"), image]
    assert client.encode(forms) == expected * 5
    features = client.embed([expected[0], png(1)])
    for one in features:
        np.testing.assert_array_equal(one, model.embed(expected)[0].numpy())
    (half,) = client.embed(expected, dtype="float16")
    np.testing.assert_array_equal(half, features[0].astype(np.float16))
    np.testing.assert_array_equal(client.decode(expected)[0], model.decode(expected)[0])
    for key, each in client.embed_each([("a", expected[0]), ("b", png(1))]):
        assert not isinstance(each, ViQError), key
        np.testing.assert_array_equal(each, features[0])
    ((key, picture),) = client.decode_each([("c", expected[0])])
    assert (key, isinstance(picture, np.ndarray)) == ("c", True)
    np.testing.assert_array_equal(picture, model.decode(expected)[0])
    assert client.models()[0]["fingerprint"] == model.fingerprint
    assert client.plan([(35, 20)])[0]["grid"] == [2, 3]


def test_features_larger_than_a_chunk_come_whole(client: Client, model: ViQ, png: Png) -> None:
    codes = model.encode([pixels(png(3, 400, 600))])[0]
    many = Codes(np.tile(codes.array, (3, 3, 1)), (1200, 1800 + 16), codes.size, codes.fingerprint)
    (features,) = client.embed([many])
    assert features.nbytes > 2 * 2**20
    np.testing.assert_array_equal(features, model.embed([many])[0].numpy())


def test_an_item_that_is_wrong_is_an_error_in_its_place(client: Client, png: Png, tmp_path: Path) -> None:
    given: list[Any] = [("a", png(1)), ("b", b"no picture"), ("c", tmp_path / "absent.png"), ("a", png(2))]
    results = list(client.encode_each(given))
    assert [key for key, _ in results] == ["a", "b", "c", "a"]
    assert [type(result) for _, result in results] == [Codes, InvalidInput, InvalidInput, Codes]
    with pytest.raises(InvalidInput, match="not an image"):
        client.encode([png(1), b"no picture"])


def test_what_is_wrong_with_the_question_is_told(client: Client, model: ViQ, png: Png, servers: list[Any]) -> None:
    with pytest.raises(UnknownModel, match="2k"):
        client.encode([png(1)], size="2k")
    codes = model.encode([pixels(png(1))])[0]
    foreign = Codes(codes.array, codes.image_size, codes.size, f"{'0' * 16}.00000000")
    with pytest.raises(FingerprintMismatch):
        client.decode([foreign])
    assert len(client.decode([foreign], any_fingerprint=True)) == 1
    with pytest.raises(TooLarge):
        client.encode([png(1) + bytes(64 * 2**20)])
    for address in (servers[0].grpc, servers[0].http):
        with Client(address, expect_fingerprint="0" * 16) as strict, pytest.raises(FingerprintMismatch):
            strict.encode([png(1)])
        with Client(address, expect_fingerprint=model.fingerprint, priority="bulk") as right:
            assert len(right.encode([png(1)])) == 1


def test_replicas_are_asked_in_turn_and_no_more_is_on_the_way_than_may_be(servers: list[Any], png: Png) -> None:
    for kind in ("grpc", "http"):
        before = [server.images() for server in servers]
        taken, most, read = 0, 0, 0

        def source() -> Iterator[tuple[int, bytes]]:
            nonlocal read
            for i in range(60):
                read += 1
                yield i, png(i, 16, 16)

        with Client([getattr(server, kind) for server in servers], in_flight=8) as client:
            for key, result in client.encode_each(source()):
                assert isinstance(result, Codes), result
                assert key == taken
                taken += 1
                most = max(most, read - taken)
        assert most <= 9
        assert [server.images() - was for server, was in zip(servers, before, strict=True)] == [30, 30]


def test_a_replica_that_is_killed_loses_nothing_and_is_met_again(
    servers: list[Any], another: Callable[[], Any], model: ViQ, png: Png
) -> None:
    victim = another()
    data = [png(i, 32, 32) for i in range(40)]
    expected = model.encode([pixels(one) for one in data])
    for kind in ("grpc", "http"):
        addresses = [getattr(servers[0], kind), getattr(victim, kind)]
        with Client(addresses, in_flight=16, timeout=120) as client:
            found = []
            for key, codes in client.encode_each(enumerate(data * 3)):
                if key == 10 and victim.process.poll() is None:
                    victim.process.kill()
                found.append(codes)
        assert found == expected * 3


def test_servers_and_clients_know_each_other_by_certificates(
    another: Callable[..., Any], model: ViQ, png: Png, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    for ca, name in ((authority, "ca.pem"), (stranger, "stranger.pem")):
        ca.cert_pem.write_to_path(tmp_path / name)
    for name, host in (("server", "localhost"), ("client", "client")):
        issued = authority.issue_cert(host)
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    paths = {name: str(tmp_path / name) for name in ("ca.pem", "stranger.pem", "client.pem", "client.key")}
    server = another(
        *("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")),
        *("--tls-client-ca", paths["ca.pem"]),
    )
    ports = server.grpc.rpartition(":")[2], server.http.rpartition(":")[2]
    both = Tls(paths["ca.pem"], paths["client.pem"], paths["client.key"])
    for address in (f"localhost:{ports[0]}", f"https://localhost:{ports[1]}"):
        with Client(address, tls=both, timeout=120, retries=1000) as client:  # it is loading still
            assert client.encode([png(1)]) == model.encode([pixels(png(1))])
        for wrong in (Tls(paths["stranger.pem"], paths["client.pem"], paths["client.key"]), paths["ca.pem"]):
            with Client(address, tls=wrong, retries=0, timeout=60) as client, pytest.raises(ServerError) as caught:
                client.encode([png(1)])
            assert caught.value.code == "unreachable"


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_the_client_for_event_loops_does_the_same(servers: list[Any], model: ViQ, png: Png, kind: str) -> None:
    async def pairs() -> Any:
        for i in range(5):
            yield i, png(i)
        yield 5, b"no picture"

    async def run() -> list[tuple[int, Any]]:
        async with AsyncClient([getattr(server, kind) for server in servers]) as client:
            assert await client.encode([png(0)]) == model.encode([pixels(png(0))])
            return [pair async for pair in client.encode_each(pairs())]

    results = asyncio.run(run())
    assert [key for key, _ in results] == list(range(6))
    assert [codes for _, codes in results[:5]] == model.encode([pixels(png(i)) for i in range(5)])
    assert isinstance(results[5][1], InvalidInput)


def test_a_name_is_asked_for_all_replicas_behind_it(servers: list[Any], png: Png) -> None:
    port = servers[0].grpc.rpartition(":")[2]
    (target,) = targets_of(f"dns:///localhost:{port}")
    assert f"ipv4:127.0.0.1:{port}" in (asyncio.run(target.replicas()) or [])
    with Client(target.text) as client:  # of IPv6, where that is behind the name, too, nobody answers
        assert [type(one) for one in client.encode([png(i) for i in range(4)])] == [Codes] * 4


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1", "no.such.host.invalid:8001"])
def test_where_nobody_answers_it_is_said_after_some_tries(address: str, png: Png) -> None:
    with Client(address, retries=1) as client:
        with pytest.raises(ServerError, match="no answer") as caught:
            client.encode([png(1)])
        assert caught.value.code == "unreachable"
        with pytest.raises(ServerError, match="no answer"):
            client.models()


def test_time_that_runs_out_is_an_error_of_the_item(png: Png) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for server in (address, f"http://{address}"):
            with Client(server, timeout=0.3) as client, pytest.raises(ServerError) as caught:
                client.encode([png(1)])
            assert caught.value.code in ("deadline_exceeded", "unreachable")


@pytest.mark.parametrize("server", ["localhost", "ftp://host:1", "host:", "", "a:1,http://b:2", []])
def test_an_address_that_is_none_is_invalid_input(server: Any) -> None:
    with pytest.raises(InvalidInput, match="server"):
        Client(server)


def test_a_closed_client_says_so_and_many_threads_may_share_one(servers: list[Any], png: Png) -> None:
    results: list[Any] = []
    with Client(servers[0].grpc) as client:
        threads = [threading.Thread(target=lambda i=i: results.extend(client.encode([png(i)]))) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 8


def test_the_client_imports_no_torch() -> None:
    use = "from viq_serving.client import AsyncClient, Client; Client('h:1').close()"
    code = f"import sys; {use}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
