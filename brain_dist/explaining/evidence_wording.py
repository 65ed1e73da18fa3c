"""The evidence test in words: Markdown for files, a table for the terminal."""

from __future__ import annotations

from typing import Any

HEADER = (
    "class", "images", "groups", "fall without tumour", "fall with control", "difference", "right",
    "keep their class without tumour", "with control", "called tumour-free",
)  # fmt: skip

FALLS = ("fall", "fall_control", "fall_difference")


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines = [
        f"{summary['run']}, step {summary['step']}, {summary['shards']}: the tumour is erased by filling its"
        f" {_truth(summary)} from the tissue around it; the control is the same region on the other side of the head.",
        "",
        *(f"- {sentence}" for sentence in sentences(summary)),
        "",
        f"| {' | '.join(HEADER)} |",
        f"|---|{'--:|' * (len(HEADER) - 1)}",
        *(f"| {' | '.join(cells)} |" for cells in table_rows(summary)),
        "",
        "Fall: of the probability of the true class, mean over images. Keep their class: share of the images that are"
        " predicted right. In brackets: 95 % interval over groups (patients and copies); of a share of 0 or 100 %"
        " Wilson's, with groups as the trials. The columns with a control and the difference are of the images that"
        " have one.",
        "",
    ]
    return "\n".join(lines)


def sentences(summary: dict[str, Any]) -> list[str]:
    """What came out, and what was left out."""
    total = summary["all"]
    survive, control, difference = total["survive"], total["survive_control"], total["fall_difference"]
    more = total["survive_difference"]
    result = []
    if survive["value"] is not None:
        result.append(
            f"{_percent(survive)} of the {total['right']:,} images that are predicted right keep their class without"
            " their tumour."
        )
    if control["value"] is not None:
        result.append(
            f"{total['right_controls']:,} of these have a control: {_percent(control)} keep their class with it;"
            f" without the tumour the share is lower by {_percent(more)}."
        )
    if difference["value"] is not None:
        result.append(
            f"The probability of the true class falls by {_number(total['fall'])} without the tumour and by"
            f" {_number(total['fall_control'])} with the control, a difference of {_number(difference)}."
        )
    if total["called_notumor"] is not None:
        result.append(
            f"{total['called_notumor']:.0%} of the images that are right are called tumour-free without their tumour."
        )
    without = total["without_control"]
    result.append(
        f"{total['controls']:,} of {total['images']:,} images have a control; of {without['overlap']:,} it would"
        f" overlap the tumour, of {without['outside']:,} it would be outside the head. Erasing changes the pixels by"
        f" {_gray(total['change'][0])} gray values in the tumour and {_gray(total['change'][1])} in the control."
    )
    if summary["unknown"] or summary["outside"]:
        result.append(
            f"Left out: {summary['unknown']:,} images without a known tumour, {summary['outside']:,} whose tumour is"
            " outside the network's input."
        )
    return result


def table_rows(summary: dict[str, Any], *, intervals: bool = True) -> list[list[str]]:
    """The cells of each class and of all images, as in :data:`HEADER`; with their intervals, or without."""
    number, percent = "{:.2f}", "{:.0%}"
    parts = summary["classes"] if len(summary["classes"]) > 1 else {}
    return [
        [
            name, f"{part['images']:,}", f"{part['groups']:,}",
            *(_text(part[column], number, intervals=intervals) for column in FALLS),
            f"{part['right']:,}",
            *(_text(part[column], percent, intervals=intervals) for column in ("survive", "survive_control")),
            "–" if part["called_notumor"] is None else f"{part['called_notumor']:.0%}",
        ]
        for name, part in {**parts, "all": summary["all"]}.items()
    ]  # fmt: skip


def print_summary(summary: dict[str, Any]) -> None:
    """Print the table without intervals, and the sentences."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{summary['run']}, step {summary['step']}, {summary['shards']}: without the tumour"
    table = Table(title=escape(title), title_justify="left", show_edge=False)
    head, *rows = zip(HEADER, *table_rows(summary, intervals=False), strict=True)  # a column for each class
    for name in head:
        table.add_column("" if name == "class" else escape(name), justify="left" if name == "class" else "right")
    for cells in rows:
        table.add_row(*map(escape, cells))
    Console(highlight=False).print(table)
    for sentence in sentences(summary):
        print(sentence)


def _truth(summary: dict[str, Any]) -> str:
    """What is erased."""
    masks, images = summary["masks"], summary["all"]["images"]
    kind = {0: "box", images: "mask"}.get(masks, f"mask ({masks:,} images) or box")
    return f"{kind} with a margin of {summary['margin']:.0%} of the image's side"


def _number(result: dict[str, Any]) -> str:
    return _text(result, "{:.2f}")


def _percent(result: dict[str, Any]) -> str:
    return _text(result, "{:.0%}")


def _text(result: dict[str, Any], form: str, *, intervals: bool = True) -> str:
    """A value with its interval, such as "0.41 (0.32 to 0.50)", or without."""
    if result["value"] is None:
        return "–"
    text = _rounded(result["value"], form)
    if result["interval"] is None or not intervals:
        return text
    low, high = (_rounded(limit, form) for limit in result["interval"])
    return f"{text} ({low} to {high})"


def _rounded(value: float, form: str) -> str:
    """A number without the sign of a rounded zero."""
    text = form.format(value)
    return text.lstrip("-") if not any(digit in text for digit in "123456789") else text


def _gray(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
