"""viq verify: what it proves, that it finds what it looks for, and how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.waiting import until

from viq import Codes, ViQ
from viq.config import grid_of
from viq_serving.verify import here
from viq_serving.verify.pictures import SHAPES, synthetic
from viq_serving.verify.report import compare, digest

Run = Callable[..., tuple[int, str, str]]
MakePicture = Callable[..., Path]
SMALL = ("--max-side", "60")
NAMES = ["noise 1x1", "gradient 16x16", "edges 33x17"]

# A service whose model gives other codes to an image that is not alone.
SPOILED = """
import sys
from dataclasses import replace
from viq.launched import Launched
from viq.model import ViQ
from viq_serving.cli.main import main

plain = ViQ.launch_encode

def spoiled(self, images):
    launched = plain(self, images)
    if len(images) == 1:
        return launched
    results = [replace(one, array=one.array ^ 1) for one in launched.results()]
    return Launched(launched.transfer_s, lambda: results)

ViQ.launch_encode = spoiled
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def serving(*flags: str, code: str | None = None) -> Iterator[tuple[str, str]]:
    """A server's HTTP and gRPC address; `code` is run in place of the command."""
    command = [sys.executable, "-c", code or "import sys; from viq_serving.cli.main import main; sys.exit(main())"]
    command += ["serve", "--http-port", "0", "--grpc-port", "0", "--drain-delay", "0", "--log-level", "error", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    environment["OMP_NUM_THREADS"] = "1"  # beside other work on the same cores two threads wait for each other
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stdout is not None
            http, grpc = (running.stdout.readline().split()[-1] for _ in range(2))
            until(lambda: httpx.get(f"{http}/readyz", trust_env=False).status_code == 200, "readiness")
            yield http, grpc
        finally:
            running.terminate()
        assert running.wait(60) == 0


@pytest.fixture(scope="module")
def doors() -> Iterator[tuple[str, str]]:
    with serving() as addresses:
        yield addresses


@pytest.fixture(scope="module")
def model() -> ViQ:
    return ViQ.from_pretrained(parts=("encoder",))


def proof(out: str) -> Any:
    return json.loads(out)


def test_codes_made_here_are_the_same_in_any_company_and_with_any_threads(viq: Run) -> None:
    code, out, _ = viq("verify", *SMALL, "--threads", "1", "--threads", "3")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "nano, 3 pictures, each by itself against:"
    names = ["packed together", "packed in reverse order", "packed in a shuffled order", "packed in random groups"]
    names += [f"{name}, --threads {n}" for n in (1, 3) for name in ("alone", "packed together")]
    assert lines[1:9] == [f"{name}: 3 pictures, 32 codes compared, 0 different" for name in names]
    assert lines[9] == "not checked: the doors of a server: give --server URL"
    assert lines[-1] == "the promise holds"


def test_every_door_gives_the_digest_that_this_process_gives(viq: Run, doors: tuple[str, str]) -> None:
    http, grpc = doors
    code, out, _ = viq("verify", *SMALL, "--json")
    mine = proof(out)
    assert (code, mine["holds"], mine["pictures"]) == (0, True, NAMES)
    code, out, _ = viq("verify", *SMALL, "--server", http, "--grpc", grpc, "--json", "--expect", mine["digest"])
    theirs = proof(out)
    assert (code, theirs["holds"], theirs["not_checked"]) == (0, True, [])
    assert (theirs["digest"], theirs["fingerprint"]) == (mine["digest"], mine["fingerprint"])
    assert all((one["pictures"], one["codes"], one["different"]) == (3, 32, 0) for one in theirs["checks"])
    single = ["HTTP npz", "HTTP raw", "HTTP JSON", "HTTP base64", "HTTP multipart", "OIP HTTP JSON"]
    single += ["OIP HTTP binary", "OIP HTTP image", "gRPC", "OIP gRPC"]
    names = [one["name"] for one in theirs["checks"]]
    for door in single:
        assert f"{door}, one by one" in names
        assert f"{door}, 16 callers at once" in names
    for door in ("HTTP multipart", "OIP HTTP JSON", "OIP HTTP binary", "gRPC", "OIP gRPC"):
        assert any(name.startswith(f"{door}, packed") for name in names)
    assert theirs["images_a_batch"] > 1


def test_what_was_left_out_is_said(viq: Run, doors: tuple[str, str]) -> None:
    code, out, _ = viq("verify", "--max-side", "16", "--server", doors[0])
    assert code == 0
    assert "not checked: the gRPC port, native and Open Inference Protocol: give --grpc HOST:PORT" in out
    assert "\ngRPC" not in out


def test_files_are_verified_with_too_and_change_the_digest(
    viq: Run, doors: tuple[str, str], picture: MakePicture
) -> None:
    file = picture("cat.png", 50, 20)
    _, without, _ = viq("verify", "--max-side", "16", "--json")
    code, out, _ = viq("verify", file, "--max-side", "16", "--json")
    here_, there = proof(out), proof(viq("verify", file, "--max-side", "16", "--server", doors[0], "--json")[1])
    assert (code, here_["pictures"]) == (0, [*NAMES[:2], str(file)])
    assert here_["digest"] == there["digest"] != proof(without)["digest"]


def test_another_digest_than_expected_ends_with_1(viq: Run) -> None:
    code, out, _ = viq("verify", "--max-side", "16", "--expect", "0" * 64)
    assert code == 1
    assert f"expected digest {'0' * 64}" in out
    assert out.splitlines()[-1] == "THE PROMISE DOES NOT HOLD"


def test_a_model_whose_codes_depend_on_the_pack_is_found_out(viq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ViQ.encode_pixels

    def spoiled(self: ViQ, pixels: Sequence[Any]) -> list[Codes]:
        codes = plain(self, pixels)
        if len(codes) > 2:
            codes[2] = replace(codes[2], array=codes[2].array ^ np.uint16(1))
        return codes

    monkeypatch.setattr(ViQ, "encode_pixels", spoiled)
    code, out, _ = viq("verify", *SMALL)
    assert code == 1
    assert f"packed together: 3 pictures, 32 codes compared, 24 different\n  {NAMES[2]}: 24 of 24 codes differ" in out
    assert (
        "packed in reverse order: 3 pictures, 32 codes compared, 4 different\n  noise 1x1: 4 of 4 codes differ" in out
    )
    assert out.splitlines()[-1] == "THE PROMISE DOES NOT HOLD"


def test_a_server_whose_codes_depend_on_the_batch_is_found_out(viq: Run) -> None:
    with serving(code=SPOILED) as (http, grpc):
        code, out, _ = viq("verify", *SMALL, "--server", http, "--grpc", grpc, "--json")
    checks = {one["name"]: one for one in proof(out)["checks"]}
    assert code == 1
    assert all(not one["wrong"] for name, one in checks.items() if name.endswith("one by one"))
    assert any(one["wrong"] for name, one in checks.items() if ", packed " in name)
    assert any(one["wrong"] for name, one in checks.items() if name.endswith("at once"))


def test_a_server_that_is_full_is_asked_again(viq: Run) -> None:
    with serving("--max-queue-patches", "8") as (http, grpc):
        code, out, err = viq("verify", *SMALL, "--server", http, "--grpc", grpc, "--callers", "24")
        metrics = httpx.get(f"{http}/metrics", trust_env=False).text
    assert (code, err) == (0, ""), out
    assert 'viq_rejected_total{reason="overloaded"}' in metrics
    assert "too_large" not in metrics  # no request was made that could never be admitted


def test_the_size_asked_for_is_the_one_verified(viq: Run, doors: tuple[str, str]) -> None:
    assert viq("verify", *SMALL, "--server", doors[0], "--size", "nano")[0] == 0
    code, _, err = viq("verify", *SMALL, "--server", doors[0], "--size", "16k")
    assert code == 3
    assert "size 16k is not served; there are nano" in err


def test_a_key_is_read_from_its_file_and_shown_at_both_ports(viq: Run, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret\n")
    with serving("--api-keys", "secret") as (http, grpc):
        asked = ("verify", "--max-side", "16", "--server", http, "--grpc", grpc)
        code, _, err = viq(*asked)
        assert code == 3
        assert "a key is needed" in err
        code, out, _ = viq(*asked, "--api-key-file", file)
        assert code == 0, out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--grpc", "localhost:1"], "--grpc needs --server"),
        (["--api-key-file", "key"], "--api-key-file needs --server"),
        (["--server", "http://localhost:1", "--threads", "2"], "--threads is for computing here"),
        (["--server", "http://localhost:1", "--device", "cpu"], "--device is for computing here"),
        (["--server", "http://localhost:1", "--api-key-file", "absent"], "absent"),
        (["--server", "localhost:1"], "expected http://host:port"),
        (["--threads", "0"], "'0' is no whole number from 1 on"),
        (["--max-side", "0"], "'0' is no whole number from 1 on"),
        (["--expect", "abc"], "'abc' is no digest"),
        (["absent.png"], "absent.png: No such file"),
        ([str(Path(__file__))], "not an image of a known format"),
    ],
)
def test_wrong_usage_ends_with_2(
    viq: Run, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = viq("verify", *arguments)
    assert (code, out) == (2, "")
    assert named in err


def test_a_server_that_is_not_there_or_another_one_ends_with_3(viq: Run, doors: tuple[str, str]) -> None:
    code, _, err = viq("verify", "--server", "http://127.0.0.1:1")
    assert code == 3
    assert "no answer from http://127.0.0.1:1" in err
    code, _, err = viq("verify", "--server", f"{doors[0]}/elsewhere")
    assert code == 3
    assert "no such path" in err
    code, _, err = viq("verify", "--max-side", "16", "--server", doors[0], "--grpc", "127.0.0.1:1")
    assert code == 3
    assert "no answer from 127.0.0.1:1" in err


def test_pictures_are_the_same_everywhere_and_of_many_shapes() -> None:
    pictures = synthetic(768)
    assert [one.pixels.shape[:2] for one in pictures] == list(SHAPES)
    assert {one.name.split()[0] for one in pictures} == {"noise", "gradient", "edges"}
    assert all(len(np.unique(one.pixels)) > 1 for one in pictures if one.pixels.size > 3)
    assert {(1, 1), (16, 16), (768, 768)} <= set(SHAPES)
    assert any(max(shape) >= 400 * min(shape) for shape in SHAPES)
    assert any(side % 16 for shape in SHAPES for side in shape)
    whole = b"".join(one.pixels.tobytes() for one in pictures)
    assert hashlib.sha256(whole).hexdigest() == "9585f15fc8aeb81bef150f9fe4ed2132fe819761a22b6ea1f987b735964debff"


def test_orders_hold_every_picture_once_and_differ() -> None:
    orders = here.passes(18)
    flat = [[index for group in order for index in group] for order in orders.values()]
    assert all(sorted(order) == list(range(18)) for order in flat)
    assert len({tuple(order) for order in flat}) == len(flat)
    assert len(orders["packed in random groups"]) > 3


def test_a_digest_covers_codes_grid_image_size_and_order(model: ViQ) -> None:
    one, other = model.encode_pixels([synthetic(60)[2].pixels, np.zeros((16, 16, 3), np.uint8)])
    larger = Codes(one.array, (one.image_size[0] + 1, one.image_size[1] + 1), one.size, one.fingerprint)
    h, w = grid_of(*one.image_size)
    turned = Codes.from_flat(one.flat, (w, h), one.size)
    digests = {digest(codes) for codes in ([one, other], [other, one], [one], [larger], [turned], [])}
    assert len(digests) == 6
    elsewhere = Codes(one.array, one.image_size, one.size, "another.machine")
    assert digest([one]) == digest([elsewhere])


def test_a_missing_fingerprint_or_another_shape_is_a_difference(model: ViQ) -> None:
    (one,) = model.encode_pixels([synthetic(60)[2].pixels])
    bare = Codes(one.array, one.image_size, one.size)
    assert compare("check", ["cat"], [one], [bare]).wrong == [f"cat: fingerprint is missing, not {one.fingerprint}"]
    larger = Codes(one.array, (one.image_size[0] + 1, one.image_size[1]), one.size, one.fingerprint)
    check = compare("check", ["cat"], [one], [larger])
    assert (check.different, check.equal) == (one.array.size, False)
    assert compare("check", ["cat"], [one], [one]).equal
