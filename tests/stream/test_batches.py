"""Jobs are drawn for many steps at once; their values are those of each step alone, and never change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from brain_dist.augmentation.augment import Decisions, Frames, decide
from brain_dist.config import AugmentConfig, Balance, DataConfig
from brain_dist.store.dataset import Dataset
from brain_dist.stream.batch import Job
from brain_dist.stream.batches import training_jobs
from brain_dist.stream.plan import TrainingPlan

SEED = 2**40 + 3
AUGMENT = AugmentConfig(erase=0.5, rotate=30.0)
COLUMNS = {"width": 200 + np.arange(480) % 311, "height": 180 + np.arange(480) * 7 % 401}


def jobs(balance: Balance, window: int, *, first_step: int, rank: int, world_size: int) -> Iterator[Job]:
    """Three epochs of seven steps, the last of which is padded."""
    rows = np.arange(157, dtype=np.int64) * 3
    label = (np.arange(157) ** 2 % 7 % 3).astype(np.int64)
    plan = TrainingPlan(
        rows=rows, shard=rows // 50, label=label, seed=SEED, epochs=3,
        global_batch=24, micro_batch=4, window=window, balance=balance,
    )  # fmt: skip
    dataset = cast(Dataset, SimpleNamespace(columns=COLUMNS))
    return training_jobs(dataset, DataConfig(), AUGMENT, plan.micro_batches(rank, world_size, first_step), seed=SEED)


def digest(*values: Any) -> str:
    """Hash of arrays, their types, and other values."""
    digest = hashlib.sha256()
    for value in values:
        is_array = isinstance(value, np.ndarray)
        digest.update(value.dtype.str.encode() + value.tobytes() if is_array else repr(value).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(
    ("balance", "window", "first_step", "rank", "world_size", "plan", "decisions"),
    [
        ("none", 0, 0, 0, 1, "463872bcda1d4645", "0063f92518ea9666"),
        ("weights", 2, 5, 1, 2, "a17b5ba11f410520", "e4064736ad201958"),
        ("sampling", 0, 9, 2, 3, "f88e06ca963861a4", "ece0f0b9db4810a3"),
    ],
)
def test_plan_and_decisions_are_frozen(
    balance: Balance, window: int, first_step: int, rank: int, world_size: int, plan: str, decisions: str
) -> None:
    """The values of the version that drew each micro-batch by itself: a run resumes exactly after an update."""
    planned: list[Any] = []
    drawn: list[np.ndarray] = []
    for job in jobs(balance, window, first_step=first_step, rank=rank, world_size=world_size):
        micro, decision = job.micro, job.decisions
        planned.append((micro.epoch, micro.step, micro.micro_step, micro.total_weight))
        planned += [micro.rows, micro.valid, micro.position, micro.visit, micro.weight]
        # sine and cosine of two processors may differ in the last bit
        drawn += [decision.crop, decision.gain, decision.shift, decision.erase.round(4), decision.affine.round(4) + 0.0]
    assert (digest(*planned), digest(*drawn)) == (plan, decisions)


def test_decisions_of_a_block_are_bit_identical_to_those_of_each_micro_batch() -> None:
    frames = Frames.of(COLUMNS, head=False)
    epochs = set()
    for job in jobs("sampling", 0, first_step=0, rank=0, world_size=1):
        micro = job.micro
        alone = decide(AUGMENT, frames, micro.rows, seed=SEED, epoch=micro.epoch, visit=micro.visit)
        for name in Decisions.__dataclass_fields__:
            value, expected = getattr(job.decisions, name), getattr(alone, name)
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)
        epochs.add(micro.epoch)
    assert epochs == {0, 1, 2}
