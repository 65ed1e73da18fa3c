"""Shortcut baselines: how well the label can be guessed without looking at the disease. A real result must beat them.

Images with and without a tumour often come from different sources in public collections. If file properties or the
border of the image are enough to separate the classes, a high accuracy may only be recognition of the source.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.common.files import check_writable, write_atomically
from brain_dist.errors import Fault, UserError
from brain_dist.judging.metrics import accuracy_interval
from brain_dist.judging.predictions import Predictions
from brain_dist.judging.refusal import or_refusal
from brain_dist.store.dataset import Dataset, open_dataset
from brain_dist.store.reader import ShardReader

THUMB = 32  # side of the thumbnail in pixels
RING = 3  # width of the thumbnail's border in pixels, about a tenth of its side
DRAFT = 128  # JPEGs are decoded at this reduced size (by their DCT), in a tenth of the time
TREES = 200
BASELINES = {
    "majority": "nothing: the answer is the most frequent class of the training images",
    "file_properties": "width, height, colour mode, bytes, bits per pixel and file extension",
    "border": f"outer {RING} of {THUMB} pixels of a gray thumbnail",
    "border_head_crop": "the same border, after the image is cut to the head's bounding box",
}


def report_shortcuts(shards: str, fold: int | None = None, out: Path | None = None) -> None:
    """Print the :func:`shortcut_baselines` of a shard folder as a table.

    Args:
        shards: the shard folder.
        fold: the fold to test on, for shards built with ``--split kfold``.
        out: also write the result to this JSON file.

    Raises:
        UserError: as :func:`shortcut_baselines`, the folder or the fold does not exist, or ``out`` is not writable.
        Fault: as :func:`shortcut_baselines`, or the disk is full.
    """
    if out:
        check_writable(out.parent, "choose another --json")
    dataset = open_dataset(shards).of_fold(fold, "--fold")
    result = shortcut_baselines(dataset)
    part = "" if dataset.fold is None else f", fold {dataset.fold} of {dataset.folds}"
    print(
        f"{dataset.name}{part}: trained on all {result['train']:,} training images, tested on all {result['test']:,}"
        f" test images of {result['groups']:,} groups; accuracy in % with its 95 % interval over groups, by resampling"
        " or (W) Wilson's"
    )
    print(f"{'':18}{'all':>8}{'interval':>16}{'balanced':>10}" + "".join(f"{name:>12}" for name in dataset.classes))
    refusals: list[str] = []
    for name, score in result["baselines"].items():
        values = [score["balanced_accuracy"], *score["sensitivity"].values()]
        balanced, *texts = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        interval, shown = score["accuracy_interval"], "none"
        if "refused" in interval:
            refusals.append(f"no interval for {name}: {interval['refused']}")
        else:
            low, high = interval["interval"]
            shown = f"{100 * low:.1f} to {100 * high:.1f}{' W' if interval['interval_of'] == 'Wilson' else ''}"
        columns = "".join(f"{text:>12}" for text in texts)
        print(f"{name:18}{100 * score['accuracy']:>8.1f}{shown:>16}{balanced:>10}{columns}")
    for refusal in refusals:
        print(refusal)
    if out:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise Fault(f"{out} cannot be written ({error.strerror}); choose another --json") from None


def shortcut_baselines(dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """Train each baseline on the training split and score it on the test split.

    The classifier is scikit-learn's random forest (Breiman 2001) with 200 trees.

    Args:
        dataset: the shards.
        seed: seed of the forest.

    Returns:
        ``dataset_version``; ``fold`` (None if the shards have no folds); ``seed``; ``train`` and ``test`` (numbers of
        images); ``rows`` (of the test images in the index); ``groups`` (of the test images); ``chance`` (1 / number of
        classes that occur); ``baselines``: name → ``what`` the baseline sees, the class ``predicted`` for each test
        image, and on the test images its ``accuracy`` and ``accuracy_interval`` (as
        :func:`~brain_dist.judging.metrics.evaluate_predictions` gives them), ``balanced_accuracy`` and ``sensitivity``
        by class (None without test images).

    Raises:
        UserError: a split has images of fewer than two classes.
        Fault: the bytes of an image are damaged.
    """
    from sklearn.ensemble import RandomForestClassifier

    train, test = (dataset.rows(split) for split in ("train", "test"))
    label, rows = dataset.columns["label"], np.concatenate([train, test])
    for split, part in (("train", train), ("test", test)):
        present = [dataset.classes[c] for c in np.unique(label[part])]
        if len(present) < 2:  # of one class, every guess is right
            raise UserError(
                f"{dataset.root}: split {split} has images of {' and '.join(present) or 'no class'} only; the baselines"
                " need two classes in train and in test: build the shards again with other --fractions or --source"
            )
    group = dataset.columns["group"][test]
    border, border_head_crop = _borders(ShardReader(dataset), dataset.columns, rows)
    properties = _file_properties(dataset.columns, rows)
    predictions = {"majority": np.full(len(test), np.bincount(label[train]).argmax())}
    for name, x in (("file_properties", properties), ("border", border), ("border_head_crop", border_head_crop)):
        forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=-1)
        predictions[name] = forest.fit(x[: len(train)], label[train]).predict(x[len(train) :])
    return {
        "dataset_version": dataset.version,
        "fold": dataset.fold,
        "seed": seed,
        "train": len(train),
        "test": len(test),
        "rows": test.tolist(),
        "groups": len(set(group)),
        "chance": 1 / len(np.unique(label[rows])),
        "baselines": {
            name: {
                "what": BASELINES[name],
                "predicted": predicted.tolist(),
                **_score(label[test], predicted, group, dataset.classes),
            }
            for name, predicted in predictions.items()
        },
    }


def restrict(result: dict[str, Any], table: Predictions) -> dict[str, Any]:
    """Shortcut baselines on some of their test images.

    Args:
        result: from :func:`shortcut_baselines`.
        table: predictions of a network for these images.

    Raises:
        KeyError: an image is not a test image of the baselines.
    """
    position = {row: number for number, row in enumerate(result["rows"])}
    places = [position[row] for row in table.row.tolist()]
    baselines = {}
    for name, score in result["baselines"].items():
        predicted = np.array(score["predicted"])[places]
        scores = _score(table.label, predicted, table.group, table.classes)
        baselines[name] = {"what": score["what"], "predicted": predicted.tolist(), **scores}
    return result | {
        "test": len(table),
        "rows": table.row.tolist(),
        "groups": len(set(table.group)),
        "baselines": baselines,
    }


def _file_properties(columns: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """float32 [N, F]: width, height, bytes, bits per pixel, then colour mode and extension one-hot."""
    width, height, size = (columns[name][rows].astype(np.float64) for name in ("width", "height", "size"))
    numbers = np.stack([width, height, size, 8 * size / (width * height)], axis=1)
    extension = np.array([os.path.splitext(source)[1].lower() for source in columns["source"][rows]])  # noqa: PTH122
    categories = (columns["mode"][rows].astype(str), extension)
    one_hot = [values[:, None] == np.unique(values) for values in categories]
    return np.concatenate([numbers, *one_hot], axis=1).astype(np.float32)


def _borders(reader: ShardReader, columns: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Border pixels uint8 [N, P] of each image's thumbnail: of the whole image, and of the head's bounding box."""
    from PIL import Image

    ring = np.ones((THUMB, THUMB), dtype=bool)
    ring[RING:-RING, RING:-RING] = False
    whole, cropped = (np.empty((len(rows), np.count_nonzero(ring)), dtype=np.uint8) for _ in range(2))
    head = np.stack([columns[f"head_{side}"][rows] for side in "xywh"], axis=1)
    for i, row in enumerate(rows):
        with Image.open(io.BytesIO(reader.read(int(row))), formats=("JPEG", "PNG")) as image:
            image.draft("L", (DRAFT, DRAFT))
            gray = image.convert("L")
        x, y, w, h = head[i] * (gray.width / columns["width"][row])
        box = (x, y, min(x + w, gray.width), min(y + h, gray.height))
        whole[i] = np.asarray(gray.resize((THUMB, THUMB), Image.Resampling.BOX))[ring]
        cropped[i] = np.asarray(gray.resize((THUMB, THUMB), Image.Resampling.BOX, box=box))[ring]
    return whole, cropped


def _score(label: np.ndarray, predicted: np.ndarray, group: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    correct = predicted == label
    masks = [label == c for c in range(len(classes))]
    recall = [float((predicted[mask] == c).mean()) if mask.any() else None for c, mask in enumerate(masks)]
    return {
        "accuracy": float(correct.mean()),
        "accuracy_interval": or_refusal(accuracy_interval, correct, group),
        "balanced_accuracy": float(np.mean([value for value in recall if value is not None])),
        "sensitivity": dict(zip(classes, recall, strict=True)),
    }
