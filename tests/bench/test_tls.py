"""The generator at servers that speak TLS, with certificates of an authority of their own."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from tests.bench.foreign import foreign, plain
from tests.bench.test_hostile import Answers

from viq_serving.bench.arrivals import Poisson
from viq_serving.bench.doors.door import Target
from viq_serving.bench.load import Span
from viq_serving.bench.part import Job
from viq_serving.cli.main import main
from viq_serving.client.targets import Tls
from viq_serving.pb import viq_pb2 as pb

SHORT = ("--pictures", 2, "--mix", "32x32", "--warm-up", 0, "--in-flight", 1, "--requests", 2, "--model", "other")
Bench = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def bench(capfd: pytest.CaptureFixture[str]) -> Bench:
    def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
        code = main(["bench", "--json", *map(str, SHORT), *map(str, arguments)])
        out, err = capfd.readouterr()
        return code, json.loads(out)["runs"][0] if out else {}, err

    return run


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def roots(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def address(authority: trustme.CA) -> Iterator[str]:
    """A gRPC server that gives every picture of 32x32 the same codes, to clients with a certificate."""
    codes = pb.Codes(data=bytes(32), h=2, w=2, height=32, width=32, size="nano")
    data = pb.EncodeResponse(results=[pb.Result(key="0", codes=codes)]).SerializeToString()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Answers(data)])
    cert, ca = authority.issue_cert("127.0.0.1"), authority.cert_pem.bytes()
    pair = (cert.private_key_pem.bytes(), b"".join(one.bytes() for one in cert.cert_chain_pems))
    credentials = grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_grpc_with_tls_believes_the_authority_that_is_named_and_shows_its_certificate(
    bench: Bench, authority: trustme.CA, address: str, roots: Path, tmp_path: Path
) -> None:
    ours, cert, key = authority.issue_cert("caller.example"), tmp_path / "cert.pem", tmp_path / "key.pem"
    ours.private_key_pem.write_to_path(str(key))
    ours.cert_chain_pems[0].write_to_path(str(cert))
    known = ("--tls-ca", roots, "--tls-cert", cert, "--tls-key", key)
    code, run, err = bench("--grpc", address, *known)
    assert (code, run.get("answered")) == (0, 2), (code, err)
    for refused in (known[:2], ("--tls",), ()):
        code, run, _ = bench("--grpc", address, *refused, "--timeout", 20)
        assert (code, run["answered"]) == (1, 0)
        assert list(run["errors"]) == ["UNAVAILABLE"]


def test_https_believes_the_authority_that_is_named_and_no_other(
    bench: Bench, authority: trustme.CA, roots: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with foreign(lambda number: plain("200 OK", bytes(32)), context) as server:
        code, run, err = bench("--door", "rest", "--url", server.url, "--tls-ca", roots)
        assert (code, run.get("answered")) == (0, 2), (code, err)
        code, run, _ = bench("--door", "rest", "--url", server.url)
        assert (code, run["answered"]) == (1, 0)
        assert "CERTIFICATE_VERIFY_FAILED" in next(iter(run["errors"])) or "SSL" in next(iter(run["errors"]))


def test_files_of_tls_are_looked_at_before_anything_is_sent(bench: Bench, roots: Path) -> None:
    assert "no such file" in bench("--grpc", "localhost:1", "--tls-ca", roots.with_name("none.pem"))[2]
    assert "together or not at all" in bench("--grpc", "localhost:1", "--tls-cert", roots)[2]


def test_generators_of_their_own_are_told_of_tls() -> None:
    job = Job("grpc", "encode", Target(grpc="host:1", tls=Tls("ca", "cert", "key")), Poisson(1.0), Span(0.0, 1.0), 0)
    assert Job.of_json(job.to_json()) == job
    plaintext = replace(job, target=replace(job.target, tls=None))
    assert Job.of_json(plaintext.to_json()) == plaintext
