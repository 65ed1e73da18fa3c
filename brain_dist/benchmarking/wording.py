"""A benchmark as Markdown, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from brain_dist.benchmarking.rates import rates_sentence, recorded_trials, trials_text
from brain_dist.benchmarking.results import Benchmark, Part, Row
from brain_dist.benchmarking.summary import CLASS_METRICS, HEADLINE, TITLES
from brain_dist.judging.weighted import METRICS
from brain_dist.pages.text import listing

SHARES = {name for name, metric in METRICS.items() if metric.is_share} | set(CLASS_METRICS)
NOT_MEASURED = "not measured"
SPREADS = (
    "Mean ± standard deviation over seeds (what another training could change), in brackets the 95 % interval of the"
    " mean over patients (what other patients could change for these trained networks)."
)


def noun(record: Mapping[str, Any]) -> str:
    """What a benchmark compares: "model", or "method" if they are methods of training one network."""
    return "method" if "methods" in record else "model"


def differing_settings(record: Mapping[str, Any]) -> str:
    """The settings in which the models or methods of a benchmark may differ."""
    names = record.get("differ")
    return listing([f"`{name}`" for name in names]) if names else "`model.*` and the learning rate"


def number(name: str, value: float | None) -> str:
    """A metric's value: shares in percent, others with three decimals; a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if name.partition(":")[0] in SHARES else f"{value:.3f}"


def mean_text(row: Row, name: str) -> str:
    """Mean ± standard deviation over seeds."""
    spread = row[f"{name}_sd"]
    return number(name, row[f"{name}_mean"]) + (f" ± {number(name, spread)}" if spread is not None else "")


def interval_text(row: Row, name: str) -> str:
    """The interval over patients, or a dash."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    wilson = " (Wilson)" if row[f"{name}_interval"] == "Wilson" else ""
    return "–" if low is None else f"{number(name, low)} to {number(name, high)}{wilson}"


def rank_text(row: Row) -> str:
    """The interval of ranks, or a dash."""
    low, high = row["rank_low"], row["rank_high"]
    return "–" if low is None else str(low) if low == high else f"{low} to {high}"


def best_first(part: Part) -> list[Row]:
    """The rows of a part by accuracy."""
    return sorted(part.rows, key=lambda row: -row[f"{HEADLINE}_mean"])


def ties_text(ranks: Mapping[str, Any]) -> list[str]:
    """Which models do not differ significantly, as a sentence without its full stop; empty if all pairs differ.

    Args:
        ranks: tiers and pairs, as :func:`~brain_dist.comparison.paired.compare_metric` returns them.
    """
    ties = []
    for tier in ranks["tiers"]:
        pairs = [(pair["a"], pair["b"]) for pair in ranks["pairs"] if pair["a"] in tier and not pair["separable"]]
        whole = len(pairs) == len(tier) * (len(tier) - 1) // 2
        ties += [listing(names) for names in ([tier] if whole and pairs else pairs)]
    return [f"No significant difference between {'; between '.join(ties)}"] if ties else []


def _measured(digits: int, scale: float = 1) -> Callable[[Any], str]:
    return lambda value: NOT_MEASURED if value is None else f"{value / scale:,.{digits}f}"


def _with_p95(row: Row, median: str) -> str:
    if row.get(median) is None:
        return NOT_MEASURED
    return f"{row[median]:.1f} / {row[median.replace('_ms', '_p95_ms')]:.1f}"


COSTS: dict[str, Callable[[Row], str]] = {
    "parameters (M)": lambda row: _measured(2, 1e6)(row.get("parameters")),
    "GMACs": lambda row: _measured(3)(row.get("gmacs")),
    "1 image (ms: median / 95 %)": lambda row: _with_p95(row, "latency_ms"),
    "best batch": lambda row: _measured(0)(row.get("best_batch")),
    "batch (ms: median / 95 %)": lambda row: _with_p95(row, "batch_ms"),
    "images/s": lambda row: _measured(1)(row.get("images_per_s")),
    "peak memory (MB)": lambda row: _measured(0)(row.get("peak_memory_mb")),
    "J/image": lambda row: _measured(3)(row.get("joules_per_image")),
    "training (s)": lambda row: _measured(0)(row["training_s"]),
    "training (images/s)": lambda row: _measured(0)(row["training_images_per_s"]),
}


def measured_costs(costs: Sequence[Row], names: Sequence[str] = tuple(COSTS)) -> list[str]:
    """Those of the names in :data:`COSTS` that were measured for a model."""
    return [name for name in names if any(COSTS[name](row) != NOT_MEASURED for row in costs)]


def markdown(benchmark: Benchmark) -> str:
    """The content of table.md."""
    record = benchmark.record
    folds = "" if record["folds"] is None else f" × {record['folds']} folds"
    lines = ["# Benchmark", "", f"    {record['command']}", ""]
    lines += [f"{len(record['models'])} {noun(record)}s × {len(record['seeds'])} seeds{folds}, under the same"
              f" conditions: settings differ in {differing_settings(record)} only.", ""]  # fmt: skip
    if trials := recorded_trials(record):
        lines += [f"- {rates_sentence(record)}"]
        lines += [f"  - {model}: {trials_text(tried)}" for model, tried in trials.items()]
    lines += [f"- {note}" for note in benchmark.notes]
    if benchmark.missing:
        planned = len({row["cell"] for row in benchmark.cells})
        lines += [f"- {len(benchmark.missing)} of {planned} cells are missing: {'; '.join(benchmark.missing)}"]
    for part in benchmark.parts:
        lines += ["", *_part_lines(part, several=len(benchmark.parts) > 1)]
    lines += ["", "## Costs", "", *_cost_lines(benchmark.costs)]
    return "\n".join(lines) + "\n"


def _part_lines(part: Part, *, several: bool) -> list[str]:
    lines = [f"## Results{f': trained on {part.source}, tested on {part.test}' if several else ''}", ""]
    if not part.rows:
        return [*lines, f"No results: {part.ranks['refused']}."]
    rows, first = best_first(part), part.rows[0]
    lines += [f"{first['images']:,} images of {first['groups']:,} groups (patients with their copies). {SPREADS}", ""]
    if "refused" in part.ranks:
        lines += [f"No ranks: {part.ranks['refused']}.", ""]
    titles = [f"{TITLES[name]}{' (%)' if name in SHARES else ''}" for name in TITLES]
    lines += _table(
        ["model", "tier", "rank", *titles, "learning rate", "seeds"],
        [
            [
                row["model"], str(row["tier"] or "–"), rank_text(row), *(_both(row, name) for name in TITLES),
                f"{row['learning_rate']:g}", f"{row['seeds']} of {row['seeds_planned']}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    if "refused" not in part.ranks:
        lines += ["", "Accuracies of different tiers differ significantly, and some within a tier may, too; ranks hold"
                  " together with 95 % confidence.", *(f"{text}." for text in ties_text(part.ranks))]  # fmt: skip
    assert part.summary is not None
    for name in CLASS_METRICS:
        classes = part.summary.tables.classes
        lines += ["", f"### {name.capitalize()} by class (%)", ""]
        lines += _table(
            ["model", *classes], [[row["model"], *(_both(row, f"{name}:{c}") for c in classes)] for row in rows]
        )
    refusals = dict.fromkeys(
        f"{TITLES.get(name, name.replace(':', ' of '))}: {row[f'{name}_refused']}"
        for row in rows for key in row if (name := key.removesuffix("_refused")) != key and name != "rank" and row[key]
    )  # fmt: skip
    if refusals:
        lines += ["", "No interval over patients:", "", *(f"- {reason}" for reason in refusals)]
    return lines


def _both(row: Row, name: str) -> str:
    return f"{mean_text(row, name)} ({interval_text(row, name)})"


def _cost_lines(costs: Sequence[Row]) -> list[str]:
    names = measured_costs(costs)
    lines = _table(["model", *names], [[row["model"], *(COSTS[name](row) for name in names)] for row in costs])
    lines = lines if names else []
    if len(names) < len(COSTS):
        lines += ["", f"Not measured: {', '.join(name for name in COSTS if name not in names)}."]
    places = dict.fromkeys(
        f"{row['device']}, {row['threads']} threads, {row['size']}², {row['precision']}"
        for row in costs
        if "device" in row
    )
    if places:
        lines += [
            "",
            f"Predictions measured on {'; '.join(places)}. Peak memory: of tensors on a GPU, of the process on a CPU.",
        ]
    return lines


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first one at the right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (headers, *rows)]
    head, *body = [f"| {' | '.join(row)} |" for row in cells]
    return [head, f"|---|{'---:|' * (len(headers) - 1)}", *body]


def print_tables(benchmark: Benchmark) -> None:
    """Print the main results and the costs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)

    def show(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:  # fits 80 columns
        table = Table(title=escape(title), title_justify="left", show_edge=False)
        for index, header in enumerate(headers):
            table.add_column(header.replace(" (", "\n("), justify="right" if index else "left", no_wrap=index > 0)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)

    for part in benchmark.parts:
        place = f"{part.source}, {part.test}"
        if part.rows:
            place += f": {part.rows[0]['images']:,} images of {part.rows[0]['groups']:,} groups"
        headers = [
            "model",
            "tier",
            "accuracy %\n± sd of seeds",
            "95 % interval\nof patients",
            "macro\nF1 %",
            "ECE",
            "seeds",
        ]
        rows = [
            [
                row["model"], str(row["tier"] or "–"), mean_text(row, HEADLINE), interval_text(row, HEADLINE),
                *(number(name, row[f"{name}_mean"]) for name in ("f1_macro", "ece")),
                f"{row['seeds']}/{row['seeds_planned']}",
            ]
            for row in best_first(part)
        ]  # fmt: skip
        show(place, headers, rows)
        if "refused" in part.ranks:
            console.print(f"no ranks: {escape(part.ranks['refused'])}")
    shown = ("parameters (M)", "GMACs", "images/s", "peak memory (MB)", "training (s)")
    chosen = measured_costs(benchmark.costs, shown)
    if chosen:
        rows = [[row["model"], *(COSTS[name](row) for name in chosen)] for row in benchmark.costs]
        show("costs", ["model", *chosen], rows)
    for note in benchmark.notes:
        console.print(f"note: {escape(note)}")
    if benchmark.missing:
        console.print(f"missing: {escape('; '.join(benchmark.missing))}")
