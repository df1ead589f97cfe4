"""Weights roots: folders, and repositories of a hub that here is a real server on a loopback port."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from viq.errors import UnknownModel, WeightsError
from viq.model import ViQ
from viq.weights_root import folder_of

MakeRoot = Callable[..., Path]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def sized(tmp_path: Path) -> Callable[..., Path]:
    """A weights root with empty folders of some sizes."""

    def make(*sizes: str) -> Path:
        for size in sizes:
            (tmp_path / "root" / f"converted_{size}").mkdir(parents=True)
        return tmp_path / "root"

    return make


# Folders


def test_the_only_size_of_a_root_need_not_be_named(sized: Callable[..., Path]) -> None:
    root = sized("8k")
    (root / "converted_5k").mkdir()
    (root / "README.md").write_text("not weights")
    (root / "converted_16k").write_text("not a folder")
    for given in (root, str(root), f"{root}/"):
        assert folder_of(given, None) == (root / "converted_8k", "8k")


def test_of_several_sizes_one_is_named(sized: Callable[..., Path]) -> None:
    root = sized("16k", "64k")
    assert folder_of(root, "64k") == (root / "converted_64k", "64k")
    with pytest.raises(WeightsError, match="name a size; it holds 16k, 64k") as caught:
        folder_of(root, None)
    assert str(root) in str(caught.value)


def test_a_size_that_the_root_does_not_hold_is_refused_and_those_held_are_named(sized: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="no folder converted_4k; it holds 16k, 64k"):
        folder_of(sized("16k", "64k"), "4k")


@pytest.mark.parametrize("size", ["5k", "16K", "", "../16k", "16k/"])
def test_a_size_that_does_not_exist_is_an_unknown_model(sized: Callable[..., Path], size: str) -> None:
    with pytest.raises(UnknownModel, match="2k, 4k, 8k, 16k, 64k"):
        folder_of(sized("16k"), size)


def test_a_root_that_is_no_folder_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "absent", tmp_path / "file"):
        for size in (None, "16k"):
            with pytest.raises(WeightsError, match="no such folder") as caught:
                folder_of(root, size)
            assert str(root) in str(caught.value)
    with pytest.raises(WeightsError, match="no converted_<size> folder"):
        folder_of(tmp_path, None)


def test_the_weights_folder_itself_is_no_root(sized: Callable[..., Path]) -> None:
    with pytest.raises(WeightsError, match="no converted_<size> folder"):
        folder_of(sized("16k") / "converted_16k", None)


def test_loading_takes_the_only_size(make_root: MakeRoot) -> None:
    root = make_root(size="4k")
    assert ViQ.from_pretrained(root, device="cpu", parts=("encoder",)).size == "4k"
    make_root(size="16k")
    with pytest.raises(WeightsError, match="name a size"):
        ViQ.from_pretrained(root, device="cpu")
    assert ViQ.from_pretrained(str(root), "16k", device="cpu", parts=("encoder",)).size == "16k"


def test_without_a_root_there_is_nano_alone() -> None:
    with pytest.raises(UnknownModel, match="weights root"):
        ViQ.from_pretrained(None, "16k", device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:repo",
        "hf:/repo",
        "hf:org/",
        "hf:org//repo",
        "hf:org/repo@",
        "hf:org/repo@@main",
        "hf:org/repo//etc",
        "hf:org/repo/sub//etc",
        "hf:org/repo///",
        "hf:org/..",
        "hf:../..",
        "hf:org/repo/..",
        "hf:org/repo/../../etc",
        "hf:org/repo/a/../b",
        "hf:org/repo@../main",
        "hf:org/re po",
        "hf:org/repo/*",
        "hf:org/repo?x=1",
        "hf:org/repo#main",
        "hf:https://example.org/org/repo",
        "hf:org/repo\n",
    ],
)
def test_a_malformed_hub_name_is_refused_before_anything_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for size in (None, "16k"):
        with pytest.raises(WeightsError, match=r"hf:ORG/REPO\[/SUBDIR\]\[@REV\]"):
            folder_of(name, size)


# A hub


class Hub:
    """As much of the hub's HTTP interface as its client needs for a snapshot; keeps what was asked for."""

    def __init__(self, home: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.hangs_up = False
        self._home = home
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815 - the name is the base class's

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = unquote(request.path.partition("?")[0])
        self.asked.append(f"{request.command} {path}")
        if self.hangs_up:
            request.close_connection = True
            return
        api, resolve = "/api/models/org/repo", f"/org/repo/resolve/{REVISION}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/v1", f"{api}/revision/{REVISION}"):
            listing = [{"rfilename": name} for name in self.files]
            self._reply(request, {"id": "org/repo", "sha": REVISION, "siblings": listing})
        elif path == f"{api}/tree/{REVISION}":
            self._reply(
                request,
                [
                    {"type": "file", "path": name, "oid": hashlib.sha1(body).hexdigest(), "size": len(body)}  # noqa: S324
                    for name, body in self.files.items()
                ],
            )
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.files:
            self._reply(request, self.files[path.removeprefix(resolve)])
        else:
            kind = "RepoNotFound" if not path.startswith(api) else "RevisionNotFound"
            request.send_response(404)
            request.send_header("X-Error-Code", kind)
            request.send_header("Content-Length", "0")
            request.end_headers()

    def _reply(self, request: http.server.BaseHTTPRequestHandler, content: object) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        request.send_header("X-Repo-Commit", REVISION)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def fetched(self) -> set[str]:
        """The files whose bytes were asked for."""
        start = f"GET /org/repo/resolve/{REVISION}/"
        return {line.removeprefix(start) for line in self.asked if line.startswith(start)}

    def call(self, code: str, *arguments: str, **environment: str) -> str:
        """What a Python script prints in a process of its own, which knows this hub and an empty cache."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        proxies = {"http_proxy": "", "https_proxy": "", "all_proxy": "", "no_proxy": "*"}
        inherited = {key: value for key, value in inherited.items() if key.lower() not in proxies}
        address = f"http://127.0.0.1:{self.server.server_port}"
        own = {"HF_ENDPOINT": address, "HF_HOME": str(self._home), "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "*"}
        own["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**inherited, **own, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def folder_of(self, name: str, size: str = "", **environment: str) -> str:
        """The folder that `folder_of` gives, or `<error class>: <message>`."""
        code = """
import sys
from viq.errors import ViQError
from viq.weights_root import folder_of
try:
    print(folder_of(sys.argv[1], sys.argv[2] or None)[0])
except ViQError as error:
    print(f"{type(error).__name__}: {error}")
"""
        return self.call(code, name, size, **environment)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one empty repository org/repo."""
    made = Hub(tmp_path / "hub home")
    yield made
    made.stop()


@pytest.fixture
def stocked(hub: Hub, make_root: MakeRoot) -> Hub:
    """A hub whose repository holds a model under sub/deep/, another size beside it, and much else."""
    folder = make_root() / "converted_16k"
    for file in folder.iterdir():
        hub.files[f"sub/deep/converted_16k/{file.name}"] = file.read_bytes()
        hub.files[f"elsewhere/converted_16k/{file.name}"] = b"not wanted"
    for name in ("README.md", "converted_16k/loader.py", "config.json", "head.so", "model.pt2", "viq.json.bak"):
        hub.files[f"sub/deep/{name}"] = b"not wanted"
        hub.files[f"sub/deep/converted_16k/{name}"] = b"not wanted"
    hub.files["sub/deep/converted_4k/embedder.pth"] = b"not wanted"
    return hub


WANTED = {
    f"sub/deep/converted_16k/{n}" for n in ("model_viq_fsq_16k.pth", "embedder.pth", "index_drawer.pth", "viq.json")
}


def test_a_hub_folder_at_a_revision_is_fetched_loads_and_encodes(stocked: Hub, make_root: MakeRoot) -> None:
    code = """
import sys
import numpy as np
from viq.model import ViQ
model = ViQ.from_pretrained(sys.argv[1], "16k", device="cpu", dtype="float32")
codes = model.encode([np.full((20, 30, 3), 77, np.uint8)])
print(model.fingerprint, model.decode(codes)[0].shape, *codes[0].flat)
"""
    local = ViQ.from_pretrained(make_root(), device="cpu", dtype="float32")
    codes = local.encode([np.full((20, 30, 3), 77, np.uint8)])[0]
    expected = " ".join(map(str, (local.fingerprint, (20, 30, 3), *codes.flat)))
    assert stocked.call(code, "hf:org/repo/sub/deep@v1") == expected
    assert any(line.endswith("/revision/v1") for line in stocked.asked)


@pytest.mark.parametrize("name", ["hf:org/repo/sub/deep", "hf:org/repo/sub/deep/", f"hf:org/repo/sub/deep@{REVISION}"])
def test_only_the_weights_of_the_size_are_fetched(stocked: Hub, name: str) -> None:
    folder = Path(stocked.folder_of(name, "16k"))
    assert folder.parts[-3:] == ("sub", "deep", "converted_16k")
    assert stocked.fetched() == WANTED
    assert {p.name for p in folder.iterdir()} == {Path(name).name for name in WANTED}


def test_safetensors_of_a_repository_without_subfolders_are_fetched_too(hub: Hub) -> None:
    hub.files = {f"converted_16k/{n}": b"x" for n in ("embedder.safetensors", "viq.json", "notes.txt")}
    folder = Path(hub.folder_of("hf:org/repo"))
    assert {p.name for p in folder.iterdir()} == {"embedder.safetensors", "viq.json"}


def test_of_several_sizes_on_a_hub_none_is_fetched_until_one_is_named(stocked: Hub) -> None:
    told = stocked.folder_of("hf:org/repo/sub/deep")
    assert told.startswith("WeightsError: ")
    assert "name a size; it holds 4k, 16k" in told
    assert stocked.fetched() == set()


def test_a_hub_folder_that_holds_no_such_size_or_does_not_exist_is_refused(stocked: Hub) -> None:
    for name, size in (("hf:org/repo/sub/deep", "64k"), ("hf:org/repo", "16k"), ("hf:org/repo/absent", "")):
        told = stocked.folder_of(name, size)
        assert told.startswith("WeightsError: weights root ")
        assert "no such folder" in told or "no folder converted_" in told or "no converted_<size> folder" in told
    assert stocked.fetched() == set()


def test_what_was_fetched_is_used_without_the_hub(stocked: Hub) -> None:
    first = stocked.folder_of("hf:org/repo/sub/deep@main", "16k")
    stocked.asked.clear()
    for size in ("16k", ""):
        assert stocked.folder_of("hf:org/repo/sub/deep@main", size, HF_HUB_OFFLINE="1") == first
    assert stocked.asked == []
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for size in ("16k", ""):
        assert stocked.folder_of("hf:org/repo/sub/deep@main", size, **unreachable) == first


@pytest.mark.parametrize("size", ["16k", ""])
def test_a_repository_or_revision_that_does_not_exist_is_a_weights_error(hub: Hub, size: str) -> None:
    for name in ("hf:org/other", "hf:org/repo@absent"):
        told = hub.folder_of(name, size)
        assert told.startswith(f"WeightsError: weights root {name}: could not be fetched")
        assert "404" in told


@pytest.mark.parametrize("size", ["16k", ""])
def test_without_the_hub_and_without_a_copy_it_is_a_weights_error(hub: Hub, size: str) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        told = hub.folder_of("hf:org/repo", size, **environment)
        assert told.startswith("WeightsError: weights root hf:org/repo: could not be fetched")


@pytest.mark.parametrize("size", ["16k", ""])
def test_a_hub_that_hangs_up_is_a_weights_error(hub: Hub, size: str) -> None:
    hub.hangs_up = True
    assert hub.folder_of("hf:org/repo", size).startswith("WeightsError: weights root hf:org/repo: could not be fetched")
    assert hub.asked


def test_a_name_that_the_hub_itself_would_not_take_is_a_weights_error(hub: Hub) -> None:
    for name in ("hf:-org/repo", "hf:org/repo.git", "hf:org/re--po"):
        assert hub.folder_of(name, "16k").startswith(f"WeightsError: weights root {name}: could not be fetched")


def test_a_hostile_pickle_from_a_hub_is_refused_and_never_runs(stocked: Hub, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    stocked.files["sub/deep/converted_16k/embedder.pth"] = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    code = """
import sys
from viq.errors import WeightsError
from viq.model import ViQ
try:
    ViQ.from_pretrained(sys.argv[1], "16k", device="cpu")
except WeightsError as error:
    print(error)
"""
    assert "embedder.pth" in stocked.call(code, "hf:org/repo/sub/deep")
    assert not marker.exists()
