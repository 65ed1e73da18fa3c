"""launch/hosts.py on two hosts: two names of this machine, reached through a real sshd with its own keys."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, TINY, command, environment, free_ports, losses, read_metrics

from brain_dist.ranks.world import SECRET
from launch.hosts import read_hostfile

TWO_HOSTS = "localhost slots=1   # the first one serves the rendezvous\n\n127.0.0.1 slots=1\n"
ONE_HOST = "localhost slots=2\n"
STEPS = 100


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An ssh command that reaches this machine."""
    sshd = shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("ssh is not installed: apt-get install openssh-server openssh-client")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (port,) = free_ports(1)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's chroot
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    daemon = subprocess.Popen([sshd, "-D", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL)
    options = "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR"
    client = f"ssh -p {port} -i {folder / 'user'} -F none {options}"
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([*client.split(), "localhost", "true"], check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield client
    finally:
        daemon.terminate()
        daemon.wait()


def launch_hosts(ssh: str, port: int, hostfile: Path, *arguments: str) -> list[str]:
    """Command that trains on the hosts of a file."""
    return [
        *(sys.executable, "launch/hosts.py", "--ssh", ssh, "--port", str(port), str(hostfile), "train"),
        *arguments,
    ]


def training(shards: Path, folder: Path) -> list[str]:
    """Arguments of a run of 100 steps in the folder ``far``."""
    return [
        *(*TINY, "--data.shards", str(shards), "--run.dir", str(folder), "--run.name", "far"),
        *("--train.precision", "fp32", "--train.global_batch", "24", "--train.micro_batch", "6"),
        *("--train.eval_every", "0", "--train.epochs", "20"),
    ]


@pytest.mark.slow
def test_stop_on_two_hosts_and_resume(ssh: str, phantom_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(TWO_HOSTS)
    (port,) = free_ports(1)
    train = launch_hosts(ssh, port, tmp_path / "hosts", *training(phantom_shards, tmp_path))
    launcher = subprocess.Popen(train, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 180
        while len(read_metrics(tmp_path / "far" / "metrics.jsonl")) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        launcher.send_signal(signal.SIGUSR1)
        output = launcher.communicate(timeout=120)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 75, output
    assert "run the same command to resume" in output
    steps = len(losses(tmp_path / "far"))
    assert 5 <= steps < STEPS
    resumed = command(train)
    assert f"resuming at step {steps} of {STEPS}" in resumed.err
    assert "2 × cpu" in resumed.err
    assert len(losses(tmp_path / "far")) == STEPS


def test_user_error_on_two_hosts_keeps_its_exit_code(ssh: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(TWO_HOSTS)
    (port,) = free_ports(1)
    result = command(launch_hosts(ssh, port, tmp_path / "hosts", "--train.epoks", "1"), expect=2)
    assert "brain-dist: error" in result.err


def test_bad_port_is_reported(ssh: str, tmp_path: Path) -> None:
    # one host only, because a second one would wait for the first
    (tmp_path / "hosts").write_text(ONE_HOST)
    (port,) = free_ports(1)
    with socket.create_server(("", port)):
        in_use = command(launch_hosts(ssh, port, tmp_path / "hosts"), expect=2)
    assert f"error: port {port} of localhost is in use; give launch/hosts.py another --port" in in_use.err
    assert "Traceback" not in in_use.err
    impossible = command(launch_hosts(ssh, 70000, tmp_path / "hosts"), expect=2)
    assert "--port 70000: must be 1 to 65535" in impossible.err


def test_command_lines_show_no_secret_and_accounts_stay_on_their_machine(tmp_path: Path) -> None:
    fake_ssh = tmp_path / "ssh"
    fake_ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\nhead -n 1 >> {tmp_path}/input\n')
    fake_ssh.chmod(0o755)
    (tmp_path / "hosts").write_text(TWO_HOSTS)
    secrets = {
        "HF_TOKEN": "hf_1",
        "WANDB_API_KEY": "w_1",
        "NCCL_SOCKET_IFNAME": "eth7",
        "HF_HOME": "/hub",
        "OTHER": "x_1",
    }
    command(launch_hosts(str(fake_ssh), 20000, tmp_path / "hosts"), **secrets)
    command_lines = (tmp_path / "arguments").read_text()
    assert command_lines.count("launch/local.py") == 2
    assert not {"hf_1", "w_1", "eth7", "x_1"} & set(re.split(r"[\s=]", command_lines))
    first, second = map(json.loads, (tmp_path / "input").read_text().splitlines())
    assert first == second
    assert first["NCCL_SOCKET_IFNAME"] == "eth7"
    assert first["HF_HOME"] == "/hub"
    assert not {"HF_TOKEN", "WANDB_API_KEY", "OTHER"} & set(first)
    assert first[SECRET]
    assert first[SECRET] not in command_lines


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a slots=2\nb\n", "line 2 is not HOST slots=N: b"),
        ("a slots=0\n", "line 1 is not"),
        ("a slots=1\na slots=1", "line 2 repeats a host"),
        ("# only a comment\n", "lists no host"),
    ],
)
def test_malformed_hostfile_is_rejected(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_hostfile(text)
