"""The matrix of training collections × test collections, from predictions tables alone.

Every model is judged twice on the classes that both collections have: with all probabilities as they are, and with the
probabilities renormalised over these classes. Images of other classes are counted and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.clusters import (
    RESAMPLES,
    SEED,
    ClassGroups,
    Resampled,
    number_clusters,
    require_clusters,
    resample,
)
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import Refusal, or_refusal
from brain_dist.judging.weighted import WeightedMetrics
from brain_dist.judging.within import mean_over_patients, within_patient_auc

NO_TUMOUR, TUMOUR = "notumor", "tumor"
NO_SEED = "no seed is finished in both"
ONE_CLASS = "one class"  # among one class every answer is right
NOT_TRAINED = "not trained on"  # ends the reason of images of a class that training did not have
METRICS = ("accuracy", "balanced_accuracy")
HEADLINE = "balanced_accuracy"  # collections differ in how common their classes are


@dataclass(frozen=True)
class Judged:
    """One model, trained on one collection and tested on another: the images that count, once for each seed.

    Attributes:
        classes: the shared classes.
        label: positions in ``classes``, int64 [N].
        cluster: number of each image's group, int64 [N].
        full: probabilities of all classes, with the shared ones first, float64 [S, N, K].
        left_out: reason → images that do not count.
        seeds: the S seeds, in the order of ``full``.
    """

    classes: tuple[str, ...]
    label: np.ndarray
    cluster: np.ndarray
    full: np.ndarray
    left_out: dict[str, int]
    seeds: tuple[int, ...]

    def require_groups(self, name: str) -> None:
        """Raise a Refusal if a class has too few groups for an interval of this metric."""
        ClassGroups.count(self.label, self.cluster, self.classes).check(name)

    def of_seeds(self, seeds: Sequence[int]) -> Judged:
        """The trainings with these seeds, in this order."""
        return replace(self, seeds=tuple(seeds), full=self.full[[self.seeds.index(seed) for seed in seeds]])

    @property
    def renormalised(self) -> np.ndarray:
        """Probabilities among the shared classes, float64 [S, N, shared]."""
        shared = self.full[..., : len(self.classes)]
        total = shared.sum(axis=2, keepdims=True)
        return np.divide(shared, total, out=np.full_like(shared, 1 / shared.shape[2]), where=total > 0)

    def resampled(
        self, name: str, *, all_classes: bool, seed: int, resamples: int = RESAMPLES
    ) -> tuple[Resampled, list[float]]:
        """A metric as the mean over the seeds, resampled over groups, and its value of each seed."""
        prob = self.full if all_classes else self.renormalised
        statistics = [WeightedMetrics(self.label, each, self.cluster, [name]) for each in prob]
        drawn = resample(
            lambda weights: np.concatenate([statistic(weights) for statistic in statistics], axis=1),
            self.cluster, resamples, seed,
        )  # fmt: skip
        return drawn.mean(list(range(len(prob)))), drawn.estimate.tolist()

    def sensitivities(self) -> dict[str, float | None]:
        """Class → its sensitivity among the shared classes, the mean over the seeds; None without images or choice."""
        if len(self.classes) < 2:
            return dict.fromkeys(self.classes)
        hit = self.renormalised.argmax(axis=2) == self.label
        return {
            name: float(hit[:, self.label == c].mean()) if (self.label == c).any() else None
            for c, name in enumerate(self.classes)
        }


def with_classes(predictions: Predictions, classes: Sequence[str]) -> Predictions:
    """Predictions as those of other ``classes``: the same ones, or notumor and tumor.

    Raises:
        UserError: the classes do not fit.
    """
    if tuple(classes) == predictions.classes:
        return predictions
    if set(classes) != {NO_TUMOUR, TUMOUR} or NO_TUMOUR not in predictions.classes:
        raise UserError(
            f"the classes {', '.join(predictions.classes)} have no common meaning with {', '.join(classes)}"
        )
    target = np.array([classes.index(name if name == NO_TUMOUR else TUMOUR) for name in predictions.classes])
    prob = np.zeros((len(predictions), 2), dtype=np.float32)
    np.add.at(prob.T, target, predictions.prob.T)
    logit = np.log(np.maximum(prob, 1e-12))
    return replace(predictions, classes=tuple(classes), label=target[predictions.label], prob=prob, logit=logit)


def trained_classes(counts: Mapping[str, int], classes: Sequence[str]) -> list[str]:
    """Those of ``classes`` that a training had images of; ``counts`` are its images by its own classes.

    ``tumor`` means every class but notumor.
    """
    own = {name for name, number in counts.items() if number}
    tumours = bool(own - {NO_TUMOUR})
    return [name for name in classes if name in own or (name == TUMOUR and tumours)]


def select(tables: Mapping[int, Predictions], classes: Sequence[str], shared: Sequence[str]) -> Judged:
    """The images of tables of one model, one for each seed, that have a shared class and were not known to training.

    Args:
        tables: seed → table.
        classes: classes of the comparison, into which the tables' are joined if they differ.
        shared: those of ``classes`` that count.

    Raises:
        UserError: the tables have other images, or no image is left.
    """
    first = next(iter(tables.values()))
    if any(not np.array_equal(table.row, first.row) for table in tables.values()):
        raise UserError(f"the tables of {first.run} have other images than those of another seed; evaluate them again")
    reasons = Counter[str]()
    if first.known is not None and not first.allow_known:
        reasons.update(first.known[first.is_known].tolist())
    kept = [with_classes(table.headline, classes) for table in tables.values()]
    label = kept[0].label
    order = [
        *(list(classes).index(name) for name in shared),
        *(c for c, name in enumerate(classes) if name not in shared),
    ]
    position = np.argsort(order)[label]
    images = position < len(shared)
    for c in np.unique(label[~images]):
        reasons[f"{classes[c]}: {NOT_TRAINED}"] = int((label == c).sum())
    if not images.any():
        raise UserError(f"no image of the classes {', '.join(shared)} is left")
    return Judged(
        classes=tuple(shared),
        label=position[images],
        cluster=number_clusters(kept[0].group[images]),
        full=np.stack([table.prob[images][:, order].astype(np.float64) for table in kept]),
        left_out=dict(reasons),
        seeds=tuple(tables),
    )


def entry(judged: Judged) -> dict[str, Any]:
    """The results of one model in one cell of the matrix.

    Returns:
        ``images``, ``groups``, ``classes``, ``left_out``, ``of_seeds``; ``M`` and ``M_full`` for each of
        :data:`METRICS`, among the shared classes and among all: ``value``, ``seeds``, ``sd`` (None with one seed), and
        the ``interval`` over groups or why it is ``refused``; ``sensitivity`` by class, and the ``worst_class``. With
        one shared class, ``M`` is ``refused``, and sensitivity and worst class are None. If the classes are notumor and
        tumor and a group has both, also ``within``: the mean area under the ROC curve of each group with both, as
        ``M``, and the number of these ``groups``.
    """
    sensitivity = judged.sensitivities()
    defined = {name: value for name, value in sensitivity.items() if value is not None}
    row: dict[str, Any] = {
        "images": len(judged.label), "groups": int(judged.cluster.max()) + 1, "classes": list(judged.classes),
        "left_out": judged.left_out, "of_seeds": list(judged.seeds), "sensitivity": sensitivity,
        "worst_class": min(defined, key=defined.__getitem__) if defined else None,
    }  # fmt: skip
    for name in METRICS:
        for suffix, all_classes in (("", False), ("_full", True)):
            alone = len(judged.classes) < 2 and not all_classes
            result = judged.resampled(name, all_classes=all_classes, seed=SEED) if not alone else None
            row[name + suffix] = (
                _summary(*result, partial(judged.require_groups, name)) if result else {"refused": ONE_CLASS}
            )
    return row | _within(judged)


def _within(judged: Judged) -> dict[str, Any]:
    """``within`` of :func:`entry`, or nothing."""
    values = _areas(judged)
    if not len(values):
        return {}
    drawn = mean_over_patients(values)
    summary = _summary(drawn.mean(list(range(values.shape[1]))), drawn.estimate.tolist())
    return {"within": {**summary, "groups": len(values)}}


def _areas(judged: Judged) -> np.ndarray:
    """The area under the ROC curve of each group with both classes, float64 [G, seeds]; empty if none has both."""
    if set(judged.classes) != {NO_TUMOUR, TUMOUR}:
        return np.empty((0, len(judged.full)))
    tumour = judged.classes.index(TUMOUR)
    areas = [
        within_patient_auc(prob[:, tumour], judged.label == tumour, judged.cluster)[0] for prob in judged.renormalised
    ]
    return np.stack(areas, axis=1)


def tumour_auc(judged: Judged) -> dict[str, Any]:
    """The area under the ROC curve of tumour against no tumour, as ``M`` of :func:`entry`; empty if that is undefined.

    The score of an image is the sum of the probabilities of its tumour classes.
    """
    if NO_TUMOUR not in judged.classes or len(set((judged.label == judged.classes.index(NO_TUMOUR)).tolist())) < 2:
        return {}
    without = judged.classes.index(NO_TUMOUR)
    free = judged.full[:, :, without] / judged.full.sum(axis=2)
    binary = Judged(
        (NO_TUMOUR, TUMOUR), (judged.label != without).astype(np.int64), judged.cluster,
        np.stack([free, 1 - free], axis=2), {}, judged.seeds,
    )  # fmt: skip
    drawn, seeds = binary.resampled("auc_macro", all_classes=True, seed=SEED, resamples=RESAMPLES // 10)
    return _summary(drawn, seeds, partial(binary.require_groups, "auc_macro"))


def gain(judged: Judged, baseline: Judged, name: str = HEADLINE) -> dict[str, Any]:
    """How much better a model is than another one on the same images, as ``M`` of :func:`entry`.

    Both results are resampled with the same weights of the groups: the difference is paired. ``within`` is the gain of
    the mean area under the ROC curve within groups; it is missing where :func:`entry` has no such value. Only the seeds
    that both have count, each beside the same one; they are ``of_seeds``. Without such seeds, and with one shared
    class, the gain is ``refused``.

    Raises:
        UserError: the two have other images.
    """
    if not np.array_equal(judged.label, baseline.label):
        raise UserError("a gain needs predictions of the same images")
    numbers = common_seeds(judged, baseline)
    if not numbers or len(judged.classes) < 2:
        return {"refused": ONE_CLASS if numbers else NO_SEED}
    judged, baseline = judged.of_seeds(numbers), baseline.of_seeds(numbers)
    (own, seeds), (other, others) = (each.resampled(name, all_classes=False, seed=SEED) for each in (judged, baseline))
    difference = Resampled(own.estimate - other.estimate, own.values - other.values, own.jackknife - other.jackknife)
    differences = [a - b for a, b in zip(seeds, others, strict=True)]
    row = {"of_seeds": numbers, **_summary(difference, differences, partial(judged.require_groups, name))}
    areas = [_areas(each) for each in (judged, baseline)]
    if not len(areas[0]):
        return row
    drawn = mean_over_patients(areas[0] - areas[1])
    return row | {"within": _summary(drawn.mean(list(range(len(judged.full)))), drawn.estimate.tolist())}


def drop(internal: Judged, external: Judged, name: str = HEADLINE) -> dict[str, Any]:
    """Internal minus external result of the same trained networks, on the classes that both have.

    Two spreads are apart: ``sd`` is that of the differences of each seed (what another training could change), the
    ``interval`` resamples the groups of both test sets, which are independent (what other patients could change). Only
    the seeds that both have count, each beside the same one; they are ``of_seeds``, or the drop is ``refused``.
    """
    numbers = common_seeds(internal, external)
    if not numbers:
        return {"refused": NO_SEED}
    internal, external = internal.of_seeds(numbers), external.of_seeds(numbers)
    inside, seeds = internal.resampled(name, all_classes=False, seed=SEED)
    outside, others = external.resampled(name, all_classes=False, seed=SEED + 1)
    difference = Resampled(
        inside.estimate - outside.estimate,
        inside.values - outside.values,
        np.concatenate([inside.jackknife - outside.estimate, inside.estimate - outside.jackknife]),
    )
    values = [a - b for a, b in zip(seeds, others, strict=True)]

    def require_groups() -> None:
        for judged, drawn in ((internal, inside), (external, outside)):  # each of the two needs its own ten
            require_clusters(len(drawn.jackknife))
            judged.require_groups(name)

    return {"of_seeds": numbers, **_summary(difference, values, require_groups)}


def common_seeds(one: Judged, other: Judged) -> list[int]:
    """The seeds of ``one`` that ``other`` has, too."""
    return [seed for seed in one.seeds if seed in other.seeds]


def _spread(seeds: list[float]) -> dict[str, Any]:
    values = [None if np.isnan(value) else value for value in seeds]
    defined = [value for value in values if value is not None]
    return {
        "value": float(np.mean(defined)) if len(defined) == len(values) else None,
        "seeds": values,
        "sd": float(np.std(defined, ddof=1)) if len(defined) == len(values) > 1 else None,
    }


def _summary(drawn: Resampled, seeds: list[float], require_groups: Callable[[], None] | None = None) -> dict[str, Any]:
    """Value, seeds, spread, and the interval or why it is refused, by ``require_groups``, too."""

    def interval() -> dict[str, Any]:
        if require_groups is not None:
            require_groups()
        if np.isnan(drawn.estimate):
            raise Refusal("undefined for these images")
        return {"interval": drawn.bca()}

    return {**_spread(seeds), **or_refusal(interval)}


def confounded(dataset: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Where class and collection are the same thing among training images, in sentences; empty if nowhere.

    Args:
        dataset: collection of each image, str [N] (object array).
        label: class of each image, int64 [N].
        classes: names of the classes.
    """
    collections = sorted(set(dataset))
    if len(collections) < 2:
        return []
    names = np.array(classes, dtype=object)[label]
    contents = {collection: set(names[dataset == collection]) for collection in collections}
    sentences = []
    if NO_TUMOUR in classes and all(len({name == NO_TUMOUR for name in content}) == 1 for content in contents.values()):
        without = [collection for collection, content in contents.items() if content == {NO_TUMOUR}]
        if 0 < len(without) < len(collections):
            sentences.append(
                f"tumour or no tumour and collection are the same thing here: all images without tumour are from"
                f" {', '.join(without)}, and none of the others"
            )
    for name in sorted(set(names)):
        only = [collection for collection, content in contents.items() if name in content]
        if name != NO_TUMOUR and len(only) == 1 and contents[only[0]] == {name}:
            sentences.append(f"{name} and {only[0]} are the same thing here")
    return sentences
