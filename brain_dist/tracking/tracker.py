"""What a run reports: metrics.jsonl always, Weights & Biases if it is on, and progress on the terminal."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.common.files import write_atomically
from brain_dist.config import Config
from brain_dist.errors import Fault
from brain_dist.tracking import attempts, wandb_log
from brain_dist.tracking.attempts import complete_rows
from brain_dist.tracking.progress import Progress, format_value

if TYPE_CHECKING:
    from brain_dist.judging.examples import Example

METRICS = "metrics.jsonl"  # one JSON row per optimiser step or evaluation


class Tracker:
    """Logs on the main rank; does nothing on the others."""

    def __init__(self, config: Config, path: Path, *, first_step: int, total_steps: int, enabled: bool) -> None:
        """Open ``path``/metrics.jsonl. Rows of steps from ``first_step`` on are removed: the run repeats them."""
        self.enabled = enabled
        if not enabled:
            return
        self.log_path = path / METRICS
        _truncate(self.log_path, first_step)
        self.log = self.log_path.open("a", buffering=1)  # line-buffered
        self.wandb = wandb_log.open_log(config, path, attempt=len(attempts.read(path)) or 1)
        self.progress = Progress(first_step, total_steps)

    def log_step(self, step: int, metrics: dict[str, float | None]) -> None:
        """Log one optimiser step (0-based)."""
        if self.enabled:
            self._write({"kind": "train", "step": step, **metrics})
            self.progress.step(step, metrics)

    @property
    def shows_examples(self) -> bool:
        """Whether :meth:`log_evaluation` can show examples."""
        return self.enabled and self.wandb is not None

    def log_evaluation(self, step: int, split: str, metrics: dict[str, Any], examples: Sequence[Example] = ()) -> None:
        """Log an evaluation after ``step`` optimiser steps; the ``examples`` go to W&B only."""
        if self.enabled:
            self._write({"kind": "eval", "step": step, "split": split, **metrics}, examples)
            self.print_line(
                f"step {step}: {split} loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%},"
                f" macro F1 {format_value(metrics['f1_macro'])}, macro AUC {format_value(metrics['auc_macro'])}"
            )

    def print_line(self, text: str) -> None:
        """Print a line to stderr."""
        if self.enabled:
            self.progress.print_line(text)

    def sync(self) -> None:
        """Write the rows so far to disk, so that they are as durable as the checkpoint that follows."""
        if self.enabled:
            os.fsync(self.log.fileno())

    def _write(self, row: dict[str, Any], examples: Sequence[Example] = ()) -> None:
        row.setdefault("time", round(time.time(), 3))
        try:
            self.log.write(json.dumps(row) + "\n")
        except OSError as error:
            raise Fault(f"{self.log_path} could not be written: {error.strerror}") from None
        if self.wandb is not None:
            self.wandb.log_row(row, examples)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.enabled:
            problem = self.wandb and self.wandb.finish(0 if kind is None else 1)
            if problem:
                self.print_line(problem)
            self.progress.close()
            self.log.close()


def _truncate(path: Path, first_step: int) -> None:
    """Remove the rows of steps from ``first_step`` on, which a resumed run repeats, so that each step has one row."""
    if not path.exists():
        return
    # a train row has the index of its step; an evaluation row has the number of completed steps
    rows = [row for row in complete_rows(path) if row["step"] < first_step + (row["kind"] == "eval")]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
