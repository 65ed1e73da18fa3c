"""Profiles: the parts add up and the bottleneck is named. No test asserts a time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, launch

from brain_dist.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from brain_dist.profiling.measure import measure_profile
from brain_dist.profiling.profile import find_bottleneck
from brain_dist.profiling.report import summary_lines, table_rows
from brain_dist.ranks.world import World
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader

KEYS = [
    "model", "size", "precision", "zero_stage", "loader", "device", "world", "global_batch", "micros", "steps",
    "parameters", "alone", "step", "images_per_s", "measured_step", "together", "collectives", "bytes_sent", "messages",
    "flops_per_image", "matrix_rate", "memory", "power", "hosts", "cores", "threads", "joules_per_image", "mfu",
    "verdict", "advice", "loaders",
]  # fmt: skip


def test_two_ranks_measure_every_stage_and_the_parts_add_up(phantom_shards: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "profile.json", tmp_path / "trace.json"
    settings = ["--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--train.global_batch", "16"]
    settings += ["--train.micro_batch", "4", "--train.precision", "fp32", "--steps", "3"]
    result = launch(2, "profile", *TINY, *settings, "--out", str(out), "--trace", str(trace), "--compare")
    profile = json.loads(out.read_text())
    assert profile["world"] == profile["micros"] == 2
    assert set(profile["alone"]) == {"storage read", "loader", "forward", "backward", "optimiser", "communication"}
    assert sum(profile["together"].values()) == pytest.approx(profile["measured_step"], rel=1e-6)
    assert all(seconds > 0 for seconds in profile["together"].values())
    # ZeRO-2 exchanges all gradients and gathers all weights at least once per step
    assert profile["bytes_sent"] >= 2 * 4 * profile["parameters"]
    collectives = profile["collectives"].values()
    assert profile["messages"] == sum(calls for calls, _ in collectives)
    assert profile["bytes_sent"] == sum(size for _, size in collectives)
    assert profile["messages"] >= 3
    assert profile["cores"] == len(os.sched_getaffinity(0))
    assert (profile["hosts"], profile["threads"]) == (1, 1)
    memory, size = profile["memory"], 4 * profile["parameters"]
    assert memory["weights"] == size
    # each rank has half of the gradients, and the whole of the one that the border between the ranks divides
    assert size / 2 <= memory["gradients"] < 0.6 * size
    assert size / 2 <= memory["optimiser"] / 3 < 0.51 * size  # Adam's two moments and the master weights
    assert 0 < profile["mfu"] < 1
    assert set(profile["loaders"]) == {"opencv", "dali", "torch", "synthetic"}
    assert profile["joules_per_image"] is None
    assert f"bottleneck: {profile['verdict']}. {profile['advice'][:30]}" in " ".join(result.out.split())
    assert any("aten::" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])
    assert list(profile) == KEYS


def test_slow_storage_is_the_bottleneck(world: World, phantom_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ShardReader.read

    def slow_read(self: ShardReader, row: int) -> bytes:
        time.sleep(0.08)
        return read(self, row)

    monkeypatch.setattr(ShardReader, "read", slow_read)
    config = Config(
        run=RunConfig(device="cpu"),
        data=DataConfig(shards=str(phantom_shards), size=32, threads=1),
        model=ModelConfig(name="test_convnext"),
        train=TrainConfig(global_batch=8, micro_batch=8, precision="fp32", zero_stage=0),
    )
    profile = measure_profile(config, open_dataset(phantom_shards), world, torch.device("cpu"), steps=3)
    assert profile["verdict"] == "storage"
    assert "data.cache_dir" in profile["advice"]
    assert profile["alone"]["storage read"] >= 8 * 0.08
    # one rank at stage 0: all gradients beside all weights, and no communication
    assert profile["memory"]["gradients"] == profile["memory"]["weights"] == 4 * profile["parameters"]
    assert (profile["messages"], profile["bytes_sent"], profile["memory"]["buckets"]) == (0, 0, 0)
    assert "loaders" not in profile
    assert [row[0] for row in table_rows(profile)][:2] == ["storage read", "read, decode, augment"]
    gpu = {**profile, "power": {"utilisation": 90.0, "watts": 300.0}, "joules_per_image": 0.5}
    assert "GPU 90 % busy, 300 W, 0.500 J per image" in summary_lines(gpu)


@pytest.mark.parametrize(
    ("together", "stage"),
    [
        ({"waiting for data": 0.2, "forward": 0.8}, "loader"),
        ({"waiting for data": 0.05, "communication": 0.3, "forward": 0.65}, "communication"),
        ({"optimiser": 0.3, "forward": 0.7}, "optimiser"),
        ({"optimiser": 0.1, "forward": 0.9}, "network"),
    ],
)
def test_the_bottleneck_follows_from_the_shares_of_the_step(together: dict[str, float], stage: str) -> None:
    assert find_bottleneck({"storage read": 0.01, "loader": 0.1}, together) == stage
