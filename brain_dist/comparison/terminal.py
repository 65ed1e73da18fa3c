"""A comparison as text for a terminal."""

from __future__ import annotations

from typing import Any

from brain_dist.comparison.wording import (
    difference_text,
    interval_text,
    p_text,
    ranks_text,
    test_table,
    value_text,
    verdict,
)
from brain_dist.judging.weighted import METRICS
from brain_dist.pages.text import listing


def comparison_text(comparison: dict[str, Any]) -> str:
    """The whole comparison: tiers, pairs, other metrics and further tests."""
    data, metrics = comparison["data"], comparison["metrics"]
    headline = next(iter(metrics))
    left_out = f"; {data['known']:,} that training knew are left out" if data["known"] else ""
    lines = [
        f"{data['images']:,} images of {data['groups']:,} groups (patients with their copies), split"
        f" {listing(list(data['splits']))} of {listing(list(data['collections']))}{left_out}",
        *(f"note: {warning}" for warning in comparison["warnings"]),
        "",
        *_leaderboard(headline, metrics[headline]),
        "",
        *_pairs(headline, metrics[headline], comparison["margin"]),
        "",
        *_other_metrics(metrics),
    ]
    for test in comparison["tests"]:
        lines += ["", *_test(test)]
    return "\n".join(line.rstrip() for line in lines)


def _table(rows: list[list[str]], left: int) -> list[str]:
    """Rows of equal length as aligned columns; the first ``left`` ones start at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _leaderboard(metric: str, result: dict[str, Any]) -> list[str]:
    unit = " in %" if METRICS[metric].is_share else ""
    rows = [["model", "tier", "rank", METRICS[metric].title + unit, "95 % interval", "runs", "sd of runs"]]
    notes = []
    for name, model in result["models"].items():
        rows.append([
            name, str(model["tier"]), ranks_text(model["rank"]), value_text(metric, model["value"]),
            interval_text(metric, model.get("interval")), str(len(model["runs"])), value_text(metric, model["sd_runs"]),
        ])  # fmt: skip
        if "refused" in model:
            notes.append(f"{name}: no interval: {model['refused']}")
    return [*_table(rows, left=1), *notes]


def _pairs(metric: str, result: dict[str, Any], margin: float | None) -> list[str]:
    rows = [["A − B", "difference", "95 % interval", "p", "p, Holm", ""]]
    for pair in result["pairs"]:
        rows.append([
            f"{pair['a']} − {pair['b']}", difference_text(metric, pair["difference"]),
            interval_text(metric, pair.get("interval"), signed=True), p_text(pair["p"]), p_text(pair["p_holm"]),
            verdict(metric, pair, margin),
        ])  # fmt: skip
    lines = _table([row[:-1] for row in rows], left=1)
    size = result["family"]
    tests = sorted({pair["test"] for pair in result["pairs"]})
    return [
        *(f"{line}  {row[-1]}" for line, row in zip(lines, rows, strict=True)),
        f"p: {listing(tests)}; Holm's adjustment covers {size} pair{'s' * (size != 1)}",
        *(
            f"{pair['a']} − {pair['b']}: no interval: {pair['refused']}"
            for pair in result["pairs"]
            if "refused" in pair
        ),
    ]


def _other_metrics(metrics: dict[str, Any]) -> list[str]:
    if len(metrics) < 2:
        return []
    rows = [["tier by metric", *(METRICS[name].title for name in metrics)]]
    for model in next(iter(metrics.values()))["models"]:
        cells = [result["models"][model] | {"metric": name} for name, result in metrics.items()]
        rows.append([model, *(f"{value_text(cell['metric'], cell['value'])} ({cell['tier']})" for cell in cells)])
    return _table(rows, left=1)


def _test(test: dict[str, Any]) -> list[str]:
    table = test_table(test)
    rows = [["", *table["headers"]], *([row["subject"], *row["cells"]] for row in table["rows"])]
    return [
        f"{test['title']} (assumes that {test['assumes']})",
        *(_table(rows, left=1) if table["rows"] else []),
        *(f"{', '.join(subjects)}: refused: {reason}" for reason, subjects in table["refusals"].items()),
    ]
