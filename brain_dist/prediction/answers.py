"""What a prediction says: label, probabilities, set of classes, and whether the image is like the training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brain_dist.stream.contract import CalibrationEntry, Contract

OK, UNSURE, UNLIKE = "ok", "unsure", "not_like_training"
MEAN = "mean"  # the frame of the row of a whole file


@dataclass(frozen=True)
class Prediction:
    """What a model says about one slice, or about all slices of a file.

    Attributes:
        path: the file; an image from memory is called ``image[N]``.
        frame: number of the slice in the file, None if the file has only one, or ``mean``: the mean of the logarithms
            of the probabilities over the file's slices that are like the training's.
        label: the class with the largest probability; None if there is an error.
        probability: that probability, calibrated if the run is.
        probabilities: class → probability.
        set: the classes that contain the true one with the probability that calibration was asked for; None without it.
        ood_p: share of validation patients with an image at least as unlike the training as this one; None if the
            run was not measured.
        verdict: ``ok``; ``unsure`` if the set is not one class; ``not_like_training`` if the image is unlike the
            training images, blank, or of another modality than MR; None if nothing is known of these.
        error: why the file cannot be predicted; None if it can.
        image: what the network saw, uint8 [S, S] or [S, S, 3]; None for an error or a mean.
    """

    path: str
    frame: int | str | None = None
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    set: tuple[str, ...] | None = None
    ood_p: float | None = None
    verdict: str | None = None
    error: str | None = None
    image: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        place = self.path if self.frame is None else f"{self.path} [{self.frame}]"
        if self.error is not None:
            return f"{place}: {self.error}"
        text = f"{place}: {self.label} {self.probability:.3f}"
        if self.set is not None:
            text += f", set {{{', '.join(self.set)}}}"
        return text if self.verdict in (None, OK) else f"{text}, {self.verdict}"


def answer(
    path: str, frame: int | None, image: np.ndarray, logit: np.ndarray, ood_p: float | None, contract: Contract, *,
    unlike: bool, limit: float,
) -> Prediction:  # fmt: skip
    """The prediction for an image.

    Args:
        path: its file.
        frame: its number in the file.
        image: its pixels.
        logit: [K].
        ood_p: see :class:`Prediction`.
        contract: classes and calibration.
        unlike: whether the file already says that it is unlike the training.
        limit: an ``ood_p`` below this is unlike the training.
    """
    logit = np.asarray(logit, dtype=np.float64)
    plain = softmax(logit)
    calibration = calibration_in_use(contract)
    probability = plain if calibration is None else softmax(logit / calibration.temperature)
    members = None
    if calibration is not None and calibration.threshold is not None:
        inside = 1 - plain <= calibration.threshold
        members = tuple(name for name, member in zip(contract.classes, inside, strict=True) if member)
    verdict = None
    if unlike or (ood_p is not None and ood_p < limit):
        verdict = UNLIKE
    elif members is not None:
        verdict = OK if len(members) == 1 else UNSURE
    elif ood_p is not None:
        verdict = OK
    best = int(probability.argmax())
    return Prediction(
        path, frame, contract.classes[best], float(probability[best]),
        dict(zip(contract.classes, probability.tolist(), strict=True)), members, ood_p, verdict, None, image,
    )  # fmt: skip


def calibration_in_use(contract: Contract) -> CalibrationEntry | None:
    """The calibration if it was fitted for the weights that are used, else None."""
    calibration, weights = contract.calibration, contract.weights
    return calibration if calibration and weights and weights.step == calibration.step else None


def mean_of_slices(predictions: list[Prediction]) -> Prediction | None:
    """The row ``mean`` of several slices; None if there is one slice, or none that is like the training."""
    usable = [each for each in predictions if each.error is None and each.verdict != UNLIKE]
    if len(predictions) < 2 or not usable:
        return None
    classes = list(usable[0].probabilities)
    values: Any = np.array([[each.probabilities[name] for name in classes] for each in usable])
    mean = softmax(np.log(np.maximum(values, 1e-300)).mean(axis=0))
    best = int(mean.argmax())
    return Prediction(
        usable[0].path, MEAN, classes[best], float(mean[best]), dict(zip(classes, mean.tolist(), strict=True))
    )


def softmax(logit: np.ndarray) -> np.ndarray:
    """Probabilities float64 [K] of logits [K]."""
    exponential = np.exp(logit - np.max(logit))
    return exponential / exponential.sum()
