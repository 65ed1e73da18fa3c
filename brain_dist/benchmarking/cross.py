"""``brain-dist benchmark cross``: train on each collection and on all but one, test on every other one."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from brain_dist.benchmarking.cross_plan import Pair, plan_text, training_counts
from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import OF_METHOD, OF_MODEL, PUBLISHED, Source, Test, plan
from brain_dist.benchmarking.run import (
    argument_parser,
    check_networks,
    default_processes,
    open_source,
    own_tests,
    read_variants,
    run_grid,
    seeds,
)
from brain_dist.collection.spellings import SPLITS
from brain_dist.common.text import nearest
from brain_dist.comparison.crossing import trained_classes
from brain_dist.config import Config, load
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset

PROG = "brain-dist benchmark cross"
DESCRIPTION = (
    "Train every model on each collection and on all collections but one, under the same conditions, and test it on"
    " every other collection. Test images that training knew are left out and counted. Takes every setting of a run."
    " The same command goes on where an interrupted one ended."
)


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code, 75 if the benchmark was asked to stop.

    Raises:
        UserError: an option, a setting or the data cannot be used, or the conditions are not unified.
        Fault: a cell failed.
    """
    parser = argument_parser(PROG, DESCRIPTION)
    parser.add_argument(
        "--sources", metavar="A,B", required=True, help="shard folders, two or more; not built as folds"
    )
    parser.add_argument(
        "--methods", metavar="A,B",
        help="YAML files of methods of training the one model of --models, such as those in configs/external; they may"
        " differ in augment.*, data.stretch, data.head_crop, train.balance and optim.ema only. The first one is what"
        " the others are compared with",
    )  # fmt: skip
    parser.add_argument(
        "--train", metavar="A,B",
        help="train on these only: names of collections, or \"all but NAME\" (default: each, and all but each)",
    )  # fmt: skip
    about = "Train models on each collection and test them on the others."
    arguments, settings = parser.parse_with_settings(argv, lambda: load(["--help"], PROG, about))
    if arguments.folds is not None:
        raise UserError("--folds does not fit cross, which tests on whole collections; use `benchmark run` for folds")
    if arguments.processes is not None and arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes}: must be ≥ 1")
    variants = read_variants(arguments.models, arguments.lr, settings, arguments.methods)
    config = next(iter(variants.values()))
    folder = Folder(arguments.out)
    datasets = open_collections(arguments.sources, config)
    chosen = None if arguments.train is None else [name for name in arguments.train.split(",") if name]
    sources, pairs = plan_pairs(datasets, config, folder, chosen)
    if not sources:
        raise UserError("none of the collections can be trained on: each needs training images of two classes or more")
    check_networks(variants, max(len(source.classes) for source in sources))
    processes = None if arguments.slurm else arguments.processes or default_processes(variants, folder)
    grid = plan(
        variants, seeds(arguments.seeds), None, sources, folder.out, processes,
        evaluations_of(sources, pairs, datasets), OF_METHOD if arguments.methods else OF_MODEL,
    )  # fmt: skip
    command = shlex.join(["brain-dist", "benchmark", "cross", *argv])
    return run_grid(grid, folder, command, slurm=arguments.slurm, cross=plan_text(datasets, pairs))


def evaluations_of(
    sources: Sequence[Source], pairs: Sequence[Pair], datasets: Mapping[str, Dataset]
) -> dict[str, tuple[Test, ...]]:
    """Name of a source → what its cells are tested on: its own test split, and other collections."""
    tests = {source.name: source.tests for source in sources}
    for pair in pairs:
        if pair.kind == "external" and pair.refused is None:
            tested = datasets[pair.test]
            tests[pair.source] += (Test(pair.test, str(tested.root.resolve()), version=tested.version),)
    return tests


def open_collections(listed: str, config: Config) -> dict[str, Dataset]:
    """The collections of ``--sources`` by their names.

    Raises:
        UserError: fewer than two, one that is joined, built as folds or given twice, or a name that cannot be used.
    """
    from brain_dist.store.access import open_shards

    datasets: dict[str, Dataset] = {}
    for place in filter(None, listed.split(",")):
        dataset = open_shards(place, config.data.cache_dir)
        if dataset.sources or dataset.folds:
            kind = (
                "a joined folder; give the folders that it joins"
                if dataset.sources
                else "built as folds; build it again with --split grouped"
            )
            raise UserError(f"--sources: {place} is {kind}")
        same = next((other for other in datasets.values() if other.version == dataset.version), None)
        if same is not None:
            raise UserError(f"--sources: {place} and {same.root} are the same shards; give each collection once")
        if dataset.name in datasets or dataset.name in (*SPLITS, PUBLISHED):
            raise UserError(
                f"--sources: two collections are called {dataset.name}, or it is the name of an evaluation; build one"
                " of them with another name in its recipe"
            )
        datasets[dataset.name] = dataset
    if len(datasets) < 2:
        raise UserError("--sources needs two collections or more, such as --sources shards/built/a,shards/built/b")
    return datasets


def plan_pairs(
    datasets: Mapping[str, Dataset], config: Config, folder: Folder, chosen: Sequence[str] | None = None
) -> tuple[list[Source], list[Pair]]:
    """The training sources, and what is tested of each, or why not.

    Args:
        datasets: the collections by name.
        config: the settings of a training.
        folder: the benchmark's folder, where joined collections are kept.
        chosen: names of the sources to train on; None is all.

    Raises:
        UserError: a chosen source does not exist.
    """
    names = [*datasets, *(f"all but {name}" for name in datasets if len(datasets) > 2)]
    for name in chosen or ():
        if name not in names:
            raise UserError(f"--train {name}{nearest(name, names)}: must be one of {', '.join(names)}")
    sources: list[Source] = []
    pairs: list[Pair] = []
    for name, dataset in datasets.items():
        if chosen is not None and name not in chosen:
            continue
        reason = why_untrainable(dataset, config)
        shared = trained_classes(training_counts(dataset), dataset.classes)
        pairs.append(Pair(name, name, "internal", tuple(shared), reason))
        if reason is None:
            data = replace(config.data, shards=str(dataset.root.resolve()), sources=(), leave_out=None)
            tests = own_tests(dataset, selected=bool(config.train.best))
            sources.append(Source(name, dataset.version, dataset.classes, data, tests))
            if len(tests) > 1:
                pairs.append(Pair(name, name, PUBLISHED, tuple(shared)))
        for other, tested in datasets.items():
            if name != other:
                pairs.append(Pair(name, other, "external", (), reason) if reason else _external(dataset, tested))
    if len(datasets) > 2:
        for name in datasets:
            if chosen is not None and f"all but {name}" not in chosen:
                continue
            source, pair = _without(name, datasets, config, folder)
            sources += [source] if source else []
            pairs.append(pair)
    return sources, pairs


def why_untrainable(dataset: Dataset, config: Config) -> str | None:
    """Why no network is trained on these shards, or None."""
    present = [name for name, number in training_counts(dataset).items() if number]
    if not present:
        return f"{dataset.name} has no training images: it is only tested on"
    if len(present) < 2:
        return f"{dataset.name} has training images of {present[0]} only: it is only tested on"
    needed = ["test", *(["val"] if config.train.best else [])]
    missing = [split for split in needed if not len(dataset.rows(split))]
    return f"{dataset.name} has no {missing[0]} images: it is only tested on" if missing else None


def _external(trained: Dataset, tested: Dataset) -> Pair:
    """The pair of two collections: what they share, or why training on one says nothing about the other."""
    from brain_dist.common.cores import cpu_cores
    from brain_dist.common.progress import show_progress
    from brain_dist.inference.known import known_images
    from brain_dist.inference.run import class_groups, with_run_classes
    from brain_dist.judging.predictions import reasons_text

    def refused(reason: str) -> Pair:
        return Pair(trained.name, tested.name, "external", (), reason)

    rows = tested.rows("test")
    if not len(rows):
        return refused(f"{tested.name} has no test images; build it with --split test")
    joined = with_run_classes(tested, trained.classes)
    try:
        class_groups(trained.classes, joined)
    except UserError:
        return refused(f"the classes of {trained.name} and {tested.name} have no common meaning")
    with show_progress() as progress:
        workers = min(cpu_cores(), 1 + (len(rows) + len(trained)) // 1000)  # few images are not worth a process
        known = known_images(trained, joined, rows, workers, progress)
    if all(known):
        return refused(f"training knows all {len(rows):,} test images: {reasons_text(known)}")
    able = trained_classes(training_counts(trained), joined.classes)
    present = {joined.classes[label] for label in np.unique(joined.columns["label"][rows[known == ""]])}
    shared = tuple(name for name in joined.classes if name in able and name in present)
    if not shared:
        return refused("no class occurs in both")
    return Pair(trained.name, tested.name, "external", shared)


def _without(name: str, datasets: Mapping[str, Dataset], config: Config, folder: Folder) -> tuple[Source | None, Pair]:
    """Training on all collections but one, which is the test."""
    title = f"all but {name}"
    data = replace(
        config.data,
        shards="",
        sources=tuple(str(dataset.root.resolve()) for dataset in datasets.values()),
        leave_out=name,
    )
    try:
        source, _ = open_source(replace(config, data=data), None, folder)
    except UserError as error:
        return None, Pair(title, name, "left out", (), str(error))
    from brain_dist.store.access import open_data

    dataset = open_data(data, folder.cells)
    able = trained_classes(training_counts(dataset), dataset.classes)
    present = [each for each, number in dataset.manifest.counts["test"].items() if number]
    shared = tuple(each for each in dataset.classes if each in able and each in present)
    if len(able) < 2 or not shared:
        return None, Pair(
            title,
            name,
            "left out",
            (),
            f"the other collections have training images of {' and '.join(able) or 'no class'} only",
        )
    excluded = Counter[str]()
    for counts in dataset.manifest.excluded.counts.values():
        excluded.update(counts)
    overlapping = any(
        each["in"] == name and (each["exact"] or each["near"] or each["patient"])
        for each in dataset.manifest.audit["between"]
    )
    pair = Pair(title, name, "left out", shared, excluded=dict(excluded), overlapping=overlapping)
    return replace(source, name=title), pair
