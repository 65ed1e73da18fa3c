"""A profile's parts add up, and a slow part is named; no test asserts a time of its own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY, launch

from brain_dist import profile
from brain_dist.config import Config, DataConfig, ModelConfig, RunConfig, TrainConfig
from brain_dist.ranks.world import World
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader


def test_two_ranks_measure_every_stage_and_the_parts_add_up(phantom_shards: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "profile.json", tmp_path / "trace.json"
    words = ["--data.shards", str(phantom_shards), "--run.dir", str(tmp_path), "--train.global_batch", "16"]
    words += ["--train.micro_batch", "4", "--train.precision", "fp32", "--steps", "3"]
    done = launch(2, "profile", *TINY, *words, "--out", str(out), "--trace", str(trace), "--compare")
    found = json.loads(out.read_text())
    assert found["world"] == found["micros"] == 2
    assert set(found["alone"]) == {"storage read", "loader", "forward", "backward", "optimiser", "communication"}
    assert sum(found["together"].values()) == pytest.approx(found["measured_step"], rel=1e-6)
    assert all(seconds > 0 for seconds in found["together"].values())
    # ZeRO-2 exchanges all gradients and gathers all weights, once a step at least
    assert found["bytes_sent"] >= 2 * 4 * found["parameters"]
    sent = found["collectives"].values()
    assert (found["messages"], found["bytes_sent"]) == (sum(n for n, _ in sent), sum(size for _, size in sent))
    assert found["messages"] >= 3
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert (found["hosts"], found["threads"]) == (1, 1)
    memory, size = found["memory"], 4 * found["parameters"]
    assert memory["weights"] == size
    # each rank holds half of the gradients, and the whole of the one that the ranks' border runs through
    assert size / 2 <= memory["gradients"] < 0.6 * size
    assert size / 2 <= memory["optimiser"] / 3 < 0.51 * size  # Adam's two states and the weights of its own
    assert 0 < found["mfu"] < 1
    assert set(found["loaders"]) == {"dali", "torch", "synthetic"}
    assert found["joules_per_image"] is None
    assert f"binds: {found['verdict']}" in done.out
    assert any("aten::" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])


def test_slow_storage_is_named(world: World, phantom_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ShardReader.read

    def slow(self: ShardReader, row: int) -> bytes:
        time.sleep(0.08)
        return plain(self, row)

    monkeypatch.setattr(ShardReader, "read", slow)
    config = Config(
        run=RunConfig(device="cpu"),
        data=DataConfig(shards=str(phantom_shards), size=32, threads=1),
        model=ModelConfig(name="test_convnext"),
        train=TrainConfig(global_batch=8, micro_batch=8, precision="fp32", zero_stage=0),
    )
    found = profile.measure(config, open_dataset(phantom_shards), world, torch.device("cpu"), steps=3)
    assert found["verdict"] == "storage"
    assert "data.cache_dir" in found["advice"]
    assert found["alone"]["storage read"] >= 8 * 0.08
    # alone at stage 0: all gradients beside all weights, and nothing to say to anybody
    assert found["memory"]["gradients"] == found["memory"]["weights"] == 4 * found["parameters"]
    assert (found["messages"], found["bytes_sent"], found["memory"]["buckets"]) == (0, 0, 0)
