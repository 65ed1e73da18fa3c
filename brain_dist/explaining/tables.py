"""The measures of a run as tables: one row per image × map × measure for programs, a summary for people."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from brain_dist.explaining import references
from brain_dist.explaining.measure import UNTRAINED, Measured
from brain_dist.explaining.methods import TITLES
from brain_dist.pages.text import listing

REFERENCES = references.TITLES | {UNTRAINED: "untrained"}


def rows_parquet(measured: Measured) -> bytes:
    """A Parquet file with one row per image × map × measure; ``network`` is trained, untrained or reference."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, sources, measures = measured.values.shape
    table = measured.table

    def per_image(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, sources * measures)

    def per_source(names: list[str]) -> list[str]:
        return np.tile(np.repeat(np.array(names, dtype=object), measures), images).tolist()

    columns = {
        "row": pa.array(per_image(table.row), pa.int64()),
        **{
            name: pa.array(per_image(getattr(table, name)).tolist(), pa.string())
            for name in ("key", "dataset", "patient", "group")
        },
        "label": pa.array(per_image(table.label), pa.int16()),
        "predicted": pa.array(per_image(table.predicted), pa.int16()),
        "map": pa.array(per_source([name for name, _ in measured.sources]), pa.string()),
        "network": pa.array(per_source([kind for _, kind in measured.sources]), pa.string()),
        "measure": pa.array(measured.measures * (images * sources), pa.string()),
        "value": pa.array(measured.values.reshape(-1), pa.float64()),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def difference_text(result: dict[str, Any]) -> str:
    """A difference such as "+0.42", in brackets if its interval contains 0 or there is none."""
    text, interval = f"{result['value']:+.2f}", result["interval"]
    certain = interval is not None and interval[0] * interval[1] > 0
    return text if certain else f"({text})"


def interval_text(result: dict[str, Any]) -> str:
    """An interval such as "0.41 to 0.62", or a dash; Wilson's is marked."""
    interval = result["interval"]
    if interval is None:
        return "–"
    return f"{interval[0]:.2f} to {interval[1]:.2f}{' (Wilson)' if result.get('interval_of') == 'Wilson' else ''}"


def reference_names(summary: dict[str, Any]) -> list[str]:
    """The references of a summary, in the order of the tables."""
    first = next(iter(summary["measures"].values()))
    return [name for name in REFERENCES if name in first["references"] or name == UNTRAINED]


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    names = reference_names(summary)
    lines = [
        f"{summary['run']}, step {summary['step']}: maps of the true class of {summary['images']:,} images of"
        f" {summary['groups']:,} groups, {summary['right']:,} of them predicted right.",
        "",
        *(f"- {verdict['words']}." for verdict in summary["verdicts"].values()),
        *(f"- {sentence}" for sentence in notes(summary)),
        "",
        f"| measure | map | value | 95 % interval | {' | '.join(f'− {REFERENCES[name]}' for name in names)} |",
        f"|---|---|--:|--:|{'--:|' * len(names)}",
    ]
    for measure, result in summary["measures"].items():
        title = measure if result["better"] > 0 else f"{measure} (less is better)"
        for method, value in result["methods"].items():
            differences = " | ".join(difference_text(value["minus"][name]) for name in names)
            lines.append(
                f"| {title} | {TITLES[method]} | {value['value']:.2f} | {interval_text(value)} | {differences} |"
            )
    return "\n".join([*lines, "", "A difference in brackets is not certain: its 95 % interval contains 0.", ""])


def notes(summary: dict[str, Any]) -> list[str]:
    """Sentences about empty maps, the completeness of GradientSHAP, random weights and other runs."""
    sentences = []
    for method, count in summary["empty"].items():
        if count:
            sentences.append(f"{TITLES[method]} is empty for {count:,} of {summary['images']:,} images.")
    if error := summary["completeness"]:
        sentences.append(
            f"GradientSHAP's completeness error is {error['median_error']:.3f} in the median (at most"
            f" {error['largest_error']:.3f}), where the median of what it explains is {error['median_difference']:.2f}."
        )
    for method, result in summary["cascade"].items():
        last = result["steps"][-1]
        similarity = f"rank correlation {last['spearman']:.2f}, SSIM {last['ssim']:.2f}"
        effect = "changes" if result["depends"] else "does not depend on the weights: it hardly changes"
        sentences.append(f"{TITLES[method]} {effect} with random weights ({similarity} to the original).")
    for method, result in summary["agreement"].items():
        sentences.append(
            f"{TITLES[method]} agrees with that of {listing(list(result['runs']))} by a rank correlation of"
            f" {result['value']:.2f} (95 % interval {interval_text(result)})."
        )
    return sentences


def print_summary(summary: dict[str, Any], title: str) -> None:
    """Print the measures of the maps and of the references, and the verdicts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    measures = summary["measures"]
    headings = {
        "pointing game": "pointing",
        "energy inside": "energy",
        "rank accuracy": "rank",
        "IoU at its area": "IoU",
    }
    table = Table(title=escape(title), title_justify="left", show_edge=False)  # fits 80 columns
    table.add_column("map")
    for measure, result in measures.items():
        table.add_column(headings.get(measure, measure) + ("" if result["better"] > 0 else " ↓"), justify="right")
    rows = {TITLES[name]: [each["methods"][name] for each in measures.values()] for name in summary["methods"]}
    rows |= {
        f"{TITLES[name]}, {UNTRAINED}": [each["untrained"][name] for each in measures.values()]
        for name in summary["methods"]
    }
    rows |= {
        REFERENCES[name]: [each["references"][name] for each in measures.values()]
        for name in reference_names(summary)
        if name != UNTRAINED
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{value['value']:.2f}" for value in values))
    Console(highlight=False).print(table)
    print("↓: less is better")
    for verdict in summary["verdicts"].values():
        print(verdict["words"])
    for sentence in notes(summary):
        print(sentence)
