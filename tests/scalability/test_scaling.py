"""A scaling experiment: its cases before any starts, and real ones on one and two ranks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import TINY, in_process

from brain_dist.config import AugmentConfig, Config, ModelConfig, TrainConfig
from brain_dist.errors import UserError
from brain_dist.scalability import results
from brain_dist.scalability.cases import plan
from brain_dist.scalability.jobs import last_error

BASE = Config(train=TrainConfig(global_batch=32, micro_batch=8, zero_stage=2), model=ModelConfig(name="test_convnext"))


def test_weak_scaling_keeps_what_a_rank_does_and_strong_scaling_the_batch() -> None:
    cases = plan([BASE], nodes=[1, 2, 8], per_node=2, modes=["weak", "strong"], repeats=1)
    cut = {(c.mode, c.ranks): (c.config.train.global_batch, c.config.train.micro_batch) for c in cases}
    # two ranks accumulate two micro-batches of eight
    assert cut == {
        ("weak", 2): (32, 8), ("weak", 4): (64, 8), ("weak", 16): (256, 8),
        ("strong", 2): (32, 8), ("strong", 4): (32, 8), ("strong", 16): (32, 2),
    }  # fmt: skip


def test_repeats_are_outermost_and_go_to_and_fro() -> None:
    cases = plan([BASE], nodes=[2, 1], per_node=1, modes=["weak"], repeats=3)
    assert [(c.repeat, c.nodes) for c in cases] == [(0, 1), (0, 2), (1, 2), (1, 1), (2, 1), (2, 2)]
    assert len({c.name for c in cases}) == 6


def test_a_batch_that_does_not_divide_is_refused_with_its_numbers() -> None:
    with pytest.raises(UserError, match=r"global_batch=32 .* at most 8 on 3 ranks.* multiple of 6 .* such as 30"):
        plan([BASE], nodes=[2, 3], per_node=1, modes=["strong"], repeats=1)
    with pytest.raises(UserError, match=r"global_batch=32 is not train.micro_batch=8 × 3 ranks"):
        plan([BASE], nodes=[3, 6], per_node=1, modes=["weak"], repeats=1)
    mixed = Config(train=BASE.train, augment=AugmentConfig(mixup=0.2))
    with pytest.raises(UserError, match=r"even micro-batches of at most 8 on 32 ranks"):
        plan([mixed], nodes=[32], per_node=1, modes=["strong"], repeats=1)


def _row(repeat: int, ranks: int, rate: float, mode: str = "weak") -> dict[str, object]:
    whole = dict.fromkeys((*results.WHOLE, *results.REAL), 1)
    text = {"name": "", "model": "m", "mode": mode, "precision": "", "device": "", "loader": "", "verdict": ""}
    return {**whole, **text, "repeat": repeat, "ranks": ranks, "nodes": ranks, "images_per_s": rate}


def test_speed_up_is_against_the_fewest_ranks_of_the_same_repeat() -> None:
    # the machine is twice as fast in the second repeat, which is no scaling
    rows = [_row(0, 2, 100.0), _row(0, 4, 150.0), _row(1, 2, 200.0), _row(1, 4, 300.0), _row(2, 4, 999.0)]
    few, many = results.curves(rows)[0].points
    assert few.speedup == results.Spread(1.0, 1.0, 1.0)
    assert many.speedup == results.Spread(1.5, 1.5, 1.5)
    assert many.efficiency == results.Spread(0.75, 0.75, 0.75)
    assert (many.repeats, many.rate.median) == (3, 300.0)
    alone = results.curves([_row(0, 2, 1.0), _row(1, 4, 2.0)])[0]
    assert alone.points[1].speedup is None
    assert "no base" in results.markdown([alone], command="", note="", plot="", failed={})


def test_the_line_of_a_log_that_says_what_went_wrong(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "Traceback (most recent call last):\nbrain-dist: error on rank 1 (n2): it broke\nRuntimeError: gloo\n"
        "srun: error: n2: task 1: Exited with exit code 1\n"
    )
    assert last_error(log) == "brain-dist: error on rank 1 (n2): it broke"
    log.write_text("Traceback …\n[rank0]: ValueError: no\nsrun: error: n2: task 1: Exited with exit code 1\n")
    assert last_error(log) == "[rank0]: ValueError: no"
    assert "said nothing" in last_error(tmp_path / "absent")


def _kill(needle: str, count: int) -> None:
    """SIGKILL to ``count`` ranks whose command lines name ``needle``, as they start."""
    killed: set[int] = set()
    limit = time.monotonic() + 120
    while len(killed) < count and time.monotonic() < limit:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words, process = entry.read_bytes(), int(entry.parent.name)
                if process not in killed and needle.encode() in words and b"-m\0brain_dist.profile" in words:
                    os.kill(process, signal.SIGKILL)
                    killed.add(process)
        time.sleep(0.02)


def test_a_killed_case_is_told_and_only_that_one_runs_again(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "experiment"
    words = ["run", "--where", "local", "--nodes", "1,2", "--mode", "weak", "--steps", "2", "--repeats", "1"]
    words += ["--out", str(out), *TINY, "--data.shards", str(phantom_shards), "--train.precision", "fp32"]
    words += ["--train.global_batch", "8", "--train.micro_batch", "4"]
    one, two = (f"weak-test_convnext-zero2-{n}x1-r0" for n in (1, 2))
    killer = threading.Thread(target=_kill, args=(f"{two}.json", 2))
    killer.start()
    done = in_process("scaling", *words, expect=1)
    killer.join()
    assert f"1 of 2 cases failed, first {two}: launch: process" in done.err
    assert f"- {two}: launch: process" in (out / "scaling.md").read_text()
    assert [row["ranks"] for row in results.read(out / "scaling.parquet")] == [1]

    before = (out / "cases" / f"{one}.json").stat().st_mtime_ns
    done = in_process("scaling", *words)
    assert "2 cases, 1 kept" in done.err
    assert (out / "cases" / f"{one}.json").stat().st_mtime_ns == before
    rows = results.read(out / "scaling.parquet")
    assert [(r["name"], r["ranks"], r["global_batch"], r["micros"]) for r in rows] == [(one, 1, 8, 2), (two, 2, 16, 2)]
    for row in rows:
        measured = json.loads((out / "cases" / f"{row['name']}.json").read_text())
        assert row["images_per_s"] == measured["images_per_s"]
        stages = sum(row[f"t_{name}"] for name in results.TOGETHER)
        assert stages == pytest.approx(row["measured_step"], rel=1e-6)
    gain = rows[1]["images_per_s"] / rows[0]["images_per_s"]
    page = (out / "scaling.md").read_text()
    assert f"| {gain:.2f} | {50 * gain:.0f} % |" in page
    assert "Failed" not in page
    assert (out / "scaling.png").read_bytes().startswith(b"\x89PNG")

    other = in_process("scaling", *words, "--optim.lr", "0.5", expect=2)
    assert "holds another experiment (its optim.lr is" in other.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nodes", "1,two"], "--nodes 1,two: needs whole numbers"),
        (["--nodes", "0,1"], "--nodes 0,1: needs at least 1"),
        (["--mode", "sideways"], "invalid choice: 'sideways'"),
        (["--steps", "0"], "--steps 0: needs at least 1"),
        (["--zero", "5"], "zero_stage"),
        (["--optim.ema", "0.9", "--zero", "2,3"], "optim.ema needs whole weights"),
        (["--models", "test_convnext,convnext_bas"], "timm has no such model"),
        (["--nodes", "1,3", "--mode", "strong"], "does not divide into micro-batches"),
        (["--nodes", "3,6", "--mode", "weak"], "is not train.micro_batch=32 × 3 ranks"),
        (["--data.shards", "absent"], "absent is no finished shard folder"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    words: list[str], says: str, phantom_shards: Path, tmp_path: Path
) -> None:
    shards = ["--data.shards", str(phantom_shards)]
    done = in_process("scaling", "run", "--where", "local", "--out", str(tmp_path / "out"), *shards, *words, expect=2)
    assert says in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
