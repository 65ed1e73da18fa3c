"""The cells of a benchmark: models × seeds × folds × training shards, under unified conditions.

A cell is one training and its evaluations. Its name is a hash of its settings, of the files that they name and of the
version of its shards, so that the same settings are always the same cell, wherever the folders are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brain_dist.benchmarking.keys import cell_key, costs_name, file_contents, flattened
from brain_dist.config import Config, DataConfig, to_dict
from brain_dist.errors import UserError

# What may differ between models, and what differs between the cells of a model
OF_MODEL = ("model.", "optim.lr")
OF_METHOD = (
    "augment.",
    "data.stretch",
    "data.head_crop",
    "train.balance",
    "optim.ema",
)  # between methods, see methods.py
OF_CELL = ("run.seed", "run.name", "run.dir", "data.fold", "data.shards", "data.sources", "data.leave_out")


@dataclass(frozen=True)
class Test:
    """One evaluation of a trained cell.

    Attributes:
        name: name of the predictions.
        shards: other shards than the training's; None is the test split of the training's own.
        allow_known: whether images that training knew count.
        split: split of the shards.
        version: sha256 of the manifest of ``shards``; None for the training's own, whose version is in the cell's name.
    """

    name: str = "test"
    shards: str | None = None
    allow_known: bool = False
    split: str = "test"
    version: str | None = None


OWN_TEST = (Test(),)
PUBLISHED = "published"  # name of the evaluation of a whole published test split, with the images that training knew


@dataclass(frozen=True)
class Source:
    """Training shards: one folder, or several that are joined.

    Attributes:
        name: what the table calls them.
        version: sha256 of their manifest.
        classes: their classes.
        data: settings that name them: ``shards``, or ``sources`` and ``leave_out``.
        tests: evaluations on their own test split.
    """

    name: str
    version: str
    classes: tuple[str, ...]
    data: DataConfig
    tests: tuple[Test, ...] = OWN_TEST


@dataclass(frozen=True)
class Cell:
    """One training and its evaluations.

    Attributes:
        key: hash of the settings, see :func:`cell_key`; the name of the cell's run.
        model: what the table calls the network.
        seed: seed of the training.
        fold: fold that is the test split, or None.
        source: name of the training shards.
        config: settings of the training.
        tests: the evaluations.
    """

    key: str
    model: str
    seed: int
    fold: int | None
    source: str
    config: Config
    tests: tuple[Test, ...] = OWN_TEST

    @property
    def title(self) -> str:
        """The cell in words, within its training shards."""
        return cell_title(self.model, self.seed, self.fold)


@dataclass(frozen=True)
class Grid:
    """All cells of a benchmark, and its axes.

    Attributes:
        models: what the table calls the networks.
        seeds: seeds of each model.
        folds: folds; ``(None,)`` without cross-validation.
        processes: ranks of a training; None if SLURM decides.
        sources: training shards.
        cells: the cells, in the order in which they run.
        trials: model → learning rate → its metric on validation images, if rates were chosen by trial.
        differ: the settings in which the models may differ: :data:`OF_MODEL`, or :data:`OF_METHOD` if what the table
            calls models are methods of training one network.
    """

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    processes: int | None
    sources: tuple[Source, ...]
    cells: tuple[Cell, ...]
    trials: Mapping[str, Mapping[float, float | None]] | None = None
    differ: tuple[str, ...] = OF_MODEL

    def record(self) -> dict[str, Any]:
        """The grid as benchmark.json holds it."""
        settings = flattened(to_dict(self.cells[0].config))
        classes = {source.name: source.classes for source in self.sources}
        methods: dict[str, Any] = {}
        if self.differ == OF_METHOD:
            methods["methods"] = {cell.model: _method(cell.config) for cell in self.cells}
            methods["differ"] = [f"{name}*" if name.endswith(".") else name for name in self.differ]
        return {
            **methods,
            "models": list(self.models),
            "seeds": list(self.seeds),
            "folds": None if self.folds == (None,) else len(self.folds),
            "processes": self.processes,
            "learning_rates": {cell.model: cell.config.optim.lr for cell in self.cells},
            "learning_rate_trials": self.trials,
            "costs": {
                cell.model: costs_name(cell.config, len(classes[cell.source])) for cell in reversed(self.cells)
            },  # of the first cell of each model
            "sources": [
                {
                    "name": source.name,
                    "version": source.version,
                    "classes": list(source.classes),
                    "shards": list(source.data.sources or (source.data.shards,)),
                    "leave_out": source.data.leave_out,
                }
                for source in self.sources
            ],
            "test_versions": {
                test.name: test.version for cell in self.cells for test in cell.tests if test.version is not None
            },
            "common": {key: value for key, value in settings.items() if not key.startswith((*self.differ, *OF_CELL))},
            "cells": [
                {
                    "cell": cell.key, "model": cell.model, "seed": cell.seed, "fold": cell.fold, "source": cell.source,
                    "tests": [test.name for test in cell.tests],
                }
                for cell in self.cells
            ],
        }  # fmt: skip


def plan(
    variants: Mapping[str, Config],
    seeds: Sequence[int],
    folds: int | None,
    sources: Sequence[Source],
    out: Path,
    processes: int | None = 1,
    tests: Mapping[str, tuple[Test, ...]] | None = None,
    differ: tuple[str, ...] = OF_MODEL,
) -> Grid:
    """All cells: seeds outermost, so that an unfinished benchmark has every model at the same number of seeds.

    Args:
        variants: what the table calls a network → the settings of its trainings.
        seeds: seeds of each model.
        folds: number of folds of the shards, or None.
        sources: training shards.
        out: folder of the benchmark.
        processes: ranks of a training; None if SLURM decides.
        tests: name of a source → the evaluations of its cells; None is :attr:`Source.tests`.
        differ: the settings in which the models may differ, see :attr:`Grid.differ`.

    Raises:
        UserError: the settings of two models differ in more than ``differ`` or not at all, a setting would give
            networks different conditions, or ``folds`` is below 2.
    """
    if folds is not None and folds < 2:
        raise UserError(f"--folds {folds}: must be ≥ 2; leave it out for shards without folds")
    fold_numbers: tuple[int | None, ...] = (None,) if folds is None else tuple(range(folds))
    contents = {model: file_contents(config) for model, config in variants.items()}
    cells = []
    for seed in seeds:
        for fold in fold_numbers:
            for source in sources:
                for model, base in variants.items():
                    data = replace(
                        base.data, shards=source.data.shards, sources=source.data.sources,
                        leave_out=source.data.leave_out, fold=fold,
                    )  # fmt: skip
                    config = replace(base, data=data, run=replace(base.run, seed=seed))
                    key = cell_key(config, source.version, contents[model])
                    config = replace(config, run=replace(config.run, dir=str(out / "cells"), name=key))
                    cells.append(
                        Cell(key, model, seed, fold, source.name, config, (tests or {}).get(source.name, source.tests))
                    )
    require_unified(cells, differ)
    _require_different(cells)
    return Grid(tuple(variants), tuple(seeds), fold_numbers, processes, tuple(sources), tuple(cells), differ=differ)


def _method(config: Config) -> dict[str, Any]:
    """The settings of a method that are not the default."""
    return {key: value for key, _, value in differences(Config(), config) if key.startswith(OF_METHOD)}


def cell_title(model: str, seed: int, fold: int | None) -> str:
    """A cell in words: model, seed and fold."""
    return f"{model}, seed {seed}{'' if fold is None else f', fold {fold}'}"


def require_unified(cells: Sequence[Cell], differ: tuple[str, ...] = OF_MODEL) -> None:
    """Check that all cells have the same conditions.

    Models may differ in ``differ``, cells of one model in their seed, fold and shards.

    Raises:
        UserError: another setting differs, or the precision would depend on the network.
    """
    first = cells[0]
    if first.config.train.precision == "auto":
        raise UserError(
            "train.precision=auto: networks with and without BatchNorm would get different precisions; set"
            " train.precision to fp32 or amp for all of them"
        )
    first_of_model: dict[str, Cell] = {}
    for cell in cells:
        same = first_of_model.setdefault(cell.model, cell)
        for reference, allowed in ((first, (*differ, *OF_CELL)), (same, OF_CELL)):
            for key, value, other in differences(reference.config, cell.config):
                if not key.startswith(allowed):
                    a, b = (f"{each.model} with seed {each.seed}" if reference is same else each.model
                            for each in (reference, cell))  # fmt: skip
                    kind = "models" if differ == OF_MODEL else "methods"
                    names = [f"{name}*" if name.endswith(".") else name for name in differ]
                    raise UserError(
                        f"the conditions are not unified: {key} is {value} for {a} and {other} for {b}; {kind} may"
                        f" differ in {', '.join(names[:-1])} and {names[-1]} only, so set it for all of them, in"
                        " --config or as a flag"
                    )


def _require_different(cells: Sequence[Cell]) -> None:
    """Raise UserError if two models or methods have the same settings: they would share their trainings."""
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.key, cell)
        if other.model != cell.model:
            raise UserError(f"{other.model} and {cell.model} have the same settings; leave one of them out")


def differences(a: Config, b: Config) -> Iterator[tuple[str, Any, Any]]:
    """(setting, value in ``a``, value in ``b``) of every setting that differs; None where one has no such key."""
    first, second = flattened(to_dict(a)), flattened(to_dict(b))
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)
