"""The environment of each launcher is read; an incomplete or inconsistent one is refused."""

import os
import socket

import pytest
import torch
from helpers import free_ports

from brain_dist.errors import UserError
from brain_dist.ranks.device import enable_determinism
from brain_dist.ranks.group import process_group
from brain_dist.ranks.rendezvous import connect, serve_store
from brain_dist.ranks.world import START_ID, discover, listen

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "41",
    "MASTER_ADDR": "n1",
}


def test_without_a_launcher_the_world_has_size_1() -> None:
    world = discover({})
    assert (world.rank, world.size, world.launcher) == (0, 1, "alone")


def test_torchrun() -> None:
    world = discover({**TORCH, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"})
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert (world.address, world.port, world.launcher) == ("10.0.0.1", 29500, "torchrun")


def test_deepspeed_launcher() -> None:
    world = discover({**TORCH, "LOCAL_SIZE": "2", "CROSS_RANK": "1"})
    assert (world.local_rank, world.local_size, world.launcher) == (1, 2, "deepspeed")


def test_mpirun_is_refused_instead_of_running_many_worlds_of_size_1() -> None:
    with pytest.raises(UserError, match="mpirun is not supported"):
        discover({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"})


def test_srun_without_a_port_derives_it_from_the_job() -> None:
    world = discover(SRUN)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (2, 4, 0, 2)
    assert (world.address, world.port, world.launcher) == ("n1", 20041, "srun")


@pytest.mark.parametrize(
    ("tasks", "node", "local_size"), [("4,1", 0, 4), ("4,1", 1, 1), ("3(x2),2,1(x3)", 2, 2), ("3(x2),2,1(x3)", 5, 1)]
)
def test_srun_with_uneven_numbers_of_tasks(tasks: str, node: int, local_size: int) -> None:
    world = discover({**SRUN, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)})
    assert world.local_size == local_size


def test_listens_only_at_the_address_of_the_ranks() -> None:
    for local in (True, False):
        with listen("localhost", 0, local=local) as server:
            assert server.getsockname()[0] == "127.0.0.1"
    with listen("127.0.0.2", 0, local=False) as server:
        assert server.getsockname()[0] == "127.0.0.2"
    with listen("192.0.2.1", 0, local=False) as server:  # not an address of this machine: behind a router
        assert server.getsockname()[0] == "::"


def test_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        world = discover(
            {**TORCH, "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        )
        before = dict(os.environ)
        with (
            pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use.*set MASTER_PORT"),
            process_group(world, torch.device("cpu")),
        ):
            pass
    assert dict(os.environ) == before


def test_a_rank_left_over_from_another_start_cannot_join() -> None:
    env = {**TORCH, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    second = discover({**env, "RANK": "0", START_ID: "second"})
    server = serve_store(second)
    assert server is not None
    connect(second, 10).set("key", "0")
    assert connect(discover({**env, START_ID: "second"}), 10).check(["key"])
    assert not connect(discover({**env, START_ID: "first"}), 10).check(["key"])
    torchrun = {**TORCH, "TORCHELASTIC_RUN_ID": "x"}  # its store outlives a restart
    assert len({discover({**torchrun, "TORCHELASTIC_RESTART_COUNT": str(n)}).start_id for n in range(2)}) == 2
    ids = [discover({**SRUN, "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": str(n)}).start_id for n in range(2)]
    assert len(set(ids)) == 2


def test_a_batch_script_has_world_size_1_although_slurm_set_a_rank() -> None:
    assert discover({"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}).size == 1


@pytest.mark.parametrize("missing", sorted(TORCH))
def test_incomplete_environment_is_refused(missing: str) -> None:
    env = {name: value for name, value in TORCH.items() if name != missing}
    with pytest.raises(UserError, match=missing):
        discover(env)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "inconsistent rank variables: rank 4 of world size 4"),
        ({"RANK": "two"}, "RANK='two' is not an integer"),
        ({"WORLD_SIZE": "0"}, "rank 3 of world size 0"),
        ({"LOCAL_RANK": "9"}, "local rank 9 of local world size 4"),
    ],
)
def test_inconsistent_environment_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        discover({**TORCH, **change})


def test_deterministic_mode_refuses_nondeterministic_operations_and_fills_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    index, values = torch.tensor([0, 0]), torch.tensor([1.0, 2.0])  # torch does not define which value is kept
    torch.zeros(2).put_(index, values)
    enable_determinism()
    try:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(2).put_(index, values)
        assert torch.empty(1000).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
