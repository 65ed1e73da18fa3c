"""Real networks of namespaces: traffic is counted, and everything is removed at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from benchmarks.support import namespaces

pytestmark = pytest.mark.skipif(
    namespaces.missing_requirement() is not None, reason=str(namespaces.missing_requirement())
)

SEND = """
import os, socket, sys
from benchmarks.support import namespaces
namespaces.limit_rate(400)
rank = int(os.environ["RANK"])
assert os.environ["LOCAL_WORLD_SIZE"] == "1"
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
before = namespaces.bytes_sent()
if rank == 0:
    with socket.create_server(address) as server:
        open(sys.argv[1] + "/open", "w").close()
        connection, _ = server.accept()
        connection.sendall(bytes(1_000_000))
        assert connection.recv(1) == b"."
else:
    import pathlib, time
    while not pathlib.Path(sys.argv[1], "open").exists():
        time.sleep(0.02)
    connection = socket.create_connection(address)
    missing = 1_000_000
    while missing:
        missing -= len(connection.recv(1 << 16))
    connection.sendall(b".")
open(f"{sys.argv[1]}/{rank}", "w").write(str(namespaces.bytes_sent() - before))
"""


def namespaces_of(pid: int) -> list[str]:
    """Namespaces that the process ``pid`` created."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith(f"bd{pid}")]


def test_a_message_is_counted_once_and_the_network_is_removed(tmp_path: Path) -> None:
    namespaces.run([sys.executable, "-c", SEND, str(tmp_path)], 2)
    sender, receiver = (int((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert 1_000_000 < sender < 1_100_000
    assert receiver < 100_000  # acknowledgements
    assert namespaces_of(os.getpid()) == []


def test_a_failing_rank_ends_the_others_and_its_error_is_reported() -> None:
    script = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('invalid input')\ntime.sleep(60)"
    with pytest.raises(SystemExit, match="invalid input"):
        namespaces.run([sys.executable, "-c", script], 3)
    assert namespaces_of(os.getpid()) == []


def test_a_signal_leaves_no_namespace_and_no_process(tmp_path: Path) -> None:
    script = f"import time; open({str(tmp_path / 'started')!r}, 'w').close(); time.sleep(61)"
    code = (
        f"import sys\nfrom benchmarks.support import namespaces\nnamespaces.run([sys.executable, '-c', {script!r}], 2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(namespaces_of(process.pid)) == 3  # two ranks and the bridge
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert namespaces_of(process.pid) == []
    listing = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "started") not in listing
