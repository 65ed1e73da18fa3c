"""A real process of `brain-dist serve` for tests."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx
from fork_server import Ranks
from helpers import fork_server


class Service:
    """A service on a free port of the loopback address.

    Attributes:
        url: its address, with a slash at the end.
        pid: its process.
        folder: has the log ``log`` and ``tmp``, its folder for temporary files.
    """

    def __init__(self, model: Path, folder: Path, *flags: str, port: int = 0) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)
        arguments = [str(model), "--device", "cpu", "--port", str(port), *flags]
        variables = {"TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
        self._ranks = Ranks(fork_server(), 1, "serve", arguments, folder / "log", env=variables)
        self.pid = self._ranks.pids[0]
        deadline = time.monotonic() + 120
        while (match := re.search(r"^(http://\S+/): Not a medical device", self.log(), re.MULTILINE)) is None:
            assert self._ranks.running(), self.log()
            assert time.monotonic() < deadline, "the service did not start"
            time.sleep(0.02)
        self.url = match[1]
        self.port = int(self.url.rpartition(":")[2].strip("/"))
        while not self._answers():
            assert time.monotonic() < deadline, "the service did not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.get("readyz").status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        """What it printed so far."""
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET an address of it."""
        return httpx.get(self.url + path, trust_env=False, timeout=60, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST to an address of it."""
        return httpx.post(self.url + path, trust_env=False, timeout=60, **options)

    def predict(self, data: bytes, query: str = "") -> httpx.Response:
        """POST a file to /v1/predict."""
        return self.post(f"v1/predict{query}", content=data, headers={"Content-Type": "application/octet-stream"})

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        return self._ranks.wait(60)[0]

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self._ranks.running():
            self.terminate()
        return self.wait()
