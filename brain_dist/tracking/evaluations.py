"""The best evaluation so far, and when to stop waiting for a better one.

Both are pure functions of the evaluations that metrics.jsonl tells of. A resume drops the lines of steps that it makes
again and makes an evaluation that was missed, so a resumed run decides as the undisturbed one.
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
    """Validation values of one metric, in the order of their steps.

    Attributes:
        metric: name of the metric; None watches nothing.
        patience: evaluations without a better one after which training ends; 0: never.
        told: (optimiser steps done, value); None where the metric was undefined.
    """

    metric: str | None
    patience: int
    told: list[tuple[int, float | None]] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path, metric: str | None, patience: int, *, up_to: int | None = None) -> Evaluations:
        """From a run's metrics.jsonl: the evaluations of ``val`` until ``up_to`` steps were done."""
        found, log = cls(metric, patience), run / METRICS
        for row in complete_rows(log) if log.is_file() else []:
            if row["kind"] == "eval" and row["split"] == "val" and (up_to is None or row["step"] <= up_to):
                found.add(row["step"], row)
        return found

    @classmethod
    def agreed(cls, run: Path, metric: str | None, patience: int, *, up_to: int, world: World) -> Evaluations:
        """What the main rank reads, on every rank; every rank must call."""
        mine = cls.read(run, metric, patience, up_to=up_to) if world.is_main else None
        return gather_objects(mine, world)[0]

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Take in the evaluation made after ``step`` optimiser steps."""
        self.told.append((step, values.get(self.metric) if self.metric else None))

    def knows(self, step: int) -> bool:
        """Whether there was an evaluation after ``step`` steps."""
        return any(step == known for known, _ in self.told)

    @property
    def best(self) -> int | None:
        """Steps done at the best evaluation, the first of equals; None where there is none."""
        at = self._best()
        return None if at is None else self.told[at][0]

    @property
    def exhausted(self) -> bool:
        """Whether the last ``patience`` evaluations brought nothing better."""
        at = self._best()
        return self.patience > 0 and at is not None and len(self.told) - 1 - at >= self.patience

    def _best(self) -> int | None:
        sign = -1 if self.metric == "loss" else 1
        defined = [(sign * value, -at) for at, (_, value) in enumerate(self.told) if value is not None]
        return -max(defined)[1] if defined else None


def best_step(run: Path, metric: str | None, saved: list[int]) -> int:
    """The step of a run's best checkpoint.

    Raises:
        UserError: the run watched no metric, was not evaluated yet, or its best checkpoint is gone.
    """
    if metric is None:
        raise UserError(f"{run} was trained without train.best, so no checkpoint is its best one; give a step")
    step = Evaluations.read(run, metric, 0).best
    if step is None:
        raise UserError(f"{run / METRICS} tells of no evaluation with a {metric} yet; give a step")
    if step not in saved:
        raise UserError(f"{run}: step {step} was best, but its checkpoint is not there; give another step")
    return step
