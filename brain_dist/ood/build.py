"""Fit the outlier detector of a run: choose a score by made-up outliers, and its threshold by validation patients."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.collection.measures import head_and_thumbnails
from brain_dist.collection.pixels import store_image, store_values
from brain_dist.common.files import check_writable, writing
from brain_dist.common.progress import show_activity
from brain_dist.errors import UserError
from brain_dist.inference.features import forward, row_outputs
from brain_dist.inference.network import run_contract
from brain_dist.inference.run import LoadedRun, load_run
from brain_dist.ood.kinds import KINDS
from brain_dist.ood.record import FILE, Detector, write_detector
from brain_dist.ood.scores import METHODS, Reference, fit

if TYPE_CHECKING:
    from brain_dist.stream.contract import Contract

CHOICE_IMAGES = 100  # validation images that made-up outliers are made from
SEED = 0


def fit_outliers(
    run: Path, *, method: str = "auto", alpha: float = 0.02, limit: int = 2000, step: int | str | None = None,
    shards: str | None = None, micro_batch: int = 32, device: str = "auto",
) -> None:  # fmt: skip
    """Write ``outliers.safetensors`` of a run, and print how its score was chosen.

    Args:
        run: the run's folder.
        method: one of :data:`~brain_dist.ood.scores.METHODS`, or "auto": the one with the largest mean AUROC over
            the kinds of :mod:`brain_dist.ood.kinds`.
        alpha: wanted share of false alarms among images like those of the training.
        limit: most training images that the score is fitted on.
        step: see :func:`brain_dist.inference.run.load_run`.
        shards: where the run's own shards are now.
        micro_batch: images per forward pass.
        device: auto, cpu or cuda.

    Raises:
        UserError: an option does not fit, or the run or its shards cannot be used.
        Fault: the memory of the device or the disk is full.
    """
    from brain_dist.ranks.device import choose_device
    from brain_dist.ranks.group import clear_faults
    from brain_dist.ranks.world import discover

    if method not in ("auto", *METHODS):
        raise UserError(f"--method {method}: must be auto, {', '.join(METHODS)}")
    if not 0 < alpha < 0.5:
        raise UserError(f"--alpha {alpha}: must be above 0 and below 0.5, such as 0.02")
    if micro_batch < 1 or limit < 1:
        raise UserError("--batch and --limit must be ≥ 1")
    check_writable(run, "make it writable")
    loaded = load_run(run, step=step, shards=shards, device=str(choose_device(discover({}), device)))
    if loaded.dataset.version != loaded.trained_version:
        raise UserError(f"{loaded.dataset.root} is not what {run} was trained on; the detector needs its own shards")
    contract = run_contract(run, loaded.step)
    assert contract.weights is not None
    rng = np.random.default_rng(SEED)
    train = np.sort(rng.permutation(loaded.rows("train"))[:limit])
    validation = loaded.rows("val")
    with clear_faults(f"lower --batch {micro_batch}"), show_activity("measuring images"):
        features, _ = row_outputs(loaded, train, micro_batch=micro_batch)
        label = loaded.dataset.columns["label"][train].astype(np.int64)
        own = row_outputs(loaded, validation, micro_batch=micro_batch)
        references = {name: fit(name, features, label) for name in (METHODS if method == "auto" else (method,))}
        auroc = _choose(loaded, contract, validation, own, references, micro_batch) if method == "auto" else {}
    chosen = max(auroc, key=lambda name: float(np.mean(list(auroc[name].values())))) if auroc else method
    group = loaded.dataset.columns["group"][validation]
    detector = calibrated(references[chosen], *own, group, alpha, contract.weights.sha256, auroc)
    with writing(run):
        write_detector(run, detector)
    _print(run, detector, len(train), len(validation))


def calibrated(
    reference: Reference, features: np.ndarray, logits: np.ndarray, group: np.ndarray, alpha: float, weights: str,
    auroc: dict[str, dict[str, float]],
) -> Detector:  # fmt: skip
    """The detector whose p-values come from validation images with features [N, D], logits [N, K] and groups [N]."""
    names, number, size = np.unique(group.astype(str), return_inverse=True, return_counts=True)
    score = reference.scores(features, logits)
    order = np.argsort(score, kind="stable")
    return Detector(reference, score[order], (1 / size[number])[order], len(names), alpha, weights, auroc)


def fewest_groups(alpha: float) -> int:
    """The number of patients from which on a p-value can be below ``alpha``."""
    return math.floor(1 / Fraction(str(alpha)))


def _choose(
    loaded: LoadedRun, contract: Contract, rows: np.ndarray, own: tuple[np.ndarray, np.ndarray],
    references: dict[str, Reference], micro_batch: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Method → kind → AUROC of made-up outliers against validation images."""
    from sklearn.metrics import roc_auc_score

    auroc: dict[str, dict[str, float]] = {name: {} for name in references}
    grays = _gray_images(loaded, rows[evenly_spaced(len(rows), CHOICE_IMAGES)])
    for kind, change in KINDS.items():
        rng = np.random.default_rng(SEED)
        pixels = [see(change(gray, rng), contract) for gray in grays]
        outputs = [
            forward(loaded.model, loaded.normalize(_tensor(loaded, pixels[start : start + micro_batch])))
            for start in range(0, len(pixels), micro_batch)
        ]
        features, logits = (np.concatenate([output[k] for output in outputs]) for k in (0, 1))
        for name, reference in references.items():
            score = np.concatenate([reference.scores(*own), reference.scores(features, logits)])
            unlike = np.arange(len(score)) >= len(rows)
            auroc[name][kind] = float(roc_auc_score(unlike, score))
    return auroc


def evenly_spaced(length: int, most: int) -> np.ndarray:
    """Positions int64 [≤ ``most``] of 0..length-1 at equal distances, with the first and the last.

    The collections of joined shards follow each other in the index, and each has its share of these.
    """
    return np.linspace(0, length - 1, min(length, most)).round().astype(np.int64)


def see(gray: np.ndarray, contract: Contract) -> np.ndarray:
    """What the network sees of a picture uint8 [H, W]: uint8 [S, S]."""
    stored = store_values(np.ascontiguousarray(gray), "L", contract.smaller)
    return contract.pixels(stored, head_and_thumbnails(stored.pixels)[0])


def _gray_images(loaded: LoadedRun, rows: np.ndarray) -> list[np.ndarray]:
    from brain_dist.store.reader import ShardReader

    reader = ShardReader(loaded.dataset)
    return [store_image(reader.read(row)).pixels for row in rows.tolist()]


def _tensor(loaded: LoadedRun, pixels: list[np.ndarray]) -> Any:
    import torch

    channels = 1 if loaded.config.data.color == "gray" else 3
    return torch.from_numpy(np.stack(pixels)[:, None].repeat(channels, axis=1)).to(loaded.device)


def _print(run: Path, detector: Detector, train: int, validation: int) -> None:
    for name, by_kind in detector.auroc.items():
        values = ", ".join(f"{kind} {value:.3f}" for kind, value in by_kind.items())
        print(f"  {name}: AUROC {values}")
    how = "chosen by these" if detector.auroc else "as asked for"
    print(f"score: {detector.reference.method}, {how}, fitted on {train:,} training images")
    print(
        f"p-values by {validation:,} validation images of {detector.groups:,} patients; below {detector.limit:g} an"
        " image is not like the training"
    )
    needed = fewest_groups(detector.limit)
    if detector.groups < needed:
        print(f"with fewer than {needed:,} patients no p-value is below {detector.limit:g}: choose a larger --alpha")
    print(f"detector: {run / FILE}")
