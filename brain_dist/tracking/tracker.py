"""What a run reports: metrics.jsonl always, Weights & Biases when on, and progress for a person."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.errors import Fault
from brain_dist.tracking import attempts, wandb_log
from brain_dist.tracking.metrics_file import METRICS, truncate_metrics
from brain_dist.tracking.progress import Progress, format_value

if TYPE_CHECKING:
    from brain_dist.judging.examples import Example


class Tracker:
    """Writes on the main rank and is silent on the others."""

    def __init__(self, config: Config, path: Path, *, first_step: int, total_steps: int, enabled: bool) -> None:
        """Open ``path``/metrics.jsonl; lines of steps from ``first_step`` on are dropped, they will be made again."""
        self.enabled = enabled
        if not enabled:
            return
        self.log_path = path / METRICS
        truncate_metrics(self.log_path, first_step)
        self.log = self.log_path.open("a", buffering=1)  # a line at a time reaches the disk
        self.wandb = wandb_log.open_log(config, path, attempt=len(attempts.read(path)) or 1)
        self.progress = Progress(first_step, total_steps)

    def train(self, step: int, values: dict[str, float | None]) -> None:
        """One optimiser step."""
        if self.enabled:
            self._write({"kind": "train", "step": step, **values})
            self.progress.step(step, values)

    @property
    def shows_pictures(self) -> bool:
        """Whether :meth:`evaluation` has a place for examples."""
        return self.enabled and self.wandb is not None

    def evaluation(self, step: int, split: str, values: dict[str, Any], examples: Sequence[Example] = ()) -> None:
        """One evaluation; ``step`` optimiser steps are done. The ``examples`` go to W&B alone."""
        if self.enabled:
            self._write({"kind": "eval", "step": step, "split": split, **values}, examples)
            self.say(
                f"step {step}: {split} loss {values['loss']:.4f}, accuracy {values['accuracy']:.2%},"
                f" macro F1 {format_value(values['f1_macro'])}, macro AUC {format_value(values['auc_macro'])}"
            )

    def say(self, text: str) -> None:
        """A line for a person."""
        if self.enabled:
            self.progress.say(text)

    def sync(self) -> None:
        """Make the lines so far as durable as the checkpoint that is about to be taken."""
        if self.enabled:
            os.fsync(self.log.fileno())

    def _write(self, row: dict[str, Any], examples: Sequence[Example] = ()) -> None:
        row["time"] = round(time.time(), 3)
        try:
            self.log.write(json.dumps(row) + "\n")
        except OSError as error:
            raise Fault(f"{self.log_path} could not be written: {error.strerror}") from None
        if self.wandb is not None:
            self.wandb.row(row, examples)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            problem = self.wandb and self.wandb.finish(0 if kind is None else 1)
            if problem:
                self.say(problem)
            self.progress.close()
            self.log.close()
