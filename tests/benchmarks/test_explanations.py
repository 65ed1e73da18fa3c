"""What `python -m benchmarks.explanations` chooses from its measurements."""

from __future__ import annotations

from typing import Any

from benchmarks.explanations import chosen, untrained_text
from brain_dist.explaining.cams import TITLES


def row(run: str, layer: str, cells: int, method: str, score: float) -> dict[str, Any]:
    measures = {"pointing game": score + 0.1, "rank accuracy": score - 0.1}
    return {"run": run, "family": "Net", "layer": layer, "cells": cells, "method": method, "trained": measures}


def test_the_best_number_of_cells_of_each_method_over_the_runs_of_a_family() -> None:
    scores = {"early": 0.9, "late": 0.3, "last": 0.5}
    rows = [row("a", layer, 4 if layer == "last" else 8, m, s) for m in TITLES for layer, s in scores.items()]
    rows += [row("a", "input", 64, "gradientshap", 0.4), row("a", "centre", 0, "", 1.0)]
    # `early` has as many cells as `late`, which is deeper: choose_layer would not take it
    assert chosen(rows) == [("Net", next(iter(TITLES)), dict.fromkeys(TITLES, 4))]
    rows += [row("b", "late", 8, m, 0.9) for m in TITLES] + [row("b", "last", 4, m, 0.1) for m in TITLES]
    rows += [row("b", "input", 64, "gradientshap", 0.9)]
    assert chosen(rows) == [("Net", "gradientshap", dict.fromkeys(TITLES, 8))]


def test_random_networks_have_a_mean_and_a_range() -> None:
    assert untrained_text([{"pointing game": value} for value in (0.1, 0.4, 0.1)]) == "0.20 (0.10 to 0.40)"
    assert untrained_text([]) == ""
