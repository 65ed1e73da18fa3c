"""What is due after each optimiser step: logging, checkpoints, evaluations; and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from brain_dist.config import Config, OptimConfig, TrainConfig
from brain_dist.store.dataset import Dataset
from brain_dist.stream.plan import steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """The schedule of a training run, as pure functions of the number of completed steps.

    Attributes:
        train: intervals and number of epochs.
        optim: learning rates.
        steps_per_epoch: optimiser steps per epoch.
        has_validation: whether there is a validation split.
    """

    train: TrainConfig
    optim: OptimConfig
    steps_per_epoch: int
    has_validation: bool

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> Schedule:
        """The schedule of ``config`` on ``dataset``."""
        steps = steps_per_epoch(len(dataset.rows("train")), config.train.global_batch)
        return cls(config.train, config.optim, steps, has_validation=bool(len(dataset.rows("val"))))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self.train.epochs

    @property
    def frozen_steps(self) -> int:
        """Optimiser steps at the start that train only the classifier."""
        return self.steps_per_epoch * self.train.freeze_epochs

    def epoch(self, steps_done: int) -> float:
        """Completed epochs, with fraction."""
        return steps_done / self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based): linear warm-up, then half a cosine down to ``optim.min_lr``.

        (Loshchilov & Hutter, ICLR 2017, without restarts.)
        """
        optim = self.optim
        warmup_steps = round(optim.warmup_epochs * self.steps_per_epoch)
        if step < warmup_steps:
            return optim.lr * (step + 1) / warmup_steps
        progress = min((step - warmup_steps) / max(self.total_steps - warmup_steps, 1), 1.0)
        return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def log_due(self, steps_done: int) -> bool:
        """Whether the last step is written to metrics.jsonl."""
        return steps_done % self.train.log_every == 0 or steps_done == self.total_steps

    def checkpoint_due(self, steps_done: int) -> bool:
        """Whether a checkpoint is taken: every ``train.save_every`` steps (0: after each epoch), and at the end."""
        interval = self.train.save_every or self.steps_per_epoch
        return steps_done % interval == 0 or steps_done == self.total_steps

    def evaluation_due(self, steps_done: int) -> bool:
        """Whether the validation split is evaluated: every ``train.eval_every`` epochs, and at the end."""
        if not self.has_validation or steps_done == 0:
            return False
        epochs, remainder = divmod(steps_done, self.steps_per_epoch)
        interval = self.train.eval_every
        return steps_done == self.total_steps or bool(interval and remainder == 0 and epochs % interval == 0)
