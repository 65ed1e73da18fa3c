"""Networks of namespaces, real ones: what goes over them is counted, and nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import namespaces

pytestmark = pytest.mark.skipif(namespaces.refusal() is not None, reason=f"benchmarks {namespaces.refusal()}")

SEND = """
import os, socket, sys
from benchmarks import namespaces
namespaces.shape(400)
rank = int(os.environ["RANK"])
assert os.environ["LOCAL_WORLD_SIZE"] == "1"
here = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
before = namespaces.sent()
if rank == 0:
    with socket.create_server(here) as door:
        open(sys.argv[1] + "/open", "w").close()
        other, _ = door.accept()
        other.sendall(bytes(1_000_000))
        assert other.recv(1) == b"."
else:
    import pathlib, time
    while not pathlib.Path(sys.argv[1], "open").exists():
        time.sleep(0.02)
    other = socket.create_connection(here)
    left = 1_000_000
    while left:
        left -= len(other.recv(1 << 16))
    other.sendall(b".")
open(f"{sys.argv[1]}/{rank}", "w").write(str(namespaces.sent() - before))
"""


def ours(pid: int) -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith(f"bd{pid}")]


def test_a_message_is_counted_once_and_the_network_goes_away(tmp_path: Path) -> None:
    namespaces.run([sys.executable, "-c", SEND, str(tmp_path)], 2)
    sender, receiver = (int((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert 1_000_000 < sender < 1_100_000
    assert receiver < 100_000  # acknowledgements
    assert ours(os.getpid()) == []


def test_a_failing_rank_ends_the_others_and_its_words_are_kept() -> None:
    script = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('no such day')\ntime.sleep(60)"
    with pytest.raises(SystemExit, match="no such day"):
        namespaces.run([sys.executable, "-c", script], 3)
    assert ours(os.getpid()) == []


def test_a_signal_leaves_no_namespace_and_no_process(tmp_path: Path) -> None:
    script = f"import time; open({str(tmp_path / 'there')!r}, 'w').close(); time.sleep(61)"
    words = f"import sys\nfrom benchmarks import namespaces\nnamespaces.run([sys.executable, '-c', {script!r}], 2)"
    process = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT)
    limit = time.monotonic() + 30
    while not (tmp_path / "there").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(ours(process.pid)) == 3  # two ranks and the bridge
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert ours(process.pid) == []
    listing = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "there") not in listing
