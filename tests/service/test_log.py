"""Log lines: one event is one line, in both forms, whatever callers send; nothing secret is in any."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.waiting import until

from viq_serving.log import JsonLines, TextLines, configure

VIQ = Path(sys.executable).with_name("viq")
KEY = "s3cret-of-the-test"
MARK = "marker-in-the-image"
FORGED = 'x\r\n{"level": "critical", "message": "forged"}\n2025-01-01 CRITICAL viq: forged\x1b[2J\u2028\x85'


def record(message: str, *arguments: object, **more: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "viq.test", "levelno": 20, "levelname": "INFO", "msg": message})
    made.args = arguments
    made.__dict__.update(more)
    return made


def raised(message: str) -> object:
    try:
        raise ValueError(message)
    except ValueError:
        return sys.exc_info()


def test_a_json_line_holds_time_level_logger_message_and_fields() -> None:
    line = json.loads(JsonLines().format(record("%d of %s", 2, "three", fields={"request_id": "abc", "n": 1.5})))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {"level": "info", "logger": "viq.test", "message": "2 of three", "request_id": "abc", "n": 1.5}


def test_fields_cannot_stand_in_for_what_every_line_has() -> None:
    line = json.loads(JsonLines().format(record("said", fields={"message": "other", "level": "critical"})))
    assert (line["message"], line["level"]) == ("said", "info")


def test_a_traceback_is_part_of_its_json_line() -> None:
    line = JsonLines().format(record("failed", exc_info=raised(FORGED)))
    assert len(line.splitlines()) == 1
    assert "ValueError: x" in json.loads(line)["traceback"]


@pytest.mark.parametrize("place", ["message", "argument", "field", "exception"])
def test_nothing_that_callers_send_makes_a_second_json_line(place: str) -> None:
    made = {
        "message": record(FORGED.replace("%", "")),
        "argument": record("got %s", FORGED),
        "field": record("got", fields={"name": FORGED}),
        "exception": record("got", exc_info=raised(FORGED)),
    }[place]
    line = JsonLines().format(made)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert json.loads(line)["level"] == "info"


@pytest.mark.parametrize("place", ["message", "argument", "field"])
def test_nothing_that_callers_send_makes_a_second_text_line(place: str) -> None:
    made = {
        "message": record(FORGED.replace("%", "")),
        "argument": record("got %s", FORGED),
        "field": record("got", fields={"name": FORGED}),
    }[place]
    line = TextLines().format(made)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert r"\x1b[2J" in line


def test_lines_of_a_traceback_cannot_be_taken_for_events_in_text() -> None:
    first, *others = TextLines().format(record("got", exc_info=raised(FORGED))).splitlines()
    assert first.endswith(" INFO viq.test: got")
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)


def test_a_text_line_names_its_fields() -> None:
    line = TextLines().format(record("http encode: ok", fields={"request_id": "abc", "size": "", "items": 2}))
    assert line.endswith(" INFO viq.test: http encode: ok request_id=abc items=2")


def test_surrogates_and_all_other_characters_can_be_written() -> None:
    for formatter in (JsonLines(), TextLines()):
        formatter.format(record("got %s", "\udcff\ud800 é 漢 \U0001f600")).encode("ascii", "backslashreplace")


def test_libraries_do_not_write_what_passes_through_them_even_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    """Pillow writes every tag of an image at that level."""
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    tagged = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = MARK
    Image.new("RGB", (16, 16)).save(tagged, "TIFF", exif=exif)
    level = root.level
    try:
        configure("debug", "text")
        logging.getLogger("viq.test").debug("written")
        with Image.open(io.BytesIO(tagged.getvalue())) as image:
            assert image.getexif()[0x010E] == MARK
            image.load()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    errors = capsys.readouterr().err
    assert "written" in errors
    assert MARK not in errors


@pytest.fixture(scope="module", params=["json", "text"])
def lines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a service logs at level debug, in each form, of a session with all sorts of requests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VIQ_")}
    command = [str(VIQ), "serve", "--http-port", "0", "--grpc-port", "0", "--drain-delay", "0"]
    flags = ["--log-format", request.param, "--log-level", "debug"]
    errors = tmp_path_factory.mktemp("log") / "stderr"  # a pipe that nobody reads meanwhile would fill up
    with (
        errors.open("wb") as sink,
        subprocess.Popen(
            [*command, *flags],
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            env={**environment, "VIQ_API_KEYS": KEY},
        ) as process,
    ):
        assert process.stdout is not None
        try:
            _session(process.stdout.readline().split()[-1])
        finally:
            process.terminate()
        assert process.wait(60) == 0
    return errors.read_text("utf-8").splitlines()


def _session(url: str) -> None:
    image, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010E] = MARK
    Image.fromarray(noise).save(image, "TIFF", exif=exif)
    with httpx.Client(base_url=url, timeout=60) as client:
        until(lambda: client.get("/readyz").status_code == 200, "readiness")
        client.headers["Authorization"] = f"Bearer {KEY}"

        def encode(
            name: str, headers: dict[str, str] | None = None, path: str = "/v1/encode", body: bytes = image.getvalue()
        ) -> int:
            return client.post(path, content=body, headers={"X-Request-ID": name, **(headers or {})}).status_code

        assert encode("the-good-one", {"ViQ-Priority": "bulk"}) == 200
        files = [("image", image.getvalue()), ("image", b"no image"), ("image", image.getvalue())]
        assert client.post("/v1/encode", files=files, headers={"X-Request-ID": "the-three"}).status_code == 200
        assert encode("the-bad-one", body=MARK.encode() + b"\r\nforged\x1b") == 422
        assert encode("the-forger", path="/v1/encode?size=x%0d%0aforged%1b%c2%85") == 404
        assert encode("the-path", path="/v1/%0d%0aforged%1b%e2%80%a8") == 404
        assert encode("the-typo", {"Authorization": f"Bearer {KEY}x"}) == 401
        assert encode("the-part", {"Content-Type": "multipart/form-data; boundary=x"}, body=_part("a\x1bforged")) == 422
        assert encode("not well formed") == 200


def _part(name: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{MARK}\r\n--x--\r\n'.encode()


def of(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if name in line]


def test_no_line_holds_keys_or_what_is_in_images(lines: list[str]) -> None:
    assert len(lines) > 8
    assert not of(lines, "s3cret")
    assert not of(lines, MARK)
    assert not [line for line in lines if "authorization" in line.lower()]


def test_no_caller_can_forge_a_line(lines: list[str]) -> None:
    assert of(lines, "forged")  # it is quoted
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.lstrip().startswith("forged")]


def test_every_request_for_work_has_one_line_with_its_id(lines: list[str]) -> None:
    names = ("the-good-one", "the-three", "the-bad-one", "the-forger", "the-path", "the-typo", "the-part")
    for name in names:
        assert len([line for line in of(lines, name) if "viq.access" in line]) == 1


def test_access_lines_tell_what_was_done_and_how_long_it_took(lines: list[str]) -> None:
    if not lines[0].startswith("{"):
        (line,) = [line for line in of(lines, "the-good-one") if "viq.access" in line]
        assert "http encode: ok" in line
        assert "priority=bulk" in line
        return
    by_name = {}
    for parsed in map(json.loads, lines):
        if parsed["logger"] == "viq.access":
            by_name[parsed["request_id"]] = parsed
    good, three, bad, typo = (by_name[name] for name in ("the-good-one", "the-three", "the-bad-one", "the-typo"))
    assert (good["door"], good["method"], good["size"], good["priority"]) == ("http", "encode", "nano", "bulk")
    assert (good["outcome"], good["items"], three["items"], bad["items"]) == ("ok", 1, 3, 1)
    assert set(good["timings_ms"]) == {"preprocess", "queue", "transfer", "compute", "postprocess"}
    assert 0 < good["timings_ms"]["compute"] < good["duration_ms"]
    assert (three["outcome"], bad["outcome"], typo["outcome"]) == ("ok", "invalid_input", "unauthenticated")


def test_lines_of_errors_carry_the_request_id_as_a_field(lines: list[str]) -> None:
    if not lines[0].startswith("{"):
        assert [line for line in of(lines, "request_id=the-bad-one") if "viq.rest" in line]
        return
    errors = [parsed for parsed in map(json.loads, lines) if parsed["logger"] == "viq.rest"]
    told = {parsed["request_id"]: parsed for parsed in errors}
    assert {"the-bad-one", "the-forger", "the-path", "the-typo", "the-part"} <= set(told)
    assert told["the-bad-one"]["door"] == "http"
    assert "422 invalid_input" in told["the-bad-one"]["message"]
