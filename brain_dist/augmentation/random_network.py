"""An image seen through a small random convolutional network: other intensities and another texture, the same shapes.

Global intensity non-linear augmentation (GIN: Ouyang et al., "Causality-inspired single-source domain generalization
for medical image segmentation", IEEE TMI 2023): four convolutions with weights drawn for each visit, each with a kernel
of 1×1 or 3×3, two channels between them and leaky ReLU; the result is mixed with the image at a random share. Other
than there, image, result and mixture are standardised, and the share of the image is at least :data:`LEAST`: else some
pictures lose their contrast or keep edges only. The mixture has the image's mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brain_dist.augmentation.upload import on_device
from brain_dist.common import counter

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_CHANNELS = (1, 2, 2, 2, 1)  # before and after each convolution
_KERNELS = [after * before for before, after in pairwise(_CHANNELS)]
LEAST = 0.3  # smallest share of the image in the mixture
NUMBERS = 9 * sum(_KERNELS) + sum(_CHANNELS[1:])  # weights and biases of a network


def draw_networks(seed: int, epoch: int | Rows, visit: Rows, chosen: npt.NDArray[np.bool_]) -> Floats:
    """The networks of visits, as float32 [B, 1 + NUMBERS].

    Args:
        seed: of the run.
        epoch: of all visits, or int64 [B].
        visit: int64 [B].
        chosen: bool [B], which visits get a network.

    Returns:
        In each row the share of the original image in the mixture, then the weights of each convolution in turn
        ([out, in, 3, 3], zero beside the centre of a 1×1 kernel, and [out]). A share of 1 keeps the image.
    """
    from scipy.special import ndtri

    result = np.zeros((len(visit), 1 + NUMBERS), dtype=np.float32)
    result[:, 0] = 1
    places = np.flatnonzero(chosen)
    if len(places):
        epochs = np.broadcast_to(np.asarray(epoch), visit.shape)[places, None]
        column = np.arange(NUMBERS)

        def uniform(purpose: str, count: int) -> npt.NDArray[np.float64]:
            return counter.uniform(seed, f"style.network.{purpose}", epochs, visit[places, None], column[:count])

        result[places, :1] = LEAST + (1 - LEAST) * uniform("share", 1)
        numbers = ndtri(uniform("numbers", NUMBERS) + 2.0**-54)
        point = uniform("kernel", len(_KERNELS)) < 0.5
        start = 0
        for layer, kernels in enumerate(_KERNELS):
            weights = numbers[:, start : start + 9 * kernels].reshape(-1, kernels, 9)
            weights *= np.where(point[:, layer, None, None], np.arange(9) == 4, 1)
            start += 9 * kernels + _CHANNELS[layer + 1]
        result[places, 1:] = numbers
    return result


def apply_networks(networks: Floats, image: torch.Tensor) -> torch.Tensor:
    """The mixtures uint8 [B, C, H, W] of images of that shape and the outputs of their networks [B, 1 + NUMBERS].

    All channels of an image pass through the same network, one by one.
    """
    import torch
    from torch.nn.functional import conv2d, leaky_relu, pad

    count, channels = image.shape[:2]
    pixels = image.float()
    deviation, mean = torch.std_mean(pixels, dim=(2, 3), keepdim=True)
    standard = _standardised(pixels)
    numbers = on_device(networks, image.device)
    share, numbers = numbers[:, 0, None, None, None], numbers[:, 1:].repeat_interleave(channels, dim=0)
    groups = count * channels
    values = standard.reshape(1, groups, *image.shape[2:])
    start = 0
    for layer, (before, after) in enumerate(pairwise(_CHANNELS)):
        stop = start + 9 * before * after
        weights = numbers[:, start:stop].reshape(groups * after, before, 3, 3)
        bias = numbers[:, stop : stop + after].reshape(-1)
        values = pad(values if layer == 0 else leaky_relu(values), (1, 1, 1, 1), mode="replicate")
        with _kernels_not_timed():
            values = conv2d(values, weights, bias, groups=groups)
        start = stop + after
    mixed = _standardised(share * standard + (1 - share) * _standardised(values.reshape(standard.shape)))
    return (mean + deviation * mixed).round().clamp(0, 255).to(torch.uint8)


@contextmanager
def _kernels_not_timed() -> Iterator[None]:
    """How many images have a network differs between batches, and cuDNN would time its kernels for each number."""
    from torch.backends import cudnn

    benchmark = cudnn.benchmark
    cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.benchmark = benchmark


def _standardised(values: torch.Tensor) -> torch.Tensor:
    """Each image and channel of [B, C, H, W] with mean 0 and standard deviation 1; a constant one becomes 0."""
    import torch

    deviation, mean = torch.std_mean(values, dim=(2, 3), keepdim=True)
    return (values - mean) / deviation.clamp(min=1e-6)
