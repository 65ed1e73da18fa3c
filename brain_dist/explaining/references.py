"""Maps that see no network, as references: what a measure reaches without any explanation."""

from __future__ import annotations

import numpy as np

from brain_dist.explaining.shap import SMOOTHING

# Key → name in tables
TITLES = {
    "uniform": "uniform",
    "centre": "centre",
    "mean_tumour": "mean tumour",
    "brightness": "brightness",
    "edges": "edges",
}


def uniform(size: int) -> np.ndarray:
    """No preference: float32 [size, size] of ones. Its pointing game is the share of the area."""
    return np.ones((size, size), dtype=np.float32)


def centre(size: int) -> np.ndarray:
    """A Gaussian about the centre with a standard deviation of a quarter of the side; float32 [size, size]."""
    at = (np.arange(size) + 0.5) / size - 0.5
    one = np.exp(-((at / 0.25) ** 2) / 2)
    return (one[:, None] * one).astype(np.float32)


def mean_tumour(masks: np.ndarray) -> np.ndarray:
    """The share of training tumours, bool [M, H, W], that cover each pixel: float32 [H, W]."""
    return masks.mean(axis=0, dtype=np.float64).astype(np.float32)


def brightness(image: np.ndarray) -> np.ndarray:
    """The gray values of an image [H, W], float32 [H, W], averaged by the same Gaussian as GradientSHAP's maps.

    It is nearly what GradientSHAP shows of a network whose gradient is the same everywhere: the method multiplies the
    gradient by the difference from other images, and tumours that take up contrast agent are bright.
    """
    from scipy import ndimage

    return ndimage.gaussian_filter(image.astype(np.float32), SMOOTHING * image.shape[-1])


def edges(image: np.ndarray) -> np.ndarray:
    """Sobel's gradient of an image [H, W], its magnitude; float32 [H, W]."""
    from scipy import ndimage

    image = image.astype(np.float32)
    return np.hypot(ndimage.sobel(image, axis=0), ndimage.sobel(image, axis=1)).astype(np.float32)
