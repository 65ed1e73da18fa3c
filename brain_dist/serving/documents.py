"""Predictions, maps and the model as JSON."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from brain_dist import __version__
from brain_dist.prediction.answers import Prediction, calibration_in_use
from brain_dist.prediction.outputs import Model
from brain_dist.prediction.predictor import Predictor
from brain_dist.prediction.table import DIGITS, SCHEMA
from brain_dist.serving.maps import class_maps

NOTICE = "Not a medical device. For research only; not for diagnosis or treatment."


def prediction_document(prediction: Prediction, classes: tuple[str, ...]) -> dict[str, Any]:
    """A prediction with the values and the rounding of the table of `brain-dist predict`."""
    return {
        "frame": prediction.frame,
        "label": prediction.label,
        "probability": _rounded(prediction.probability),
        "probabilities": {name: _rounded(prediction.probabilities.get(name)) for name in classes},
        "set": None if prediction.set is None else list(prediction.set),
        "ood_p": _rounded(prediction.ood_p),
        "verdict": prediction.verdict,
        "error": prediction.error,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def model_document(predictor: Predictor, limits: dict[str, float], about: dict[str, Any]) -> dict[str, Any]:
    """What is served: classes, calibration, preprocessing, limits, speed, and what it is not.

    Args:
        predictor: the model.
        limits: of a file, see :meth:`~brain_dist.serving.settings.Settings.limits`.
        about: name, card, speed and method of maps of the model.
    """
    contract, detector = predictor.contract, predictor.model.detector
    calibration, weights = calibration_in_use(contract), contract.weights
    has_sets = calibration is not None and calibration.threshold is not None
    return {
        "notice": NOTICE,
        "version": __version__,
        "schema": SCHEMA,
        **about,
        "classes": list(contract.classes),
        "step": None if weights is None else weights.step,
        "weights": None if weights is None else weights.sha256,
        "dataset_version": contract.dataset_version,
        "input_size": contract.size,
        "calibrated": calibration is not None,
        "coverage": 1 - calibration.alpha if calibration is not None and has_sets else None,
        "ood": None if detector is None else {"method": detector.reference.method, "limit": detector.limit,
                                              "patients": detector.groups},
        "limits": limits,
    }  # fmt: skip


def explanation(model: Model, image: np.ndarray, frame: int | None) -> dict[str, Any]:
    """What the network saw, and for each class the map of what raised its score, as PNG files in base64.

    Args:
        model: the model.
        image: uint8 [S, S] or [S, S, 3].
        frame: number of the slice.
    """
    maps = class_maps(model, image)
    levels = None if maps is None else np.rint(255 * maps).astype(np.uint8)
    classes = model.contract.classes
    return {
        "frame": frame,
        "image": _png(image),
        "maps": {} if levels is None else {name: _png(level) for name, level in zip(classes, levels, strict=True)},
    }


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
