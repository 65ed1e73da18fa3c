"""An empty page that can import JavaScript files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page

from benchmarks.support.chromium import served


@contextmanager
def page_with(browser: Browser, folder: Path, files: Iterable[Path]) -> Iterator[Page]:
    """A page in a folder with links to the files, served from this machine."""
    for file in files:
        (folder / file.name).symlink_to(file)
    (folder / "index.html").write_text("<!doctype html><title>modules</title>")
    with served(folder) as address:
        page = browser.new_page()
        page.goto(address)
        yield page
        page.close()
