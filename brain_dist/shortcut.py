"""How well can the label be guessed without looking at the disease? Baselines that a real result has to beat.

Tumour and tumour-free pictures of public collections often come from different sources. If file properties or the
picture's border alone tell the classes apart, a high accuracy may be recognition of the source.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from brain_dist.errors import leave
from brain_dist.judging.shortcuts import shortcut_baselines
from brain_dist.store.dataset import open_dataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m brain_dist.shortcut",
        description="How well the label can be guessed without looking at the disease: from the most frequent class, "
        "from file properties, and from picture borders. Trained on split train, scored on split test.",
    )
    parser.add_argument("shards", help="shard folder made by `python -m brain_dist.shard build`")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the result to this file")
    text = (
        "which fold of shards built with --split kfold is scored; the next one is left out, the others are trained on"
    )
    parser.add_argument("--fold", type=int, metavar="N", help=text)
    args = parser.parse_args(argv)
    dataset = open_dataset(args.shards).of_fold(args.fold, "--fold")
    result = shortcut_baselines(dataset)
    part = "" if dataset.fold is None else f", fold {dataset.fold} of {dataset.folds}"
    print(f"{dataset.name}{part}: trained on {result['train']} images, scored on {result['test']}; accuracy %")
    print(f"{'':18}{'all':>8}{'balanced':>10}" + "".join(f"{name:>12}" for name in dataset.classes))
    for name, score in result["baselines"].items():
        values = [score["accuracy"], score["balanced_accuracy"], *score["sensitivity"].values()]
        texts = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        print(f"{name:18}{texts[0]:>8}{texts[1]:>10}" + "".join(f"{text:>12}" for text in texts[2:]))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    leave(main)
