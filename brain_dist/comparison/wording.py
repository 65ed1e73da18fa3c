"""A comparison in words and short numbers, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brain_dist.judging.weighted import METRICS

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]  # header, text of a row's cell


def value_text(metric: str, value: float | None) -> str:
    """A metric's value: shares in percent, others with three decimals."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if METRICS[metric].is_share else f"{value:.3f}"


def difference_text(metric: str, value: float | None) -> str:
    """A difference with its sign: shares in percentage points."""
    if value is None:
        return "–"
    text = value_text(metric, value)
    return text.replace("-", "−") if float(text) < 0 else f"+{text.lstrip('-')}"


def interval_text(metric: str, interval: list[float] | None, signed: bool = False) -> str:
    """An interval as "LOW to HIGH"."""
    if interval is None:
        return "–"
    text = difference_text if signed else value_text
    return " to ".join(text(metric, end) for end in interval)


def size_text(metric: str, value: float) -> str:
    """The size of a difference with its unit."""
    return f"{100 * value:.1f} points" if METRICS[metric].is_share else f"{value:.3f}"


def p_text(p: float | None) -> str:
    """A p-value with two significant digits, near 5 % with three."""
    if p is None:
        return "–"
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.3g}" if 0.045 < p < 0.055 else f"{p:.2g}"


def verdict(metric: str, pair: Row, margin: float | None) -> str:
    """What a pair of the headline shows, in words; ``margin`` is that of its ``not_inferior``."""
    losers = ["a", "b"]
    if pair["p"] is None:
        text = f"not tested: {pair['p_refused']}"
    elif pair["separable"]:
        a_is_better = (pair["difference"] > 0) == METRICS[metric].higher_is_better
        text, losers = f"{pair['a'] if a_is_better else pair['b']} is better", ["b" if a_is_better else "a"]
    else:
        text = "no difference shown"
        if pair["smallest"] is not None and abs(pair["difference"]) < pair["smallest"]:
            text += f"; this table could have shown about {size_text(metric, pair['smallest'])}"
    if pair["not_inferior"] is not None and margin is not None:
        size = size_text(metric, margin)
        safe = [pair[side] for side in losers if pair["not_inferior"][side]]
        if len(safe) == 2:
            text += f"; equal within {size}"
        elif safe:
            text += f"; {safe[0]} loses at most {size}"
        elif not pair["separable"]:
            text += f"; a loss of more than {size} is not excluded"
    return text


def ranks_text(rank: list[int]) -> str:
    """An interval of ranks as "1" or "1 to 3"."""
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]} to {rank[1]}"


def _number(key: str, digits: int = 3) -> Callable[[Row], str]:
    return lambda row: "–" if row[key] is None else f"{row[key]:.{digits}f}".replace("-", "−")


def _p(key: str) -> Callable[[Row], str]:
    return lambda row: p_text(row.get(key))


def _interval(row: Row) -> str:
    return " to ".join(f"{end:+.3f}".replace("-", "−") for end in row["interval"])


def _signed(row: Row) -> str:
    return f"{row['difference']:+.3f}".replace("-", "−")


_HOLM: Column = ("p, Holm", _p("p_holm"))
_DELONG: tuple[Column, ...] = (
    ("AUC A", lambda row: f"{row['auc'][0]:.3f}"), ("AUC B", lambda row: f"{row['auc'][1]:.3f}"), ("A − B", _signed),
    ("95 % interval", _interval), ("z", _number("z", 2)), ("p", _p("p")), _HOLM,
)  # fmt: skip
COLUMNS: dict[str, tuple[Column, ...]] = {
    "mcnemar": (
        ("only A right", lambda row: f"{row['a_only']:,}"), ("only B right", lambda row: f"{row['b_only']:,}"),
        ("p", _p("p")), _HOLM, ("mid-p", _p("p_mid")), ("odds ratio", _number("odds_ratio", 2)),
        ("Cohen's g", _number("cohens_g", 2)), ("risk difference", _number("risk_difference")),
    ),
    "cochran": (("Q", _number("q", 2)), ("df", lambda row: str(row["df"])), ("p", _p("p"))),
    "delong": _DELONG,
    "delong_clustered": _DELONG,
    "sensitivity": (("A − B", _signed), ("95 % interval", _interval)),
    "friedman": (
        ("χ², corrected for ties", _number("chi2", 2)), ("p", _p("p")),
        ("F", _number("f", 2)), ("p of F", _p("f_p")), ("Kendall's W", _number("kendalls_w", 2)),
    ),
    "nemenyi": (("critical difference of mean ranks at 5 %", _number("critical_difference", 2)),),
    "aligned_ranks": (("T", _number("t", 2)), ("p, permutations", _p("p")), ("p, χ²", _p("p_chi2"))),
    "wilcoxon": (
        ("rank sum A", lambda row: f"{row['rank_sums'][0]:g}"), ("rank sum B", lambda row: f"{row['rank_sums'][1]:g}"),
        ("p, exact", _p("p")), _HOLM, ("p, normal", _p("p_normal")), ("Cliff's δ", _number("cliffs_delta", 2)),
    ),
    "five_by_two": (("F", _number("f", 2)), ("p", _p("p")), _HOLM, ("t", _number("t", 2)), ("p of t", _p("t_p"))),
    "corrected_t": (
        ("A − B", _signed), ("t", _number("t", 2)), ("df", lambda row: str(row["df"])), ("p", _p("p")), _HOLM,
        ("p, uncorrected", _p("p_naive")),
    ),
    "correlated_bayes": (
        ("P(B better)", _number("worse")), ("P(equal)", _number("equal")), ("P(A better)", _number("better")),
        ("equal means within", lambda row: f"±{row['rope']:g}"),
    ),
}  # fmt: skip


def row_subject(row: Row) -> str:
    """What a row of a test is about: "A − B, class", or all models."""
    pair = "all models" if row["a"] is None else f"{row['a']} − {row['b']}"
    return pair if row["class"] is None else f"{pair}, {row['class']}"


def test_table(test: dict[str, Any]) -> dict[str, Any]:
    """A test's rows as text.

    Returns:
        ``headers``; ``rows`` of ``subject`` and ``cells``; ``refusals``: subjects of each reason, or "all" of them.
    """
    columns = COLUMNS[test["test"]]
    refusals: dict[str, list[str]] = {}
    for row in test["rows"]:
        if "refused" in row:
            refusals.setdefault(row["refused"], []).append(row_subject(row))
    all_alike = [len(subjects) == len(test["rows"]) > 1 for subjects in refusals.values()]
    return {
        "headers": [header for header, _ in columns],
        "rows": [
            {"subject": row_subject(row), "cells": [text(row) for _, text in columns]}
            for row in test["rows"]
            if "refused" not in row
        ],
        "refusals": {
            reason: ["all pairs"] if alike else subjects
            for (reason, subjects), alike in zip(refusals.items(), all_alike, strict=True)
        },
    }
