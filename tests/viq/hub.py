"""A hub of weights: a real server on a loopback port."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

REVISION = "0123456789abcdef0123456789abcdef01234567"


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
        (told,) = self.folders_of((name, size), **environment)
        return told

    def folders_of(self, *asked: tuple[str, str], **environment: str) -> list[str]:
        """The same of several names and sizes, one after the other in one process."""
        code = """
import json, sys
from viq.errors import ViQError
from viq.weights_root import folder_of
told = []
for name, size in json.loads(sys.argv[1]):
    try:
        told.append(str(folder_of(name, size or None)[0]))
    except ViQError as error:
        told.append(f"{type(error).__name__}: {error}")
print(json.dumps(told))
"""
        told: list[str] = json.loads(self.call(code, json.dumps(asked), **environment))
        return told

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()
