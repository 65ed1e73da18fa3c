"""The rendezvous: who may join, and how long a rank waits for the others."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, Result, environment, free_ports

from brain_dist.errors import Fault
from brain_dist.ranks.group import _authenticate, clear_faults, process_group
from brain_dist.ranks.world import SECRET, World, discover

RANK = """
import sys
from brain_dist.errors import leave
from brain_dist.ranks.group import gather_objects, gather_rows, process_group, run_on_main
from brain_dist.ranks.world import discover

def main():
    world = discover()
    import torch
    with process_group(world, torch.device("cpu"), timeout=float(sys.argv[1])):
        assert gather_objects({"rank": world.rank, "loss": [float("nan"), 0.1]}, world)[1]["loss"][1] == 0.1
        rows = torch.full((world.rank, 2), float(world.rank)).numpy()
        assert gather_rows(rows, world).tolist() == [[1.0, 1.0]]
        print("joined")
    return 0

leave(main)
"""
FAILING = """
import sys, time
from brain_dist.errors import Fault, leave
from brain_dist.ranks.group import process_group
from brain_dist.ranks.world import discover

def main():
    world = discover()
    import torch
    with process_group(world, torch.device("cpu"), timeout=60):
        if world.is_main:
            time.sleep(60)  # busy: it does not join the sum
        torch.distributed.all_reduce(torch.ones(1), async_op=True)
        raise Fault("the memory of the device is full")

leave(main)
"""
STRANGER = (ROOT / "tests" / "support" / "stranger.py").read_text()


def start(script: str, rank: int, port: int, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start a rank, or a stranger, of a run of two ranks."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    env = environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), BRAIN_DIST_START_ID="5eed", **variables)
    command = [sys.executable, "-c", script, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)


def end(process: subprocess.Popen[str]) -> Result:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return Result(process.returncode, out, err)


def test_ranks_that_know_the_secret_join() -> None:
    (port,) = free_ports(1)
    for result in map(end, [start(RANK, rank, port, "60", **{SECRET: "right"}) for rank in (0, 1)]):
        assert (result.code, result.out) == (0, "joined\n"), result.err


def test_a_stranger_cannot_join_or_send_a_pickle(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    rank = start(RANK, 0, port, "60", **{SECRET: "right"})
    stranger = start(STRANGER, 1, port, "1", str(tmp_path / "sprung"))
    result = end(rank)
    stranger.kill()
    end(stranger)
    assert result.code == 1, result.err
    assert result.err.count("\n") == 1
    assert "brain-dist: error: " in result.err
    assert "joined the rendezvous" in result.err or "does not know the secret" in result.err
    assert not (tmp_path / "sprung").exists()


def test_a_rank_with_another_secret_is_refused_by_all_ranks() -> None:
    (port,) = free_ports(1)
    for result in map(end, [start(RANK, rank, port, "60", **{SECRET: f"secret {rank}"}) for rank in (0, 1)]):
        assert result.code == 1
        assert f"does not know the secret of this run: a stranger, or started with another {SECRET}" in result.err
        assert result.err.count("\n") == 1


def test_an_error_is_printed_although_a_collective_is_not_finished() -> None:
    (port,) = free_ports(1)
    others, failing = (start(FAILING, rank, port, **{SECRET: "right"}) for rank in (0, 1))
    result = end(failing)
    assert others.poll() is None, "the other rank still lives: nothing else ended the collective"
    others.kill()
    end(others)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("brain-dist: error on rank 1 (")
    assert result.err.endswith("): the memory of the device is full\n")


def timeouts() -> list[datetime.timedelta]:
    """Of the process group, and of another one that is created as DeepSpeed does, without a timeout."""
    groups: list[Any] = [dist.group.WORLD, dist.new_group([0])]
    return [group._get_backend(torch.device("cpu")).options._timeout for group in groups]


def test_groups_of_deepspeed_wait_as_long_as_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself torch would end them after 30 minutes, also if `train.timeout` is longer."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for timeout, longest in ((3600.0, 1.5 * 3600 + 60), (60.0, 1.5 * 600 + 60)):
        with process_group(discover({}), torch.device("cpu"), timeout=timeout):
            assert timeouts() == 2 * [datetime.timedelta(seconds=longest)]


def test_gpus_that_cannot_be_connected_are_not_called_strangers() -> None:
    world = World(0, 2, 0, 2, "localhost", 1, "environment")
    with pytest.raises(Fault, match=r"^NCCL cannot connect the GPUs of the ranks: .*; NCCL_DEBUG=INFO") as caught:
        _authenticate(world, torch.device("cuda", 99), b"")  # no machine has this one
    assert "stranger" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            dist.DistBackendError(
                "NCCL error in: NCCLUtils.cpp:77, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL"
                " version 2.29.7\nncclSystemError: System call failed.\nLast error:\nsocketStartConnect: Connect to"
                " 10.0.0.2<41234> failed : No route to host\n"
            ),
            "lost contact: another rank or the network to it ended (socketStartConnect: Connect to 10.0.0.2<41234>"
            " failed : No route to host)",
        ),
        (
            torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be …"),
            "the GPU failed: CUDA error: uncorrectable ECC error encountered; if it fails again, have this machine",
        ),
        (
            MemoryError("Unable to allocate 256. PiB"),
            "the memory of the device is full (Unable to allocate 256. PiB); x",
        ),
    ],
)
def test_what_a_library_raises_becomes_one_line_with_its_reason(error: Exception, message: str) -> None:
    with pytest.raises(Fault) as caught, clear_faults("x"):
        raise error
    assert str(caught.value).startswith(message)


@pytest.mark.slow
def test_without_a_secret_a_file_of_this_user_is_used(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    home = {"HOME": str(tmp_path), SECRET: ""}
    for result in map(end, [start(RANK, rank, port, "60", **home) for rank in (0, 1)]):
        assert result.code == 0, result.err
    file = tmp_path / ".cache" / "brain-dist" / "secret"
    assert file.stat().st_mode & 0o077 == 0
    file.chmod(0o644)
    result = end(start(RANK, 0, port, "60", **home))
    assert result.code == 2
    assert f"secret must have 32 bytes and be accessible to its owner only; remove it, or export {SECRET}" in result.err


@pytest.mark.slow  # a rank waits 30 seconds at least
def test_an_absent_rank_is_named_in_one_line() -> None:
    for rank, message in [
        (0, "of 2 ranks, these did not start within 30 s: 1"),
        (1, "rank 0 does not answer at 127.0.0.1:{port} after 30 s: check that it was started"),
    ]:
        (port,) = free_ports(1)
        started = time.monotonic()
        result = end(start(RANK, rank, port, "5", **{SECRET: "right"}))
        assert time.monotonic() - started < 60
        assert result.code == 1
        assert message.format(port=port) in result.err
        assert result.err.count("\n") == 1
