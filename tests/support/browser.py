"""Open a page in headless Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

QUIET = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"


def browser(page: Path, profile: Path, *flags: str, width: int = 1200) -> str:
    """Standard output of Chromium for the page."""
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "chromium is not installed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    arguments = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *QUIET.split()]
    arguments += [f"--user-data-dir={profile}", f"--window-size={width},2000", *flags, page.resolve().as_uri()]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=90, check=True).stdout
