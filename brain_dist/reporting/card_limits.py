"""What the results of a run do not show, in sentences for its model card."""

from __future__ import annotations

from collections.abc import Sequence

from brain_dist.calibration.measures import null_errors, verdict
from brain_dist.judging.clusters import number_clusters
from brain_dist.pages.text import display_name, listing, number, percent
from brain_dist.reporting.page import separation, shortcut_comparison, training_steps
from brain_dist.reporting.run_files import RunFiles

FEW_GROUPS = 30  # with fewer groups an interval says little


def limitations(some: RunFiles, tested: Sequence[RunFiles]) -> list[str]:
    """Sentences about a run, never none.

    Args:
        some: the run with any of its predictions.
        tested: the run with each of its predictions of test images.
    """
    lines = [
        "The network sees one slice at a time, chosen by whoever made the collection. It was not tried on patients."
    ]
    steps = training_steps(some)
    if steps is not None and steps["stopped"]:
        lines.append(f"Training is not finished: step {steps['done']:,} of {steps['planned']:,}.")
    lines.append("One training: how much another seed would change the numbers is not known from this run.")
    if not tested:
        lines.append("There is no evaluation on test images: how accurate the network is, is not known.")
    for files in tested:
        lines += [f"{files.name}: {line}" for line in _of_table(files)]
    trained_on = (some.environment or {}).get("dataset_version")
    if all(files.predictions.dataset_version == trained_on for files in tested):
        lines.append(
            "Not evaluated on another collection: how accurate it is on other scanners and hospitals is not known."
        )
    lines.append("Results by age, sex, scanner and site are not known.")
    return lines


def _of_table(files: RunFiles) -> list[str]:
    """What limits the results of one predictions table."""
    predictions, found = files.predictions, separation(files)
    metrics = predictions.evaluate()
    texts = {
        "clean": "the test images share no known patient and no copy with the training images.",
        "leaking": f"{found['n']:,} of {metrics['n']:,} test images share a patient or a copy with the training images,"
        " so the results are probably too high.",
        "unknown": f"whether test and training images share patients was not checked: {files.dataset_missing}.",
        "compared": f"training knew {found['n']:,} of these images; "
        + ("they count in the results." if predictions.allow_known else "they are left out of the results."),
        "not compared": "whether these images of other shards are among the training images was not checked.",
    }
    lines = [texts[found["kind"]]]
    without = sum(patient is None for patient in predictions.patient)
    if without:
        lines.append(f"{without:,} of {metrics['n']:,} images have no known patient: slices of one may be in training.")
    if metrics["groups"] < FEW_GROUPS:
        lines.append(f"only {metrics['groups']} groups of patients and copies: the intervals are rough.")
    absent = [display_name(name) for name, values in metrics["per_class"].items() if not values["n"]]
    if absent:
        lines.append(f"no images of {listing(absent)}: nothing is known about these classes.")
    shortcuts = shortcut_comparison(files, metrics["accuracy"])
    if shortcuts is None:
        lines.append("how well the class can be guessed without the disease (shortcut baselines) was not measured.")
    else:
        lines.append(
            f"“{shortcuts['best']['name'].lower()}” alone reaches {percent(shortcuts['best']['accuracy'])};"
            f" only the difference to {percent(metrics['accuracy'])} is evidence that disease is recognised."
        )
    null = null_errors(predictions.prob, number_clusters(predictions.group))["ece"]
    finding = verdict(metrics["ece"], null)
    if finding != "calibrated":
        words = "the probabilities are not calibrated"
        if finding == "undecided":
            words += ", or the images of a patient err together"
        lines.append(f"{words}: ECE {number(metrics['ece'])}, where right ones would show up to {number(null['p95'])}.")
    return lines
