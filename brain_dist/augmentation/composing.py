"""Carry out transplants on decoded images. One function for all loaders, so all get the same pixels.

An image is composed at the size at which it will be sampled (:mod:`brain_dist.stream.pixels`, step 1), so that a small
input costs little, and handed to the loader as an uncompressed PNG of that size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from brain_dist.augmentation import blending
from brain_dist.augmentation.blending import Floats, Matrix
from brain_dist.augmentation.transplants import LARGEST, Kind, Member, Region, Transplant, in_head

Decode = Callable[[int, int], npt.NDArray[np.uint8]]
"""(row, reduction) → uint8 [h, w] or [h, w, 3], the stored image at 1/reduction of its size."""

# Shapes: how much larger than the lesion, how close to its box, how wide their border. A tumour is pasted with little
# of its surroundings; one that is erased must be covered with its corners and halo.
_PASTED = (1.05, 2.5, 0.4)
_ERASED = (1.2, 3.5, 0.35)
_SEARCH = 0.05  # of the head's side, by which tissue is moved so that it fits to its surroundings
_RIM = 0.07  # of the head's side: scalp and skull, where no patch is set
_SKIN = 0.035  # of the head's side: what is cut off a patch there
_TUMOUR, _TISSUE = (0.25, 0.7), (0.0, 0.4)  # contrast of a patch with what surrounds it, of the range of tissue
_GAIN = 2.0  # largest change of a donor's contrast to that of the target
_ENOUGH = 0.95  # share of a patch that must be inside the head
_OVERLAP = 0.05  # share of a patch that may touch a tumour


@dataclass(frozen=True)
class _Picture:
    """A decoded image, float32 [h, w, C], and where its head and lesions are at its size."""

    pixels: Floats
    member: Member
    reduction: int

    @cached_property
    def gray(self) -> Floats:
        return blending.gray(self.pixels)

    @cached_property
    def head(self) -> npt.NDArray[np.float64]:
        """x, y, width, height."""
        return np.array(self.member.head) / self.reduction

    @cached_property
    def side(self) -> float:
        """The geometric mean of the head's width and height."""
        return float(np.sqrt(self.head[2] * self.head[3]))

    @cached_property
    def dark(self) -> float:
        """The gray level above which it is tissue."""
        return blending.dark_level(self.gray)

    @cached_property
    def span(self) -> float:
        """The range of gray levels of the tissue inside the head."""
        return blending.tissue_span(self.gray[self.inside > 0], self.dark)

    @cached_property
    def depth(self) -> Floats:
        """Distance to the outside of the head."""
        return blending.depth(self.gray, self.dark)

    @cached_property
    def inside(self) -> Floats:
        """1 in the head without its rim."""
        return (self.depth > _RIM * self.side).astype(np.float32)

    @cached_property
    def brain(self) -> Floats:
        """1 in the head without its outermost rim, softly."""
        return (self.depth - _SKIN * self.side + 0.5).clip(0, 1)

    @cached_property
    def lesions(self) -> Floats:
        """Soft shape of all lesions."""
        shapes = np.zeros_like(self.gray)
        for lesion in self.member.lesions:
            spot = _spot(lesion, np.eye(2) / self.reduction, _ERASED).at(self.point(lesion.centre))
            image, part = spot.windows(*shapes.shape)
            shapes[image] = np.maximum(shapes[image], spot.shape[part])
        return shapes

    def point(self, stored: tuple[float, float]) -> npt.NDArray[np.float64]:
        """A point of the stored image at this size."""
        return np.array(stored) / self.reduction


@dataclass(frozen=True)
class _Spot:
    """A soft shape float32 [s, s], and the pixel of the image where its first pixel is."""

    shape: Floats
    left: int = 0
    top: int = 0

    def at(self, centre: npt.NDArray[np.float64]) -> _Spot:
        """The same with its middle at a point."""
        left, top = np.floor(centre).astype(int) - self.shape.shape[0] // 2
        return replace(self, left=int(left), top=int(top))

    @property
    def middle(self) -> npt.NDArray[np.float64]:
        """The point in the middle."""
        return np.array([self.left, self.top]) + self.shape.shape[0] / 2

    def windows(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where image and shape overlap, in the image and in the shape."""
        size = self.shape.shape[0]
        y, x = (min(max(place, 0), side) for place, side in ((self.top, height), (self.left, width)))
        y_stop, x_stop = (min(max(p + size, 0), side) for p, side in ((self.top, height), (self.left, width)))
        inside = slice(y, y_stop), slice(x, x_stop)
        return inside, (slice(y - self.top, y_stop - self.top), slice(x - self.left, x_stop - self.left))

    def share(self, weights: Floats) -> float:
        """How much of the shape lies where ``weights`` [h, w] are 1."""
        image, part = self.windows(*weights.shape)
        return float((self.shape[part] * weights[image]).sum() / max(float(self.shape.sum()), 1e-6))


def compose(transplant: Transplant, reduction: int, decode: Decode) -> bytes:
    """The image of a visit with its transplant at 1/reduction of its size, as PNG.

    Args:
        transplant: what is done.
        reduction: as :class:`~brain_dist.stream.pixels.Sampling` has it, a power of 2.
        decode: decodes images.
    """
    target = _picture(transplant.image, reduction, decode)
    pixels = _erase(target) if transplant.kind is Kind.ERASED else _paste(target, transplant, decode)
    rounded = np.rint(pixels).clip(0, 255).astype(np.uint8)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]  # fastest to read
    _, png = cv2.imencode(".png", rounded, options)
    return png.tobytes()


def _picture(member: Member, reduction: int, decode: Decode) -> _Picture:
    pixels = decode(member.row, reduction).astype(np.float32)
    return _Picture(pixels if pixels.ndim == 3 else pixels[:, :, None], member, reduction)


def _donor(target: _Picture, transplant: Transplant, decode: Decode) -> _Picture:
    """The donor with as many channels as the target, and its head about as large, but not smaller."""
    ratio = float(np.sqrt(np.prod(transplant.donor.head[2:]))) / target.side
    picture = _picture(transplant.donor, 2 ** int(np.log2(max(ratio, 1.0))), decode)
    channels = target.pixels.shape[2]
    if picture.pixels.shape[2] == channels:
        return picture
    pixels = np.repeat(picture.pixels, 3, axis=2) if channels == 3 else picture.gray[:, :, None]
    return replace(picture, pixels=pixels)


def _erase(target: _Picture) -> Floats:
    """Cover every lesion with the other side of the head, or, where that is not possible, with what fits best in it."""
    axis = 2 * target.head[0] + target.head[2]
    mirror = np.array([[-1.0, 0, axis], [0, 1, 0]])
    result = target.pixels
    for lesion in target.member.lesions:
        spot = _spot(lesion, np.eye(2) / target.reduction, _ERASED).at(target.point(lesion.centre))
        opposite = _Spot(spot.shape[:, ::-1], left=round(axis) - spot.left - spot.shape.shape[0], top=spot.top)
        outside = spot.share(target.inside) - opposite.share(target.inside)
        if opposite.share(target.lesions) < _OVERLAP and outside < 0.1:
            result = _replace(result, spot, target, mirror, 1.0, search=round(_SEARCH * target.side))
        else:
            result = _replace(result, spot, target, _fitting_tissue(target, spot), 1.0, search=0)
    return result


def _fitting_tissue(target: _Picture, spot: _Spot) -> Matrix:
    """Where in the same head, mirrored or not, tissue without a lesion continues the surroundings of the shape best."""
    height, width = target.gray.shape
    image, part = spot.windows(height, width)
    shape = np.ascontiguousarray(spot.shape[part])
    y, x = image[0].start, image[1].start
    best, matrix = np.inf, np.array([[1.0, 0, 0], [0, 1, 0]])
    for flip in (False, True):
        maps = target.gray, target.lesions, target.inside
        gray, lesions, inside = (each[:, ::-1] if flip else each for each in maps)
        costs = blending.misfit(gray, target.gray[image], shape) / target.span
        costs += 10 * blending.share(lesions, shape)
        costs += 2 * np.maximum(spot.share(target.inside) - blending.share(inside, shape), 0)
        top, left = np.unravel_index(int(costs.argmin()), costs.shape)
        if costs[top, left] < best:
            best = float(costs[top, left])
            shift = width - left + x if flip else left - x
            matrix = np.array([[-1.0 if flip else 1.0, 0, shift], [0, 1, top - y]])
    return matrix


def _paste(target: _Picture, transplant: Transplant, decode: Decode) -> Floats:
    """Set a tumour or tumour-free tissue of the donor into the target."""
    donor = _donor(target, transplant, decode)
    region, owner = transplant.region, target if target.member.lesions else donor
    # pixels of the target per pixel of the stored image that has the region
    factor = transplant.scale * target.side / (owner.side * owner.reduction)
    factor = min(factor, LARGEST * float(min(target.head[2:])) / (2 * max(region.half)))
    cosine, sine = np.cos(transplant.angle), np.sin(transplant.angle)
    mirror = np.diag([-1.0 if transplant.flip else 1.0, 1.0])
    turn = factor * np.array([[cosine, -sine], [sine, cosine]]) @ mirror
    spot = _place(target, _spot(region, turn, _PASTED), transplant.places)
    if spot.share(target.lesions) > _OVERLAP:
        return target.pixels  # its tumour, which the label names, must stay
    tumour = transplant.kind is Kind.TUMOUR
    if tumour:
        inverse, source = np.linalg.inv(turn) / donor.reduction, donor.point(region.centre)
    else:
        ratio = donor.side / target.side
        x, y = in_head(region.centre, owner.member.head)
        there = _place(donor, _spot(region, turn * ratio, _PASTED), np.array([(1 - x, y), *transplant.places[1:]]))
        if there.share(donor.lesions) > _OVERLAP:
            return target.pixels  # tissue of a tumour is not tumour-free
        inverse, source = mirror * ratio, there.middle
    matrix = np.concatenate([inverse, (source - inverse @ spot.middle)[:, None]], axis=1)
    limits, search = (_TUMOUR, 0) if tumour else (_TISSUE, round(_SEARCH * target.side))
    gain = float(np.clip(target.span / donor.span, 1 / _GAIN, _GAIN))
    return _replace(target.pixels, spot, donor, matrix, gain, search, target, limits)


def _spot(region: Region, turn: Matrix, shape: tuple[float, float, float]) -> _Spot:
    """The soft shape of a region; ``turn`` [2, 2] goes from pixels of its stored image to those of the shape."""
    grow, power, border = shape
    shortest = min(region.half) * float(np.sqrt(abs(np.linalg.det(turn))))
    feather = max(border * shortest, 1.5)
    if region.mask is not None:
        return _Spot(blending.soft_mask(region.mask, turn, (grow - 1) * shortest, feather))
    half = region.half[0] * grow, region.half[1] * grow
    return _Spot(blending.soft_box(half, turn, power, feather))


def _place(picture: _Picture, spot: _Spot, places: npt.NDArray[np.float64]) -> _Spot:
    """The first of some places (fractions of the head) that is inside the head and away from tumours, or the best."""
    best, most = spot, -np.inf
    for place in places:
        placed = spot.at(picture.head[:2] + place * picture.head[2:])
        good = placed.share(picture.inside) - placed.share(picture.lesions)
        if good > most:
            best, most = placed, good
        if good >= _ENOUGH:
            break
    return best


def _replace(
    pixels: Floats,
    spot: _Spot,
    source: _Picture,
    matrix: Matrix,
    gain: float,
    search: int,
    target: _Picture | None = None,
    limits: tuple[float, float] = (0.0, np.inf),
) -> Floats:
    """Replace a shape in an image by tissue of another one or of another place.

    Args:
        pixels: float32 [h, w, C].
        spot: what is replaced.
        source: the image that the tissue is from.
        matrix: float64 [2, 3], from points of the image to points of the source.
        gain: ratio of the contrasts of the two.
        search: pixels by which the tissue is moved at most, to where it fits best.
        target: the picture that ``pixels`` are of; None if it is the source. Of two heads, nothing outside the brain of
            either is moved.
        limits: smallest and largest contrast of the tissue with what surrounds it, see :func:`.blending.contrast`.
    """
    image, part = spot.windows(*pixels.shape[:2])
    shape = spot.shape[part]
    if not shape.size:
        return pixels
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (image[1].start - search, image[0].start - search)
    height, width = shape.shape
    patch = blending.warp(source.pixels, moved, width + 2 * search, height + 2 * search)
    before = pixels[image]
    left, top = blending.best_shift(blending.gray(before), blending.gray(patch) * np.float32(gain), shape)
    window = slice(top, top + height), slice(left, left + width)
    patch = patch[window]
    tissue = (blending.gray(patch) > source.dark).astype(np.float32)
    trusted = tissue * (blending.gray(before) > (target or source).dark)
    if target is not None:
        # neither scalp nor the air beside a tumour comes along
        shape = shape * np.maximum(cv2.GaussianBlur(tissue, (0, 0), 0.7), shape >= 1)
        shape = shape * blending.warp(source.brain, moved, width + 2 * search, height + 2 * search)[window]
        shape = shape * target.brain[image]
    span = (target or source).span
    contrast = gain * blending.contrast(patch, shape) / span
    gain *= float(np.clip(contrast, *limits) / max(contrast, 0.4 * limits[0], 1e-6))
    result = pixels.copy()
    result[image] = blending.blend(before, patch, shape, trusted, gain, span)
    return result
