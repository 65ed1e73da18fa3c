"""Explain the images of a run and measure the maps: each map × each measure of each image, beside the references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.common.progress import Progress
from brain_dist.explaining import perturbation, references, sanity
from brain_dist.explaining.images import spread, training_tumours
from brain_dist.explaining.measures import LOCATION
from brain_dist.explaining.methods import (
    SHAP,
    SHOWN_SAMPLES,
    Settings,
    describe,
    make_maps,
    training_images,
    untrained_network,
)
from brain_dist.explaining.shap import BASELINES

if TYPE_CHECKING:
    from brain_dist.inference.run import LoadedRun
    from brain_dist.judging.predictions import Predictions

CHUNK = 16  # images that are explained at once
CASCADE_IMAGES = 16
UNTRAINED = "untrained"
OF_IMAGE = {"brightness": references.brightness, "edges": references.edges}


@dataclass(frozen=True)
class Measured:
    """The maps of N images and how they were measured.

    Attributes:
        table: the predictions of these images.
        masks: their tumours on the network's input, bool [N, size, size], or None if they are not known.
        images: uint8 [N, size, size], as the network saw them.
        methods: method → what its maps are made from.
        maps: method → float32 [N, size, size].
        sources: where a map comes from: (method, "trained"), (method, "untrained"), or (reference, "reference").
        measures: names of the measures.
        values: float64 [N, sources, measures].
        cascade: method → see :func:`brain_dist.explaining.sanity.cascade`.
        completeness: of GradientSHAP: ``error`` and ``difference`` [N], or None.
    """

    table: Predictions
    masks: np.ndarray | None
    images: np.ndarray
    methods: dict[str, str]
    maps: dict[str, np.ndarray]
    sources: list[tuple[str, str]]
    measures: list[str]
    values: np.ndarray
    cascade: dict[str, list[dict[str, float]]]
    completeness: dict[str, np.ndarray] | None


def measure(
    run: LoadedRun,
    table: Predictions,
    masks: np.ndarray | None,
    methods: list[str],
    *,
    samples: int,
    perturb: bool,
    seed: int,
    micro_batch: int,
    progress: Progress,
) -> Measured:
    """Explain the true class of each image by each method, and measure the maps.

    Args:
        run: the run.
        table: the predictions of N images.
        masks: their tumours, bool [N, size, size], or None.
        methods: methods of :data:`~brain_dist.explaining.methods.TITLES`.
        samples: samples of GradientSHAP per image.
        perturb: whether to measure insertion and deletion; needed without masks.
        seed: seed of all draws.
        micro_batch: images per forward pass.
        progress: called with (stage, done, total).

    Raises:
        UserError: timm does not list the stages of the network, or the images of the training are missing.
    """
    size = run.config.data.size
    baselines = training_images(run, BASELINES, seed) if SHAP in methods else None
    settings = Settings(baselines, seed, samples, micro_batch)
    networks = {"trained": run.model, UNTRAINED: untrained_network(run)}
    for network in networks.values():
        network.requires_grad_(False)
    constant = _constant_references(run, masks is not None)
    sources = [(method, network) for network in networks for method in methods]
    sources += [(name, "reference") for name in (*constant, *OF_IMAGE)]
    measures = [*(LOCATION if masks is not None else ()), *(perturbation.MEASURES if perturb else ())]
    maps, images, values, errors = [], [], [], []
    for start in range(0, len(table), CHUNK):
        part = slice(start, start + CHUNK)
        rows, label = table.row[part].tolist(), table.label[part].tolist()
        inputs = run.images(rows)
        shown = run.display(inputs)
        explained = [
            make_maps(networks[network], inputs, label, rows, method, settings)
            for method, network in sources
            if network in networks
        ]
        for i in range(len(rows)):
            of_image = [of(shown[i]) for of in OF_IMAGE.values()]
            heats = np.stack([*(each.heat[i] for each in explained), *constant.values(), *of_image])
            parts = []
            if masks is not None:
                parts.append(np.array([[of(heat, masks[start + i]) for of in LOCATION.values()] for heat in heats]))
            if perturb:
                parts.append(
                    perturbation.insertion_deletion(
                        run.model, inputs[i], heats, label[i], seed=seed + rows[i], micro_batch=micro_batch
                    )
                )
            values.append(np.concatenate(parts, axis=1))
            progress("explaining", start + i + 1, len(table))
        own = explained[: len(methods)]
        maps.append([each.heat for each in own])
        images.append(shown)
        errors += [each.attributions for each in own if each.attributions is not None]
    of_method = {method: np.concatenate([chunk[i] for chunk in maps]) for i, method in enumerate(methods)}

    def explain(method: str, positions: np.ndarray) -> Callable[[Any], np.ndarray]:
        rows, inputs = table.row[positions].tolist(), run.images(table.row[positions].tolist())
        label, fewer = table.label[positions].tolist(), replace(settings, samples=min(samples, SHOWN_SAMPLES))
        return lambda model: make_maps(model, inputs, label, rows, method, fewer).heat

    positions, cascades = spread(table.group, CASCADE_IMAGES), {}
    for done, method in enumerate(methods, 1):
        cascades[method] = sanity.cascade(run.model, networks[UNTRAINED], explain(method, positions))
        progress("randomising", done, len(methods))
    completeness = None
    if errors:
        completeness = {key: np.concatenate([getattr(each, key) for each in errors]) for key in ("error", "difference")}
    return Measured(
        table=table,
        masks=masks,
        images=np.concatenate(images),
        methods={method: describe(run.model, size, method, samples) for method in methods},
        maps=of_method,
        sources=sources,
        measures=measures,
        values=np.stack(values),
        cascade=cascades,
        completeness=completeness,
    )


def _constant_references(run: LoadedRun, located: bool) -> dict[str, np.ndarray]:
    """The references that are the same for every image, float32 [size, size]."""
    size = run.config.data.size
    maps = {"uniform": references.uniform(size), "centre": references.centre(size)}
    tumours = training_tumours(run) if located else None
    if tumours is not None:
        maps["mean_tumour"] = references.mean_tumour(tumours)
    return maps


def agreement(first: Measured, second: Measured, method: str) -> np.ndarray:
    """Rank correlation of the maps of two runs, image by image; float64 [N], NaN where a map is empty."""
    return np.array([sanity.spearman(*pair) for pair in zip(first.maps[method], second.maps[method], strict=True)])
