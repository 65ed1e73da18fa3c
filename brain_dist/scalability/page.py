"""The tables of a scaling experiment: a Markdown page, and a short form for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from brain_dist.scalability.results import STAGES, Curve

COLUMNS = ("nodes", "ranks", "batch = micro × accumulated × ranks", "images/s", "speed-up", "efficiency", "step, ms",
           "communication", "sent, MB a step", "optimiser, MB a rank", "peak, MB a rank")  # fmt: skip
TERMINAL_COLUMNS = ("nodes", "ranks", "images/s", "speed-up", "efficiency", "step, ms", "communication",
                    "peak, MB a rank")  # fmt: skip
EXPLANATION = (
    "Median over the repeats, smallest and largest value in parentheses. Speed-up and efficiency are relative to the"
    " fewest ranks of the same repeat. For the second table and the share of communication every stage is"
    " synchronised, which costs a little time and prevents overlap. Waiting for a slower rank counts as communication."
)


def markdown(curves: Sequence[Curve], *, command: str, note: str, plot: str, failed: Mapping[str, str]) -> str:
    """The page.

    Args:
        curves: Measurements; two tables each.
        command: The command that ran.
        note: What a node is.
        plot: File name of the plot.
        failed: Name of each failed case → its last error.
    """
    parts = ["# Scaling", f"```\n{command}\n```", note]
    if curves:
        parts += [f"![speed-up against the ideal, and where a step's time goes]({plot})", EXPLANATION]
    for curve in curves:
        first, repeats = curve.first, f"{curve.repeats} repeat{'s' if curve.repeats > 1 else ''}"
        parts.append(
            f"## {curve.mode.capitalize()} scaling: {curve.label}\n{first['size']}², {first['precision']},"
            f" {first['device']}, loader {first['loader']}, {repeats}"
        )
        parts.append(_table(COLUMNS, [_rates(point, curve.repeats) for point in curve.points]))
        parts.append(_stages_table(curve))
    if failed:
        parts.append("## Failed\n" + "\n".join(f"- {name}: {error}" for name, error in failed.items()))
    return "\n\n".join(parts) + "\n"


def _rates(point: dict[str, Any], repeats: int) -> tuple[str, ...]:
    """Cells of :data:`COLUMNS`; ``repeats`` is the number of repeats of the curve."""
    incomplete = f" [{point['repeats']} of {repeats} repeats]" if point["repeats"] < repeats else ""
    return (
        str(point["nodes"]), str(point["ranks"]),
        "{global_batch} = {micro_batch} × {micros} × {ranks}".format(**point),
        point["rate"].format(1) + incomplete,
        point["speedup"].format(2) if point["speedup"] else "no baseline",
        point["efficiency"].format(0, 100, " %") if point["efficiency"] else "no baseline",
        point["step"].format(1, 1e3), point["communication"].format(0, 100, " %"), f"{point['bytes_sent'] / 1e6:,.1f}",
        f"{point['memory_optimiser'] / 1e6:,.1f}", f"{point['memory_peak'] / 1e6:,.0f}",
    )  # fmt: skip


def _stages_table(curve: Curve) -> str:
    rows = []
    for point in curve.points:
        total = sum(point["stages"].values())
        stages = [f"{1e3 * seconds:.1f} ({100 * seconds / total:.0f} %)" for seconds in point["stages"].values()]
        rows.append((str(point["ranks"]), *stages, f"{1e3 * total:.1f}"))
    return _table(("ranks", *(f"{stage}, ms" for stage in STAGES.values()), "sum, ms"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---:|" * len(head), *lines[1:]])


def print_tables(curves: Sequence[Curve]) -> None:
    """Print the most important columns of every curve."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    for curve in curves:
        title = f"{curve.mode} scaling: {curve.label}, {curve.first['device']}"
        table = Table(title=escape(title), title_justify="left")
        for name in TERMINAL_COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for point in curve.points:
            cells = dict(zip(COLUMNS, _rates(point, curve.repeats), strict=True))
            table.add_row(*(cells[name] for name in TERMINAL_COLUMNS))
        console.print(table)
