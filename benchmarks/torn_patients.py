"""Count the patients whose images a build has put into several splits, using a build that knows the patients.

    python -m benchmarks.torn_patients BUILT KNOWING

BUILT was built without ``--patients-from``, KNOWING with it; both from the same source and recipe.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from brain_dist.errors import UserError, leave
from brain_dist.store.dataset import Dataset, open_dataset


def torn(dataset: Dataset, patient_of: dict[str, str | None]) -> dict[str, int]:
    """Counts of the patients with images in several splits, and of the test images whose patient is in train."""
    columns = dataset.columns
    splits: dict[str, set[str]] = defaultdict(set)
    patients = np.array([patient_of[key] for key in columns["key"]], dtype=object)
    for patient, split in zip(patients, columns["split"], strict=True):
        if patient is not None:
            splits[patient].add(split)
    test = (columns["split"] == "test") & (patients != None)  # noqa: E711 (elementwise)
    return {
        "patients": len(splits),
        "patients in several splits": sum(len(names) > 1 for names in splits.values()),
        "patients in train and test": sum({"train", "test"} <= names for names in splits.values()),
        "test images": int((columns["split"] == "test").sum()),
        "test images of a known patient": int(test.sum()),
        "test images whose patient is in train": sum("train" in splits[patient] for patient in patients[test]),
    }


def main() -> int:
    """Print a table with a column for each of the two folders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("built", type=Path, help="shards built without --patients-from")
    parser.add_argument("knowing", type=Path, help="shards of the same images built with --patients-from")
    args = parser.parse_args()
    built, knowing = open_dataset(args.built), open_dataset(args.knowing)
    patient_of = dict(zip(knowing.columns["key"], knowing.columns["patient"], strict=True))
    if set(built.columns["key"]) != set(patient_of):
        raise UserError(f"{args.built} and {args.knowing} have different images; build both from the same source")
    counts = [torn(dataset, patient_of) for dataset in (built, knowing)]
    print(f"| | {args.built.name} | {args.knowing.name} |\n|---|--:|--:|")
    print(f"| groups | {built.manifest.groups:,} | {knowing.manifest.groups:,} |")
    for key in counts[0]:
        print(f"| {key} | {counts[0][key]:,} | {counts[1][key]:,} |")
    return 0


if __name__ == "__main__":
    leave(main)
