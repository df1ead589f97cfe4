"""plan, info, convert, serve --print-config, the progress bar: what people and scripts read."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from viq import ViQ
from viq_serving.settings import Settings

Run = Callable[..., tuple[int, str, str]]
CHECKPOINT = Path(__file__).parent.parent / "golden" / "vision_tower_4k.pth"


def test_plan_prints_a_line_for_each_size(viq: Run) -> None:
    code, out, _ = viq("plan", "640x480", "1X4096", "30000×30000")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows == [
        ["size", "grid", "patches", "codes", "cost", "fits"],
        ["640x480", "30x40", "1200", "4800", "1334", "yes"],
        ["1x4096", "256x1", "256", "1024", "263", "yes"],
        ["30000x30000", "1875x1875", "3515625", "14062500", "1147924805", "no:", "max_pixels"],
    ]


def test_plan_prints_json_for_scripts(viq: Run) -> None:
    out = viq("plan", "17x5", "4096x4112", "--json")[1]
    assert json.loads(out)["results"] == [
        {"grid": [1, 2], "image_size": [5, 17], "patches": 2, "codes": 8, "cost": 3, "fits": True},
        {
            **{"grid": [257, 256], "image_size": [4112, 4096], "patches": 65792, "codes": 263168},
            **{"cost": 466588, "fits": False, "limit": "max_patches"},
        },
    ]


@pytest.mark.parametrize("size", ["640", "640x", "0x5", "-1x5", "1.5x5", "640x480x3", "1e3x5", "٣x5", "9999999999x1"])
def test_plan_refuses_what_is_no_size(viq: Run, size: str) -> None:
    code, _, err = viq("plan", "--", size)
    assert code == 2
    assert "expected WIDTHxHEIGHT in pixels" in err


def test_info_says_what_is_loaded(viq: Run) -> None:
    model = ViQ.from_pretrained()
    out = viq("info", "--device", "cpu")[1]
    assert out.splitlines()[0] == "nano"
    for fact in (model.fingerprint, "64000 codes, levels 8 8 8 5 5 5", "float32", "cpu"):
        assert fact in out
    for dtype in ("bfloat16", "fp8"):
        (row,) = json.loads(viq("info", "--json", "--dtype", dtype)[1])["models"]
        assert row["fingerprint"].startswith(f"{model.family}.")
        assert (row["size"], row["dtype"]) == ("nano", dtype)
        assert "untrained" not in row


def test_convert_says_where_the_files_are_and_they_load(viq: Run, tmp_path: Path) -> None:
    root = tmp_path / "root"
    code, out, err = viq("convert", CHECKPOINT, "--size", "4k", "--num-heads", "4", "-o", root, "--verify")
    assert (code, err) == (0, "")
    assert out == f"{root / 'converted_4k'} (verified)\n"
    (row,) = json.loads(viq("info", "--weights-root", root, "--json")[1])["models"]
    assert (row["size"], row["codebook_size"], row["weights_root"]) == ("4k", 4096, str(root))
    assert "untrained" not in row


def test_weights_whose_folder_says_that_they_are_random_are_called_untrained(viq: Run, tmp_path: Path) -> None:
    assert viq("convert", CHECKPOINT, "--size", "4k", "--num-heads", "4", "-o", tmp_path)[0] == 0
    manifest = tmp_path / "converted_4k" / "viq.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "untrained": True}))
    assert viq("info", "--weights-root", tmp_path)[1].splitlines()[0] == "4k (untrained)"
    (row,) = json.loads(viq("info", "--weights-root", tmp_path, "--json")[1])["models"]
    assert row["untrained"] is True


def test_convert_refuses_a_checkpoint_of_another_size(viq: Run, tmp_path: Path) -> None:
    code, _, err = viq("convert", CHECKPOINT, "--size", "64k", "--num-heads", "4", "-o", tmp_path / "root")
    assert code == 3
    assert "project_" in err


def test_flags_of_serve_win_over_the_environment(viq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIQ_HTTP_PORT", "9001")
    monkeypatch.setenv("VIQ_HOST", "0.0.0.0")  # noqa: S104 - nothing listens
    code, out, _ = viq("serve", "--print-config", "--http-port", "9002", "--size", "2k", "--size", "16k")
    shown = json.loads(out)
    assert code == 0
    assert (shown["http_port"], shown["host"], shown["size"]) == (9002, "0.0.0.0", ["2k", "16k"])  # noqa: S104


def test_every_setting_is_a_flag_of_serve_with_its_description(viq: Run) -> None:
    helped = " ".join(viq("serve", "--help")[1].split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in helped
        assert field.description is not None
        assert field.description.split()[0] in helped


def test_an_unknown_name_in_the_environment_stops_serve_and_nothing_else(
    viq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIQ_HTP_PORT", "9001")
    code, _, err = viq("serve", "--print-config")
    assert code == 2
    assert "VIQ_HTP_PORT" in err
    assert viq("plan", "16x16")[0] == 0


def on_terminal(script: str) -> str:
    """What a Python script writes to a terminal of 80 x 24."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, stdout=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while data := os.read(ours, 4096):
                written += data
        except OSError:  # Linux says so that the other side is closed
            pass
        os.close(ours)
        assert process.wait() == 0
    return written.decode()


TWO_FILES = """
import threading
from viq_serving.cli.progress import Progress
with Progress("encode", 2) as progress:
    threading.Event().wait({seconds})
    progress.advance()
    progress.print("a.png: broken")
"""


def test_a_bar_appears_on_a_terminal_after_a_second() -> None:
    shown = on_terminal(TWO_FILES.format(seconds=2.5))
    assert "encode:   0%" in shown
    assert "0/2 [00:01<" in shown
    assert "a.png: broken" in shown


def test_no_bar_appears_for_quick_work_or_in_a_file(tmp_path: Path) -> None:
    assert "encode" not in on_terminal(TWO_FILES.format(seconds=0.1))
    with (tmp_path / "err").open("wb") as file:
        subprocess.run([sys.executable, "-c", TWO_FILES.format(seconds=1.5)], stderr=file, check=True)
    assert (tmp_path / "err").read_text() == "a.png: broken\n"
