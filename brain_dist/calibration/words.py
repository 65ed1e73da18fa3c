"""What a calibration shows, in sentences; the numbers in them are those of the tables."""

from __future__ import annotations

from typing import Any

from brain_dist.calibration.conformal import METHODS, wanted_coverage
from brain_dist.calibration.record import Calibration
from brain_dist.pages.text import number, percent

NAMES = {"lac": "one threshold", "aps": "adaptive", "class_conditional": "a threshold for each class"}
VERDICTS = {
    "calibrated": "no sign of miscalibration",
    "undecided": "more than that, but not more than if the images of a patient err together",
    "miscalibrated": "the probabilities are not right",
}


def temperature_sentence(calibration: Calibration) -> str:
    """What the temperature says about the network's confidence."""
    if isinstance(calibration.temperature, str):
        return f"No temperature: {calibration.temperature}. The probabilities stay as they are."
    if calibration.temperature > 1:
        return f"The temperature is {calibration.temperature:.3f}: the network was too confident, and is made less so."
    return (
        f"The temperature is {calibration.temperature:.3f}: the network was not confident enough, and is made more so."
    )


def error_sentence(judged: dict[str, Any]) -> str:
    """The calibration error before and after, beside what right probabilities would show."""
    scaling = judged["scaling"]
    last = scaling.get("temperature", scaling["none"])
    error, null = last["ece"], last["ece"]["null"]
    change = f"{number(scaling['none']['ece']['value'])} → " if "temperature" in scaling else ""
    return (
        f"ECE {change}{number(error['value'])}. With {judged['n']:,} independent images, right probabilities would show"
        f" {number(null['mean'])} on average and up to {number(null['p95'])}: {VERDICTS[last['verdict']]}."
    )


def coverage_sentence(alpha: float, judged: dict[str, Any]) -> str:
    """Whether the sets of one threshold hold what they promise."""
    sets = judged["conformal"]["lac"]
    if "refused" in sets:
        return f"No sets: {sets['refused']}."
    promised, coverage = 1 - alpha, sets["coverage"]["value"]
    low, high = sets["law"]["measured_range"]
    text = (
        f"{wanted_coverage(alpha)} sets contain the true class for {percent(coverage)} of the slices of a"
        " patient, averaged over the patients"
    )
    if sets["holds"]:
        return f"{text} (to expect: {percent(low)} to {percent(high)})."
    return (
        f"{text}: coverage is lost, by {100 * (promised - coverage):.1f} percentage points (to expect of patients like"
        f" those of the fit: {percent(low)} to {percent(high)}). The sets must not be relied on here."
    )


def refusals(calibration: Calibration) -> list[str]:
    """What was not fitted, and why."""
    reasons: dict[str, object] = {"vector scaling": calibration.vector}
    reasons |= {f"sets, {NAMES[method]}": calibration.thresholds[method] for method in METHODS}
    return [f"{name}: {reason}" for name, reason in reasons.items() if isinstance(reason, str)]
