"""Progress of long operations on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Progress = Callable[[str, int, int], None]  # stage, done, total


def no_progress(stage: str, done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


@contextmanager
def show_progress(unit: Literal["images", "bytes"] = "images") -> Iterator[Progress]:
    """Yield a callback that shows one progress bar per stage on stderr; nothing if stderr is not a terminal.

    Bars of images stay on the screen; bars of bytes, with a transfer rate, disappear at the end.
    """
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    columns: list[rich.ProgressColumn] = [rich.TextColumn("{task.description:>14}", markup=False), rich.BarColumn()]
    columns += [rich.DownloadColumn(), rich.TransferSpeedColumn()] if unit == "bytes" else [rich.MofNCompleteColumn()]
    columns.append(rich.TimeRemainingColumn())
    hidden = not console.is_terminal
    with rich.Progress(*columns, console=console, disable=hidden, transient=unit == "bytes") as bars:
        tasks: dict[str, rich.TaskID] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield update
