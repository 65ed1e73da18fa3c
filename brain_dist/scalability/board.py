"""How far a scaling experiment is: a live table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from brain_dist.scalability.cases import Case

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["waiting", "queued", "running", "kept", "done", "failed"]
WIDTH = 98  # of all columns but the last
COLOUR = {"waiting": "dim", "queued": "dim", "running": "bold cyan", "kept": "green", "done": "green", "failed": "red"}


class Board:
    """States, rates [images/s] and notes of all cases, shown on stderr while a ``with`` block lasts."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)
        self.state: dict[str, State] = {case.name: "waiting" for case in cases}
        self.rate: dict[str, float] = {}
        self.note: dict[str, str] = {}
        self.since: dict[str, float] = {}
        self.took: dict[str, float] = {}
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

    def tell(self, case: Case, state: State, *, rate: float | None = None, note: str = "") -> None:
        """``case`` is now in ``state``; telling it again says nothing."""
        name, now = case.name, time.monotonic()
        if self.state[name] == state:
            return
        if state == "running":
            self.since[name] = now
        elif name in self.since:
            self.took[name] = now - self.since.pop(name)
        self.state[name] = state
        if rate is not None:
            self.rate[name] = rate
        if note:
            self.note[name] = note
        if self.live is None and state != "kept":
            text = f"{rate:,.1f} images/s, " if rate is not None else ""
            text += f"{self.took[name]:.0f} s" if name in self.took else ""
            told = ", ".join(filter(None, (text.removesuffix(", "), note)))
            print(f"[{self.ended()}/{len(self.cases)}] {name} {state}{f': {told}' if told else ''}", file=sys.stderr,
                  flush=True)  # fmt: skip

    def ended(self) -> int:
        """Cases that need nothing more."""
        return sum(state in ("kept", "done", "failed") for state in self.state.values())

    @property
    def failed(self) -> list[Case]:
        return [case for case in self.cases if self.state[case.name] == "failed"]

    def table(self) -> Table:
        """All cases or, where the terminal is too low for them, those around the first that has not ended."""
        from rich.markup import escape
        from rich.table import Table

        lines = max(4, self.live.console.height - 6) if self.live else len(self.cases)
        going = [i for i, case in enumerate(self.cases) if self.state[case.name] in ("waiting", "queued", "running")]
        first = min(max(0, (going[0] if going else len(self.cases)) - lines // 2), max(0, len(self.cases) - lines))
        title = f"{self.ended()} of {len(self.cases)} cases ended"
        title += f", {len(self.failed)} failed" if self.failed else ""
        made = Table(title=title, title_justify="left")
        for name in ("scaling", "model", "ZeRO", "nodes", "ranks", "batch", "repeat", "state", "images/s"):
            made.add_column(name, justify="left" if name in ("scaling", "model", "state") else "right", no_wrap=True)
        width = self.live.console.width if self.live else 200
        made.add_column("", overflow="ellipsis", no_wrap=True, max_width=max(12, width - WIDTH))
        for case in self.cases[first : first + lines]:
            name, train = case.name, case.config.train
            state, rate = self.state[name], self.rate.get(name)
            seconds = time.monotonic() - self.since[name] if name in self.since else self.took.get(name)
            made.add_row(
                *(case.mode, case.config.model.name, str(train.zero_stage), str(case.nodes), str(case.ranks)),
                *(str(train.global_batch), str(case.repeat + 1), f"[{COLOUR[state]}]{state}[/]"),
                f"{rate:,.1f}" if rate is not None else "",
                escape(self.note.get(name) or (f"{seconds:.0f} s" if seconds is not None else "")),
            )
        return made
