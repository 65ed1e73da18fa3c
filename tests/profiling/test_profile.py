"""Profiles: the parts add up and the bottleneck is named. No test asserts a time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, in_process, launch

from brain_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from brain_dist.profiling.calibration import SMALLEST_CPU_SHARE, calibrate
from brain_dist.profiling.measure import measure_profile
from brain_dist.profiling.power import measure_power
from brain_dist.profiling.profile import ADVICE, combine, find_bottleneck
from brain_dist.profiling.report import summary_lines, table_rows
from brain_dist.profiling.stopwatch import Stopwatch
from brain_dist.ranks.device import peak_memory
from brain_dist.ranks.world import World
from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import READING_THREADS, ShardReader
from brain_dist.training.engine import Engine

KEYS = [
    "model", "size", "precision", "zero_stage", "loader", "device", "world", "global_batch", "micros", "steps",
    "parameters", "alone", "step", "images_per_s", "measured_step", "together", "collectives", "bytes_sent", "messages",
    "flops_per_image", "matrix_rate", "cpu_share", "mfu", "memory", "power", "hosts", "cores", "threads",
    "joules_per_image", "verdict", "advice", "loaders",
]  # fmt: skip


def test_two_ranks_measure_every_stage_and_the_parts_add_up(phantom_shards: Path, tmp_path: Path) -> None:
    out, trace = tmp_path / "profile.json", tmp_path / "traces" / "trace.json"
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
    assert (profile["mfu"] is None) == (profile["verdict"] == "unknown")  # other tests may keep the machine busy
    assert profile["mfu"] is None or 0 < profile["mfu"] <= 1
    assert set(profile["loaders"]) == {"opencv", "dali", "torch", "synthetic"}
    assert profile["joules_per_image"] is None
    assert f"bottleneck: {profile['verdict']}. {profile['advice'][:30]}" in " ".join(result.out.split())
    assert any("aten::" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])
    assert list(profile) == KEYS


@pytest.mark.parametrize("option", ["--out", "--trace"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(option: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = in_process("profile", option, str(file / "x.json"), expect=2)
    assert f"{file} cannot be written (Not a directory); choose another {option}" in result.err


@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_slow_storage_is_the_bottleneck_also_if_memory_keeps_what_was_read(
    world: World, device: torch.device, phantom_shards: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    read, in_memory = ShardReader.read, set[int]()

    def slow_read(self: ShardReader, row: int) -> bytes:
        if row not in in_memory:
            time.sleep(0.2)
        if cached:
            in_memory.add(row)
        return read(self, row)

    monkeypatch.setattr(ShardReader, "read", slow_read)
    config = Config(
        data=DataConfig(shards=str(phantom_shards), size=32, threads=1, prefetch=1),
        model=ModelConfig(name="test_convnext"),
        train=TrainConfig(global_batch=2, micro_batch=2, precision="fp32", zero_stage=0),
    )
    profile = measure_profile(config, open_dataset(phantom_shards), world, device, steps=1)
    # how long a step waits depends on the other tests, which may keep the machine busy
    assert find_bottleneck(profile["alone"], {"waiting for data": 0.5, "forward": 0.5}) == "storage"
    assert "data.cache_dir" in ADVICE["storage"]
    assert profile["alone"]["storage read"] > 0.5 * 2 * 0.2 / READING_THREADS
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
        ({"optimiser": 0.1, "forward": 0.9}, "compute"),
    ],
)
def test_the_bottleneck_follows_from_the_shares_of_the_step(together: dict[str, float], stage: str) -> None:
    assert find_bottleneck({"storage read": 0.01, "loader": 0.1}, together) == stage


def test_a_busy_machine_shows_in_the_calibration() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # inherited by the processes that keep this core busy
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(2)]
    try:
        share = calibrate(torch.device("cpu"), "fp32")["cpu_share"]
    finally:
        for process in others:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, cores)
    assert share < SMALLEST_CPU_SHARE


def measured(**changes: Any) -> dict[str, Any]:
    """What one rank measured: 10 images of 1 GFLOP in a step of 1 s, on a device of 100 GFLOP/s."""
    memory = {"weights": 1, "optimiser": 2, "gradients": 1, "buckets": 0, "peak": 9}
    return {
        "alone": {"storage read": 0.01, "loader": 0.1, "forward": 0.3, "backward": 0.6, "optimiser": 0.1},
        "together": {"forward": 0.3, "backward": 0.6, "optimiser": 0.1}, "step": 1.0, "measured_step": 1.0,
        "collectives": {}, "parameters": 5, "flops_per_image": 1e9, "matrix_rate": 1e11, "cpu_share": 0.99,
        "memory": memory, "power": {}, "host": "h", "cores": [0], "quota": None, "threads": 1, **changes,
    }  # fmt: skip


ONE_RANK = Config(train=TrainConfig(global_batch=10, micro_batch=10, precision="fp32"))


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"cpu_share": 0.31}, "the machine is busy with other work (a matrix product got 31% of the CPU time"),
        ({"matrix_rate": 5.78e9}, "the steps computed 1.73 times as fast as the matrix product"),
        ({"matrix_rate": 0.0}, "the measured matrix rate is 0 FLOP/s"),
        ({"flops_per_image": 0.0}, "the steps computed 0.00 times as fast"),
    ],
)
def test_a_profile_that_cannot_be_believed_has_no_verdict(changes: dict[str, float], doubt: str) -> None:
    profile = combine([measured(**changes)], ONE_RANK, "cpu", 3)
    assert (profile["verdict"], profile["mfu"]) == ("unknown", None)
    assert profile["advice"].startswith(doubt)
    *_, mfu, _, _, _, last = summary_lines(profile)
    assert mfu.startswith("MFU unknown")
    assert last == f"bottleneck: unknown. {profile['advice']}"
    json.dumps(profile, allow_nan=False)


def test_a_quota_of_a_container_limits_the_cores() -> None:
    ranks = [measured(cores=[0, 1, 2, 3]), measured(cores=[2, 3, 4, 5])]
    config = dataclasses.replace(ONE_RANK, train=TWO_RANKS)
    assert combine(ranks, config, "cpu", 3)["cores"] == 6
    assert combine([{**rank, "quota": 2} for rank in ranks], config, "cpu", 3)["cores"] == 2


def test_one_slow_rank_is_enough_for_a_doubt() -> None:
    quiet = combine([measured(), measured()], dataclasses.replace(ONE_RANK, train=TWO_RANKS), "cpu", 3)
    assert (quiet["verdict"], quiet["mfu"]) == ("compute", pytest.approx(0.1))
    busy = [measured(), measured(cpu_share=0.5)]
    assert combine(busy, dataclasses.replace(ONE_RANK, train=TWO_RANKS), "cpu", 3)["verdict"] == "unknown"


TWO_RANKS = TrainConfig(global_batch=20, micro_batch=10, precision="fp32")


def test_the_bottleneck_is_that_of_the_rank_for_which_the_others_wait() -> None:
    waiting = {"together": {"waiting for data": 0.01, "forward": 0.2, "backward": 0.3, "communication": 0.49}}
    late = {"together": {"waiting for data": 0.48, "forward": 0.2, "backward": 0.3, "communication": 0.02}}
    ranks = [measured(**waiting), measured(**waiting), measured(**late, host="late"), measured(**waiting)]
    four = dataclasses.replace(ONE_RANK, train=TrainConfig(global_batch=40, micro_batch=10, precision="fp32"))
    profile = combine(ranks, four, "cpu", 3)
    assert profile["verdict"] == "loader"  # more bandwidth would not help
    assert profile["advice"].startswith(
        "rank 2 on late is the slowest, another one waits 470 ms a step for it. There, "
    )
    assert profile["advice"].endswith(ADVICE["loader"])
    profile = combine([measured(**waiting)] * 4, four, "cpu", 3)
    assert (profile["verdict"], profile["advice"]) == ("communication", ADVICE["communication"])


@pytest.mark.slow
def test_peak_memory_leaves_out_what_only_the_profiler_allocates(
    world: World, device: torch.device, phantom_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2**31
    # forget the peak of the tests before
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")

    def calibrate_with_large_matrices(device: torch.device, precision: str) -> dict[str, float]:
        torch.ones(size, dtype=torch.uint8, device=device)
        return calibrate(device, precision)

    monkeypatch.setattr("brain_dist.profiling.measure.calibrate", calibrate_with_large_matrices)
    config = Config(
        data=DataConfig(shards=str(phantom_shards), size=32, threads=1, loader="synthetic"),
        model=ModelConfig(name="test_convnext"),
        train=TrainConfig(global_batch=8, micro_batch=8, precision="fp32", zero_stage=0),
    )
    profile = measure_profile(config, open_dataset(phantom_shards), world, device, steps=1)
    assert profile["memory"]["peak"] < peak_memory(device) * 2**30 - size / 2


def test_undisturbed_steps_do_not_wait_for_the_device_and_power_is_that_of_them(
    world: World, device: torch.device, phantom_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, now, take_step = list[str](), Stopwatch.now, Engine.step

    def recorded_now(self: Stopwatch) -> float:
        events.append("wait")
        return now(self)

    def recorded_step(self: Engine, *arguments: Any, **options: Any) -> torch.Tensor:
        events.append("step")
        return take_step(self, *arguments, **options)

    @contextmanager
    def recorded_power(device: torch.device) -> Iterator[dict[str, float]]:
        events.append("power")
        with measure_power(device) as power:
            yield power
        events.append("end")

    monkeypatch.setattr(Stopwatch, "now", recorded_now)
    monkeypatch.setattr(Engine, "step", recorded_step)
    monkeypatch.setattr("brain_dist.profiling.training_steps.measure_power", recorded_power)
    config = Config(
        data=DataConfig(shards=str(phantom_shards), size=32, threads=1, loader="synthetic"),
        model=ModelConfig(name="test_convnext"),
        train=TrainConfig(global_batch=8, micro_batch=8, precision="fp32", zero_stage=0),
    )
    measure_profile(config, open_dataset(phantom_shards), world, device, steps=3)
    warmup = ["step", "step"]
    assert events[:9] == [*warmup, "power", "wait", "step", "step", "step", "wait", "end"]


def test_a_gpu_that_nvml_does_not_know_has_no_power() -> None:
    with measure_power(torch.device("cuda", 99)) as power:
        pass
    assert power == {}


class Greeter:
    def greet(self) -> str:
        return "hello"


def test_a_timed_method_is_restored() -> None:
    greeter, watch = Greeter(), Stopwatch(torch.device("cpu"))
    with watch.timing(greeter, "greet", "greeting"):
        assert greeter.greet() == "hello"
    assert watch.seconds["greeting"] > 0
    assert vars(greeter) == {}
    vars(greeter)["greet"] = own = lambda: "hi"
    with watch.timing(greeter, "greet", "greeting"):
        assert greeter.greet() == "hi"
    assert greeter.greet is own
