"""GradientSHAP: how much each pixel adds to a class's score, compared with training images (Lundberg and Lee 2017).

It is the mean of (x − b) · ∇f(b + α (x − b)) over training images b and α in 0..1, also known as expected gradients
(Erion et al. 2021). By the fundamental theorem of calculus the sum over all pixels is f(x) − mean f(b). The difference
that is left, the completeness error, tells whether the samples suffice. Two things keep it small: α is stratified, one
draw in each of as many equal parts of 0..1 as there are samples, and each training image is drawn equally often (once
at most if there are more of them than samples).
Captum's GradientShap does neither, draws from the global generators of NumPy and torch, and needs the memory of all
samples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SAMPLES = 200
BASELINES = 50  # training images
SMOOTHING = 1 / 64  # standard deviation, as a fraction of the side


@dataclass(frozen=True)
class Attributions:
    """GradientSHAP of B images.

    Attributes:
        values: float64 [B, H, W], sum over the channels; positive where a pixel raises the score.
        error: float64 [B], absolute completeness error in units of the score.
        difference: float64 [B], f(x) − mean f(b), which the values should add up to.
    """

    values: np.ndarray
    error: np.ndarray
    difference: np.ndarray

    def maps(self) -> np.ndarray:
        """Where pixels raise the score: float32 [B, H, W] in 0..1, each map scaled to its maximum.

        Neighbouring pixels are averaged by a narrow Gaussian first, because single ones are noisy.
        """
        from scipy import ndimage

        width = SMOOTHING * self.values.shape[-1]
        positive = np.maximum(ndimage.gaussian_filter(self.values, (0, width, width)), 0)
        top = positive.max(axis=(1, 2), keepdims=True)
        return (positive / np.where(top > 0, top, 1)).astype(np.float32)


def gradient_shap(
    model: Any,
    images: torch.Tensor,
    targets: Sequence[int],
    baselines: torch.Tensor,
    *,
    names: Sequence[int],
    samples: int = SAMPLES,
    seed: int = 0,
    micro_batch: int = 32,
) -> Attributions:
    """GradientSHAP of class ``targets[i]`` for ``images[i]``.

    The draws for an image depend on the seed and its name only, not on the other images or the device.

    Args:
        model: [B, C, H, W] → scores [B, K], in evaluation mode.
        images: [B, C, H, W], normalised as in training, on the model's device.
        targets: B class indices.
        baselines: [M, C, H, W], training images, normalised.
        names: B numbers ≥ 0 that name the images.
        samples: points on the lines from baselines to the image.
        seed: seed of the draws.
        micro_batch: images per forward pass.
    """
    import torch

    def scores(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(part) for part in batch.split(micro_batch)]).double()

    of_images, of_baselines = scores(images), scores(baselines)
    values, errors, differences = [], [], []
    for image, target, name, score in zip(images, targets, names, of_images, strict=True):
        rng = np.random.default_rng([seed, name])
        # any of them, if there are more than samples: in the order of an index, the first are of one collection
        drawn = rng.permutation(np.arange(max(samples, len(baselines))) % len(baselines))[:samples]
        chosen = torch.from_numpy(drawn).to(images.device)
        alpha = torch.from_numpy((np.arange(samples) + rng.random(samples)) / samples)
        alpha = alpha.to(images)[:, None, None, None]
        total = torch.zeros(image.shape[1:], dtype=torch.float64, device=images.device)
        for start in range(0, samples, micro_batch):
            base = baselines[chosen[start : start + micro_batch]]
            step = image - base
            point = (base + alpha[start : start + micro_batch] * step).requires_grad_(True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(model(point)[:, target].sum(), point)
            total += (step * gradient).double().sum(dim=(0, 1))
        attribution = (total / samples).cpu().numpy()
        difference = float(score[target] - of_baselines[chosen, target].mean())
        values.append(attribution)
        errors.append(abs(attribution.sum() - difference))
        differences.append(difference)
    return Attributions(np.stack(values), np.array(errors), np.array(differences))
