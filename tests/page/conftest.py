"""A real server of two sizes and a real browser, which loads nothing from elsewhere and meets no error of the page."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, sync_playwright
from tests.doors.serving import Server
from tests.page.driving import SECONDS, Desk
from tests.proxies.test_restart import free_port, listens
from tests.rest.test_sizes import write_weights
from tests.waiting import until

import viq

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
SIZES = ("nano", "4k")
MAX_PATCHES, MAX_BYTES = 520, 300_000


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The packaged nano and random weights of another size, with small limits and without keys."""
    root = tmp_path_factory.mktemp("weights")
    (root / "converted_nano").symlink_to(Path(viq.__file__).parent / "weights" / "converted_nano")
    write_weights(root, "4k", 7)
    limits = {"max-patches": MAX_PATCHES, "max-body-bytes": MAX_BYTES, "drain-delay": 0}
    flags = [word for name, value in limits.items() for word in (f"--{name}", str(value))]
    sizes = [word for size in SIZES for word in ("--size", size)]
    server = Server(tmp_path_factory.mktemp("server"), "--weights-root", str(root), *sizes, *flags)
    yield server.ready()
    server.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each module: while it is there, an event loop runs in this thread."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (make system-packages, as root on Debian)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that has seen nothing yet."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(1000 * SECONDS)
    yield context
    context.close()


@pytest.fixture
def desk(context: BrowserContext) -> Iterator[Desk]:
    """The page, not opened yet."""
    page, asked, wrong = context.new_page(), list[str](), list[str]()

    def said(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            wrong.append(message.text)

    context.on("request", lambda request: asked.append(re.sub("//[^/]*@", "//", request.url)))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", said)
    desk = Desk(page)
    yield desk
    assert wrong == []
    assert asked
    assert [url for url in asked if not url.startswith((desk.url, f"blob:{desk.origin}"))] == []


class Proxy:
    """nginx before the server: below a path, for those with a cookie. It can be stopped, silent, and there again."""

    COOKIE = ("known", "yes")

    def __init__(self, command: list[str], port: int) -> None:
        self._command, self._port, self.url = command, port, f"http://127.0.0.1:{port}/some/viq"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        until(lambda: listens(self._port) or self._process.poll() is not None, "a proxy that listens")

    def end(self) -> None:
        self.answers(True)
        self._process.terminate()
        self._process.wait()

    def answers(self, whether: bool) -> None:
        self._process.send_signal(signal.SIGCONT if whether else signal.SIGSTOP)


@pytest.fixture
def proxy(server: Server, context: BrowserContext, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy before the server, and a browser that has its cookie."""
    if NGINX is None:
        pytest.skip("nginx is not installed (make system-packages, as root on Debian)")
    port = free_port()
    tmp_path.chmod(0o755)
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; daemon off; master_process off; events {{}} "
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; "
        f"{temporary} proxy_buffering off; proxy_request_buffering off; "
        f"server {{ listen 127.0.0.1:{port}; client_max_body_size 64m; "
        f"location /some/viq/ {{ if ($cookie_{Proxy.COOKIE[0]} != {Proxy.COOKIE[1]}) {{ return 403; }} "
        f"proxy_pass {server.url}/; }} location / {{ return 404; }} }} }}"
    )
    command = [NGINX, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    proxy = Proxy(command, port)
    context.add_cookies([{"name": Proxy.COOKIE[0], "value": Proxy.COOKIE[1], "url": proxy.url}])
    proxy.start()
    yield proxy
    proxy.end()
