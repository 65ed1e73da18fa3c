"""How much of an image's source is left in a network's features: a linear probe, within one class.

A logistic regression predicts the collection that an image comes from. It sees images of one class only, so that it
cannot use what distinguishes the classes. If it does much better than chance, the network had the source at hand when
it chose a class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from brain_dist.judging.refusal import Refusal

FOLDS = 5
ITERATIONS = 2000  # of the solver, enough for features of thousands of dimensions


def source_probe(features: np.ndarray, source: np.ndarray, cluster: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy of a logistic regression from features to sources, by cross-validation over whole groups.

    Args:
        features: float [N, D].
        source: name of each image's collection, str [N].
        cluster: number of each image's group, int64 [N].
        seed: seed of the folds.

    Returns:
        ``balanced_accuracy`` in [0, 1], ``chance``, ``images`` and ``groups`` by source.

    Raises:
        Refusal: there are fewer than two sources, or a source has fewer than five groups.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = sorted(set(source))
    if len(names) < 2:
        raise Refusal("images of one source only")
    groups = {name: len(np.unique(cluster[source == name])) for name in names}
    fewest = min(names, key=groups.__getitem__)
    if groups[fewest] < FOLDS:
        raise Refusal(f"{fewest} has {groups[fewest]} groups; the probe needs {FOLDS}")
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=ITERATIONS))
    predicted = np.empty(len(source), dtype=object)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(features, source, cluster):
        predicted[test] = probe.fit(features[train], source[train]).predict(features[test])
    return {
        "balanced_accuracy": float(balanced_accuracy_score(source.astype(str), predicted.astype(str))),
        "chance": 1 / len(names),
        "images": {name: int((source == name).sum()) for name in names},
        "groups": groups,
    }
