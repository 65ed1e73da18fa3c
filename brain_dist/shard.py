"""Verb ``shard``: audit image collections, build shard folders from them, join and verify those, make phantoms."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.errors import UserError, run

if TYPE_CHECKING:
    from brain_dist.data.index import Dataset

LISTED = 50  # damaged files named on the terminal
DEFAULT = " (default: %(default)s)"
FRACTIONS = "0.7,0.1,0.2"
EXAMPLES = """\
examples:
  python -m brain_dist.shard build --recipe shards/datasets/cheng.yaml --source DATA/cheng --out shards/built/cheng
  python -m brain_dist.shard build --source MY_IMAGES --out shards/built/mine      (MY_IMAGES/glioma/*.jpg …)
  python -m brain_dist.shard join shards/built/cheng shards/built/mine --out shards/built/both
  python -m brain_dist.shard verify shards/built/cheng
  python -m brain_dist.shard audit DATA/cheng DATA/nickparvar --out audits/both
  python -m brain_dist.shard phantom --out DATA/phantom --patients 60 --slices 10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = _parser().parse_args(argv)
    return {"audit": _audit, "build": _build, "join": _join, "verify": _verify, "phantom": _phantom}[args.verb](args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m brain_dist.shard",
        description="Turn image collections into audited, grouped, split and checksummed WebDataset shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="build|join|verify|audit|phantom")
    _build_options(verbs)
    _join_options(verbs)
    _verify_options(verbs)
    _audit_options(verbs)
    _phantom_options(verbs)
    return parser


def _build_options(verbs: Any) -> None:
    build = verbs.add_parser(
        "build",
        help="a folder of images -> a folder of shards",
        description="Decode every image once, find copies and leaks, group, split, and write shards, index and "
        "manifest. The same source and options give the same bytes; a finished --out is left as it is.",
    )
    text = "the collection as it was published"
    build.add_argument("--source", type=Path, required=True, metavar="DIR", help=text)
    text = "the shard folder to make"
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    text = "how the collection lies on disk (shards/datasets/*.yaml); without it: a folder per class"
    build.add_argument("--recipe", type=Path, metavar="YAML", help=text)
    text = (
        "grouped: no patient and no copy in two splits; original: the publisher's, counting its leaks; kfold: grouped "
        "folds, of which a run chooses one by data.fold; leave-one-out: test on a whole dataset of the recipe"
    )
    methods = ("grouped", "original", "kfold", "leave-one-out")
    build.add_argument("--split", choices=methods, default="grouped", help=text + DEFAULT)
    text = "shares of the splits; where the test part is given, train and val share the rest in their proportion"
    build.add_argument("--fractions", metavar="TRAIN,VAL,TEST", help=text + f" (default: {FRACTIONS})")
    text = "of --split kfold: how many, 3 or more; published takes those that the collection names"
    build.add_argument("--folds", metavar="K", help=text)
    text = "of --split leave-one-out: all its images are the test part, and no copy of them is trained on"
    build.add_argument("--test-on", metavar="DATASET", help=text)
    text = "of the split and of the order in the shards"
    build.add_argument("--seed", type=_count, default=0, metavar="N", help=text + DEFAULT)
    text = "make larger images N pixels on the longer side: gray JPEG of quality 95 from JPEG, gray PNG from the rest"
    build.add_argument("--max-side", type=_count, metavar="N", help=text + " (default: keep the bytes)")
    text = "at most about this much a shard: bytes such as 64MB, or samples such as 500"
    build.add_argument("--shard-size", default="64MB", metavar="SIZE", help=text + DEFAULT)
    _workers_option(build)
    text = "leave damaged images out and list them in the manifest, instead of stopping"
    build.add_argument("--skip-bad", action="store_true", help=text)


def _join_options(verbs: Any) -> None:
    join = verbs.add_parser(
        "join",
        help="several shard folders -> one, without copying an image",
        description="Find what the folders share, join their groups, and write an index of all their images in which "
        "no group is in two splits: of a group that is, the test images stay, else the validation images. Training "
        "takes the joined folder as data.shards; the folders must stay where they are.",
    )
    text = "the shard folders, two or more, of the same classes"
    join.add_argument("folders", type=Path, nargs="+", metavar="DIR", help=text)
    text = "the joined folder to make"
    join.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    text = "test on all images of this one of the folders (its name in its manifest) and train on the others"
    join.add_argument("--leave-out", metavar="NAME", help=text)
    _workers_option(join)


def _verify_options(verbs: Any) -> None:
    verify = verbs.add_parser(
        "verify",
        help="read a shard folder again and check everything",
        description="Compare every byte with the checksums, and tars, .idx files, index and manifest with each "
        "other. Exit code 0: all is well; 2: the problems are listed.",
    )
    verify.add_argument("folder", type=Path, metavar="DIR", help="the shard folder")
    _workers_option(verify)


def _audit_options(verbs: Any) -> None:
    audit = verbs.add_parser(
        "audit",
        help="what collections hold: copies, leaks from train to test, contradicting labels",
        description="Compare every image of one or more collections with every other one and write what was found: "
        "index.html (for people), audit.json (the counts) and pairs.parquet (every pair). Needs no build; the "
        "collections are left as they are. An earlier audit in --out is replaced.",
    )
    text = "a collection as it was published, called by its folder's name: a folder per class, or such folders in "
    text += "Training and Testing; a patients.csv with the columns id and patient is used"
    audit.add_argument("folders", type=Path, nargs="+", metavar="DIR", help=text)
    text = "the folder to make"
    audit.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    text = "how the collection NAME lies on disk (shards/datasets/*.yaml), where it is another way; may be given again"
    audit.add_argument("--recipe", action="append", default=[], metavar="NAME=YAML", help=text)
    _workers_option(audit)
    text = "leave damaged images out and list them on the page, instead of stopping"
    audit.add_argument("--skip-bad", action="store_true", help=text)


def _phantom_options(verbs: Any) -> None:
    phantom = verbs.add_parser(
        "phantom",
        help="make a collection of phantoms: made-up slices with known truth",
        description="Write a folder of made-up brain-MRI slices with classes, patients and tumour masks, as input "
        "of build. They prove the machinery, not the medicine.",
    )
    text = "the collection to make"
    phantom.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    phantom.add_argument("--patients", type=_count, default=40, metavar="N", help="patients" + DEFAULT)
    phantom.add_argument("--slices", type=_count, default=8, metavar="N", help="slices of each patient" + DEFAULT)
    phantom.add_argument("--size", type=_count, default=256, metavar="N", help="pixels a side" + DEFAULT)
    phantom.add_argument("--seed", type=_count, default=0, metavar="N", help="of everything drawn" + DEFAULT)
    text = "planes that slices are cut along, with commas between (default: axial,coronal,sagittal)"
    phantom.add_argument("--planes", metavar="NAMES", help=text)
    text = "planted copies as a share of the images: changed in many ways, under another class, across the split"
    phantom.add_argument("--plant", type=float, default=0.0, metavar="SHARE", help=text + DEFAULT)
    text = "divide the patients between Training/ and Testing/, as published collections do"
    phantom.add_argument("--published", action="store_true", help=text)
    _workers_option(phantom)


def _workers_option(verb: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    text = f"processes (default: {cores}, the cores of this machine)"
    verb.add_argument("--workers", type=_count, default=cores, metavar="N", help=text)


def _count(text: str) -> int:
    value = int(text)  # argparse words the message for a ValueError
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _build(args: argparse.Namespace) -> int:
    from brain_dist.data.build import Options, build
    from brain_dist.data.examination import BadImages
    from brain_dist.data.recipes import default_recipe, read_recipe
    from brain_dist.data.split import parse_folds, parse_fractions
    from brain_dist.data.tarshard import parse_shard_size

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
    from brain_dist.data.index import MANIFEST
    from brain_dist.data.join import join

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
    table = Table(title=f"{manifest['name']}: {manifest['samples']} images in {manifest['groups']} groups")
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
    Console().print(table)


def _verify(args: argparse.Namespace) -> int:
    from brain_dist.data.index import load_manifest
    from brain_dist.data.verify import verify

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
    from brain_dist.auditing import PAGE, run_audit, show, sources
    from brain_dist.data.examination import BadImages

    collections = sources(args.folders, args.recipe)
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
    show(found, counts)
    print(f"the pairs side by side: {args.out / PAGE}")
    return 0


def _phantom(args: argparse.Namespace) -> int:
    from brain_dist.data.phantom import generate

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
    sys.exit(run(main))
