"""The commands ``shard build``, ``join`` and ``verify``: their options, and what they print.

Imports of what does the work are in the functions, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from brain_dist.common.commands import cpu_cores
from brain_dist.errors import UserError

if TYPE_CHECKING:
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
        recipe: how the collection is stored (shards/datasets/*.yaml); without it: one folder per class
        split: grouped: no patient and no copy in two splits; original: the published split, counting its leaks; kfold:
            grouped folds, of which data.fold of a run selects one; leave-one-out: test on a whole dataset of the recipe
        fractions: shares TRAIN,VAL,TEST of the splits (default: 0.7,0.1,0.2); if the test split is given, train and val
            divide the rest in their proportion
        folds: for --split kfold: the number of folds, 3 or more, or published for those of the collection
        test_on: for --split leave-one-out: the dataset whose images are the test split; none of their copies is trained
            on
        seed: seed of the split and of the order in the shards
        max_side: reduce larger images to N pixels on the longer side, as gray JPEG of quality 95 (from JPEG) or gray
            PNG (default: keep the bytes)
        shard_size: approximate limit of a shard, in bytes such as 64MB, or in samples such as 500
        workers: number of processes
        skip_bad: leave damaged images out and list them in the manifest, instead of stopping
    """

    source: Path
    out: Path
    recipe: Path | None = None
    split: Literal["grouped", "original", "kfold", "leave-one-out"] = "grouped"
    fractions: str | None = None
    folds: str | None = None
    test_on: str | None = None
    seed: int = 0
    max_side: int | None = None
    shard_size: str = "64MB"
    workers: int = field(default_factory=cpu_cores)
    skip_bad: bool = False

    def options(self) -> BuildOptions:
        """The options of the build.

        Raises:
            UserError: a value is out of range, or options contradict each other.
        """
        from brain_dist.store.options import BuildOptions, parse_folds, parse_fractions
        from brain_dist.store.tar import parse_shard_size

        if self.max_side is not None and self.max_side < MIN_SIDE:
            raise UserError(f"--max-side {self.max_side} must be ≥ {MIN_SIDE}")
        parse_shard_size(self.shard_size)
        for method, flag, value in (("kfold", "--folds", self.folds), ("leave-one-out", "--test-on", self.test_on)):
            if (value is not None) != (self.split == method):
                raise UserError(f"{flag} and --split {method} belong together; set both or neither")
        if self.split == "kfold" and self.fractions is not None:
            raise UserError("--fractions has no effect with --split kfold, whose folds have equal shares; remove it")
        return BuildOptions(
            split=self.split,
            fractions=parse_fractions(self.fractions or FRACTIONS),
            seed=self.seed,
            max_side=self.max_side,
            shard_size=self.shard_size,
            skip_bad=self.skip_bad,
            folds=None if self.folds is None else parse_folds(self.folds),
            test_on=self.test_on,
        )

    def run(self) -> int:
        """Build the shard folder and print a summary; return the exit code."""
        from brain_dist.collection.examination import BadImages
        from brain_dist.collection.recipes import default_recipe, read_recipe
        from brain_dist.common.text import print_list
        from brain_dist.common.progress import show_progress
        from brain_dist.store.build import build
        from brain_dist.store.summary import print_build

        options = self.options()
        recipe = read_recipe(self.recipe) if self.recipe else default_recipe(self.source)
        try:
            with show_progress() as progress:
                result = build(self.source, self.out, recipe, options, workers=self.workers, progress=progress)
        except BadImages as error:
            print_list(error.files, self.out.with_name(f"{self.out.name}.bad-images.txt"))
            raise
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if result.fresh:
            print_build(result.dataset)
        else:
            print(f"{self.out} is complete and has the same source and options: nothing to do", end=" ")
            print(f"(dataset version {result.dataset.version[:12]})")
        return 0


@dataclass(frozen=True)
class Join:
    """Join several shard folders into one, without copying images.

    Find what the folders share, join their groups, and write an index of all their images in which no group is in two
    splits: the test images of a group are kept, or else the validation images. Set data.shards of a run to the joined
    folder. The joined folders must stay at their places.

    Args:
        folders: the shard folders, two or more, with the same classes
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
        from brain_dist.store.summary import print_join

        is_complete = (self.out / MANIFEST).is_file()
        with show_progress() as progress:
            dataset = join(self.folders, self.out, leave_out=self.leave_out, workers=self.workers, progress=progress)
        if is_complete:
            print(f"{self.out} is complete and joins the same folders: nothing to do", end=" ")
            print(f"(dataset version {dataset.version[:12]})")
        else:
            print_join(dataset)
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
        from brain_dist.common.progress import show_progress
        from brain_dist.store.manifest import load_manifest
        from brain_dist.store.verify import verify

        manifest, version = load_manifest(self.folder)
        with show_progress() as progress:
            problems = verify(self.folder, workers=self.workers, progress=progress)
        for problem in problems:
            print(problem, file=sys.stderr)
        if problems:
            raise UserError(f"{self.folder} has {len(problems)} problems, listed above; copy or build it again")
        shards, samples = len(manifest.shards), manifest.samples
        print(f"{self.folder}: no problems; {samples} samples in {shards} shards, dataset version {version[:12]}")
        return 0
