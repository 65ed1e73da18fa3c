"""train.precision=auto: what processors support, agreement of ranks on different machines, and what a resume keeps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, environment, free_ports, verb

from brain_dist.config import Config, TrainConfig, read
from brain_dist.ranks.world import SECRET

# makes oneDNN emulate bf16, as on a processor without AVX512-BF16 and AMX
HIDDEN = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
FEATURES = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]))
FAST_BF16 = bool(FEATURES & {"avx512_bf16", "amx_bf16"})
AUTO = "amp" if FAST_BF16 else "fp32"

RANK = """
import sys
from brain_dist.config import Config, TrainConfig
from brain_dist.errors import leave
from brain_dist.ranks.group import process_group
from brain_dist.ranks.world import discover
from brain_dist.training.precision import resolve_precision

def main():
    world = discover()
    import torch
    device = torch.device("cpu")
    with process_group(world, device):
        config = Config(train=TrainConfig(precision=sys.argv[1]))
        config, reason = resolve_precision(config, world, device)
        print(config.train.precision, reason)
    return 0

leave(main)
"""


def resolved(*machines: dict[str, str], precision: str = "auto") -> list[str]:
    """What ranks on ``machines``, each described by variables, agree on: the output of each rank."""
    (port,) = free_ports(1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), SECRET: "s", "WORLD_SIZE": str(len(machines))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, precision], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank), **machine),
        )
        for rank, machine in enumerate(machines)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(machines)
    return outputs


def test_autocast_is_chosen_only_where_the_processor_multiplies_bf16_fast() -> None:
    (usual,) = resolved({})
    assert usual.split()[0] == AUTO
    (hidden,) = resolved(HIDDEN)
    assert hidden.split()[0] == "fp32"
    for line, fast in ((usual, FAST_BF16), (hidden, False)):
        speed = re.search(r"a matrix product in bf16 is ([\d.]+) × as fast as in fp32", line)
        if speed:
            assert (float(speed[1]) > 1) == fast
        else:
            assert line == "fp32 auto: the processor has no AVX512-BF16 or AMX"
    (amp,) = resolved(HIDDEN, precision="amp")
    assert amp.startswith("amp expect slow steps, auto takes fp32: ")


def test_all_ranks_take_what_the_slowest_machine_supports() -> None:
    first, second = resolved({}, HIDDEN)
    assert first == second
    assert first.startswith("fp32 auto: rank 1: " if FAST_BF16 else "fp32 auto: ")


def train(shards: Path, folder: Path, *more: str, expect: int = 0, **variables: str) -> str:
    """Train two steps an epoch in one process; returns what it printed."""
    batch = ["--train.global_batch", "48", "--train.micro_batch", "48", "--train.epochs", "2"]
    paths = ["--data.shards", str(shards), "--run.dir", str(folder)]
    return verb("train", *TINY, *batch, *paths, *more, expect=expect, **variables).err


def forget_the_last_epoch(run: Path) -> None:
    """Remove the last checkpoint, so that the run has something left to do."""
    last = max((run / "checkpoints").iterdir())
    for file in last.iterdir():
        file.unlink()
    last.rmdir()


def test_a_run_stores_its_precision_and_keeps_it_on_another_kind_of_processor(
    phantom_shards: Path, tmp_path: Path
) -> None:
    output, run = train(phantom_shards, tmp_path), tmp_path / "run"
    stored = json.loads((run / "environment.json").read_text())
    assert read(run / "config.yaml").train.precision == stored["precision"] == AUTO
    assert f"{AUTO} ({stored['precision_reason']})" in output.splitlines()[0]

    run = tmp_path / "other"
    output = train(phantom_shards, tmp_path, "--run.name", "other", "--train.precision", "amp")
    reason = json.loads((run / "environment.json").read_text())["precision_reason"]
    if FAST_BF16:
        assert reason == "train.precision"
    else:
        assert reason.startswith("expect slow steps, auto takes fp32: ")
        assert f"amp ({reason})" in output.splitlines()[0]
    forget_the_last_epoch(run)
    output = train(phantom_shards, tmp_path, "--run.name", "other", **HIDDEN)
    assert "amp (auto: kept from the checkpoint; this machine would get fp32: " in output
    assert "; expect slow steps)" in output.splitlines()[0]
    assert read(run / "config.yaml").train.precision == "amp"

    forget_the_last_epoch(run)
    output = train(phantom_shards, tmp_path, "--run.name", "other", "--train.precision", "fp32", expect=2)
    assert "with train.precision=amp, now it is fp32" in output
    assert len(output.strip().splitlines()) == 1


def test_auto_is_resolved_before_an_engine_exists() -> None:
    from brain_dist.training.deepspeed_setup import deepspeed_config

    with pytest.raises(AssertionError):
        deepspeed_config(Config(train=TrainConfig(precision="auto")), 1)
