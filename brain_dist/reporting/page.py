"""The report's page: what a run folder says, arranged for a reader. Values in, HTML out; nothing is predicted here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist import __version__
from brain_dist.collection.spellings import SPLITS
from brain_dist.judging.metrics import wilson_interval
from brain_dist.judging.predictions import Predictions
from brain_dist.pages.figures import jpeg_url
from brain_dist.pages.template import page_template
from brain_dist.pages.text import display_name
from brain_dist.reporting import plots
from brain_dist.store.dataset import Dataset

if TYPE_CHECKING:
    pass


TEMPLATE = "reporting/page.html.jinja"


SHORTCUTS = {
    "border": "Picture border only",
    "border_head_crop": "Border, cut to the head",
    "file_properties": "File properties only",
    "majority": "Always the most frequent class",
}


@dataclass(frozen=True)
class Example:
    """One picture: ``row`` of the index, ``picture`` uint8 [H, W] as the network saw it, ``heat`` float [H, W] in 0..1
    (Grad-CAM of the class it named) or None."""

    row: int
    picture: np.ndarray
    heat: np.ndarray | None


@dataclass(frozen=True)
class RunFiles:
    """What was read from a run folder. ``dataset`` is None when its shards are gone; ``dataset_missing`` says why."""

    run: str
    name: str
    predictions: Predictions
    others: dict[str, Predictions]
    log: list[dict[str, Any]]
    config: str | None
    environment: dict[str, Any] | None
    shortcut: dict[str, Any] | None
    dataset: Dataset | None
    dataset_missing: str


def render(
    files: RunFiles,
    mistakes: np.ndarray,
    hits: np.ndarray,
    examples: dict[int, Example],
    pictures_missing: str | None,
) -> str:
    """The page. ``mistakes`` and ``hits`` are positions in the predictions table, ``examples`` is by row."""
    p = files.predictions
    judged = p.evaluate()
    names = [display_name(c) for c in p.classes]
    template = page_template(TEMPLATE)
    train = [row for row in files.log if row.get("kind") == "train"]
    evals = [row for row in files.log if row.get("kind") == "eval"]
    return template.render(
        files=files,
        m=judged,
        names=names,
        judged_on=judged_on(files),
        facts=facts(files),
        version=__version__,
        wrong=int((p.predicted != p.label).sum()),
        patients=len({x for x in p.patient if x is not None}),
        without_patient=int(sum(x is None for x in p.patient)),
        phantom=is_phantom(p),
        separation=separation(files),
        calibration=calibration(p, judged),
        shortcuts=shortcuts(files, judged),
        sensitivity_interval={
            c: wilson_interval(round(v["sensitivity"] * v["n"]), v["n"])
            for c, v in judged["per_class"].items()
            if v["n"]
        },
        roc=plots.roc(p.label, p.prob, names, [v["auc"] for v in judged["per_class"].values()]),
        reliability=plots.reliability_diagram(p.label, p.prob, judged["ece"]),
        curves=plots.learning_curves(train, evals),
        mistakes=[card(p, i, examples) for i in mistakes],
        hits=[card(p, i, examples) for i in hits],
        pictures_missing=pictures_missing,
        maps=any(example.heat is not None for example in examples.values()),
        by_dataset=by_dataset(p),
        others=[
            {"name": name, "n": len(o), **headline(o.evaluate()), "step": o.step} for name, o in files.others.items()
        ],
        data=data_facts(files),
        splits=SPLITS,
    )


def judged_on(files: RunFiles) -> str:
    """Which images these are: "the test images of cheng_br35h"."""
    data = files.dataset.name if files.dataset is not None else " and ".join(sorted(set(files.predictions.dataset)))
    return f"the {' and '.join(sorted(set(files.predictions.split)))} images of {data}"


def facts(files: RunFiles) -> list[str]:
    """Network, size, step and day, as far as the run folder tells."""
    import yaml

    found = []
    if files.config is not None:
        found.append(str(yaml.safe_load(files.config)["model"]["name"]))
    if files.environment is not None and "parameters" in files.environment:
        found.append(f"{files.environment['parameters'] / 1e6:.1f} million parameters")
    found.append(f"{files.predictions.step:,} optimiser steps")
    if files.log:
        found.append(f"trained until {datetime.fromtimestamp(files.log[-1]['time'], UTC):%-d %B %Y}")
    return found


def is_phantom(p: Predictions) -> bool:
    """Whether any image is made up: the phantom collection's images carry the dataset name "phantom"."""
    return any(name == "phantom" for name in p.dataset)


def separation(files: RunFiles) -> dict[str, Any]:
    """Whether test patients are strangers to the training: ``kind`` external, clean, leaking or unknown, and ``n``."""
    trained_on = (files.environment or {}).get("dataset_version")
    if trained_on is not None and trained_on != files.predictions.dataset_version:
        return {"kind": "external", "n": 0}
    if files.dataset is None:
        return {"kind": "unknown", "n": 0}
    columns = files.dataset.columns
    trained = columns["split"] == "train"
    seen, patients = set(columns["group"][trained]), set(columns["patient"][trained]) - {None}
    p = files.predictions
    leaked = sum(g in seen or x in patients for g, x in zip(p.group, p.patient, strict=True))
    return {"kind": "leaking" if leaked else "clean", "n": leaked}


def calibration(p: Predictions, judged: dict[str, Any]) -> dict[str, Any]:
    """Mean confidence against accuracy, and the word for it."""
    mean = float(p.prob.max(axis=1).mean())
    gap = mean - judged["accuracy"]
    word = "over-confident" if gap > 0.01 else "under-confident" if gap < -0.01 else "about as confident as it is right"
    return {"confidence": mean, "word": word}


def shortcuts(files: RunFiles, judged: dict[str, Any]) -> dict[str, Any] | None:
    """Rows of the comparison with guessing, best first, or None where it was not measured on these data."""
    found, judged_on = files.shortcut, files.predictions
    if found is None or (found["dataset_version"], found["fold"]) != (judged_on.dataset_version, judged_on.fold):
        return None
    rows = [
        {"name": name, "accuracy": found["baselines"][key]["accuracy"], "what": found["baselines"][key]["what"],
         "balanced": found["baselines"][key]["balanced_accuracy"]}
        for key, name in SHORTCUTS.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: -row["accuracy"])
    return {
        "rows": rows,
        "best": rows[0],
        "gain": judged["accuracy"] - rows[0]["accuracy"],
        "train": found["train"],
        "test": found["test"],
        "chance": found["chance"],
    }


def headline(judged: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of a one-line summary; the interval over groups where there is one."""
    kept = {name: judged[name] for name in ("accuracy", "balanced_accuracy", "f1_macro", "auc_macro", "ece", "groups")}
    return kept | {"interval": judged["accuracy_cluster"] or judged["accuracy_wilson"]}


def by_dataset(p: Predictions) -> list[dict[str, Any]]:
    """A summary per dataset where the table joins several; else nothing."""
    found = sorted(set(p.dataset))
    if len(found) < 2:
        return []
    rows = []
    for name in found:
        where = p.dataset == name
        classes = [display_name(p.classes[c]) for c in np.unique(p.label[where])]
        rows.append({"name": name, "n": int(where.sum()), "classes": classes, **headline(p.evaluate(where))})
    return rows


def card(p: Predictions, i: int, examples: dict[int, Example]) -> dict[str, Any]:
    """One answer with its picture, where there is one."""
    example = examples.get(int(p.row[i]))
    heat = None if example is None or example.heat is None else example.heat
    return {
        "key": p.key[i],
        "dataset": p.dataset[i],
        "patient": p.patient[i],
        "true": display_name(p.classes[p.label[i]]),
        "said": display_name(p.classes[p.predicted[i]]),
        "prob_true": float(p.prob[i, p.label[i]]),
        "prob_said": float(p.prob[i].max()),
        "picture": None if example is None else jpeg_url(example.picture),
        "overlay": None if example is None or heat is None else jpeg_url(plots.overlay(example.picture, heat)),
        "empty_map": heat is not None and not heat.any(),
    }


def data_facts(files: RunFiles) -> dict[str, Any] | None:
    """What the manifest says of the data, for people."""
    if files.dataset is None:
        return None
    manifest, columns = files.dataset.manifest, files.dataset.columns
    groups = {split: len(set(columns["group"][columns["split"] == split])) for split in SPLITS}
    patients = {split: len(set(columns["patient"][columns["split"] == split]) - {None}) for split in SPLITS}
    return {"manifest": manifest, "groups": groups, "patients": patients}
