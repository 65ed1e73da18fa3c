"""The best evaluation of a run, and early stopping.

Both are pure functions of the evaluations so far. These are in metrics.jsonl, and every checkpoint has a copy, so that
a lost metrics.jsonl changes neither. A resume removes the rows of steps that it repeats, and repeats an evaluation that
was missed. So a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, read_marker
from brain_dist.config import Metric
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World
from brain_dist.tracking.attempts import complete_rows
from brain_dist.tracking.tracker import METRICS


@dataclass
class Evaluations:
    """The validation results of a run, in the order of their steps.

    Attributes:
        metric: name of the metric that decides; None if no metric is watched.
        patience: number of evaluations without improvement after which training ends; 0 never ends it.
        rows: optimiser steps done (``step``) and every ``Metric``; None if a metric was undefined.
    """

    metric: str | None
    patience: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path, metric: str | None, patience: int) -> Evaluations:
        """Read all evaluations of a run, from metrics.jsonl and from its newest checkpoint that is readable."""
        evaluations = cls(metric, patience)
        steps = complete_steps(run / "checkpoints")
        logged = _logged_rows(run)
        stored = next((rows for step in reversed(steps) if (rows := _stored_rows(run, step)) is not None), [])
        for row in _merge(stored, logged):
            evaluations.add(row["step"], row)
        return evaluations

    @classmethod
    def resume(cls, run: Path, metric: str | None, patience: int, *, step: int, world: World) -> Evaluations:
        """The evaluations up to ``step``, the checkpoint that training resumes from. Every rank must call.

        If metrics.jsonl lacks some that the checkpoint has, the main rank prints how many.
        """
        evaluations = cls(metric, patience)
        rows = None
        if world.is_main and step:
            logged = [row for row in _logged_rows(run) if row["step"] <= step]
            rows = _merge(_stored_rows(run, step) or [], logged)
            if len(rows) > len({row["step"] for row in logged}):
                print(
                    f"{run / METRICS} has lost {len(rows) - len(logged)} of {len(rows)} evaluations up to step {step};"
                    " the best checkpoint and the patience follow from the copies in the checkpoint",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
        for row in gather_objects(rows, world)[0] or []:
            evaluations.add(row["step"], row)
        return evaluations

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Add the evaluation made after ``step`` optimiser steps."""
        self.rows.append({"step": step, **{name: metrics.get(name) for name in get_args(Metric)}})

    def has_step(self, step: int) -> bool:
        """Whether there was an evaluation after ``step`` steps."""
        return any(row["step"] == step for row in self.rows)

    @property
    def best(self) -> int | None:
        """Steps done at the best evaluation (the first of equals); None if no evaluation has a value."""
        index = self._best_index()
        return None if index is None else self.rows[index]["step"]

    @property
    def patience_exhausted(self) -> bool:
        """Whether the last ``patience`` evaluations brought no improvement."""
        index = self._best_index()
        return self.patience > 0 and index is not None and len(self.rows) - 1 - index >= self.patience

    def _best_index(self) -> int | None:
        sign = -1 if self.metric == "loss" else 1
        values = [row[self.metric] if self.metric else None for row in self.rows]
        defined = [(sign * value, -index) for index, value in enumerate(values) if value is not None]
        return -max(defined)[1] if defined else None


def _logged_rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in complete_rows(run / METRICS) if row.get("kind") == "eval" and row["split"] == "val"]


def _stored_rows(run: Path, step: int) -> list[dict[str, Any]] | None:
    """The evaluations in COMPLETE of a checkpoint; None if it is unreadable."""
    try:
        return read_marker(checkpoint_folder(run / "checkpoints", step)).get("evaluations", [])
    except (OSError, ValueError):
        return None


def _merge(stored: list[dict[str, Any]], logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per step, in their order."""
    by_step = {row["step"]: row for row in [*stored, *logged]}
    return [by_step[step] for step in sorted(by_step)]
