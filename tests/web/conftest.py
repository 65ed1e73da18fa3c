"""A real Chromium with the modules of the browser edition."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from module_page import page_with
from playwright.sync_api import Browser, Page

from benchmarks.support.chromium import chromium
from brain_dist.web import FILES
from brain_dist.web.build import INSTALL


@pytest.fixture(scope="module")  # playwright's event loop must have ended when other modules use theirs
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def modules(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """An empty page that can import the edition's modules, such as ``./pixels.js``."""
    with page_with(browser, tmp_path_factory.mktemp("modules"), FILES.glob("*.js")) as page:
        yield page


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``npm`` in which npm installed the edition's libraries, as docs/browser.md says."""
    assert shutil.which("npm") is not None, "npm is not installed (apt-get install npm)"
    folder = tmp_path_factory.mktemp("libraries")
    command = [*INSTALL.split(), "--ignore-scripts", "--no-audit"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "npm"
