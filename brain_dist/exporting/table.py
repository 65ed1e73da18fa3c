"""The exports of a run as a table: size, parity, accuracy, time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brain_dist.exporting.certificate import Certificate, Difference
from brain_dist.exporting.speed import Speed
from brain_dist.pages.text import listing


def print_table(run: Path, certificates: Sequence[Certificate], speeds: dict[str, list[Speed]]) -> None:
    """Print a row for each export, and one for the run's network in torch."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    first = certificates[0]
    title = f"{run}: {first.images:,} test images of {first.groups:,} groups"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    table.add_column("format")
    for column in ("MB", "max Δ logit", "labels", "accuracy", "Δ balanced accuracy", "ms at 1", "ms at best"):
        table.add_column(column, justify="right")
    table.add_row("run (torch)", "", "", "", f"{first.run_accuracy:.2%}", "", *_times(speeds["run"]))
    for each in certificates:
        table.add_row(
            each.target,
            f"{each.size / 1e6:.1f}",
            f"{each.max_logit:.1e}",
            str(each.other_labels),
            f"{each.accuracy:.2%}",
            difference_text(each.difference["balanced_accuracy"]),
            *_times(speeds[each.target]),
        )
    Console(highlight=False, width=140).print(table)
    print(
        "labels: images with another class; Δ: points, with the paired 95 % interval over groups; ms: median per image,"
    )
    print("of a single image and at the best batch, which is in brackets")
    for each in certificates:
        if not each.ready:
            print(f"{each.target} is not ready for use: {each.reason}")
        if each.limitation is not None:
            print(f"{each.target}: {each.limitation}")
        if each.slower is not None:
            print(f"{each.target} is slower: {each.slower}")
    without = [each.target for each in certificates if not each.maps and each.target not in ("hf", "pt2")]
    if without:
        print(f"{listing(without)}: this network has no class activation maps")


def difference_text(difference: Difference) -> str:
    """A difference of shares in points, with its interval."""
    value = f"{100 * difference.value:+.2f}" if difference.value else "0"
    if difference.interval is None:
        return f"{value} (no interval)"
    low, high = (100 * limit for limit in difference.interval)
    return value if low == high == 0 else f"{value} ({low:+.2f} to {high:+.2f})"


def _times(speeds: Sequence[Speed]) -> tuple[str, str]:
    """Milliseconds of a single image, and per image at the best batch."""
    best = min(speeds, key=lambda speed: speed.per_image)
    single = next(speed for speed in speeds if speed.batch == 1)
    return f"{1e3 * single.median:.1f}", f"{1e3 * best.per_image:.1f} ({best.batch})"
