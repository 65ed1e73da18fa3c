"""A model that is not ours: ``python -m benchmarks.classical SHARDS --out PREDICTIONS.csv``.

Histograms of gradients in cells of 8² pixels (after Dalal and Triggs 2005) of pictures of 64², and scikit-learn's
logistic regression, trained on the training split. Its predictions of the test split are written as a CSV file, which
``brain-dist adopt`` reads: to show how other people's models are judged here, and what a model without deep learning
reaches.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from brain_dist.store.dataset import open_dataset
from brain_dist.store.reader import ShardReader

SIDE, CELL, DIRECTIONS = 64, 8, 9


def main() -> None:
    """Train, and write the predictions of the test split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("shards", type=Path, help="a built shard folder")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.shards)
    train, test = dataset.rows("train"), dataset.rows("test")
    reader = ShardReader(dataset)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(np.stack([features(reader.read(row)) for row in train]), dataset.columns["label"][train])
    prob = model.predict_proba(np.stack([features(reader.read(row)) for row in test]))
    lines = [",".join(["key", *dataset.classes])]
    lines += [
        ",".join([dataset.columns["key"][row], *map(repr, each)]) for row, each in zip(test, prob.tolist(), strict=True)
    ]
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    right = (prob.argmax(axis=1) == dataset.columns["label"][test]).mean()
    print(f"{arguments.out}: {len(test):,} test images, {100 * right:.1f} % right; trained on {len(train):,}")


def features(encoded: bytes) -> np.ndarray:
    """Histograms of gradients of an encoded picture, float64 [576]."""
    with Image.open(io.BytesIO(encoded)) as image:
        picture = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    down, right = np.gradient(picture)
    direction = (np.arctan2(down, right) % np.pi * DIRECTIONS / np.pi).astype(int) % DIRECTIONS
    y, x = np.indices(picture.shape) // CELL
    cells = np.zeros((SIDE // CELL, SIDE // CELL, DIRECTIONS))
    np.add.at(cells, (y, x, direction), np.hypot(down, right))
    return np.sqrt(cells / (np.linalg.norm(cells) + 1e-6)).ravel()


if __name__ == "__main__":
    main()
