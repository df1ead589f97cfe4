"""What is refused before any work starts, and with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
MakePicture = Callable[..., Path]

VIQ = Path(sys.executable).with_name("viq")


def test_equal_stems_are_refused_before_anything_is_written(viq: Run, picture: MakePicture, tmp_path: Path) -> None:
    images = [picture("one/cat.png"), picture("dog.png"), picture("two/cat.jpg")]
    code, _, err = viq("encode", *images, "-o", tmp_path / "out")
    assert code == 2
    assert f"{images[0]} and {images[2]} would both become {tmp_path / 'out' / 'cat.npz'}" in err
    assert not (tmp_path / "out").exists()


def test_a_result_never_replaces_an_input(viq: Run, picture: MakePicture, tmp_path: Path) -> None:
    picture("cat.png").rename(tmp_path / "cat.npz")
    before = (tmp_path / "cat.npz").read_bytes()
    code, _, err = viq("encode", tmp_path / "cat.npz", "-o", tmp_path)
    assert (code, before) == (2, (tmp_path / "cat.npz").read_bytes())
    assert "cat.npz is an input and would be replaced" in err


def test_an_output_folder_that_cannot_be_made_is_refused(viq: Run, picture: MakePicture, tmp_path: Path) -> None:
    cat = picture("cat.png")
    code, _, err = viq("encode", cat, "-o", cat)
    assert code == 2
    assert f"output folder {cat}: File exists" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["encode"], "IMAGE"),
        (["encode", "a.png", "--size", "3k"], "invalid choice: '3k'"),
        (["encode", "a.png", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["encode", "a.png", "--alpha", "black"], "invalid choice: 'black'"),
        (["encode", "a.png", "--bogus"], "unrecognized arguments: --bogus"),
        (["decode", "a.npz", "--format", "gif"], "invalid choice: 'gif'"),
        (["decode", "a.npz", "--server", "http://localhost:1", "--device", "cpu"], "--device is for computing here"),
        (["embed", "a.npz", "--server", "http://localhost:1", "--weights-root", "w"], "--weights-root is for"),
        (["info", "--server", "localhost:8000"], "expected http://host:port"),
        (["info", "--server", "http://"], "expected http://host:port"),
        (["info", "--device", "tpu"], "there are auto, cpu, cuda and cuda:N"),
        (["plan"], "WIDTHxHEIGHT"),
        (["convert", "a.pth", "-o", "root"], "--size"),
        (["convert", "a.pth", "--size", "16k"], "--output"),
        (["convert", "a.pth", "--size", "16k", "-o", "root", "--num-heads", "0"], "'0' is no number of heads"),
        (["serve", "--http-port", "http"], "http_port (VIQ_HTTP_PORT)"),
        (["serve", "--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(
    viq: Run, arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = viq(*arguments)
    assert (code, out) == (2, "")
    assert named in err


@pytest.mark.parametrize("command", ["encode", "decode", "embed", "info"])
def test_weights_that_cannot_be_used_end_with_3(viq: Run, command: str, tmp_path: Path) -> None:
    inputs = [] if command == "info" else [tmp_path / "a"]
    output = [] if command == "info" else ["-o", tmp_path]
    code, _, err = viq(command, *inputs, *output, "--weights-root", tmp_path / "absent", "--size", "16k")
    assert code == 3
    assert "no such folder" in err
    code, _, err = viq(command, *inputs, *output, "--size", "16k")
    assert code == 3
    assert "'16k' needs a weights root" in err


def test_the_weights_root_of_the_environment_counts_unless_a_flag_is_given(
    viq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIQ_WEIGHTS_ROOT", "/absent/environment")
    assert "/absent/environment" in viq("info")[2]
    assert "/absent/flag" in viq("info", "--weights-root", "/absent/flag")[2]
    monkeypatch.setenv("VIQ_WEIGHTS_ROOT", "")
    assert viq("info")[0] == 0


@pytest.mark.parametrize("command", ["encode", "decode", "embed", "info", "plan"])
def test_a_server_that_does_not_answer_ends_with_3(viq: Run, command: str, tmp_path: Path) -> None:
    inputs = {"info": [], "plan": ["16x16"]}.get(command, [tmp_path / "a.npz", "-o", tmp_path / "out"])
    code, out, err = viq(command, *inputs, "--server", "http://127.0.0.1:1")
    assert (code, out) == (3, "")
    assert "no answer from http://127.0.0.1:1" in err


TORCHLESS = "import sys; sys.modules['torch'] = None; from viq_serving.cli.main import main; sys.exit(main())"
WATCHED = (
    "import sys; from viq_serving.cli.main import main; code = main(); "
    "sys.exit(99 if {'torch', 'fastapi', 'httpx'} & set(sys.modules) else code)"
)


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["--help"]),
        (0, ["--version"]),
        (0, ["encode", "--help"]),
        (0, ["serve", "--help"]),
        (0, ["serve", "--print-config"]),
        (0, ["plan", "640x480"]),
        (2, ["encode", "a.png", "b/a.png"]),
        (2, ["decode", "a.npz", "--format", "gif"]),
    ],
)
def test_what_computes_nothing_imports_no_torch(code: int, arguments: list[str]) -> None:
    done = python(WATCHED, *arguments)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["encode", "a.png"], ["info"], ["convert", "a.pth", "--size", "16k", "-o", "root"], ["serve"]],
)
def test_without_torch_the_remedy_is_named(arguments: list[str]) -> None:
    done = python(TORCHLESS, *arguments)
    assert done.returncode == 3
    assert "needs torch: pip install 'viq-serving[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_command_says_its_exit_codes(shell: Run) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    assert "0 done, 1 some inputs failed, 2 usage, 3 weights or server" in " ".join(out.split())
    assert shell("plan", "0x5")[0] == 2


def test_arguments_of_convert_that_lead_nowhere_write_nothing(viq: Run, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_bytes(b"no checkpoint")
    for name in ("absent.pth", "text.pth"):
        code, out, err = viq("convert", tmp_path / name, "--size", "4k", "-o", tmp_path / "root")
        assert (code, out) == (3, "")
        assert name in err
    assert list(tmp_path.iterdir()) == [tmp_path / "text.pth"]


def test_the_client_imports_no_torch() -> None:
    assert python("import sys, viq_serving.client; sys.exit('torch' in sys.modules)").returncode == 0


@pytest.mark.parametrize("arguments", ["plan 640x480", "--help", "encode --help"])
def test_output_that_nobody_reads_ends_without_a_word(arguments: str) -> None:
    script = f"{VIQ} {arguments} | (exec <&-); exit ${{PIPESTATUS[0]}}"
    # The reader has gone before the command writes: a command of Python's takes longer to start.
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    # 141 is what a shell makes of SIGPIPE; argparse keeps it to itself.
    assert (done.returncode in (0, 141), done.stderr) == (True, "")


def test_output_that_cannot_be_written_ends_with_3_and_says_why() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{VIQ} plan 640x480 > /dev/full"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "viq plan: No space left on device\n")


def test_help_is_printed_where_only_ascii_is() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([VIQ, "encode", "--help"], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x"])
def test_a_proxy_that_cannot_be_used_ends_with_3(viq: Run, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    code, _, err = viq("info", "--server", "http://localhost:1")
    assert code == 3
    assert "proxy" in err
