"""Progress of many pieces of work: a live table on a terminal, otherwise one line per event."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["waiting", "queued", "running", "kept", "done", "failed"]
ENDED = ("kept", "done", "failed")
COLOURS = {"waiting": "dim", "queued": "dim", "running": "bold cyan", "kept": "green", "done": "green", "failed": "red"}
WIDTH = 98  # characters of all columns except the last


class Board:
    """State, result and note of every piece of work, shown on stderr inside a ``with`` block."""

    def __init__(
        self,
        rows: Mapping[str, Sequence[str]],
        columns: Mapping[str, Literal["left", "right"]],
        unit: str,
        result: str,
        detail: Callable[[str], str] | None = None,
    ) -> None:
        """Create a board on which everything waits.

        Args:
            rows: name of each piece of work → the cells of its row that do not change.
            columns: header of each of these cells → its alignment.
            unit: what a piece of work is called, such as case.
            result: header of the results.
            detail: says how far a piece of work that runs is; called at each refresh of a live table.
        """
        self.rows, self.columns, self.unit, self.result_header = dict(rows), dict(columns), unit, result
        self.detail = detail or (lambda name: "")
        self.state: dict[str, State] = dict.fromkeys(rows, "waiting")
        self.result: dict[str, str] = {}
        self.note: dict[str, str] = {}
        self.started: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.live: Any = None

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(get_renderable=self.table, console=Console(stderr=True), refresh_per_second=2)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, name: str, state: State, *, result: str = "", note: str = "") -> None:
        """Set the state of a piece of work; does nothing if it has that state already."""
        if self.state[name] == state:
            return
        if state == "running":
            self.started[name] = time.monotonic()
        elif name in self.started:
            self.seconds[name] = time.monotonic() - self.started.pop(name)
        self.state[name] = state
        if result:
            self.result[name] = result
        if note:
            self.note[name] = note
        if self.live is None and state != "kept":
            self._print(name, state, result, note)

    def _print(self, name: str, state: State, result: str, note: str) -> None:
        seconds = f"{self.seconds[name]:.0f} s" if name in self.seconds else ""
        details = ", ".join(text for text in (result, seconds, note) if text)
        text = f"{name} {state}" + (f": {details}" if details else "")
        print(f"[{self.ended()}/{len(self.rows)}] {text}", file=sys.stderr, flush=True)

    def ended(self) -> int:
        """Number of pieces of work that are done, failed, or kept from an earlier run."""
        return sum(state in ENDED for state in self.state.values())

    @property
    def failed(self) -> list[str]:
        """Names of the pieces of work that failed."""
        return [name for name, state in self.state.items() if state == "failed"]

    def table(self) -> Table:
        """The rows that fit on the terminal, around the first one that has not ended."""
        from rich.table import Table

        title = f"{self.ended()} of {len(self.rows)} {self.unit}s ended"
        title += f", {len(self.failed)} failed" if self.failed else ""
        table = Table(title=title, title_justify="left")
        for header, justify in {**self.columns, "state": "left", self.result_header: "right"}.items():
            table.add_column(header, justify=justify, no_wrap=True)
        width = self.live.console.width if self.live else 200
        table.add_column("", overflow="ellipsis", no_wrap=True, max_width=max(12, width - WIDTH))
        for name in self._visible():
            table.add_row(*self._cells(name))
        return table

    def _visible(self) -> list[str]:
        names = list(self.rows)
        rows = max(4, self.live.console.height - 6) if self.live else len(names)
        active = [index for index, name in enumerate(names) if self.state[name] not in ENDED]
        middle = active[0] if active else len(names)
        first = min(max(0, middle - rows // 2), max(0, len(names) - rows))
        return names[first : first + rows]

    def _cells(self, name: str) -> list[str]:
        from rich.markup import escape

        state, seconds = self.state[name], self.seconds.get(name)
        detail = ""
        if name in self.started:
            seconds, detail = time.monotonic() - self.started[name], self.detail(name)
        elapsed = ", ".join(text for text in (detail, f"{seconds:.0f} s" if seconds is not None else "") if text)
        return [
            *(escape(cell) for cell in self.rows[name]),
            f"[{COLOURS[state]}]{state}[/]",
            escape(self.result.get(name, "")),
            escape(self.note.get(name) or elapsed),
        ]
