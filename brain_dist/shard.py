"""Verb ``shard``: audit image collections, build shard folders from them, join and verify those, make phantoms."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError, leave
from brain_dist.shard_options import FRACTIONS, parser

if TYPE_CHECKING:
    from brain_dist.store.dataset import Dataset

LISTED = 50  # damaged files named on the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parser().parse_args(argv)
    return {"audit": _audit, "build": _build, "join": _join, "verify": _verify, "phantom": _phantom}[args.verb](args)


def _build(args: argparse.Namespace) -> int:
    from brain_dist.collection.examination import BadImages
    from brain_dist.collection.recipes import default_recipe, read_recipe
    from brain_dist.store.build import Options, build
    from brain_dist.store.split import parse_folds, parse_fractions
    from brain_dist.store.tar import parse_shard_size

    if args.max_side is not None and args.max_side < 16:
        raise UserError(f"--max-side {args.max_side} leaves nothing to see; give at least 16")
    parse_shard_size(args.shard_size)
    for method, flag, value in (("kfold", "--folds", args.folds), ("leave-one-out", "--test-on", args.test_on)):
        if (value is not None) != (args.split == method):
            raise UserError(f"{flag} and --split {method} belong together; give both or neither")
    if args.split == "kfold" and args.fractions is not None:
        raise UserError("--fractions has no meaning with --split kfold, whose folds are of one size; leave it out")
    fractions = parse_fractions(args.fractions or FRACTIONS)
    folds = None if args.folds is None else parse_folds(args.folds)
    recipe = read_recipe(args.recipe) if args.recipe else default_recipe(args.source)
    options = Options(
        args.split, fractions, args.seed, args.max_side, args.shard_size, args.skip_bad, folds, args.test_on
    )
    try:
        with _progress() as progress:
            built = build(args.source, args.out, recipe, options, workers=args.workers, progress=progress)
    except BadImages as error:
        _list_files(error.files, args.out)
        raise
    for warning in built.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if built.fresh:
        _summary(built.dataset)
    else:
        version = built.dataset.version[:12]
        print(f"{args.out} is finished and was built from the same request: nothing to do (dataset version {version})")
    return 0


def _list_files(files: list[str], out: Path) -> None:
    """Print one line a file; where they are many, the first ones, and all of them into a file beside ``out``."""
    for line in files[:LISTED]:
        print(line, file=sys.stderr)
    if len(files) > LISTED:
        listing = out.with_name(f"{out.name}.bad-images.txt")
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{line}\n" for line in files), encoding="utf-8")
        print(f"… and {len(files) - LISTED} more; all are listed in {listing}", file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Gives progress(stage, done, total): a bar a stage on stderr where that is a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description:>14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield show


def _join(args: argparse.Namespace) -> int:
    from brain_dist.store.join import join
    from brain_dist.store.manifest import MANIFEST

    there = (args.out / MANIFEST).is_file()
    with _progress() as progress:
        joined = join(args.folders, args.out, leave_out=args.leave_out, workers=args.workers, progress=progress)
    if there:
        version = joined.version[:12]
        print(f"{args.out} is finished and was joined from the same folders: nothing to do (dataset version {version})")
        return 0
    _counts_table(joined.manifest)
    for pair in joined.manifest["audit"]["between"]:
        print(
            f"{pair['of']}: {pair['exact']} images have a copy in {pair['in']}, {pair['near']} more a near copy; "
            f"of {pair['patient']} the patient is there"
        )
    for name, counts in joined.manifest["excluded"]["counts"].items():
        told = ", ".join(f"{number} of {split}" for split, number in counts.items()) or "nothing"
        print(f"left out of {name}: {told}")
    for name in joined.classes:
        numbers = {split: by_class[name] for split, by_class in joined.manifest["counts"].items()}
        if any(numbers.values()) and not numbers["train"]:
            print(
                f"warning: {name} has no images left in train: all share a group with images tested on. A recipe with "
                "all these collections as its parts groups them before it splits them",
                file=sys.stderr,
            )
    print(f"written to {joined.root}, dataset version {joined.version[:12]}")
    return 0


def _summary(dataset: Dataset) -> None:
    """Print what was built: counts, shares, copies, leaks, where it is."""
    manifest = dataset.manifest
    counts, audit, split = manifest["counts"], manifest["audit"], manifest["split"]
    _counts_table(manifest)
    if split.get("off_by"):
        print("off by: how far a class's share of a split is from the asked one, at most")
    if manifest["excluded"]["samples"]:
        print(f"left out: {manifest['excluded']['samples']} images that share a group with the images tested on")
    if split.get("moved"):
        print(f"{split['moved']} images are not in their published fold: a copy or their patient is in another one")
    print(
        f"copies: {audit['exact_redundant']} images repeat another's pixels; {audit['near_pairs']} near-copy pairs, "
        f"{audit['near_pairs_mirrored']} mirrored; {audit['images_with_label_conflict']} images have a copy of "
        "another class"
    )
    if split["method"] == "original":
        print(
            f"leaks: of {sum(counts['test'].values())} test images {audit['test_leaked']} are known from train: "
            f"{audit['test_with_copy_in_train']} by a copy, {audit['test_with_patient_in_train']} by their patient; "
            "--split grouped mends it"
        )
    for entry in manifest["skipped"][:LISTED]:
        print(f"left out: {entry['source']}: {entry['reason']}")
    if len(manifest["skipped"]) > LISTED:
        print(f"left out: {len(manifest['skipped']) - LISTED} more, listed in the manifest")
    print(f"written to {dataset.root}, dataset version {dataset.version[:12]}")


def _counts_table(manifest: dict[str, Any]) -> None:
    """Print images by class and split, and how far from the asked shares they are, where shares were asked for."""
    from rich.console import Console
    from rich.table import Table

    counts, off_by = manifest["counts"], manifest["split"].get("off_by")
    console = Console()
    console.print(f"{manifest['name']}: {manifest['samples']} images in {manifest['groups']} groups", soft_wrap=True)
    table = Table()
    table.add_column("class")
    for name in (*counts, "all", *(["off by"] if off_by else [])):
        table.add_column(name, justify="right")
    for name in manifest["classes"]:
        row = [part[name] for part in counts.values()]
        off = [] if not off_by else ["-" if off_by[name] is None else f"{100 * off_by[name]:.1f} %"]
        table.add_row(name, *map(str, row), str(sum(row)), *off)
    sums = [sum(part.values()) for part in counts.values()]
    table.add_section()
    table.add_row("all", *map(str, sums), str(sum(sums)))
    console.print(table)


def _verify(args: argparse.Namespace) -> int:
    from brain_dist.store.manifest import load_manifest
    from brain_dist.store.verify import verify

    manifest, version = load_manifest(args.folder)
    with _progress() as progress:
        problems = verify(args.folder, workers=args.workers, progress=partial(progress, "reading"))
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise UserError(f"{args.folder} has {len(problems)} faults, listed above; copy it again or build it again")
    shards, samples = len(manifest["shards"]), manifest["samples"]
    print(f"{args.folder}: all is well: {samples} samples in {shards} shards, dataset version {version[:12]}")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from brain_dist.audit.run import PAGE, print_audit, read_sources, run_audit
    from brain_dist.collection.examination import BadImages

    collections = read_sources(args.folders, args.recipe)
    try:
        with _progress() as progress:
            found, counts = run_audit(
                collections, args.out, workers=args.workers, skip_bad=args.skip_bad, progress=progress
            )
    except BadImages as error:
        _list_files(error.files, args.out)
        raise
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print_audit(found, counts)
    print(f"the pairs side by side: {args.out / PAGE}")
    return 0


def _phantom(args: argparse.Namespace) -> int:
    from brain_dist.phantom.generate import generate

    generate(
        args.out,
        patients=args.patients,
        slices=args.slices,
        size=args.size,
        seed=args.seed,
        workers=args.workers,
        progress=sys.stderr.isatty(),
        planes=args.planes.split(",") if args.planes else None,
        plant=args.plant,
        published=args.published,
    )
    return 0


if __name__ == "__main__":
    leave(main)
