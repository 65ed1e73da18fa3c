"""The best evaluation of a run, and early stopping.

Both are pure functions of the evaluations in metrics.jsonl. A resume removes the rows of steps that it repeats, and
repeats an evaluation that was missed. So a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain_dist.errors import UserError
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World
from brain_dist.tracking.metrics_file import METRICS, complete_rows


@dataclass
class Evaluations:
    """The validation values of one metric, in the order of their steps.

    Attributes:
        metric: name of the metric; None if no metric is watched.
        patience: number of evaluations without improvement after which training ends; 0 never ends it.
        values: pairs of optimiser steps done and value; None if the metric was undefined.
    """

    metric: str | None
    patience: int
    values: list[tuple[int, float | None]] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path, metric: str | None, patience: int, *, up_to: int | None = None) -> Evaluations:
        """Read the validation rows of a run's metrics.jsonl, up to ``up_to`` completed steps (default: all)."""
        evaluations = cls(metric, patience)
        for row in complete_rows(run / METRICS):
            if row["kind"] == "eval" and row["split"] == "val" and (up_to is None or row["step"] <= up_to):
                evaluations.add(row["step"], row)
        return evaluations

    @classmethod
    def read_on_all_ranks(
        cls, run: Path, metric: str | None, patience: int, *, up_to: int, world: World
    ) -> Evaluations:
        """:meth:`read` on the main rank, and the result on every rank. Every rank must call."""
        evaluations = cls.read(run, metric, patience, up_to=up_to) if world.is_main else None
        return gather_objects(evaluations, world)[0]

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Add the evaluation made after ``step`` optimiser steps."""
        self.values.append((step, metrics.get(self.metric) if self.metric else None))

    def has_step(self, step: int) -> bool:
        """Whether there was an evaluation after ``step`` steps."""
        return any(step == other for other, _ in self.values)

    @property
    def best(self) -> int | None:
        """Steps done at the best evaluation (the first of equals); None if no evaluation has a value."""
        index = self._best_index()
        return None if index is None else self.values[index][0]

    @property
    def patience_exhausted(self) -> bool:
        """Whether the last ``patience`` evaluations brought no improvement."""
        index = self._best_index()
        return self.patience > 0 and index is not None and len(self.values) - 1 - index >= self.patience

    def _best_index(self) -> int | None:
        sign = -1 if self.metric == "loss" else 1
        defined = [(sign * value, -index) for index, (_, value) in enumerate(self.values) if value is not None]
        return -max(defined)[1] if defined else None


def best_step(run: Path, metric: str | None, saved: list[int]) -> int:
    """The step of a run's best checkpoint.

    Args:
        run: the run's folder.
        metric: the metric of ``train.best``.
        saved: steps of the run's checkpoints.

    Raises:
        UserError: the run watched no metric, has no evaluation yet, or its best checkpoint is missing.
    """
    if metric is None:
        raise UserError(f"{run} was trained without train.best, so it has no best checkpoint; give a step")
    step = Evaluations.read(run, metric, 0).best
    if step is None:
        raise UserError(f"{run / METRICS} has no evaluation with {metric} yet; give a step")
    if step not in saved:
        raise UserError(f"{run}: step {step} was best, but its checkpoint is missing; give another step")
    return step
