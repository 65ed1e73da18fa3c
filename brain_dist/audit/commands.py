"""The command ``shard audit``: its options, and what it prints."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from brain_dist.common.cores import cpu_cores


@dataclass(frozen=True)
class Audit:
    """Find copies, leaks from train to test, and contradicting labels in collections.

    Compare every image of one or more collections with every other one and write index.html (for people), audit.json
    (the counts) and pairs.parquet (every pair). Needs no build; the collections are unchanged. An earlier audit in
    --out is replaced.

    Args:
        folders: collections as they were published, called by their folder's name: one folder per class, or such
            folders in Training and Testing; a patients.csv with the columns id and patient is used
        out: the folder to write
        recipe: NAME=YAML, the recipe of the collection NAME (shards/datasets/*.yaml) if it is stored in another way;
            may be repeated
        workers: number of processes
        skip_bad: leave damaged images out and list them on the page, instead of stopping
    """

    folders: list[Path]
    out: Path = field(kw_only=True)
    recipe: list[str] = field(default_factory=list)
    workers: int = field(default_factory=cpu_cores)
    skip_bad: bool = False

    def run(self) -> int:
        """Audit the collections, write the page and print the counts; return the exit code."""
        from brain_dist.audit.run import PAGE, print_audit, read_sources, run_audit
        from brain_dist.collection.examination import BadImages
        from brain_dist.common.progress import show_progress
        from brain_dist.common.text import print_list

        collections = read_sources(self.folders, self.recipe)
        try:
            with show_progress() as progress:
                survey, counts = run_audit(
                    collections, self.out, workers=self.workers, skip_bad=self.skip_bad, progress=progress
                )
        except BadImages as error:
            print_list(error.files, self.out.with_name(f"{self.out.name}.bad-images.txt"))
            raise
        for warning in survey.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print_audit(survey, counts)
        print(f"wrote {self.out / PAGE}")
        return 0
