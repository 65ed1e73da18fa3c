"""Read the predictions of several models and align them image by image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from brain_dist.errors import UserError
from brain_dist.judging.clusters import number_clusters
from brain_dist.judging.predictions import Predictions, read_predictions

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A model that is compared.

    Attributes:
        name: its name.
        sources: its runs or files of predictions.
        adopted: whether the predictions are of a model that was not trained here.
        prob: probabilities float32 [S, N, K] of S runs that differ in their seed.
    """

    name: str
    sources: tuple[str, ...]
    adopted: bool
    prob: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Predicted classes, int64 [S, N]."""
        return self.prob.argmax(axis=2)


@dataclass(frozen=True)
class Tables:
    """Predictions of several models for the same N images.

    Attributes:
        models: the models, in the order of the command.
        classes: names of the K classes.
        label: true classes, int64 [N].
        cluster: number of each image's group, int64 [N] in 0..I-1: a patient with all images, and copies.
        dataset, split, version: the image's collection, split and dataset version, str [N] (object arrays).
        fold: int64 [N], the fold that was the test split; -1 without folds.
        folds: int64 [N], number of folds of the image's dataset version; 0 without folds.
        known: number of images that are left out, because training of one of the models knew them.
        not_compared: why it is not known whether training knew the images, or None.
    """

    models: tuple[Model, ...]
    classes: tuple[str, ...]
    label: np.ndarray
    cluster: np.ndarray
    dataset: np.ndarray
    split: np.ndarray
    version: np.ndarray
    fold: np.ndarray
    folds: np.ndarray
    known: int
    not_compared: str | None

    def __len__(self) -> int:
        return len(self.label)

    def networks(self, images: np.ndarray | slice = slice(None)) -> int:
        """Number of networks that predicted these images (bool [N]; default: all) for a run: one for each fold."""
        fold = self.fold[images]
        return max(1, len(set(zip(self.version[images][fold >= 0], fold[fold >= 0].tolist(), strict=True))))


def name_models(runs: Sequence[Path], groups: Sequence[str]) -> dict[str, list[Path]]:
    """Name the models of a command line.

    Args:
        runs: models with one run each: folders of runs or files of predictions, which name them.
        groups: models with several runs, each as ``MODEL=RUN,RUN``.

    Returns:
        The name of each model and its runs, in the order given.

    Raises:
        UserError: a group of another form, a run that a group lists twice, or two models with one name.
    """
    models = [(_name(run), [run]) for run in runs]
    for group in groups:
        name, equals, listed = group.partition("=")
        members = [Path(run) for run in listed.split(",") if run]
        if not (name and equals and members):
            raise UserError(f"--group {group}: must be MODEL=RUN,RUN, such as convnext=runs/c0,runs/c1")
        models.append((name, members))
    for name, members in models:
        for run, count in Counter(run.resolve() for run in members).items():
            if count > 1:
                raise UserError(f"--group {name}: {run} is listed {count} times; a run counts once")
    result = dict(models)
    if len(result) < len(models):
        names = [name for name, _ in models]
        double = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two models have the name {double}; name them with --group MODEL=RUN")
    return result


def _name(run: Path) -> str:
    """The name of a model with one run: that of its folder, or of its file."""
    return run.resolve().name.removesuffix(".parquet")


def read_tables(models: Mapping[str, Sequence[Path]], names: Sequence[str], *, fewest: int = 2) -> Tables:
    """Read and align the predictions of models.

    Args:
        models: name of a model → its runs: folders of runs, or files of predictions. Runs of one model either have the
            same images (they differ in their seed) or no image in common (folds).
        names: names of the predictions in a run's folder. All their images are compared.
        fewest: number of models that are needed.

    Raises:
        UserError: fewer than ``fewest`` models; a file is missing or not a predictions table; a name is given twice, or
            two tables of one run have the same images; the images, labels or classes of two models differ.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"--name {name} is given {count} times")
    if len(models) < fewest:
        raise UserError(
            "two or more models are needed; give their runs, or --group MODEL=RUN,RUN for seeds of one model"
        )
    read = {
        model: [part for run in runs for part in (_of_run(run, names) if run.is_dir() else [read_predictions(run)])]
        for model, runs in models.items()
    }
    tables = {model: _runs(model, parts) for model, parts in read.items()}
    first = next(iter(models))
    reference, classes = tables[first][0], read[first][0].classes
    for model, runs in tables.items():
        for other in (part for part in read[model] if part.classes != classes):
            raise UserError(f"{model} has the classes {', '.join(other.classes)}, {first} has {', '.join(classes)}")
        for run in runs:
            _require_same_images(first, reference, model, run)
    left_out = np.any([run["left_out"] for runs in tables.values() for run in runs], axis=0)
    if left_out.all():
        raise UserError("training knew every image; compare on other images, or evaluate with --allow-known")
    columns = {name: values[~left_out] for name, values in reference.items()}
    return Tables(
        models=tuple(
            Model(
                name=model,
                sources=tuple(map(str, models[model])),
                adopted=any(part.adopted is not None for part in read[model]),
                prob=np.stack([run["prob"][~left_out] for run in runs]),
            )
            for model, runs in tables.items()
        ),
        classes=classes,
        cluster=number_clusters(columns["group"]),
        known=int(np.count_nonzero(left_out)),
        not_compared=next((part.not_compared for parts in read.values() for part in parts if part.not_compared), None),
        **{name: columns[name] for name in ("label", "dataset", "split", "version", "fold", "folds")},
    )


def _of_run(run: Path, names: Sequence[str]) -> list[Predictions]:
    """The tables of a run's folder; UserError if two have the same images, which would count as two seeds."""
    parts = [read_predictions(run / "predictions" / f"{name}.parquet") for name in names]
    for (a, first), (b, second) in combinations(zip(names, parts, strict=True), 2):
        if first.dataset_version == second.dataset_version and np.intersect1d(first.row, second.row).size:
            raise UserError(f"{run}: its predictions {a} and {b} have the same images; give one of them with --name")
    return parts


def _runs(model: str, parts: list[Predictions]) -> list[Columns]:
    """One table for each seed of a model, with the images of all its parts."""
    seeds: dict[tuple[str, bytes], list[Predictions]] = {}
    for part in parts:
        seeds.setdefault((part.dataset_version, part.row.tobytes()), []).append(part)
    counts = sorted({len(part) for part in seeds.values()})
    if len(counts) > 1:
        raise UserError(
            f"{model} has {counts[0]} runs for some images and {counts[-1]} for others; give the same number for all"
        )
    return [_joined(model, [part[seed] for part in seeds.values()]) for seed in range(counts[0])]


def _joined(model: str, parts: list[Predictions]) -> Columns:
    """The columns of several tables together, in the order of dataset version and row."""
    columns: Columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("row", "key", "label", "group", "dataset", "split", "prob")
    }
    columns["version"] = np.concatenate([np.full(len(part), part.dataset_version, dtype=object) for part in parts])
    columns["fold"] = np.concatenate([np.full(len(part), -1 if part.fold is None else part.fold) for part in parts])
    columns["folds"] = np.concatenate([np.full(len(part), part.folds or 0) for part in parts])
    columns["left_out"] = np.concatenate([part.is_known & (not part.allow_known) for part in parts])
    order = np.lexsort((columns["row"], columns["version"].astype(str)))
    columns = {name: values[order] for name, values in columns.items()}
    again = (columns["row"][1:] == columns["row"][:-1]) & (columns["version"][1:] == columns["version"][:-1])
    if again.any():
        raise UserError(
            f"{model}: {np.count_nonzero(again):,} images are in two of its tables, first"
            f" {columns['key'][1:][again][0]}; runs of one model must have the same images (seeds) or none in common"
            " (folds)"
        )
    return columns


def _require_same_images(first: str, reference: Columns, model: str, table: Columns) -> None:
    """Raise UserError unless two tables have the same images with the same labels and groups."""
    images, others = (
        dict(zip(zip(side["version"], side["row"].tolist(), strict=True), side["key"], strict=True))
        for side in (reference, table)
    )
    missing = [key for image, key in images.items() if image not in others]
    unexpected = [key for image, key in others.items() if image not in images]
    if missing or unexpected:
        versions = [sorted({version[:8] for version in side["version"]}) for side in (reference, table)]
        shards = "" if versions[0] == versions[1] else (
            f" (dataset versions {', '.join(versions[0])} and {', '.join(versions[1])})"
        )  # fmt: skip
        raise UserError(
            f"{model} and {first} have other images{shards}: of {len(images):,} images of {first}, {len(missing):,} are"
            f" missing in {model}, which has {len(unexpected):,} others, first {(missing or unexpected)[0]};"
            " evaluate both on the same split of the same shards"
        )
    for name in ("label", "group"):
        differs = reference[name] != table[name]
        if differs.any():
            raise UserError(
                f"{model} and {first} have another {name} for {np.count_nonzero(differs):,} images,"
                f" first {table['key'][differs][0]}; write both tables again with `python -m brain_dist.evaluate`"
            )
