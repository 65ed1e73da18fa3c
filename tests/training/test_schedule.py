"""What is due after each step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from brain_dist.config import Config, ModelConfig, OptimConfig, TrainConfig
from brain_dist.training.loop import may_compile
from brain_dist.training.schedule import Schedule


def schedule(*, has_validation: bool = True, **train_settings: Any) -> Schedule:
    """3 epochs of 4 steps."""
    settings = {"epochs": 3, "save_every": 0, "eval_every": 1, "log_every": 1, **train_settings}
    return Schedule(TrainConfig(**settings), OptimConfig(), steps_per_epoch=4, has_validation=has_validation)


def steps_due(due: Any) -> list[int]:
    return [steps_done for steps_done in range(13) if due(steps_done)]


@pytest.mark.parametrize(("eval_every", "expected"), [(1, [4, 8, 12]), (2, [8, 12]), (0, [12])])
def test_evaluation_is_due_every_n_epochs_and_at_the_end(eval_every: int, expected: list[int]) -> None:
    assert steps_due(schedule(eval_every=eval_every).evaluation_due) == expected


def test_evaluation_is_never_due_without_a_validation_split() -> None:
    assert steps_due(schedule(has_validation=False).evaluation_due) == []


@pytest.mark.parametrize(("save_every", "expected"), [(0, [4, 8, 12]), (5, [5, 10, 12])])
def test_checkpoint_is_due_every_n_steps_or_epoch_and_at_the_end(save_every: int, expected: list[int]) -> None:
    assert [steps for steps in steps_due(schedule(save_every=save_every).checkpoint_due) if steps] == expected


@pytest.mark.parametrize(("compiled", "expected"), [(False, [2]), (True, [2, 8])])
def test_steps_that_compile_the_network_may_take_minutes(compiled: bool, expected: list[int]) -> None:
    """The first step of a process, and the first one that trains more than the classifier."""
    config = Config(model=ModelConfig(compile=compiled), train=TrainConfig(zero_stage=1, freeze_epochs=2))
    due = partial(may_compile, config, schedule(freeze_epochs=2))
    assert [step for step in range(2, 12) if due(step, first_step=2)] == expected


def test_last_step_is_always_logged() -> None:
    assert [steps for steps in steps_due(schedule(log_every=5).log_due) if steps] == [5, 10, 12]
