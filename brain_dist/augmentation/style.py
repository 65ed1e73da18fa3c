"""How an image looks: random intensity, sharpness, noise and compression in training, and ``data.stretch``.

The parameters are pure functions of (seed, epoch, row), drawn with NumPy. They are carried out here, on the device and
on the images that any loader made, so that all loaders agree. Steps of training, in this order: rim of the head, random
network, bias field, resolution and blur, noise, intensity curve, JPEG. (From the bias field on, the list follows
BigAug: Zhang et al., IEEE TMI 2020.) Then, in training and in use, the stretch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from brain_dist.augmentation.random_network import apply_networks, draw_networks
from brain_dist.augmentation.skull import WIDTH, remove_rim
from brain_dist.augmentation.upload import on_device
from brain_dist.common import counter
from brain_dist.config import AugmentConfig

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

CHANGES = ("rim", "network", "bias", "resolution", "blur", "noise", "curves", "jpeg")  # keys of ``augment``
FACTOR = (1.2, 3.0)  # reduction of the resolution
SIGMA = (0.4, 1.2)  # of the blur, pixels of the input
BIAS = 0.15  # largest logarithm of the bias field, from each of its waves
NOISE = (2.0, 15.0)  # standard deviation, gray levels
QUALITY = (20.0, 80.0)  # of JPEG
WAVES = 3  # of the bias field along each axis, the constant one included
_BANK = 512  # side of the square of normal numbers from which noise is cut
TISSUE = 0.1  # of an image's 99th percentile: what is brighter is tissue
# Luminance quantisation table of the JPEG standard (ITU-T T.81, table K.1)
_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
], dtype=np.float64).reshape(8, 8)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """The look of each image of a micro-batch.

    Attributes:
        table: uint8 [B, 256], the new gray level of each gray level.
        factor: float64 [B], reduction of the resolution; 1 keeps it.
        sigma: float64 [B], blur in pixels of the input; 0 is none.
        bias: float32 [B, WAVES, WAVES], coefficients of the bias field's logarithm in cosines along y and x.
        noise: float32 [B], standard deviation in gray levels.
        cut: int64 [B, 2], where the noise of an image is in the bank, y and x.
        quality: int64 [B], of JPEG; 0 is none.
        rim: float64 [B], width of the rim of the head that is removed, as a share of the image's side; 0 is none.
        network: float32 [B, N], see :func:`.random_network.draw_networks`.
    """

    table: npt.NDArray[np.uint8]
    factor: npt.NDArray[np.float64]
    sigma: npt.NDArray[np.float64]
    bias: Floats
    noise: Floats
    cut: Rows
    quality: Rows
    rim: npt.NDArray[np.float64]
    network: Floats

    def part(self, start: int, stop: int) -> Style:
        """The style of the images from ``start`` to ``stop``, as views."""
        return Style(**{name: values[start:stop] for name, values in vars(self).items()})


def draw_style(config: AugmentConfig, rows: Rows, *, seed: int, epoch: int | Rows, visit: Rows) -> Style | None:
    """The style of each visit, or None if every probability is 0. Arguments as of :func:`.augment.decide`."""
    if not any(getattr(config, name) for name in CHANGES):
        return None

    def uniform(purpose: str, low: float = 0.0, high: float = 1.0) -> npt.NDArray[np.float64]:
        return low + (high - low) * counter.uniform(seed, f"style.{purpose}", epoch, visit)

    def where(name: str, values: npt.NDArray[np.float64], otherwise: float) -> npt.NDArray[np.float64]:
        return np.where(uniform(name) < getattr(config, name), values, otherwise)

    def log_uniform(purpose: str, limits: tuple[float, float]) -> npt.NDArray[np.float64]:
        return np.exp(uniform(purpose, *np.log(limits)))

    waves = [uniform(f"bias.{number}", -BIAS, BIAS) for number in range(WAVES * WAVES)]
    bias = np.stack(waves, axis=1).reshape(-1, WAVES, WAVES)
    bias[:, 0, 0] = 0  # brightness is augment.brightness
    chosen = where("bias", np.ones(len(rows)), 0.0)
    return Style(
        table=_curves(uniform("curves") < config.curves, [uniform(f"curves.{number}") for number in range(4)]),
        factor=where("resolution", log_uniform("resolution.factor", FACTOR), 1.0),
        sigma=where("blur", log_uniform("blur.sigma", SIGMA), 0.0),
        bias=(bias * chosen[:, None, None]).astype(np.float32),
        noise=where("noise", log_uniform("noise.deviation", NOISE), 0.0).astype(np.float32),
        cut=np.stack([uniform(f"noise.{axis}", 0, _BANK).astype(np.int64) for axis in "yx"], axis=1),
        quality=np.rint(where("jpeg", uniform("jpeg.quality", *QUALITY), 0.0)).astype(np.int64),
        rim=where("rim", uniform("rim.width", *WIDTH), 0.0),
        network=draw_networks(seed, epoch, visit, uniform("network") < config.network),
    )


def _curves(chosen: npt.NDArray[np.bool_], points: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.uint8]:
    """Tables uint8 [B, 256]: the identity, or a monotone Bézier curve (Models Genesis: Zhou et al., MICCAI 2019).

    The curve begins at (0, 0) and ends at (1, 1). Its two inner points are drawn, and sorted so that it rises.
    """
    x, y = (np.sort(np.stack(pair, axis=1), axis=1) for pair in (points[:2], points[2:]))
    t = np.linspace(0, 1, 129)
    weights = np.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)])
    levels = np.arange(256) / 255
    tables = np.tile(np.arange(256, dtype=np.uint8), (len(chosen), 1))
    for i in np.flatnonzero(chosen):
        # of equal values, np.interp needs none: t³ makes both coordinates rise
        tables[i] = np.rint(255 * np.interp(levels, x[i] @ weights + t**3, y[i] @ weights + t**3))
    return tables


def apply_style(style: Style, image: torch.Tensor) -> torch.Tensor:
    """Carry out a style on uint8 [B, C, H, W] with H = W; the result has the same shape and device."""
    import torch

    result, size, device = image.clone(), image.shape[-1], image.device

    def chosen(marked: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], torch.Tensor]:
        places = np.flatnonzero(marked)
        return places, on_device(places, device)

    places, index = chosen(style.rim > 0)
    if len(places):
        result[index] = remove_rim(style.rim[places], result[index])
    places, index = chosen(style.network[:, 0] < 1)
    if len(places):
        result[index] = apply_networks(style.network[places], result[index])
    changed = style.bias.any(axis=(1, 2)) | (style.factor > 1) | (style.sigma > 0) | (style.noise > 0)
    places, index = chosen(changed)
    if len(places):
        pixels = result[index].float()
        waves = _waves(size, device)
        field = waves @ on_device(style.bias[places], device) @ waves.T
        pixels *= field.exp()[:, None]
        filters = np.stack([_filter(size, style.factor[i], style.sigma[i]) for i in places])
        matrix = on_device(filters, device)[:, None]
        pixels = matrix @ pixels @ matrix.transpose(2, 3)
        pixels += on_device(np.stack([_noise(style, i, size) for i in places]), device)[:, None]
        result[index] = pixels.round().clamp(0, 255).to(torch.uint8)
    places, index = chosen((style.table != np.arange(256)).any(axis=1))
    if len(places):
        result[index] = look_up(on_device(style.table[places], device), result[index])
    places, index = chosen(style.quality > 0)
    if len(places):
        tables = np.stack([quantisation(int(style.quality[i])) for i in places])
        result[index] = _jpeg(result[index], on_device(tables, device))
    return result


def stretch(image: torch.Tensor) -> torch.Tensor:
    """Map the 1st percentile of each image's tissue to black and the 99th to white: uint8 [B, C, H, W], same result.

    Tissue is what is brighter than a tenth of the image's 99th percentile. All channels of an image count together and
    change alike. Only integers are counted and compared, so all devices agree exactly.
    """
    import torch

    levels = torch.arange(256, device=image.device)
    flat = image.flatten(1).long()
    counts = torch.zeros(len(image), 256, dtype=torch.int64, device=image.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))

    def percentile(of: torch.Tensor, percent: int) -> torch.Tensor:
        """The first level [B, 1] up to which at least ``percent`` of the counts [B, 256] are."""
        return (100 * of.cumsum(1) < percent * of.sum(1, keepdim=True)).sum(1, keepdim=True)

    tissue = counts * (10 * levels > percentile(counts, 99))
    low, high = percentile(tissue, 1), percentile(tissue, 99)
    span = (high - low).clamp(min=1)
    # rounded to the nearest integer without fractions; an image without tissue has low = high = 0 and keeps its levels
    table = ((510 * (levels - low) + span) // (2 * span)).clamp(0, 255)
    table = torch.where(high > low, table, levels)
    return look_up(table.to(torch.uint8), image)


def look_up(table: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Replace each gray level of uint8 [B, C, H, W] by its entry in the image's table, uint8 [B, 256]."""
    return table.gather(1, image.flatten(1).long()).reshape(image.shape)


@cache
def _waves(size: int, device: torch.device) -> torch.Tensor:
    """Cosines float32 [size, WAVES] along an axis, the first of them constant."""
    place = (np.arange(size) + 0.5) / size
    return on_device(np.cos(np.pi * place[:, None] * np.arange(WAVES)).astype(np.float32), device)


def _filter(size: int, factor: float, sigma: float) -> Floats:
    """Blur and loss of resolution along an axis, float32 [size, size], as a matrix whose rows sum to 1."""
    matrix = None
    place = np.arange(size)
    if sigma > 0:
        matrix = np.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2)
        matrix /= matrix.sum(axis=1, keepdims=True)
    if factor > 1:
        coarse = max(1, round(size / factor))
        edges = np.arange(coarse + 1) * size / coarse
        # means over the coarse pixels, then linear interpolation between their centres
        inside = np.clip(np.minimum(edges[1:, None], place + 1) - np.maximum(edges[:-1, None], place), 0, None)
        means = inside / inside.sum(axis=1, keepdims=True)
        at = np.clip((place + 0.5) * coarse / size - 0.5, 0, coarse - 1)
        between = np.clip(1 - np.abs(at[:, None] - np.arange(coarse)), 0, None)
        coarser = between @ means
        matrix = coarser if matrix is None else coarser @ matrix
    return (np.eye(size) if matrix is None else matrix).astype(np.float32)


@cache
def _bank() -> Floats:
    """Standard normal numbers, float32 [_BANK, _BANK]."""
    from scipy.special import ndtri

    place = np.arange(_BANK)
    return ndtri(counter.uniform(0, "style.bank", place[:, None], place) + 2.0**-54).astype(np.float32)


def _noise(style: Style, i: int, size: int) -> Floats:
    """The noise of an image, float32 [size, size], cut from the bank, which repeats beyond its edges."""
    y, x = ((start + np.arange(size)) % _BANK for start in style.cut[i])
    return style.noise[i] * _bank()[np.ix_(y, x)]


def quantisation(quality: int) -> Floats:
    """The steps of libjpeg's luminance coefficients at a quality of 1 to 100, float32 [8, 8]."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((_LUMINANCE * scale + 50) // 100, 1, 255).astype(np.float32)


@cache
def _cosines(device: torch.device) -> torch.Tensor:
    """The orthonormal discrete cosine transform of 8 values, float32 [8, 8]."""
    place = np.arange(8)
    basis = np.cos(np.pi * place[:, None] * (2 * place + 1) / 16) / 2
    basis[0] /= np.sqrt(2)
    return on_device(basis.astype(np.float32), device)


def _jpeg(image: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """What JPEG loses of each channel of uint8 [B, C, H, W]: coefficients in steps of ``tables`` [B, 8, 8]."""
    import torch
    from torch.nn.functional import pad

    height, width = image.shape[2:]
    padded = pad(image.float() - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    count, channels, high, wide = padded.shape
    blocks = padded.reshape(count, channels, high // 8, 8, wide // 8, 8).transpose(3, 4)
    basis = _cosines(image.device)
    steps = tables[:, None, None, None]
    coefficients = (basis @ blocks @ basis.T / steps).round() * steps
    pixels = (basis.T @ coefficients @ basis).transpose(3, 4).reshape(padded.shape)[:, :, :height, :width]
    return (pixels + 128).round().clamp(0, 255).to(torch.uint8)
