"""The command line of the verb ``shard``: its five commands and what can be said to them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

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


def parser() -> argparse.ArgumentParser:
    """``args.verb`` is one of build, join, verify, audit and phantom."""
    made = argparse.ArgumentParser(
        prog="python -m brain_dist.shard",
        description="Turn image collections into audited, grouped, split and checksummed WebDataset shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="build|join|verify|audit|phantom")
    _build_options(verbs)
    _join_options(verbs)
    _verify_options(verbs)
    _audit_options(verbs)
    _phantom_options(verbs)
    return made


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
