"""Which layer and method show a known tumour best, for each family of networks?

    python -m benchmarks.explanations RUN …

RUN was trained on phantoms, or on other shards whose tumours are known, and evaluated on its test split. Each layer
that timm lists is tried with each method, on the trained network and on networks of the same kind with random weights,
whose values differ with the draw. The last lines are what ``CHOICES`` in brain_dist/explaining/layers.py holds: for
each method the layer with the largest mean of pointing game and rank accuracy, as the cells of its map, and the method
that is best. GradientSHAP needs no layer.
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
from brain_dist.explaining.layers import Layer, layers
from brain_dist.explaining.measure import OF_IMAGE
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


def try_run(run: Path, limit: int, count: int) -> list[dict[str, Any]]:
    """A row for each layer and method, and for each reference.

    Each has ``trained``, the measures of the run, and ``untrained``, those of ``count`` networks with random weights.
    """
    table = read_predictions(run / "predictions" / "test.parquet")
    loaded = load_run(run, step=table.step, shards=table.shards)
    positions, masks, _ = choose_images(loaded, table, limit)
    if masks is None:
        raise UserError(f"{run}: its shards know no tumours; take phantoms")
    rows, label, size = table.row[positions], table.label[positions].tolist(), loaded.config.data.size
    inputs = loaded.images(rows.tolist())
    settings = Settings(training_images(loaded, BASELINES, 0), samples=SHOWN_SAMPLES)
    networks = [loaded.model, *(untrained_network(loaded, 1 + number) for number in range(count))]
    for model in networks:
        model.requires_grad_(False)
    known = layers(loaded.model)
    places = [(method, layer) for layer in known for method in CAMS] + [(SHAP, None)]
    tried = []
    with show_progress() as progress:
        for done, (method, layer) in enumerate(places, 1):
            maps = [_maps(model, inputs, label, rows.tolist(), method, layer, settings) for model in networks]
            trained, *untrained = [location(heats, masks) for heats in maps]
            name, cells = (layer.name, size // layer.reduction) if layer else ("input", size)
            tried.append({"layer": name, "cells": cells, "method": method, "trained": trained, "untrained": untrained})
            progress(run.name, done, len(places))
    shown = loaded.display(inputs)
    repeated = {"uniform": references.uniform(size), "centre": references.centre(size)}
    heats = {name: np.repeat(heat[None], len(masks), axis=0) for name, heat in repeated.items()}
    heats |= {name: np.stack([of(image) for image in shown]) for name, of in OF_IMAGE.items()}
    for name, maps in heats.items():
        tried.append({"layer": name, "cells": 0, "method": "", "trained": location(maps, masks), "untrained": []})
    about = {
        "family": type(loaded.model).__name__,
        "model": loaded.config.model.name,
        "accuracy": float((table.predicted == table.label).mean()),
    }
    return [about | row for row in tried]


def _maps(
    model: Any, inputs: Any, label: list[int], rows: list[int], method: str, layer: Layer | None, settings: Settings
) -> np.ndarray:
    """Maps [N, H, W] of a method, those of a layer in chunks."""
    if layer is None:
        return make_maps(model, inputs, label, rows, method, settings).heat
    starts = range(0, len(inputs), CHUNK)
    return np.concatenate([cam_maps(model, inputs[i : i + CHUNK], label[i : i + CHUNK], method, layer) for i in starts])


def score(row: dict[str, Any]) -> float:
    """What a layer and a method are chosen by."""
    return float(np.mean([row["trained"][name] for name in SCORE]))


def chosen(rows: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, int]]]:
    """Family, best method, and method → cells, each by the mean over the runs of the family.

    Of several layers with as many cells only the deepest counts, as ``choose_layer`` takes it.
    """
    result = []
    for family in sorted({row["family"] for row in rows}):
        scores: dict[tuple[str, int], list[float]] = defaultdict(list)
        of_family = [row for row in rows if row["family"] == family and row["method"]]
        for run in {row["run"] for row in of_family}:
            deepest = {(row["method"], row["cells"]): row for row in of_family if row["run"] == run}
            for place, row in deepest.items():
                scores[place].append(score(row))
        means = {place: float(np.mean(values)) for place, values in scores.items()}
        best = {name: max((place for place in means if place[0] == name), key=means.__getitem__) for name in TITLES}
        top = max(best.values(), key=means.__getitem__)[0]
        result.append((family, top, {method: best[method][1] for method in CAMS}))
    return result


def untrained_text(values: list[dict[str, float]]) -> str:
    """The mean pointing game of networks with random weights, and the smallest and the largest."""
    if not values:
        return ""
    points = [value[SCORE[0]] for value in values]
    return f"{np.mean(points):.2f} ({min(points):.2f} to {max(points):.2f})"


def main() -> int:
    """Print a table of every layer and method, and the choices."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run with predictions of its test split")
    parser.add_argument("--limit", type=int, default=100, help="images of each run (default: 100)")
    parser.add_argument(
        "--untrained", type=int, default=3, metavar="N", help="networks with random weights (default: 3)"
    )
    args = parser.parse_args()
    rows = [{"run": str(run)} | row for run in args.runs for row in try_run(run, args.limit, args.untrained)]
    print(f"| network | accuracy | layer | cells | map | {' | '.join(LOCATION)} | untrained: {SCORE[0]} |")
    print(f"|---|--:|---|--:|---|{'--:|' * (len(LOCATION) + 1)}")
    for row in rows:
        values = " | ".join(f"{value:.2f}" for value in row["trained"].values())
        print(
            f"| {row['model']} | {100 * row['accuracy']:.1f} % | {row['layer']} | {row['cells'] or '–'} |"
            f" {TITLES.get(row['method'], '–')} | {values} | {untrained_text(row['untrained'])} |"
        )
    print("\nBy the mean of pointing game and rank accuracy:\n")
    for family, method, cells in chosen(rows):
        print(f'    "{family}": Choice("{method}", {cells}),')
    return 0


if __name__ == "__main__":
    leave(main)
