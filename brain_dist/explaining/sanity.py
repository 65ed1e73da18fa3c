"""Does a map depend on what the network learned? Random weights must change it (Adebayo et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SIMILAR = 0.5  # a map that stays more similar than that to the original does not depend on the weights
STEPS = 5


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two maps [H, W]; NaN if one of them has equal values only."""
    from scipy.stats import rankdata

    ranks = [rankdata(heat, axis=None) for heat in (first, second)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two maps [H, W] in 0..1 (Wang et al. 2004)."""
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.from_numpy(heat.astype(np.float64))[None, None] for heat in (first, second))
    value: Any = structural_similarity_index_measure(a, b, data_range=1.0)
    return float(value)


def parts_from_the_top(names: list[str]) -> list[list[str]]:
    """Names of weights in the order of the network → at most ``STEPS`` lists of names, those of the output first.

    Blocks stay whole.
    """
    blocks: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        numbered = len(parts) > 2 and (parts[1].isdigit() or parts[0] == "features")
        blocks.setdefault(".".join(parts[:2]) if numbered else parts[0], []).append(name)
    order = list(blocks.values())[::-1]
    pieces = np.array_split(np.arange(len(order)), min(STEPS, len(order)))
    return [[name for index in piece for name in order[index]] for piece in pieces]


def randomised(model: Any, untrained: Any) -> Iterator[tuple[float, Any]]:
    """Networks whose weights are more and more those of ``untrained``, from the output to the input.

    Yields:
        The share of the parameters that were replaced, and the network; the last one is ``untrained`` itself.
    """
    mixed, state = copy.deepcopy(model), untrained.state_dict()
    size = sum(value.numel() for value in state.values())
    replaced = 0
    for names in parts_from_the_top(list(state)):
        mixed.load_state_dict({name: state[name] for name in names}, strict=False)
        replaced += sum(state[name].numel() for name in names)
        yield replaced / size, mixed


def cascade(model: Any, untrained: Any, explain: Callable[[Any], np.ndarray]) -> list[dict[str, float]]:
    """How similar maps stay to the original while the weights become random, from the output to the input.

    Args:
        model: the trained network.
        untrained: the same network with random weights.
        explain: network → maps of the same images [B, H, W].

    Returns:
        For each step the share of random weights (``random``), and the means of ``spearman`` (0 for an empty map) and
        ``ssim`` over the images.
    """
    original, steps = explain(model), []
    for share, mixed in randomised(model, untrained):
        maps = explain(mixed)
        pairs = list(zip(original, maps, strict=True))
        correlations = np.nan_to_num([spearman(*pair) for pair in pairs])
        steps.append({
            "random": share,
            "spearman": float(correlations.mean()),
            "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
        })  # fmt: skip
    return steps


def depends_on_weights(steps: list[dict[str, float]]) -> bool:
    """Whether the maps of a random network differ from the original: see :func:`cascade`."""
    return max(steps[-1]["spearman"], steps[-1]["ssim"]) <= SIMILAR
