"""Who am I: each launcher's environment is read, and a half-set one is refused."""

import os
import socket

import pytest
import torch
from conftest import free_ports

from brain_dist.errors import UserError
from brain_dist.ranks.device import be_deterministic
from brain_dist.ranks.group import process_group, rendezvous
from brain_dist.ranks.world import discover

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "41",
    "MASTER_ADDR": "n1",
}


def test_alone() -> None:
    world = discover({})
    assert (world.rank, world.size, world.launcher) == (0, 1, "alone")


def test_torchrun() -> None:
    world = discover({**TORCH, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"})
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert (world.address, world.port, world.launcher) == ("10.0.0.1", 29500, "torchrun")


def test_the_deepspeed_launchers_name_for_a_nodes_processes() -> None:
    world = discover({**TORCH, "LOCAL_SIZE": "2", "CROSS_RANK": "1"})
    assert (world.local_rank, world.local_size, world.launcher) == (1, 2, "deepspeed")


def test_mpirun_is_refused_instead_of_running_many_times_alone() -> None:
    with pytest.raises(UserError, match="mpirun"):
        discover({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"})


def test_srun_without_a_port_derives_it_from_the_job() -> None:
    world = discover(SRUN)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (2, 4, 0, 2)
    assert (world.address, world.port, world.launcher) == ("n1", 20041, "srun")


def test_a_port_that_is_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        world = discover(
            {**TORCH, "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        )
        with (
            pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"),
            process_group(world, torch.device("cpu")),
        ):
            pass


def test_a_rank_that_another_start_left_behind_meets_nobody() -> None:
    here = {**TORCH, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    now = rendezvous(discover({**here, "RANK": "0", "BRAIN_DIST_MEETING": "second"}), serve=True)
    now.set("here", "0")
    assert rendezvous(discover({**here, "BRAIN_DIST_MEETING": "second"})).check(["here"])
    assert not rendezvous(discover({**here, "BRAIN_DIST_MEETING": "first"})).check(["here"])
    starts = [discover({**SRUN, "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": str(n)}).meeting for n in range(2)]
    assert len(set(starts)) == 2


def test_a_batch_shell_is_alone_though_slurm_set_a_rank() -> None:
    assert discover({"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).size == 1


@pytest.mark.parametrize("missing", sorted(TORCH))
def test_a_half_set_environment_is_refused(missing: str) -> None:
    half = {name: value for name, value in TORCH.items() if name != missing}
    with pytest.raises(UserError, match=missing):
        discover(half)


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "two"}, {"WORLD_SIZE": "0"}, {"LOCAL_RANK": "9"}])
def test_a_contradiction_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError):
        discover({**TORCH, **wrong})


def test_deterministic_mode_refuses_what_is_not_and_leaves_no_memory_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    place, twice = torch.tensor([0, 0]), torch.tensor([1.0, 2.0])  # which one stays is not said
    torch.zeros(2).put_(place, twice)
    be_deterministic()
    try:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(2).put_(place, twice)
        assert torch.empty(1000).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
