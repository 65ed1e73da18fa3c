"""Which layer and method show a known tumour best, for each family of networks?

    python -m benchmarks.explanations RUN …

RUN was trained on phantoms, or on other shards whose tumours are known, and evaluated on its test split. Each layer
that timm lists is tried with each method, on the trained network and on the same network with random weights. The last
lines are what ``CHOICES`` in brain_dist/explaining/layers.py holds: for each method the layer with the largest mean of
pointing game and rank accuracy, as the cells of its map, and the method that is best. GradientSHAP needs no layer.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from brain_dist.common.progress import show_progress
from brain_dist.errors import UserError, leave
from brain_dist.explaining import references
from brain_dist.explaining.cams import TITLES as CAMS
from brain_dist.explaining.cams import cam_maps
from brain_dist.explaining.images import choose_images
from brain_dist.explaining.layers import layers
from brain_dist.explaining.measures import LOCATION
from brain_dist.explaining.methods import (
    SHAP,
    SHOWN_SAMPLES,
    TITLES,
    Settings,
    make_maps,
    training_images,
    untrained_network,
)
from brain_dist.explaining.shap import BASELINES
from brain_dist.inference.run import load_run
from brain_dist.judging.predictions import read_predictions

CHUNK = 32
SCORE = ("pointing game", "rank accuracy")


def location(heats: np.ndarray, masks: list[np.ndarray]) -> dict[str, float]:
    """Mean of each measure over maps [N, H, W]."""
    pairs = list(zip(heats, masks, strict=True))
    return {name: float(np.mean([of(heat, mask) for heat, mask in pairs])) for name, of in LOCATION.items()}


def try_run(run: Path, limit: int) -> list[dict[str, Any]]:
    """A row for each layer and method, for the references, and for a random network."""
    table = read_predictions(run / "predictions" / "test.parquet")
    loaded = load_run(run, step=table.step, shards=table.shards)
    positions, masks, _ = choose_images(loaded, table, limit)
    if masks is None:
        raise UserError(f"{run}: its shards know no tumours; take phantoms")
    rows, label, size = table.row[positions], table.label[positions].tolist(), loaded.config.data.size
    inputs = loaded.images(rows.tolist())
    networks = {"trained": loaded.model, "untrained": untrained_network(loaded)}
    accuracy = float((table.predicted == table.label).mean())
    family = type(loaded.model).__name__
    about = {"run": run.name, "family": family, "model": loaded.config.model.name, "accuracy": accuracy}
    known = layers(loaded.model)
    tried = []
    with show_progress() as progress:
        for done, layer in enumerate(known, 1):
            for method in CAMS:
                values = {}
                for name, model in networks.items():
                    model.requires_grad_(False)
                    heats = [
                        cam_maps(model, inputs[i : i + CHUNK], label[i : i + CHUNK], method, layer)
                        for i in range(0, len(inputs), CHUNK)
                    ]
                    values[name] = location(np.concatenate(heats), masks)
                cells = size // layer.reduction
                tried.append(about | {"layer": layer.name, "cells": cells, "method": method, **values})
            progress(run.name, done, len(known))
    settings = Settings(training_images(loaded, BASELINES, 0), samples=SHOWN_SAMPLES)
    values = {
        name: location(make_maps(model, inputs, label, rows.tolist(), SHAP, settings).heat, masks)
        for name, model in networks.items()
    }
    tried.append(about | {"layer": "input", "cells": size, "method": SHAP, **values})
    for name, heat in (("uniform", references.uniform(size)), ("centre", references.centre(size))):
        same = location(np.repeat(heat[None], len(masks), axis=0), masks)
        tried.append(about | {"layer": name, "cells": 0, "method": "", "trained": same, "untrained": same})
    return tried


def score(row: dict[str, Any]) -> float:
    """What a layer and a method are chosen by."""
    return float(np.mean([row["trained"][name] for name in SCORE]))


def chosen(rows: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, int]]]:
    """Family, best method, and method → cells, each by the mean over the runs of the family."""
    result = []
    for family in sorted({row["family"] for row in rows}):
        scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        cells = {}
        for row in rows:
            if row["family"] == family and row["method"]:
                scores[row["method"], row["layer"]].append(score(row))
                cells[row["layer"]] = row["cells"]
        means = {place: float(np.mean(values)) for place, values in scores.items()}
        best = {name: max((place for place in means if place[0] == name), key=means.__getitem__) for name in TITLES}
        top = max(best.values(), key=means.__getitem__)[0]
        result.append((family, top, {method: cells[best[method][1]] for method in CAMS}))
    return result


def main() -> int:
    """Print a table of every layer and method, and the choices."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run with predictions of its test split")
    parser.add_argument("--limit", type=int, default=100, help="images of each run (default: 100)")
    args = parser.parse_args()
    rows = [row for run in args.runs for row in try_run(run, args.limit)]
    print(f"| network | accuracy | layer | cells | map | {' | '.join(LOCATION)} | untrained: {SCORE[0]} |")
    print(f"|---|--:|---|--:|---|{'--:|' * (len(LOCATION) + 1)}")
    for row in rows:
        values = " | ".join(f"{value:.2f}" for value in row["trained"].values())
        print(
            f"| {row['model']} | {100 * row['accuracy']:.1f} % | {row['layer']} | {row['cells'] or '–'} |"
            f" {TITLES.get(row['method'], '–')} | {values} | {row['untrained'][SCORE[0]]:.2f} |"
        )
    print("\nBy the mean of pointing game and rank accuracy:\n")
    for family, method, cells in chosen(rows):
        print(f'    "{family}": Choice("{method}", {cells}),')
    return 0


if __name__ == "__main__":
    leave(main)
