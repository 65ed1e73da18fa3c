"""A real Chromium with the modules of the browser edition."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from brain_dist.web import FILES


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder's files."""

    def log_message(self, *words: object) -> None:
        """Print nothing."""


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    """A server of a folder on a free port of the loopback, which runs until its ``shutdown`` is called."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """An empty page that can import the edition's modules, such as ``./pixels.js``."""
    folder = tmp_path_factory.mktemp("modules")
    for file in FILES.glob("*.js"):
        (folder / file.name).symlink_to(file)
    (folder / "index.html").write_text("<!doctype html><title>modules</title>")
    server = serve(folder)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        yield page
        chromium.close()
    server.shutdown()
