"""launch/local.py and the signals of a training: all ranks save and end, however they are asked to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ROOT, TINY, children, command, environment, free_ports, interrupt, losses, read_metrics

from brain_dist.checkpoints.layout import complete_steps


def training(shards: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of a long run in the folder ``run``."""
    return [
        *(*TINY, "--data.shards", str(shards), "--run.dir", str(folder), "--run.name", "run"),
        *("--train.precision", "fp32", "--train.global_batch", "24", "--train.micro_batch", "6"),
        *("--train.eval_every", "0", "--train.epochs", "500", *more),
    ]


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start a command of brain_dist with its output in one pipe."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment(**variables), text=True,
        stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def steps_done(folder: Path) -> int:
    return len(read_metrics(folder / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    "number", [*(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGINT)), signal.SIGKILL]
)
def test_ranks_save_and_end_if_their_launcher_is_hung_up_interrupted_or_killed(
    number: signal.Signals, phantom_shards: Path, tmp_path: Path
) -> None:
    result = interrupt(
        2, training(phantom_shards, tmp_path), lambda: steps_done(tmp_path) >= 3,
        send=lambda launcher: launcher.send_signal(number),
    )  # fmt: skip
    # the pipe of standard error closes when the last rank has ended
    assert result.code == (-signal.SIGKILL if number == signal.SIGKILL else 75), result.err
    steps = len(losses(tmp_path / "run"))
    assert f"stop requested: step {steps} of" in result.err
    assert complete_steps(tmp_path / "run" / "checkpoints")[-1] == steps


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_loading_processes_serve_their_rank_until_it_ends(
    number: signal.Signals, phantom_shards: Path, tmp_path: Path
) -> None:
    train = start("brain_dist.train", *training(phantom_shards, tmp_path, "--data.loader", "torch"))
    try:
        while steps_done(tmp_path) < 3 and train.poll() is None:
            time.sleep(0.02)
        if number == signal.SIGKILL:
            train.kill()
        else:
            os.killpg(train.pid, number)  # to the workers, too, as a terminal and SLURM do
        output = train.communicate(timeout=60)[0]  # the pipe closes when the last worker has ended
    finally:
        train.kill()
    assert train.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), output
    if number != signal.SIGKILL:
        assert complete_steps(tmp_path / "run" / "checkpoints")[-1] == len(losses(tmp_path / "run"))


def test_loading_processes_end_with_a_rank_that_fails(phantom_shards: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(phantom_shards, tmp_path / "shards")
    train = start("brain_dist.train", *training(shards, tmp_path, "--data.loader", "torch"))
    try:
        while steps_done(tmp_path) < 3 and train.poll() is None:
            time.sleep(0.02)
        for shard in shards.glob("*.tar"):
            os.truncate(shard, 0)
        output = train.communicate(timeout=60)[0]
    finally:
        train.kill()
    assert train.returncode == 1, output
    assert re.search(r"brain-dist: error: \S+\.tar, sample \S+ at byte \d+: the shard ends after 0 of", output), output


def test_second_ctrl_c_ends_at_once_and_says_where_the_run_resumes(phantom_shards: Path, tmp_path: Path) -> None:
    settings = ["--train.micro_batch", "1", "--train.global_batch", "96", "--train.save_every", "1"]
    train = start("brain_dist.train", *training(phantom_shards, tmp_path, *settings))
    assert train.stdout is not None
    try:
        while not complete_steps(tmp_path / "run" / "checkpoints") and train.poll() is None:
            time.sleep(0.02)
        train.send_signal(signal.SIGINT)
        output = ""
        while "press Ctrl-C again to end at once" not in output:
            output += train.stdout.readline()
            assert train.poll() is None, output
        train.send_signal(signal.SIGINT)
        output += train.communicate(timeout=60)[0]
    finally:
        train.kill()
    assert train.returncode == 130, output
    resumed_at = re.search(r"ended without a save; the same command resumes at step (\d+)$", output.strip())
    assert resumed_at, output
    assert int(resumed_at[1]) == complete_steps(tmp_path / "run" / "checkpoints")[-1]


def wait_for_rendezvous(process: subprocess.Popen[str], port: int) -> None:
    """Wait until the first rank serves the rendezvous, where it waits for the second rank."""
    while process.poll() is None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)


def first_of_two(port: int) -> dict[str, str]:
    """Environment of a rank that waits for another one."""
    return {
        **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_during_start_up_is_obeyed_at_once(number: signal.Signals, phantom_shards: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    train = start("brain_dist.train", *training(phantom_shards, tmp_path), **first_of_two(port))
    try:
        wait_for_rendezvous(train, port)
        train.send_signal(number)
        output = train.communicate(timeout=10)[0]
    finally:
        train.kill()
    assert train.returncode == 128 + number, output
    assert output == "brain-dist: stop requested before the first step; run the same command to start again\n"


@pytest.mark.slow
def test_a_stop_request_to_a_rank_is_not_a_fault_after_which_all_restart(phantom_shards: Path, tmp_path: Path) -> None:
    launcher = start("launch.local", "-n", "2", "--restarts", "1", "train", *training(phantom_shards, tmp_path))
    try:
        ranks: list[int] = []
        while len(ranks) < 2 or b"brain_dist.train" not in Path(f"/proc/{ranks[1]}/cmdline").read_bytes():
            time.sleep(0.02)
            ranks = children(launcher.pid)
        os.kill(ranks[1], signal.SIGTERM)
        output = launcher.communicate(timeout=120)[0]
    finally:
        launcher.kill()
    assert launcher.returncode == 128 + signal.SIGTERM, output
    assert "restarting" not in output


INTERRUPTED = "brain-dist: interrupted before the end; run the same command again\n"


def test_ctrl_c_ends_evaluation_with_one_line(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    evaluate = start("brain_dist.evaluate", str(tmp_path), "--device", "cpu", **first_of_two(port))
    try:
        wait_for_rendezvous(evaluate, port)
        evaluate.send_signal(signal.SIGINT)
        output = evaluate.communicate(timeout=20)[0]
    finally:
        evaluate.kill()
    assert (evaluate.returncode, output) == (130, INTERRUPTED)


def test_ctrl_c_ends_a_command_with_worker_processes_with_one_line(tmp_path: Path) -> None:
    arguments = ["phantom", "--out", str(tmp_path / "out"), "--patients", "400", "--slices", "2", "--size", "64"]
    phantom = start("brain_dist.shard", *arguments)
    try:
        while not any(map(children, children(phantom.pid))) and phantom.poll() is None:
            time.sleep(0.02)
        time.sleep(1)  # until the workers work
        assert phantom.poll() is None
        os.killpg(phantom.pid, signal.SIGINT)  # as a terminal does; the workers get it, too
        output = phantom.communicate(timeout=120)[0]
    finally:
        phantom.kill()
    assert (phantom.returncode, output) == (130, INTERRUPTED)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_training_does_not_end_with_the_reader_of_its_output(phantom_shards: Path, tmp_path: Path) -> None:
    train = start("brain_dist.train", *training(phantom_shards, tmp_path, "--train.epochs", "5"))
    assert train.stdout is not None
    try:
        assert any("test_convnext" in line for line in train.stdout)
        train.stdout.close()
        assert train.wait(120) == 0
    finally:
        train.kill()
    assert complete_steps(tmp_path / "run" / "checkpoints")[-1] == len(losses(tmp_path / "run")) == 25


@pytest.mark.slow
def test_a_training_needs_no_standard_streams(phantom_shards: Path, tmp_path: Path) -> None:
    arguments = training(phantom_shards, tmp_path, "--train.epochs", "1")
    shell = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "launch/local.py", "-n", "2", "train"]
    command([*shell, *arguments])
    assert complete_steps(tmp_path / "run" / "checkpoints") == [5]
