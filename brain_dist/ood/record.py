"""The outlier detector of a run's checkpoint, ``outliers.safetensors``: a score, and what validation patients score.

The p-value of an image with score s is (1 + Σ w) / (G + 1), where the sum is over the validation images that score s or
more, and the images of each of the G patients share the weight 1. For a random image of a new patient from the same
source it is at most α with probability at most α (as for the sets of :mod:`brain_dist.calibration.conformal`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brain_dist.common.files import write_atomically
from brain_dist.errors import UserError
from brain_dist.ood.scores import Reference

FILE = "outliers.safetensors"
SCHEMA = 1
_ADVICE = "write it again with `brain-dist outliers`"


@dataclass(frozen=True)
class Detector:
    """A fitted score and its calibration.

    Attributes:
        reference: the score.
        score: float64 [N], ascending, of the validation images.
        weight: float64 [N], 1 / images of the same patient.
        groups: number of patients, G.
        limit: an image with a smaller p-value is not like the training.
        weights: sha256 (hex) of the network's weights.
        auroc: method → kind of made-up outlier → AUROC, by which the method was chosen; empty if the user chose it.
    """

    reference: Reference
    score: np.ndarray
    weight: np.ndarray
    groups: int
    limit: float
    weights: str
    auroc: dict[str, dict[str, float]]

    def p_values(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """p-values float64 [N] of images with features [N, D] and logits [N, K]."""
        score = self.reference.scores(features, logits)
        above = np.concatenate([[0.0], np.cumsum(self.weight[::-1])])[::-1]  # [i]: weight of the images from i on
        return (1 + above[np.searchsorted(self.score, score, side="left")]) / (self.groups + 1)


def write_detector(run: Path, detector: Detector) -> None:
    """Write the detector of a run."""
    from safetensors.numpy import save

    about = {
        "schema": SCHEMA, "method": detector.reference.method, "groups": detector.groups, "limit": detector.limit,
        "weights": detector.weights, "auroc": detector.auroc,
    }  # fmt: skip
    tensors = {
        "centres": detector.reference.centres, "whitening": detector.reference.whitening, "score": detector.score,
        "weight": detector.weight,
    }  # fmt: skip
    contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    write_atomically(run / FILE, save(contiguous, metadata={"brain_dist": json.dumps(about)}))


def read_detector(folder: Path) -> Detector | None:
    """The detector in the folder of a run, or None if there is none.

    Raises:
        UserError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["brain_dist"])
            if about["schema"] != SCHEMA:
                raise ValueError(f"schema {about['schema']}")
            tensors = {name: file.get_tensor(name) for name in ("centres", "whitening", "score", "weight")}
        reference = Reference(about["method"], tensors["centres"], tensors["whitening"])
        return Detector(
            reference, tensors["score"], tensors["weight"], about["groups"], about["limit"], about["weights"],
            about["auroc"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_ADVICE}") from None
