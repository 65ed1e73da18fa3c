"""Summaries of built and joined folders on the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from brain_dist.common.text import LISTED
from brain_dist.store.dataset import Dataset
from brain_dist.store.manifest import BuiltManifest, JoinedManifest, Manifest


def print_build(dataset: Dataset) -> None:
    """Print the counts, shares, copies and leaks of a built folder, and its path."""
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
    if split["method"] == "original":
        print(
            f"leaks: {audit['test_leaked']} of {sum(manifest.counts['test'].values())} test images are known from"
            f" train: {audit['test_with_copy_in_train']} by a copy, {audit['test_with_patient_in_train']} by their"
            " patient; --split grouped avoids this"
        )
    for entry in manifest.skipped[:LISTED]:
        print(f"left out: {entry['source']}: {entry['reason']}")
    if len(manifest.skipped) > LISTED:
        print(f"left out: {len(manifest.skipped) - LISTED} more, listed in the manifest")
    _print_place(dataset)


def print_join(dataset: Dataset) -> None:
    """Print the counts of a joined folder, what its sources share, what was left out, and its path."""
    manifest = dataset.manifest
    assert isinstance(manifest, JoinedManifest)
    _print_counts(manifest)
    for pair in manifest.audit["between"]:
        print(
            f"{pair['of']}: {pair['exact']} images have an exact copy in {pair['in']}, {pair['near']} more a near copy;"
            f" {pair['patient']} are of patients in {pair['in']}"
        )
    for source, counts in manifest.excluded.counts.items():
        numbers = ", ".join(f"{number} of {split}" for split, number in counts.items()) or "nothing"
        print(f"left out of {source}: {numbers}")
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
    off_by = manifest.split.get("off_by")
    console = Console()
    console.print(f"{manifest.name}: {manifest.samples} images in {manifest.groups} groups", soft_wrap=True)
    table = Table()
    table.add_column("class")
    for name in (*manifest.counts, "all", *(["off by"] if off_by else [])):
        table.add_column(name, justify="right")
    for name in manifest.classes:
        row = [by_class[name] for by_class in manifest.counts.values()]
        deviation = [] if not off_by else ["-" if off_by[name] is None else f"{100 * off_by[name]:.1f} %"]
        table.add_row(name, *map(str, row), str(sum(row)), *deviation)
    sums = [sum(by_class.values()) for by_class in manifest.counts.values()]
    table.add_section()
    table.add_row("all", *map(str, sums), str(sum(sums)))
    console.print(table)
