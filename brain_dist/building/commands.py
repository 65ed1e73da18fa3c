"""The commands ``shard build``, ``join`` and ``verify``: their options, and what they print.

Imports of what does the work are in the functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brain_dist.common.cores import cpu_cores
from brain_dist.common.text import LISTED, print_list
from brain_dist.errors import UserError

if TYPE_CHECKING:
    from brain_dist.store.dataset import Dataset
    from brain_dist.store.manifest import Manifest
    from brain_dist.store.options import BuildOptions

FRACTIONS = "0.7,0.1,0.2"
MIN_SIDE = 16  # pixels


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build a folder of shards from a folder of images.

    Decode every image once, find copies and leaks, group, split, and write shards, index and manifest. The same source
    and options give the same bytes. A complete --out is left unchanged.

    Args:
        source: the collection as it was published
        out: the shard folder to write
        recipe: how the collection is stored: a file, or the name of one in shards/datasets, such as nickparvar; without
            it: one folder per class
        split: grouped: no patient and no copy in two splits; original: the published split, counting its leaks; kfold:
            grouped folds, of which data.fold of a run selects one; leave-one-out: test on a whole dataset of the
            recipe; test: everything is the test split
        fractions: shares TRAIN,VAL,TEST of the splits (default: 0.7,0.1,0.2); if the test split is given, train and val
            divide the rest in their proportion
        folds: for --split kfold: the number of folds, 3 or more, or published for those of the collection
        test_on: for --split leave-one-out: the dataset whose images are the test split; none of their copies is trained
            on
        patients_from: shards of a collection that names patients: images without a patient get that of their copy
            there (same pixels or near copy), so that these patients stay whole, too
        seed: seed of the split and of the order in the shards
        max_side: reduce larger images to N pixels on the longer side, as gray JPEG (from JPEG) or gray PNG (default:
            keep the bytes)
        jpeg_quality: quality of the JPEGs that --max-side writes, 1 to 100 (default: 95)
        shard_size: approximate limit of a shard, in bytes such as 64MB, or in samples such as 500
        parts: number of parts into which the jobs of a cluster divide the work: with --part examine that part only;
            without it, when all parts are done, build from them. The result is the same as without parts
        part: number of the part, from 0
        workers: number of processes
        skip_bad: leave damaged images out and list them in the manifest, instead of stopping
        keep_blank: keep blank images, which are otherwise left out and listed in the manifest
        allow_missing: build although the collection lacks a class of the recipe, or a split a class of the collection
    """

    source: Path
    out: Path
    recipe: Path | None = None
    split: Literal["grouped", "original", "kfold", "leave-one-out", "test"] = "grouped"
    fractions: str | None = None
    folds: str | None = None
    test_on: str | None = None
    patients_from: Path | None = None
    seed: int = 0
    max_side: int | None = None
    jpeg_quality: int | None = None
    shard_size: str = "64MB"
    parts: int | None = None
    part: int | None = None
    workers: int = field(default_factory=cpu_cores)
    skip_bad: bool = False
    keep_blank: bool = False
    allow_missing: bool = False

    def options(self) -> BuildOptions:
        """The options of the build.

        Raises:
            UserError: a value is out of range, or options contradict each other.
        """
        from brain_dist.building.tar import parse_shard_size
        from brain_dist.collection.pixels import JPEG_QUALITY
        from brain_dist.store.manifest import load_manifest
        from brain_dist.store.options import BuildOptions, parse_folds, parse_fractions

        if self.max_side is not None and self.max_side < MIN_SIDE:
            raise UserError(f"--max-side {self.max_side} must be ≥ {MIN_SIDE}")
        if self.jpeg_quality is not None and self.max_side is None:
            raise UserError("--jpeg-quality has no effect without --max-side; set both or neither")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"--jpeg-quality {self.jpeg_quality} must be from 1 to 100")
        parse_shard_size(self.shard_size)
        for method, flag, value in (("kfold", "--folds", self.folds), ("leave-one-out", "--test-on", self.test_on)):
            if (value is not None) != (self.split == method):
                raise UserError(f"{flag} and --split {method} belong together; set both or neither")
        if self.split in ("kfold", "test") and self.fractions is not None:
            raise UserError(f"--fractions has no effect with --split {self.split}; remove it")
        values = {option.name: getattr(self, option.name) for option in fields(BuildOptions)}
        values["fractions"] = parse_fractions(self.fractions or FRACTIONS)
        values["jpeg_quality"] = JPEG_QUALITY if self.jpeg_quality is None else self.jpeg_quality
        values["patients_from"] = None if self.patients_from is None else load_manifest(self.patients_from)[1]
        values["folds"] = None if self.folds is None else parse_folds(self.folds)
        return BuildOptions(**values)

    def run(self) -> int:
        """Build the shard folder and print a summary; return the exit code."""
        from brain_dist.building.build import build
        from brain_dist.building.parts import Part, check_part, examine_part
        from brain_dist.collection.examination import BadImages
        from brain_dist.collection.recipes import default_recipe, read_recipe
        from brain_dist.common.progress import show_progress
        from brain_dist.store.dataset import open_dataset

        options = self.options()
        check_part(self.part, self.parts)
        recipe = read_recipe(self.recipe) if self.recipe else default_recipe(self.source)
        try:
            with show_progress() as progress:
                if self.part is not None and self.parts is not None:
                    images = examine_part(
                        self.source, self.out, recipe, options, Part(self.part, self.parts),
                        workers=self.workers, allow_missing=self.allow_missing, progress=progress,
                    )  # fmt: skip
                    print(f"part {self.part} of {self.parts} is complete: {images:,} images examined")
                    return 0
                result = build(
                    self.source, self.out, recipe, options,
                    workers=self.workers, allow_missing=self.allow_missing, parts=self.parts,
                    known=None if self.patients_from is None else open_dataset(self.patients_from), progress=progress,
                )  # fmt: skip
        except BadImages as error:
            print_list(error.files, self.out.with_name(f"{self.out.name}.bad-images.txt"))
            raise
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if result.fresh:
            _print_build(result.dataset)
        else:
            print(f"{self.out} is complete and has the same source and options: nothing to do", end=" ")
            print(f"(dataset version {result.dataset.version[:12]})")
        return 0


@dataclass(frozen=True)
class Join:
    """Join several shard folders into one, without copying images.

    Find what the folders share, join their groups, and write an index of all their images in which no group is in two
    splits: the test images of a group are kept, or else the validation images. Classes are joined by name; if a folder
    has the class tumor, the classes are notumor and tumor, and every kind of tumour counts as tumor. Set data.shards of
    a run to the joined folder. The joined folders must stay at their places.

    Args:
        folders: the shard folders, two or more, with classes that fit together
        out: the joined folder to write
        leave_out: test on all images of this folder (its name in its manifest) and train on the others
        workers: number of processes
    """

    folders: list[Path]
    out: Path = field(kw_only=True)
    leave_out: str | None = None
    workers: int = field(default_factory=cpu_cores)

    def run(self) -> int:
        """Join the shard folders and print a summary; return the exit code."""
        from brain_dist.common.progress import show_progress
        from brain_dist.store.join import join
        from brain_dist.store.manifest import MANIFEST

        is_complete = (self.out / MANIFEST).is_file()
        with show_progress() as progress:
            dataset = join(self.folders, self.out, leave_out=self.leave_out, workers=self.workers, progress=progress)
        if is_complete:
            print(f"{self.out} is complete and joins the same folders: nothing to do", end=" ")
            print(f"(dataset version {dataset.version[:12]})")
        else:
            _print_join(dataset)
        return 0


@dataclass(frozen=True)
class Verify:
    """Read a shard folder and check everything.

    Compare every byte with the checksums, and tars, .idx files, index and manifest with each other. Exit code 0: no
    problems; 2: the problems are listed.

    Args:
        folder: the shard folder
        workers: number of processes
    """

    folder: Path
    workers: int = field(default_factory=cpu_cores)

    def run(self) -> int:
        """Verify the shard folder and print its problems; UserError if there are any."""
        from brain_dist.building.verify import verify
        from brain_dist.common.progress import show_progress
        from brain_dist.store.manifest import load_manifest

        manifest, version = load_manifest(self.folder)
        with show_progress() as progress:
            problems = verify(self.folder, workers=self.workers, progress=progress)
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            raise UserError(
                f"{self.folder} has {len(problems)} problems, listed above; remove it, and copy or build it again"
            )
        shards, samples = len(manifest.shards), manifest.samples
        print(f"{self.folder}: no problems; {samples} samples in {shards} shards, dataset version {version[:12]}")
        return 0


def _print_build(dataset: Dataset) -> None:
    """Print the counts, shares, copies and leaks of a built folder, and its path."""
    from brain_dist.store.manifest import BuiltManifest

    manifest = dataset.manifest
    assert isinstance(manifest, BuiltManifest)
    split, audit = manifest.split, manifest.audit
    _print_counts(manifest)
    if split.get("off_by"):
        print("off by: largest difference between a class's actual and requested share of a split")
    if manifest.excluded.samples:
        print(f"left out: {manifest.excluded.samples} images that share a group with the test images")
    if split.get("moved"):
        print(f"{split['moved']} images are not in their published fold, as a copy or their patient is in another one")
    print(
        f"copies: {audit['exact_redundant']} images have the pixels of another image; {audit['near_pairs']} pairs of"
        f" near copies, {audit['near_pairs_mirrored']} mirrored; {audit['images_with_label_conflict']} images have a"
        " copy of another class"
    )
    if "patients_from" in audit:
        given = audit["patients_from"]
        print(
            f"patients: {given['images']} images got one of {given['patients']} patients from {given['name']}, whose"
            " pictures they show"
        )
    if split["method"] == "original":
        print(
            f"leaks: {audit['test_leaked']} of {sum(manifest.counts['test'].values())} test images are known from"
            f" train: {audit['test_with_copy_in_train']} by a copy, {audit['test_with_patient_in_train']} by their"
            f" patient{'; --split grouped avoids this' if audit['test_leaked'] else ''}"
        )
    if manifest.masks is not None:
        print(f"masks: {manifest.masks.samples} images have one")
    for entry in manifest.skipped[:LISTED]:
        print(f"left out: {entry['source']}: {entry['reason']}")
    if len(manifest.skipped) > LISTED:
        print(f"left out: {len(manifest.skipped) - LISTED} more, listed in the manifest")
    _print_place(dataset)


def _print_join(dataset: Dataset) -> None:
    """Print the counts of a joined folder, what its sources share, what was left out, and its path."""
    from brain_dist.store.manifest import JoinedManifest, load_manifest

    manifest = dataset.manifest
    _print_counts(manifest)
    assert isinstance(manifest, JoinedManifest)
    for source, path in zip(manifest.sources, dataset.sources, strict=True):
        merged = [name for name in load_manifest(path)[0].classes if name not in manifest.classes]
        if merged:
            print(f"{source.name}: {', '.join(merged)} count as tumor")
    for pair in manifest.audit["between"]:
        print(
            f"{pair['of']}: {pair['exact']} images have an exact copy in {pair['in']}, {pair['near']} more a near copy;"
            f" {pair['patient']} are of patients in {pair['in']}"
        )
    for name, counts in manifest.excluded.counts.items():
        numbers = ", ".join(f"{number} of {split}" for split, number in counts.items()) or "nothing"
        print(f"left out of {name}: {numbers}")
    for name in dataset.classes:
        by_split = {split: by_class[name] for split, by_class in manifest.counts.items()}
        if any(by_split.values()) and not by_split["train"]:
            print(
                f"warning: {name} has no training images left, as all share a group with test or validation images."
                " A recipe with all these collections as its parts groups them before it splits them",
                file=sys.stderr,
            )
    _print_place(dataset)


def _print_place(dataset: Dataset) -> None:
    print(f"written to {dataset.root}, dataset version {dataset.version[:12]}")


def _print_counts(manifest: Manifest) -> None:
    """Print the number of images by class and split, and how far the shares are from the requested ones."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    off_by = manifest.split.get("off_by")
    print(f"{manifest.name}: {manifest.samples} images in {manifest.groups} groups")
    table = Table()
    table.add_column("class")
    for name in (*manifest.counts, "all", *(["off by"] if off_by else [])):
        table.add_column(name, justify="right")
    for name in manifest.classes:
        row = [by_class[name] for by_class in manifest.counts.values()]
        deviation = [] if not off_by else ["-" if off_by[name] is None else f"{100 * off_by[name]:.1f} %"]
        table.add_row(escape(name), *map(str, row), str(sum(row)), *deviation)
    sums = [sum(by_class.values()) for by_class in manifest.counts.values()]
    table.add_section()
    table.add_row("all", *map(str, sums), str(sum(sums)))
    Console().print(table)
