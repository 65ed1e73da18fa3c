"""The report's page as HTML. All values are computed from the files of a run; the network is not needed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from brain_dist import __version__
from brain_dist.calibration.measures import null_errors, verdict
from brain_dist.calibration.words import temperature_sentence
from brain_dist.checkpoints.evaluations import Evaluations
from brain_dist.collection.spellings import SPLITS
from brain_dist.explaining import tables
from brain_dist.explaining.methods import TITLES
from brain_dist.judging.checklist import checklist, tally
from brain_dist.judging.checklist_rules import Facts, known_patients
from brain_dist.judging.clusters import number_clusters
from brain_dist.judging.patients import RULES, patient_names, patient_results
from brain_dist.judging.predictions import Predictions, reasons_text
from brain_dist.judging.shortcuts import restrict
from brain_dist.pages.figures import jpeg_url, overlay
from brain_dist.pages.template import page_template
from brain_dist.pages.text import display_name, listing
from brain_dist.reporting import plots
from brain_dist.reporting.intervals import METRIC_NAMES, metric_intervals
from brain_dist.reporting.run_files import RunFiles

TEMPLATE = "reporting/page.html.jinja"
SHORTCUTS = {
    "border": "Image border only",
    "border_head_crop": "Image border after cropping to the head",
    "file_properties": "File properties only",
    "majority": "Always the most frequent class",
}
OVERCONFIDENT = 0.01  # difference of mean confidence and accuracy
PATIENT_RULES = {"majority": "majority of the slices", "mean": "mean probability"}


class Slice(NamedTuple):
    """An image as the network saw it, uint8 [H, W], and a method's map of the predicted class, float [H, W] in 0..1."""

    image: np.ndarray
    heat: np.ndarray | None
    method: str


def render(
    files: RunFiles, mistakes: np.ndarray, hits: np.ndarray, slices: dict[int, Slice], images_missing: str | None
) -> str:
    """The page as HTML.

    Args:
        files: the files of the run.
        mistakes: positions [M] of errors in the predictions table.
        hits: positions [K] of correct predictions.
        slices: images by row of the index.
        images_missing: why there are no images, or None.
    """
    predictions = files.predictions
    label, prob = predictions.label, predictions.prob
    metrics = predictions.evaluate()
    names = [display_name(name) for name in predictions.classes]
    return page_template(TEMPLATE).render(
        files=files,
        metrics=metrics,
        names=names,
        evaluated_on=evaluated_on(files),
        run_facts=run_facts(files),
        version=__version__,
        errors=int((predictions.predicted != predictions.label).sum()),
        patients=len(set(patient_names(predictions.dataset, predictions.patient)) - {None}),
        without_patient=int(sum(patient is None for patient in predictions.patient)),
        phantom="phantom" in set(predictions.dataset),
        separation=separation(files),
        steps=training_steps(files),
        calibration=calibration(prob, metrics, predictions.group),
        temperature_sentence=temperature_sentence,
        shortcuts=shortcut_comparison(files, metrics["accuracy"]),
        intervals=metric_intervals(predictions),
        metric_names=METRIC_NAMES,
        by_patient=patient_results(predictions),
        patient_rules=PATIENT_RULES,
        patient_rule_texts=RULES,
        mistakes=[card(predictions, position, slices) for position in mistakes],
        hits=[card(predictions, position, slices) for position in hits],
        images_missing=images_missing,
        shown_maps=shown_maps(files, slices),
        explained=None if files.explanations is None else explained(files.explanations),
        by_dataset=by_dataset(predictions),
        others=[
            {"name": name, "n": len(other), "step": other.step, **headline(other.evaluate())}
            for name, other in files.others.items()
        ],
        data=data_counts(files),
        splits=SPLITS,
        roc=plots.roc(label, prob, names, [values["auc"] for values in metrics["per_class"].values()]),
        precision_recall=plots.precision_recall(label, prob, names),
        reliability=plots.reliability_diagram(label, prob, metrics["ece"]),
        curves=plots.learning_curves(files.log),
        checklist=answered_checklist(files),
    )


def shown_maps(files: RunFiles, slices: dict[int, Slice]) -> dict[str, Any] | None:
    """What the page must say of the maps that it shows beside the images; None if there are none.

    Returns:
        ``title`` of the method; ``better`` than an untrained network: True, False or None if that is not known;
        ``words``.
    """
    method = next((shown.method for shown in slices.values() if shown.heat is not None), None)
    if method is None:
        return None
    verdict = (files.explanations or {}).get("verdicts", {}).get(method)
    if verdict is not None:
        return {"title": TITLES[method], **verdict}
    words = f"whether {TITLES[method]} shows the tumour here was not measured; `brain-dist explain` does that"
    return {"title": TITLES[method], "better": None, "words": words}


def explained(summary: dict[str, Any]) -> dict[str, Any]:
    """What ``brain-dist explain`` measured, for the template."""
    headline = summary["measures"][summary["headline"]]
    return {
        **{key: summary[key] for key in ("images", "groups", "headline", "located", "verdicts")},
        "rows": [
            {"title": TITLES[method], "interval": tables.interval_text(value), **value}
            for method, value in headline["methods"].items()
        ],
        "references": {name: tables.REFERENCES[name] for name in tables.reference_names(summary)},
        "difference_text": tables.difference_text,
        "notes": tables.notes(summary),
    }


def answered_checklist(files: RunFiles) -> dict[str, Any]:
    """The ``items`` of the reporting checklists for a run, and their ``tally``."""
    predictions, shared = files.predictions, separation(files)
    model = None if files.settings is None else files.settings["model"]
    trained_on = (files.environment or {}).get("dataset_version", predictions.dataset_version)
    tables = (predictions, *files.others.values())
    elsewhere = [table for table in tables if table.dataset_version != trained_on]
    items = checklist(
        Facts(
            trained_here=model is not None and predictions.adopted is None,
            internal=any(
                table.dataset_version == trained_on and table.adopted is None and "test" in table.split
                for table in tables
            ),
            external=bool(elsewhere),
            external_compared=all(table.known is not None for table in elsewhere),
            patients=known_patients(predictions.patient),
            shared=shared["n"] > 0 and (shared["kind"] == "leaking" or predictions.allow_known),
            audit=files.dataset is not None,
            shortcuts=shortcut_comparison(files, 0.0) is not None,
            errors=True,
            explained=files.explanations is not None and files.explanations["located"],
            pretrained=None if model is None else bool(model.get("pretrained") or model.get("weights")),
        )
    )
    return {"items": items, "tally": tally(items)}


def evaluated_on(files: RunFiles) -> str:
    """The evaluated images, such as "the test images of cheng_br35h"."""
    predictions = files.predictions
    name = files.dataset.name if files.dataset is not None else listing(sorted(set(predictions.dataset)))
    return f"the {listing(sorted(set(predictions.split)))} images of {name}"


def run_facts(files: RunFiles) -> list[str]:
    """Network, number of parameters, step and date, as far as the run folder has them."""
    facts = []
    if files.settings is not None:
        facts.append(str(files.settings["model"]["name"]))
    if files.environment is not None and "parameters" in files.environment:
        facts.append(f"{files.environment['parameters'] / 1e6:.1f} million parameters")
    if files.predictions.adopted is None:
        facts.append(f"{files.predictions.step:,} optimiser steps")
    else:
        facts.append(f"predictions adopted from {files.predictions.adopted.split(', sha256')[0]}")
    if files.log:
        facts.append(f"trained until {datetime.fromtimestamp(files.log[-1]['time'], UTC):%-d %B %Y}")
    return facts


def separation(files: RunFiles) -> dict[str, Any]:
    """Whether evaluated images share patients or pictures with the training images.

    Returns:
        ``kind``: "clean", "leaking", "unknown", "compared" (image by image), "not compared" (other shards) or
        "adopted"; ``n``: images that leak or that training knew. If compared, also their ``reasons``, and
        the accuracy on ``known`` and ``unknown`` images (None if there are none).
    """
    predictions, table = files.predictions, files.table
    if predictions.adopted is not None:
        return {"kind": "adopted", "n": 0}
    trained_on = (files.environment or {}).get("dataset_version")
    if table.known is not None:
        known = table.is_known
        accuracies = {
            name: table.evaluate(mask)["accuracy"] if mask.any() else None
            for name, mask in (("known", known), ("unknown", ~known))
        }
        return {"kind": "compared", "n": int(known.sum()), "reasons": reasons_text(table.known), **accuracies}
    if trained_on is not None and trained_on != predictions.dataset_version:
        return {"kind": "not compared", "n": 0}
    if files.dataset is None:
        return {"kind": "unknown", "n": 0}
    columns = files.dataset.columns
    train = columns["split"] == "train"
    groups = set(columns["group"][train])
    patients = set(patient_names(columns["dataset"][train], columns["patient"][train])) - {None}
    names = patient_names(predictions.dataset, predictions.patient)
    leaks = sum(group in groups or patient in patients for group, patient in zip(predictions.group, names, strict=True))
    return {"kind": "leaking" if leaks else "clean", "n": leaks}


def training_steps(files: RunFiles) -> dict[str, Any] | None:
    """Steps of the training; None without a log.

    Returns:
        ``done`` and ``planned`` steps; whether the training ended by its ``patience``; whether it ``stopped`` without
        having ended; whether the learning rate was still in its ``warmup``.
    """
    trained = [row for row in files.log if row.get("kind") == "train" and row.get("epoch")]
    config = files.settings
    if not trained or config is None:
        return None
    evaluations = Evaluations(config["train"].get("best"), config["train"].get("patience", 0))
    for row in files.log:
        if row["kind"] == "eval" and row["split"] == "val":
            evaluations.add(row["step"], row)
    steps_per_epoch = (trained[-1]["step"] + 1) / trained[-1]["epoch"]
    done, planned = trained[-1]["step"] + 1, round(config["train"]["epochs"] * steps_per_epoch)
    return {
        "done": done,
        "planned": planned,
        "patience": evaluations.patience_exhausted,
        "stopped": done < planned and not evaluations.patience_exhausted,
        "warmup": done < config["optim"].get("warmup_epochs", 0) * steps_per_epoch,
    }


def calibration(prob: np.ndarray, metrics: dict[str, Any], group: np.ndarray) -> dict[str, Any]:
    """Mean confidence of probabilities [N, K], what an ECE right ones would show, and a ``verdict`` in words.

    ``group`` is the patient of each image [N].
    """
    confidence, null = float(prob.max(axis=1).mean()), null_errors(prob, number_clusters(group))["ece"]
    gap, finding = confidence - metrics["accuracy"], verdict(metrics["ece"], null)
    if finding == "calibrated":
        words = "well calibrated, as far as so many images can tell"
    elif abs(gap) > OVERCONFIDENT:
        words = f"{'over' if gap > 0 else 'under'}confident on average"
    else:
        words = "too confident for some images and not confident enough for others, which cancel out in the mean"
    if finding == "undecided":
        words += ", or the images of a patient err together"
    return {"confidence": confidence, "verdict": words, "null": null}


def shortcut_comparison(files: RunFiles, accuracy: float) -> dict[str, Any] | None:
    """The shortcut baselines on the images that count, best first, and the network's gain over the best one.

    None if they were not measured on these images.
    """
    shortcut, predictions = files.shortcut, files.predictions
    if shortcut is None or (shortcut["dataset_version"], shortcut["fold"]) != (
        predictions.dataset_version,
        predictions.fold,
    ):
        return None
    judged, tested = set(predictions.row.tolist()), set(shortcut.get("rows", ()))
    if not judged <= tested:  # another split
        return None
    if judged != tested:  # training knew the others
        shortcut = restrict(shortcut, predictions)
    baselines = shortcut["baselines"]
    rows = [
        {"name": name, "accuracy_interval": None, **baselines[key]}  # older files have none
        for key, name in SHORTCUTS.items()
    ]
    rows.sort(key=lambda row: -row["accuracy"])
    return {
        "rows": rows,
        "best": rows[0],
        "gain": accuracy - rows[0]["accuracy"],
        **{key: shortcut[key] for key in ("train", "test", "chance")},
    }


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a table row."""
    keys = ("accuracy", "accuracy_interval", "balanced_accuracy", "f1_macro", "auc_macro", "ece", "groups")
    return {key: metrics[key] for key in keys}


def by_dataset(predictions: Predictions) -> list[dict[str, Any]]:
    """Metrics of each dataset; empty if there is only one."""
    names = sorted(set(predictions.dataset))
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        mask = predictions.dataset == name
        classes = [display_name(predictions.classes[label]) for label in np.unique(predictions.label[mask])]
        rows.append({"name": name, "n": int(mask.sum()), "classes": classes, **headline(predictions.evaluate(mask))})
    return rows


def card(predictions: Predictions, position: int, slices: dict[int, Slice]) -> dict[str, Any]:
    """A prediction for the template, with its image if there is one."""
    shown = slices.get(int(predictions.row[position]))
    heat = None if shown is None else shown.heat
    label, prob = predictions.label[position], predictions.prob[position]
    return {
        "key": predictions.key[position],
        "dataset": predictions.dataset[position],
        "patient": predictions.patient[position],
        "true": display_name(predictions.classes[label]),
        "predicted": display_name(predictions.classes[predictions.predicted[position]]),
        "prob_true": float(prob[label]),
        "prob_predicted": float(prob.max()),
        "image": None if shown is None else jpeg_url(shown.image),
        "overlay": None if shown is None or heat is None else jpeg_url(overlay(shown.image, heat)),
        "empty_map": heat is not None and not heat.any(),
    }


def data_counts(files: RunFiles) -> dict[str, Any] | None:
    """The manifest, and the groups and identified patients of each split; None without the shards."""
    if files.dataset is None:
        return None
    columns = files.dataset.columns
    members = {split: columns["split"] == split for split in SPLITS}
    patients = np.array(patient_names(columns["dataset"], columns["patient"]), dtype=object)
    return {
        "manifest": files.dataset.manifest,
        "groups": {split: len(set(columns["group"][mask])) for split, mask in members.items()},
        "patients": {split: len(set(patients[mask]) - {None}) for split, mask in members.items()},
    }
