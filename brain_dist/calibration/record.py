"""The calibration of a run's checkpoint, ``calibration.json``: what prediction and serving apply to its logits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.calibration.conformal import METHODS, SCORES, Threshold, fit_method
from brain_dist.calibration.scaling import fit_temperature, fit_vector, scaled
from brain_dist.common.records import read_record
from brain_dist.errors import UserError
from brain_dist.judging.clusters import number_clusters
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import Refusal

FILE = "calibration.json"
SCHEMA = 1


@dataclass(frozen=True)
class Calibration:
    """Parameters fitted on the validation logits of one checkpoint. A ``str`` says why a value is missing.

    Attributes:
        run: name of the run.
        step: optimiser steps of the checkpoint; 0 for adopted predictions.
        dataset_version: sha256 of the manifest of the shards of the fit.
        classes: names of the K classes.
        images, groups: size of the fit.
        temperature: the probabilities are softmax(logit / temperature).
        vector: ``weight`` and ``bias`` of each class; to compare, it is not applied.
        alpha: wanted share of sets without the true class.
        thresholds: for each of :data:`~brain_dist.calibration.conformal.METHODS` the :class:`Threshold` of each class.
            The scores are of softmax(logit): with the temperature, the same images would be used twice.
    """

    run: str
    step: int
    dataset_version: str
    classes: tuple[str, ...]
    images: int
    groups: int
    temperature: float | str
    vector: dict[str, list[float]] | str
    alpha: float
    thresholds: dict[str, list[Threshold] | str]

    def probabilities(self, logit: np.ndarray) -> np.ndarray:
        """Calibrated probabilities float64 [N, K] of logits [N, K]; those of the network if no temperature fits."""
        return scaled(logit, 1.0 if isinstance(self.temperature, str) else 1 / self.temperature)

    def vector_probabilities(self, logit: np.ndarray) -> np.ndarray | None:
        """Probabilities float64 [N, K] by vector scaling of logits [N, K], or None if it was refused."""
        if isinstance(self.vector, str):
            return None
        return scaled(logit, np.array(self.vector["weight"]), np.array(self.vector["bias"]))

    def sets(self, logit: np.ndarray, method: str) -> np.ndarray | None:
        """Whether each class is in the set of each image, bool [N, K], for logits [N, K]; None if it was refused."""
        thresholds = self.thresholds[method]
        if isinstance(thresholds, str):
            return None
        return SCORES[method](logit) <= np.array([threshold.value for threshold in thresholds])


def fit_calibration(predictions: Predictions, alpha: float) -> Calibration:
    """Fit temperature, vector scaling and the thresholds of sets on a predictions table."""
    label, logit, cluster = predictions.label, predictions.logit, number_clusters(predictions.group)
    temperature: float | str
    try:
        temperature = fit_temperature(label, logit)
    except Refusal as refusal:
        temperature = str(refusal)
    vector: dict[str, list[float]] | str
    try:
        weight, bias = fit_vector(label, logit, cluster)
        vector = {"weight": weight.tolist(), "bias": bias.tolist()}
    except Refusal as refusal:
        vector = str(refusal)
    thresholds: dict[str, list[Threshold] | str] = {}
    for method in METHODS:
        try:
            thresholds[method] = fit_method(method, label, logit, cluster, alpha)
        except Refusal as refusal:
            thresholds[method] = str(refusal)
    return Calibration(
        run=predictions.run,
        step=predictions.step,
        dataset_version=predictions.dataset_version,
        classes=predictions.classes,
        images=len(predictions),
        groups=int(cluster.max()) + 1,
        temperature=temperature,
        vector=vector,
        alpha=alpha,
        thresholds=thresholds,
    )


def calibration_json(calibration: Calibration, judged: dict[str, Any]) -> str:
    """The text of ``calibration.json``: the calibration, and what it gives on ``judged`` tables."""
    return json.dumps({"schema": SCHEMA, **asdict(calibration), "judged": judged}, indent=1, allow_nan=False) + "\n"


def read_calibration(run: Path) -> Calibration | None:
    """The calibration in the folder of a run, or None if there is none.

    Raises:
        UserError: the file cannot be read.
    """
    path = run / FILE
    if not path.is_file():
        return None
    advice = "write it again with `brain-dist calibrate`"
    content = read_record(path, advice, {"schema": int, "thresholds": dict, "classes": list})
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        thresholds = {
            method: value if isinstance(value, str) else [Threshold(**each) for each in value]
            for method, value in content["thresholds"].items()
        }
        values = {name: content[name] for name in Calibration.__dataclass_fields__}
        return Calibration(**values | {"thresholds": thresholds, "classes": tuple(content["classes"])})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); {advice}") from None
