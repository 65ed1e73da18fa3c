"""The predictions of a model that brain_dist did not train."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression

from brain_dist.store.dataset import Dataset
from brain_dist.store.reader import ShardReader


def classifier_probabilities(dataset: Dataset, side: int = 12) -> np.ndarray:
    """Probabilities [rows of the index, K] of scikit-learn's logistic regression on thumbnails, fitted on train."""
    reader, thumbnails = ShardReader(dataset), []
    for row in range(len(dataset)):
        with Image.open(io.BytesIO(reader.read(row))) as image:
            thumbnails.append(np.asarray(image.convert("L").resize((side, side)), dtype=np.float64).ravel() / 255)
    x, train = np.stack(thumbnails), dataset.rows("train")
    return LogisticRegression(C=10.0, max_iter=2000).fit(x[train], dataset.columns["label"][train]).predict_proba(x)
