"""What a run says: metrics.jsonl always, Weights & Biases when on, and a progress line for a person."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from brain_dist import attempts, wandb_log
from brain_dist.config import Config
from brain_dist.errors import Fault

if TYPE_CHECKING:
    from brain_dist.examples import Example

METRICS = "metrics.jsonl"


class Tracker:
    """Writes on the main rank and is silent on the others."""

    def __init__(self, config: Config, path: Path, *, first_step: int, total_steps: int, enabled: bool) -> None:
        """Open ``path``/metrics.jsonl; lines of steps from ``first_step`` on are dropped, they will be made again."""
        self.enabled = enabled
        if not enabled:
            return
        self.log_path = path / METRICS
        _truncate(self.log_path, first_step)
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
                f" macro F1 {_show(values['f1_macro'])}, macro AUC {_show(values['auc_macro'])}"
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


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _truncate(path: Path, first_step: int) -> None:
    """Keep the lines of finished steps only, so that a resumed run tells each step once."""
    if not path.exists():
        return
    # a train line names the step it made; an evaluation names how many steps were done
    kept = [
        json.dumps(row)
        for row in complete_rows(path)
        if row["step"] < first_step or (row["kind"] == "eval" and row["step"] <= first_step)
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


def complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without the line that a killed process was writing."""
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


class Progress:
    """A live bar on a terminal; elsewhere a line every so often, so that a job's log stays readable."""

    EVERY = 15.0  # seconds between lines in a log

    def __init__(self, first_step: int, total_steps: int) -> None:
        self.first, self.total = first_step, total_steps
        self.began = self.last = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=total_steps, completed=first_step, text="")
            self.bar.start()

    def step(self, step: int, values: dict[str, float | None]) -> None:
        """``step`` (0-based) is done."""
        text = (
            f"epoch {values['epoch']:.2f}  loss {_show(values['loss'])}  lr {values['lr']:.2e}"
            f"  {values['images_per_s']:.0f} images/s"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step + 1, text=text)
            return
        now = time.monotonic()
        if now - self.last >= self.EVERY or step + 1 == self.total:
            self.last = now
            left = (now - self.began) / (step + 1 - self.first) * (self.total - step - 1)
            print(f"step {step + 1}/{self.total}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()
