"""The progress of a training for a person: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def format_value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


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
            f"epoch {values['epoch']:.2f}  loss {format_value(values['loss'])}  lr {values['lr']:.2e}"
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
