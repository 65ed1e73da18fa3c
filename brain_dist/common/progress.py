"""Progress of long operations on standard error: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]  # stage, done, total
FIRST, EVERY = 2.0, 5.0  # seconds after which the first and each further line is printed


def no_progress(stage: str, done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


@contextmanager
def show_progress(unit: Literal["images", "bytes"] = "images") -> Iterator[Progress]:
    """Yield a callback that shows one progress bar per stage on stderr, or lines if stderr is not a terminal.

    Bars of images stay on the screen; bars of bytes, with a transfer rate, disappear at the end. Lines are only printed
    for stages that take longer than ``FIRST`` seconds.
    """
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich import progress as rich
    from rich.console import Console

    columns: list[rich.ProgressColumn] = [rich.TextColumn("{task.description:>14}", markup=False), rich.BarColumn()]
    columns += [rich.DownloadColumn(), rich.TransferSpeedColumn()] if unit == "bytes" else [rich.MofNCompleteColumn()]
    columns.append(rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True), transient=unit == "bytes") as bars:
        tasks: dict[str, rich.TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield update


class _Lines:
    """A :data:`Progress` that prints a line every few seconds."""

    def __init__(self) -> None:
        self._start: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        start = self._start.setdefault(stage, now)
        if now < self._due.setdefault(stage, now + FIRST) or not done:
            return
        self._due[stage] = now + EVERY
        remaining = (now - start) / done * (total - done)
        print(f"brain-dist: {stage} {done / total:.0%}, {remaining:.0f} s left", file=sys.stderr, flush=True)


def track(items: Iterable[Item], stage: str, total: int, progress: Progress) -> Iterator[Item]:
    """Yield ``items``, of which there are ``total``, and report each as done when the next one is asked for."""
    for done, item in enumerate(items, start=1):
        yield item
        progress(stage, done, total)


@contextmanager
def show_activity(activity: str, *, enabled: bool = True) -> Iterator[None]:
    """Print a line on stderr every few seconds of a block whose end cannot be foreseen."""
    ended, start = threading.Event(), time.monotonic()

    def report() -> None:
        wait = FIRST
        while not ended.wait(wait):
            seconds = time.monotonic() - start
            print(f"brain-dist: {activity}, {seconds:.0f} s so far", file=sys.stderr, flush=True)
            wait = EVERY

    thread = threading.Thread(target=report, name="activity", daemon=True)
    if enabled:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if enabled:
            thread.join()
