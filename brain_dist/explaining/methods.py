"""All methods of explanation behind one call, and the networks that they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import UserError
from brain_dist.explaining import cams
from brain_dist.explaining.layers import choice, choose_layer
from brain_dist.explaining.shap import BASELINES, SAMPLES, Attributions, gradient_shap

if TYPE_CHECKING:
    import torch

    from brain_dist.inference.run import LoadedRun

SHAP = "gradientshap"
SHOWN_SAMPLES = 32  # of maps that are shown without being measured
TITLES = cams.TITLES | {SHAP: "GradientSHAP"}


@dataclass(frozen=True)
class Maps:
    """Maps of B images, float32 [B, H, W] in 0..1, and what GradientSHAP says about its own accuracy."""

    heat: np.ndarray
    attributions: Attributions | None = None


@dataclass(frozen=True)
class Settings:
    """What decides maps besides the network and the images.

    Attributes:
        baselines: [M, C, H, W], training images for GradientSHAP; None if it is not asked for.
        seed: seed of its draws.
        samples: number of its samples.
        micro_batch: images per forward pass.
    """

    baselines: torch.Tensor | None = None
    seed: int = 0
    samples: int = SAMPLES
    micro_batch: int = 32


def check_methods(text: str) -> list[str]:
    """The methods in a list that commas separate.

    Raises:
        UserError: an unknown method, or one that is named twice.
    """
    names = text.split(",")
    for name in names:
        if name not in TITLES or names.count(name) > 1:
            problem = "named twice" if name in TITLES else "unknown"
            raise UserError(f"--methods {text}: {name!r} is {problem}; choose from {', '.join(TITLES)}")
    return names


def make_maps(
    model: Any, images: torch.Tensor, targets: Sequence[int], names: Sequence[int], method: str, settings: Settings
) -> Maps:
    """Maps of class ``targets[i]`` for ``images[i]``, whose name is ``names[i]`` (a number that seeds its draws).

    Args:
        model: a network of timm.
        images: [B, C, H, W], normalised as in training, on the model's device.
        targets: B class indices.
        names: B numbers.
        method: one of :data:`TITLES`.
        settings: what else decides the maps.

    Raises:
        UserError: timm does not list the stages of this network.
    """
    if method == SHAP:
        assert settings.baselines is not None
        attributions = gradient_shap(
            model, images, targets, settings.baselines,
            names=names, samples=settings.samples, seed=settings.seed, micro_batch=settings.micro_batch,
        )  # fmt: skip
        return Maps(attributions.maps(), attributions)
    return Maps(cams.cam_maps(model, images, targets, method))


def default_maps(run: LoadedRun, images: torch.Tensor, targets: Sequence[int], rows: Sequence[int]) -> tuple[str, Maps]:
    """Maps by the method that was measured to be best for the network's family, and its name.

    Without the images of the training, which GradientSHAP needs, they are those of LayerCAM.

    Args:
        run: the run.
        images: [B, C, H, W], see :meth:`~brain_dist.inference.run.LoadedRun.images`.
        targets: B class indices.
        rows: their B rows of the index.

    Raises:
        UserError: timm does not list the stages of this network.
    """
    method, baselines = choice(run.model).method, None
    if method == SHAP:
        try:
            baselines = training_images(run, BASELINES, 0)
        except UserError:
            method = "layercam"
    settings = Settings(baselines, samples=SHOWN_SAMPLES)
    return method, make_maps(run.model, images, targets, rows, method, settings)


def describe(model: Any, size: int, method: str, samples: int) -> str:
    """What a method's maps are made from, such as "stages.2, 4 × 4 cells"."""
    if method == SHAP:
        return f"every pixel, {samples} samples"
    layer = choose_layer(model, size, method)
    return f"{layer.name}, {size // layer.reduction} × {size // layer.reduction} cells"


def untrained_network(run: LoadedRun, number: int = 1) -> torch.nn.Module:
    """A network like the run's with the weights that another seed gives before the first step, on the same device.

    Args:
        run: the run.
        number: what is added to the seed of the run, at least 1.
    """
    from brain_dist.networks.create import create_network

    other = create_network(
        run.config.model, len(run.trained_classes), seed=run.config.run.seed + number, load_weights=False
    )
    model = copy.deepcopy(run.model)  # with the hook that joins classes, if there is one
    model.load_state_dict(other.state_dict())
    return model


def training_images(run: LoadedRun, count: int, seed: int) -> torch.Tensor:
    """At most ``count`` images of the training that the seed chooses, as the network's input [M, C, H, W].

    Raises:
        UserError: the shards of the training are missing or were rebuilt.
    """
    import dataclasses

    from brain_dist.inference.run import open_own_data

    if run.dataset.version != run.trained_version:
        data, dataset = open_own_data(run.path, run.config.data.cache_dir)
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data), dataset=dataset)
    rows = run.dataset.rows("train")
    chosen = np.random.default_rng(seed).permutation(rows)[:count]
    return run.images(np.sort(chosen).tolist())
