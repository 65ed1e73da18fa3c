"""A real Chromium with the modules of the browser edition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from benchmarks.support.chromium import chromium, served
from brain_dist.web import FILES


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def modules(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """An empty page that can import the edition's modules, such as ``./pixels.js``."""
    folder = tmp_path_factory.mktemp("modules")
    for file in FILES.glob("*.js"):
        (folder / file.name).symlink_to(file)
    (folder / "index.html").write_text("<!doctype html><title>modules</title>")
    with served(folder) as address:
        page = browser.new_page()
        page.goto(address)
        yield page
        page.close()
