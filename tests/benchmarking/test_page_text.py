"""The sentences of a benchmark's page and table: they follow from the pairs, the drops and what was compared."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from brain_dist.benchmarking.page_text import limits
from brain_dist.benchmarking.results import Benchmark, Part
from brain_dist.benchmarking.wording import differing_settings, ties_text
from brain_dist.comparison.paired import separate_tiers

RECORD = {
    "seeds": [0, 1], "learning_rates": {"a": 0.1, "b": 0.1}, "learning_rate_trials": None,
    "common": {"model.name": "test_convnext"},
}  # fmt: skip
PATIENTS = {"images": 10, "known": 10, "phantom": False}


def ranks(names: str, *separable: str) -> dict[str, Any]:
    """Tiers and pairs of models with one letter, best first, of which some pairs differ."""
    different = {frozenset(pair) for pair in separable}
    pairs = [{"a": a, "b": b, "separable": frozenset((a, b)) in different} for a, b in combinations(names, 2)]
    return {"tiers": separate_tiers(list(names), different), "pairs": pairs}


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (ranks("abc"), ["No significant difference between a, b and c"]),
        # a and c differ, and are in one tier because b differs from neither
        (ranks("abc", "ac"), ["No significant difference between a and b; between b and c"]),
        (ranks("abcd", "ac", "ad", "bc", "bd"), ["No significant difference between a and b; between c and d"]),
        (ranks("abc", "ab", "ac", "bc"), []),
    ],
)
def test_models_that_differ_are_not_called_tied(result: dict[str, Any], text: list[str]) -> None:
    assert ties_text(result) == text
    lines = limits(Benchmark(RECORD, [], [], []), [Part("s", "test", [], None, result)], None, {}, {}, PATIENTS)
    tied = [line.partition(" on these patients")[0] for line in lines if "significant" in line]
    assert tied == [f"s: n{each[1:]}" for each in text]


def elsewhere(value: float, interval: tuple[float, float] | None) -> str:
    """The sentence about the largest drop."""
    drop: dict[str, Any] = {"value": value} | ({"interval": interval} if interval else {"refused": "few groups"})
    place = {"source": "s", "test": "t", "kind": "external", "balanced_accuracy_full": {"value": 0.5}}
    rows = [place | {"model": "m", "drop": drop}, place | {"model": "n", "drop": {"value": value - 0.1}}]
    lines = limits(Benchmark(RECORD, [], [], []), [], {"rows": rows}, {}, {}, PATIENTS)
    (line,) = [line for line in lines if "ther collections than" in line]
    return line


def test_the_sentence_about_other_collections_follows_sign_and_interval() -> None:
    assert elsewhere(0.2, (0.1, 0.3)) == (
        "Results inside a collection do not carry over: m trained on s loses 20.0 percentage points of balanced"
        " accuracy on t (95 % interval 10.0 to 30.0). Other collections than these are not known."
    )
    assert "carry over is open: the largest loss is that m trained on s loses 2.0" in elsewhere(0.02, (-0.05, 0.09))
    assert "on t (no interval)" in elsewhere(0.02, None)
    assert elsewhere(-0.031, (-0.1, 0.02)) == "How accurate the models are on other collections than t is not known."


def test_probabilities_that_may_be_right_are_not_called_wrong() -> None:
    table = {name: {"verdict": verdict} for name, verdict in (
        ("a", "miscalibrated"), ("b", "undecided"), ("c", "calibrated"), ("d", "undecided")
    )}  # fmt: skip
    tables = {("s", "test"): table, ("t", "test"): {"a": {"verdict": "undecided"}, "d": {"verdict": "miscalibrated"}}}
    lines = limits(Benchmark(RECORD, [], [], []), [], None, {}, tables, PATIENTS)
    assert [line.partition(";")[0] for line in lines if "probabilities" in line] == [
        "The probabilities of a and d are not right as they are",
        "Whether the probabilities of b are right is open: their calibration error is larger than that of right ones"
        " would be, unless the images of a patient err together.",
    ]


def test_a_benchmark_of_methods_speaks_of_methods() -> None:
    methods = RECORD | {"methods": {"a": {}, "b": {}}, "differ": ["augment.*", "data.stretch"]}
    assert differing_settings(methods) == "`augment.*` and `data.stretch`"
    assert differing_settings(RECORD) == "`model.*` and the learning rate"
    lines = limits(Benchmark(methods, [], [], []), [], None, {}, {}, PATIENTS)
    assert any(line.startswith("The methods trained one network, test_convnext:") for line in lines)
    assert any(line.startswith("All methods have the learning rate 0.1") for line in lines)
    assert not any("Models differ" in line or "a model" in line for line in lines)


def test_the_shortcut_is_that_of_the_images_that_count() -> None:
    def scores(accuracy: float) -> dict[str, Any]:
        return {"border": {"accuracy": accuracy}, "majority": {"accuracy": 0.3}}

    baselines = {"s": {"baselines": scores(0.915), "counted": {"baselines": scores(0.7)}}}
    lines = limits(Benchmark(RECORD, [], [], []), [], None, baselines, {}, PATIENTS)
    (line,) = [line for line in lines if line.startswith("s: “image border only”")]
    assert "reaches 70.0\N{NO-BREAK SPACE}% on the same images" in line
