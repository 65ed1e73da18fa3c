"""Scaling experiments: the plan of cases, and real ones on one and two ranks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT, TINY, children, environment, in_process

from brain_dist.common.children import last_error
from brain_dist.common.locks import take_lock
from brain_dist.config import AugmentConfig, Config, ModelConfig, TrainConfig
from brain_dist.errors import UserError
from brain_dist.scalability import results
from brain_dist.scalability.cases import plan
from brain_dist.scalability.launchers import local_launcher
from brain_dist.scalability.page import markdown
from brain_dist.scalability.results import Spread, measured_curves

BASE = Config(train=TrainConfig(global_batch=32, micro_batch=8, zero_stage=2), model=ModelConfig(name="test_convnext"))


def test_weak_scaling_keeps_the_batch_of_a_rank_and_strong_scaling_the_global_batch() -> None:
    cases = plan([BASE], nodes=[1, 2, 8], ranks_per_node=2, modes=["weak", "strong"], repeats=1)
    batches = {(c.mode, c.ranks): (c.config.train.global_batch, c.config.train.micro_batch) for c in cases}
    # two ranks accumulate two micro-batches of eight
    assert batches == {
        ("weak", 2): (32, 8), ("weak", 4): (64, 8), ("weak", 16): (256, 8),
        ("strong", 2): (32, 8), ("strong", 4): (32, 8), ("strong", 16): (32, 2),
    }  # fmt: skip


def test_repeats_are_the_outermost_loop_and_alternate_in_direction() -> None:
    cases = plan([BASE], nodes=[2, 1], ranks_per_node=1, modes=["weak"], repeats=3)
    assert [(c.repeat, c.nodes) for c in cases] == [(0, 1), (0, 2), (1, 2), (1, 1), (2, 1), (2, 2)]
    assert len({c.name for c in cases}) == 6


def test_a_batch_that_does_not_divide_is_an_error_with_a_valid_suggestion() -> None:
    with pytest.raises(UserError, match=r"global_batch=32 .* at most 8 on 3 ranks.* multiple of 6 .* such as 30"):
        plan([BASE], nodes=[2, 3], ranks_per_node=1, modes=["strong"], repeats=1)
    with pytest.raises(UserError, match=r"global_batch=32 is not a multiple of train.micro_batch=8 × 3 ranks"):
        plan([BASE], nodes=[3, 6], ranks_per_node=1, modes=["weak"], repeats=1)
    mixed = Config(train=BASE.train, augment=AugmentConfig(mixup=0.2))
    with pytest.raises(UserError, match=r"even micro-batches of at most 8 on 32 ranks"):
        plan([mixed], nodes=[32], ranks_per_node=1, modes=["strong"], repeats=1)


def _row(repeat: int, ranks: int, rate: float, mode: str = "weak") -> dict[str, object]:
    numbers = dict.fromkeys((*results.INT_COLUMNS, *results.FLOAT_COLUMNS), 1)
    text = {**dict.fromkeys(results.TEXT_COLUMNS, ""), "model": "m", "mode": mode}
    return {**numbers, **text, "repeat": repeat, "ranks": ranks, "nodes": ranks, "images_per_s": rate}


def test_speed_up_is_relative_to_the_fewest_ranks_of_the_same_repeat() -> None:
    # the machine is twice as fast in the second repeat, which is not scaling
    rows = [_row(0, 2, 100.0), _row(0, 4, 150.0), _row(1, 2, 200.0), _row(1, 4, 300.0), _row(2, 4, 999.0)]
    few, many = measured_curves(rows)[0].points
    assert few["speedup"] == Spread(1.0, 1.0, 1.0)
    assert many["speedup"] == Spread(1.5, 1.5, 1.5)
    assert many["efficiency"] == Spread(0.75, 0.75, 0.75)
    assert (many["repeats"], many["rate"].median) == (3, 300.0)
    without_baseline = measured_curves([_row(0, 2, 1.0), _row(1, 4, 2.0)])[0]
    assert without_baseline.points[1]["speedup"] is None
    assert "no baseline" in markdown([without_baseline], command="", note="", plot="", failed={})


def test_last_error_finds_the_most_informative_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "Traceback (most recent call last):\nbrain-dist: error on rank 1 (n2): it broke\nRuntimeError: gloo\n"
        "srun: error: n2: task 1: Exited with exit code 1\n"
    )
    assert last_error(log) == "brain-dist: error on rank 1 (n2): it broke"
    log.write_text("Traceback …\n[rank0]: ValueError: no\nsrun: error: n2: task 1: Exited with exit code 1\n")
    assert last_error(log) == "[rank0]: ValueError: no"
    assert "without a message" in last_error(tmp_path / "absent")


def _kill(needle: str, count: int) -> None:
    """Send SIGKILL to ``count`` ranks, as soon as they start, whose command lines contain ``needle``."""
    killed: set[int] = set()
    deadline = time.monotonic() + 120
    while len(killed) < count and time.monotonic() < deadline:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command, pid = entry.read_bytes(), int(entry.parent.name)
                if pid not in killed and needle.encode() in command and b"-m\0brain_dist.profile" in command:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_case_is_reported_and_only_that_case_runs_again(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "experiment"
    arguments = ["run", "--where", "local", "--nodes", "1,2", "--mode", "weak", "--steps", "2", "--repeats", "1"]
    arguments += ["--out", str(out), *TINY, "--data.shards", str(phantom_shards), "--train.precision", "fp32"]
    arguments += ["--train.global_batch", "8", "--train.micro_batch", "4"]
    one, two = (f"weak-test_convnext-zero2-{n}x1-r0" for n in (1, 2))
    killer = threading.Thread(target=_kill, args=(str(out / "cases" / f"{two}.json"), 2))
    killer.start()
    done = in_process("scaling", *arguments, expect=1)
    killer.join()
    assert f"1 of 2 cases failed, first {two}: launch: process" in done.err
    assert f"- {two}: launch: process" in (out / "scaling.md").read_text()
    assert [row["ranks"] for row in results.read(out / "scaling.parquet")] == [1]

    before = (out / "cases" / f"{one}.json").stat().st_mtime_ns
    done = in_process("scaling", *arguments)
    assert "2 cases, 1 kept" in done.err
    assert (out / "cases" / f"{one}.json").stat().st_mtime_ns == before
    rows = results.read(out / "scaling.parquet")
    assert [(r["name"], r["ranks"], r["global_batch"], r["micros"]) for r in rows] == [(one, 1, 8, 2), (two, 2, 16, 2)]
    for row in rows:
        measured = json.loads((out / "cases" / f"{row['name']}.json").read_text())
        assert row["images_per_s"] == measured["images_per_s"]
        stages = sum(row[f"t_{name}"] for name in results.STAGES)
        assert stages == pytest.approx(row["measured_step"], rel=1e-6)
    speedup = rows[1]["images_per_s"] / rows[0]["images_per_s"]
    page = (out / "scaling.md").read_text()
    assert f"| {speedup:.2f} | {50 * speedup:.0f} % |" in page
    assert "Failed" not in page
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")

    other = in_process("scaling", *arguments, "--optim.lr", "0.5", expect=2)
    assert "holds another experiment (its optim.lr is" in other.err
    with take_lock(out / ".lock"):
        second = in_process("scaling", *arguments, expect=2)
    assert f"another process measures into {out}" in second.err


def test_a_folder_that_cannot_be_written_is_one_line(phantom_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "cases").touch()
    arguments = ["--where", "local", "--nodes", "1", "--mode", "weak", "--out", str(tmp_path), *TINY]
    done = in_process("scaling", "run", *arguments, "--data.shards", str(phantom_shards), expect=1)
    assert done.err.splitlines()[1:] == [f"brain-dist: error: {tmp_path / 'cases'} cannot be written: File exists"]


def test_no_case_runs_on_after_the_terminal_is_closed(phantom_shards: Path, tmp_path: Path) -> None:
    log = tmp_path / "cases" / "weak-test_convnext-zero2-1x1-r0.log"
    arguments = ["--where", "local", "--nodes", "1", "--mode", "weak", "--out", str(tmp_path), *TINY]
    experiment = subprocess.Popen(
        [sys.executable, "-m", "brain_dist.scaling", "run", *arguments, "--data.shards", str(phantom_shards)],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not log.exists() or not children(experiment.pid):
            assert experiment.poll() is None
            time.sleep(0.02)
        (launcher,) = children(experiment.pid)
        experiment.send_signal(signal.SIGHUP)
        output = experiment.communicate(timeout=60)[1]
    finally:
        experiment.kill()
    assert "interrupted: 0 of 3 cases are kept" in output
    assert experiment.returncode == 130
    assert not Path(f"/proc/{launcher}").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "1,two"], "--nodes 1,two: must be integers"),
        (["--nodes", "0,1"], "--nodes 0,1: must be ≥ 1"),
        (["--mode", "sideways"], "invalid choice: 'sideways'"),
        (["--steps", "0"], "--steps 0: must be ≥ 1"),
        (["--zero", "5"], "zero_stage"),
        (["--optim.ema", "0.9", "--zero", "2,3"], "optim.ema=0.9 needs whole weights"),
        (["--models", "test_convnext,convnext_bas"], "timm has no such model"),
        (["--nodes", "1,3", "--mode", "strong"], "does not divide into micro-batches"),
        (["--nodes", "3,6", "--mode", "weak"], "is not a multiple of train.micro_batch=32 × 3 ranks"),
        (["--data.shards", "absent"], "absent is not a complete shard folder"),
    ],
)
def test_mistakes_are_errors_before_any_case_starts(
    arguments: list[str], message: str, phantom_shards: Path, tmp_path: Path
) -> None:
    shards = ["--data.shards", str(phantom_shards)]
    done = in_process(
        "scaling", "run", "--where", "local", "--out", str(tmp_path / "out"), *shards, *arguments, expect=2
    )
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ranks_have_the_same_threads_in_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    launcher = local_launcher(None, nodes=4, device="cpu")
    assert (launcher.ranks_per_node, launcher.threads) == (1, "2")
    assert "1 process with 2 threads" in launcher.note
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    with pytest.raises(UserError, match="OMP_NUM_THREADS=none: must be a positive integer"):
        local_launcher(None, nodes=4, device="cpu")
