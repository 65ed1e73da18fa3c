"""Two machines from a hostfile: two names of this one, reached through a real sshd with keys of its own."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, TINY, command, environment, free_ports, losses, read_metrics

from launch.hosts import read


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The words that reach this machine by ssh."""
    sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("ssh is not installed: apt-get install openssh-server openssh-client")
    at = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(at / name)], check=True)
    (port,) = free_ports(1)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd wants to lock itself in
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": at / "host",
        "AuthorizedKeysFile": at / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    (at / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    daemon = subprocess.Popen([sshd, "-D", "-f", str(at / "sshd_config")], stderr=subprocess.DEVNULL)
    words = f"ssh -p {port} -i {at / 'user'} -F none -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no"
    words += " -o LogLevel=ERROR"
    try:
        limit = time.monotonic() + 60
        while subprocess.run([*words.split(), "localhost", "true"], check=False).returncode:
            assert time.monotonic() < limit
            time.sleep(0.1)
        yield words
    finally:
        daemon.terminate()
        daemon.wait()


def test_stopped_on_two_machines_and_resumed(ssh: str, phantom_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("localhost slots=1   # the first one serves the rendezvous\n\n127.0.0.1 slots=1\n")
    (port,) = free_ports(1)
    words = [sys.executable, "launch/hosts.py", "--ssh", ssh, "--port", str(port), str(tmp_path / "hosts"), "train"]
    words += [*TINY, "--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--train.precision", "fp32"]
    words += ["--train.global_batch", "24", "--train.micro_batch", "6", "--train.eval_every", "0"]
    words += ["--train.epochs", "20", "--run.name", "far"]
    wrong = command([*words, "--train.epoks", "1"], expect=2)
    assert "brain-dist: error" in wrong.err
    # one machine: nobody is left waiting for the one that could not begin
    (tmp_path / "one").write_text("localhost slots=2\n")
    alone = [str(tmp_path / "one") if word == str(tmp_path / "hosts") else word for word in words]
    with socket.create_server(("", port)):
        busy = command(alone, expect=2)
    assert f"error: port {port} of localhost is in use; give launch/hosts.py another --port" in busy.err
    assert "Traceback" not in busy.err
    impossible = command(["70000" if word == str(port) else word for word in alone], expect=2)
    assert "--port 70000: needs 1 to 65535" in impossible.err

    launcher = subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 180
        while len(read_metrics(tmp_path / "far" / "metrics.jsonl")) < 5 and time.monotonic() < limit:
            time.sleep(0.02)
        launcher.send_signal(signal.SIGUSR1)
        said = launcher.communicate(timeout=120)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 75, said
    assert "the same command goes on from there" in said
    reached = len(losses(tmp_path / "far"))
    assert 5 <= reached < 100
    resumed = command(words)
    assert f"resuming at step {reached} of 100" in resumed.err
    assert "2 × cpu" in resumed.err
    assert len(losses(tmp_path / "far")) == 100


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a slots=2\nb\n", "line 2 is not HOST slots=N: b"),
        ("a slots=0\n", "line 1 is not"),
        ("a slots=1\na slots=1", "line 2 is the same host again"),
        ("# nobody\n", "no machine"),
    ],
)
def test_a_line_that_names_no_machine_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read(text)
