"""How well can the label be guessed without looking at the disease? Baselines that a real result has to beat."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import ShardReader

THUMB = 32


RING = 3  # pixels of the thumbnail's border, about a tenth of its side


DRAFT = 128  # JPEGs are decoded no finer than needed: the DCT gives a reduced picture for a tenth of the time


TREES = 200


BASELINES = {
    "majority": "nothing: the answer is the most frequent class of the training images",
    "file_properties": "width, height, colour mode, bytes, bits per pixel and file extension",
    "border": f"outer {RING} of {THUMB} pixels of a gray thumbnail",
    "border_head_crop": "the same border, after the picture is cut to the head's bounding box",
}


def shortcut_baselines(dataset: Dataset, seed: int = 0, max_train: int = 2000) -> dict[str, Any]:
    """Train each baseline on split train and score it on split test (at most ``max_train`` images of each).

    The classifier is a random forest (scikit-learn, 200 trees). Images are drawn at random with ``seed``.

    Returns:
        ``dataset_version``, ``fold`` (``None`` where the shards have none), ``seed``, ``train`` and ``test`` (numbers
        of images used), ``chance`` (1 / classes), and ``baselines``: name → ``what`` it sees, ``accuracy``,
        ``balanced_accuracy`` and ``sensitivity`` by class (``None`` for a class without test images), all on the test
        images.

    Raises:
        UserError: a split is empty, or an image's bytes are damaged.
    """
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(seed)
    train, test = (_sample(dataset, split, max_train, rng) for split in ("train", "test"))
    columns, label = dataset.columns, dataset.columns["label"]
    reader = ShardReader(dataset)
    try:
        border, cropped = _borders(reader, columns, np.concatenate([train, test]))
    finally:
        reader.close()
    properties = _file_properties(columns, np.concatenate([train, test]))
    features = {"file_properties": properties, "border": border, "border_head_crop": cropped}
    most = np.bincount(label[train]).argmax()
    guesses = {"majority": np.full(len(test), most)}
    for name, x in features.items():
        forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=-1)
        guesses[name] = forest.fit(x[: len(train)], label[train]).predict(x[len(train) :])
    return {
        "dataset_version": dataset.version,
        "fold": dataset.fold,
        "seed": seed,
        "train": len(train),
        "test": len(test),
        "chance": 1 / len(dataset.classes),
        "baselines": {
            name: {"what": BASELINES[name], **_score(label[test], guess, dataset.classes)}
            for name, guess in guesses.items()
        },
    }


def _sample(dataset: Dataset, split: str, most: int, rng: np.random.Generator) -> np.ndarray:
    rows = dataset.rows(split)
    if len(rows) == 0:
        raise UserError(
            f"{dataset.root} has no images in split {split}: the baselines train on train and score on test"
        )
    return np.sort(rng.permutation(rows)[:most])


def _file_properties(columns: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """float32 [N, F]: the four numbers, then mode and extension one-hot."""
    width, height, size = (columns[name][rows].astype(np.float64) for name in ("width", "height", "size"))
    extension = np.array([os.path.splitext(source)[1].lower() for source in columns["source"][rows]])  # noqa: PTH122
    words = [values[:, None] == np.unique(values) for values in (columns["mode"][rows].astype(str), extension)]
    numbers = np.stack([width, height, size, 8 * size / (width * height)], axis=1)
    return np.concatenate([numbers, *words], axis=1).astype(np.float32)


def _borders(reader: ShardReader, columns: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Border pixels uint8 [N, P] of each picture's thumbnail, of the whole picture and of its head box."""
    from PIL import Image

    ring = np.ones((THUMB, THUMB), dtype=bool)
    ring[RING:-RING, RING:-RING] = False
    whole, cropped = (np.empty((len(rows), np.count_nonzero(ring)), dtype=np.uint8) for _ in range(2))
    head = np.stack([columns[f"head_{side}"][rows] for side in "xywh"], axis=1)
    for i, row in enumerate(rows):
        with Image.open(io.BytesIO(reader.read(int(row)))) as image:
            image.draft("L", (DRAFT, DRAFT))
            gray = image.convert("L")
        x, y, w, h = head[i] * (gray.width / columns["width"][row])
        box = (x, y, min(x + w, gray.width), min(y + h, gray.height))
        whole[i] = np.asarray(gray.resize((THUMB, THUMB), Image.Resampling.BOX))[ring]
        cropped[i] = np.asarray(gray.resize((THUMB, THUMB), Image.Resampling.BOX, box=box))[ring]
    return whole, cropped


def _score(label: np.ndarray, guess: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    of_class = [label == c for c in range(len(classes))]
    recall = [float((guess[mask] == c).mean()) if mask.any() else None for c, mask in enumerate(of_class)]
    return {
        "accuracy": float((guess == label).mean()),
        "balanced_accuracy": float(np.mean([value for value in recall if value is not None])),
        "sensitivity": dict(zip(classes, recall, strict=True)),
    }
