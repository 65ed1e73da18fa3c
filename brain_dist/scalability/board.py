"""Progress of a scaling experiment: a live table on a terminal, otherwise one line per event."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from brain_dist.scalability.cases import Case

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["waiting", "queued", "running", "kept", "done", "failed"]
ENDED = ("kept", "done", "failed")
COLOURS = {"waiting": "dim", "queued": "dim", "running": "bold cyan", "kept": "green", "done": "green", "failed": "red"}
WIDTH = 98  # characters of all columns except the last


class Board:
    """State, rate [images/s] and note of every case, shown on stderr inside a ``with`` block."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)
        self.state: dict[str, State] = {case.name: "waiting" for case in cases}
        self.rate: dict[str, float] = {}
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

    def update(self, case: Case, state: State, *, rate: float | None = None, note: str = "") -> None:
        """Set the state of a case; does nothing if it has that state already."""
        name = case.name
        if self.state[name] == state:
            return
        if state == "running":
            self.started[name] = time.monotonic()
        elif name in self.started:
            self.seconds[name] = time.monotonic() - self.started.pop(name)
        self.state[name] = state
        if rate is not None:
            self.rate[name] = rate
        if note:
            self.note[name] = note
        if self.live is None and state != "kept":
            self._print(name, state, rate, note)

    def _print(self, name: str, state: State, rate: float | None, note: str) -> None:
        details = [f"{rate:,.1f} images/s"] if rate is not None else []
        details += [f"{self.seconds[name]:.0f} s"] if name in self.seconds else []
        details += [note] if note else []
        text = f"{name} {state}" + (f": {', '.join(details)}" if details else "")
        print(f"[{self.ended()}/{len(self.cases)}] {text}", file=sys.stderr, flush=True)

    def ended(self) -> int:
        """Number of cases that are done, failed, or kept from an earlier run."""
        return sum(state in ENDED for state in self.state.values())

    @property
    def failed(self) -> list[Case]:
        """The cases that failed."""
        return [case for case in self.cases if self.state[case.name] == "failed"]

    def table(self) -> Table:
        """The cases that fit on the terminal, around the first one that has not ended."""
        from rich.table import Table

        title = f"{self.ended()} of {len(self.cases)} cases ended"
        title += f", {len(self.failed)} failed" if self.failed else ""
        table = Table(title=title, title_justify="left")
        for name in ("scaling", "model", "ZeRO", "nodes", "ranks", "batch", "repeat", "state", "images/s"):
            justify: Literal["left", "right"] = "left" if name in ("scaling", "model", "state") else "right"
            table.add_column(name, justify=justify, no_wrap=True)
        width = self.live.console.width if self.live else 200
        table.add_column("", overflow="ellipsis", no_wrap=True, max_width=max(12, width - WIDTH))
        for case in self._visible():
            table.add_row(*self._cells(case))
        return table

    def _visible(self) -> list[Case]:
        rows = max(4, self.live.console.height - 6) if self.live else len(self.cases)
        active = [index for index, case in enumerate(self.cases) if self.state[case.name] not in ENDED]
        middle = active[0] if active else len(self.cases)
        first = min(max(0, middle - rows // 2), max(0, len(self.cases) - rows))
        return self.cases[first : first + rows]

    def _cells(self, case: Case) -> list[str]:
        from rich.markup import escape

        name, train, state = case.name, case.config.train, self.state[case.name]
        rate, seconds = self.rate.get(name), self.seconds.get(name)
        if name in self.started:
            seconds = time.monotonic() - self.started[name]
        return [
            case.mode, escape(case.config.model.name), str(train.zero_stage), str(case.nodes), str(case.ranks),
            str(train.global_batch), str(case.repeat + 1), f"[{COLOURS[state]}]{state}[/]",
            f"{rate:,.1f}" if rate is not None else "",
            escape(self.note.get(name) or (f"{seconds:.0f} s" if seconds is not None else "")),
        ]  # fmt: skip
