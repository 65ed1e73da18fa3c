"""The progress of a training run: a progress bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from typing import Any


def format_value(value: float | None) -> str:
    """Four decimals, or "undefined"."""
    return "undefined" if value is None else f"{value:.4f}"


class Progress:
    """A progress bar if stderr is a terminal; otherwise a line every ``EVERY`` seconds, which keeps logs short."""

    EVERY = 15.0

    def __init__(self, first_step: int, total_steps: int) -> None:
        self.first_step, self.total_steps = first_step, total_steps
        self.start = self.last_line = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = _new_bar()
            self.task = self.bar.add_task("", total=total_steps, completed=first_step, text="")
            self.bar.start()

    def step(self, step: int, metrics: dict[str, float | None]) -> None:
        """Show that ``step`` (0-based) is done."""
        done = step + 1
        text = (
            f"epoch {metrics['epoch']:.2f}  loss {format_value(metrics['loss'])}  lr {metrics['lr']:.2e}"
            f"  {metrics['images_per_s']:.0f} images/s"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self.last_line >= self.EVERY or done == self.total_steps:
            self.last_line = now
            remaining = (now - self.start) / (done - self.first_step) * (self.total_steps - done)
            print(f"step {done}/{self.total_steps}  {text}  {remaining:.0f} s left", file=sys.stderr, flush=True)

    def print_line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        if self.bar is not None:
            self.bar.stop()


def _new_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
