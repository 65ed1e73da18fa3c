"""Which images of an epoch lose their tumour or get another one's, as pure functions of (seed, epoch, row).

In public collections, tumours and tumour-free images come from different sources, so a network can learn the source
instead of the tumour. A *transplant* breaks that link: it moves tissue between training images, and the label follows.

- ``augment.tumour_erased``: a tumour is covered by other tissue of its head; the label becomes ``notumor``.
- ``augment.tumour_pasted``: a tumour of another collection is set into a tumour-free head, which gets its label.
- ``augment.tissue_pasted``: the hard negative. Tissue *without* a tumour is set into an image in the same way, and the
  label stays. Without it, the traces of pasting would themselves tell the classes apart.

This module decides and touches no pixels; :mod:`~brain_dist.augmentation.composing` carries the decisions out. Donors
are images of the training split: of another collection than the image's, or, if only one has them, of another group of
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from brain_dist.common import counter
from brain_dist.config import AugmentConfig
from brain_dist.errors import UserError
from brain_dist.store.dataset import Dataset
from brain_dist.store.lesions import read_lesions

Rows = npt.NDArray[np.int64]
Box = tuple[float, float, float, float]
NO_TUMOUR = "notumor"

PLACES = 6  # where a patch is tried, until it is inside the head and away from tumours
LARGEST = 0.45  # of the head's shorter side: larger tumours are not erased, and pasted smaller
_JITTER = 0.08  # of the head's sides, around the first place
_MIDDLE = (0.25, 0.75)  # part of the head's sides in which the centres of the other places are
_CENTRE = (0.5, 0.5)  # the last place, which is inside nearly every head
_SCALE = 1.25  # largest change of a patch's size, after that to the head's size
_ANGLE = 30.0  # largest rotation of a patch, degrees


class Kind(Enum):
    """What is done to an image."""

    ERASED = "tumour erased"
    TUMOUR = "tumour pasted"
    TISSUE = "tissue pasted"


@dataclass(frozen=True, eq=False)
class Region:
    """A lesion in a stored image.

    Attributes:
        box: left, top, right, bottom in pixels of the stored image.
        mask: bool [h, w], its mask inside the box, which then has whole pixels; None if only the box is known.
    """

    box: Box
    mask: npt.NDArray[np.bool_] | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box (x, y), in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def half(self) -> tuple[float, float]:
        """Half of the box's width and height, in pixels."""
        return (self.box[2] - self.box[0]) / 2, (self.box[3] - self.box[1]) / 2


@dataclass(frozen=True)
class Member:
    """One of the two images of a transplant.

    Attributes:
        row: row of the index.
        head: x, y, width, height of the head in pixels of the stored image.
        lesions: its known lesions.
    """

    row: int
    head: tuple[int, int, int, int]
    lesions: tuple[Region, ...]


@dataclass(frozen=True)
class Transplant:
    """What is done to one visit of an image.

    Attributes:
        kind: what is done.
        label: the class afterwards.
        image: the image that changes.
        donor: the image whose tissue is used; for ``ERASED`` the image itself.
        region: the shape of the patch: a lesion of ``image`` or of ``donor``. ``ERASED`` covers every lesion instead.
        places: float64 [PLACES, 2], where the centre of the patch is tried in the head of ``image``, in this order, as
            fractions of its sides.
        flip: whether the patch is mirrored.
        angle: rotation of the patch, in radians.
        scale: change of its size.
    """

    kind: Kind
    label: int
    image: Member
    donor: Member
    region: Region
    places: npt.NDArray[np.float64]
    flip: bool
    angle: float
    scale: float


class Transplants:
    """Draws the transplants of a training.

    Args:
        dataset: the shards.
        config: the shares of visits.

    Raises:
        UserError: the shards have no tumour-free class, or lack the images that a setting needs.
        Fault: the masks of the shards are damaged.
    """

    def __init__(self, dataset: Dataset, config: AugmentConfig) -> None:
        self._dataset, self._config = dataset, config
        columns, train = dataset.columns, dataset.rows("train")
        if NO_TUMOUR not in dataset.classes:
            raise UserError(f"{_setting(config)} needs the class {NO_TUMOUR}; {dataset.root} has {dataset.classes}")
        self._label, self._no_tumour = columns["label"], dataset.classes.index(NO_TUMOUR)
        tumours, self._healthy = (
            train[self._label[train] != self._no_tumour],
            train[self._label[train] == self._no_tumour],
        )
        known = [row for row in tumours.tolist() if json.loads(columns["attributes"][row]).get("boxes")]
        self._tumours = np.array(known, dtype=np.int64)
        if not known:
            raise UserError(
                f"{_setting(config)} needs training images whose tumours are known, and {dataset.root} has none; build"
                " the shards with boxes or masks (docs/data.md, where the tumour is)"
            )
        if not len(self._healthy) and (config.tumour_pasted or config.tissue_pasted):
            raise UserError(
                f"{_setting(config)} needs tumour-free training images, and {dataset.root} has none; join shards that"
                " have some (data.sources)"
            )

    @cached_property
    def _members(self) -> Mapping[int, Member]:
        """Row → the image, for every image that may take part."""
        columns = self._dataset.columns
        rows = np.concatenate([self._tumours, self._healthy])
        heads = np.stack([columns[name][rows] for name in ("head_x", "head_y", "head_w", "head_h")], axis=1).tolist()
        regions: list[tuple[Region, ...]] = [()] * len(rows)
        for number, lesion in enumerate(read_lesions(self._dataset, self._tumours)):
            assert lesion is not None  # only rows with boxes
            sides = np.array([lesion.width, lesion.height] * 2)
            regions[number] = tuple(_region(box, lesion.mask) for box in (lesion.boxes * sides).tolist())
        return {
            row: Member(row, tuple(head), lesions)
            for row, head, lesions in zip(rows.tolist(), heads, regions, strict=True)
        }

    @cached_property
    def _donors(self) -> Mapping[tuple[str, bool], Rows]:
        """(collection of an image, whether the donor has a tumour) → donors, sorted by row."""
        collection = self._dataset.columns["dataset"]
        donors = {}
        for name in set(collection[self._healthy]) | set(collection[self._tumours]):
            for with_tumour, rows in ((True, self._tumours), (False, self._healthy)):
                others = rows[collection[rows] != name]
                donors[name, with_tumour] = others if len(others) else rows
        return donors

    def draw(self, rows: Rows, *, seed: int, epoch: int | Rows, visit: Rows) -> list[Transplant | None]:
        """The transplant of each visit, or None.

        Args:
            rows: int64 [B], rows of the index.
            seed: seed of the run.
            epoch: epoch number; int64 [B] if it differs between the rows.
            visit: int64 [B], see :mod:`brain_dist.stream.balance`.
        """

        def uniform(purpose: str, *numbers: npt.ArrayLike) -> npt.NDArray[np.float64]:
            counters = (each if np.ndim(each) == 0 else np.asarray(each)[:, None] for each in (epoch, visit))
            drawn = counter.uniform(seed, f"transplant.{purpose}", *counters, np.arange(len(numbers) or 1))
            return drawn if numbers else drawn[:, 0]

        chance = uniform("kind")
        tumour = np.isin(rows, self._tumours)
        first = np.where(tumour, self._config.tumour_erased, self._config.tumour_pasted)
        able = tumour | (self._label[rows] == self._no_tumour)
        changed = able & (chance < first + (1 - first) * self._config.tissue_pasted)
        draws = np.stack([uniform(name) for name in ("donor", "lesion", "flip", "angle", "scale")], axis=1)
        places = np.stack([uniform(name, *range(PLACES)) for name in ("x", "y")], axis=2)
        return [
            self._of(int(row), bool(chance[i] < first[i]), draws[i].tolist(), places[i]) if changed[i] else None
            for i, row in enumerate(rows)
        ]

    def _of(
        self, row: int, foremost: bool, draws: Sequence[float], places: npt.NDArray[np.float64]
    ) -> Transplant | None:
        """The transplant of an image; None if its tumour is too large, or every possible donor is of its own group."""
        image = self._members[row]
        tumour = bool(image.lesions)
        largest = max((max(lesion.half) for lesion in image.lesions), default=0.0)
        if tumour and foremost and 2 * largest > LARGEST * min(image.head[2:]):
            return None  # not enough of the head is left to cover it with
        donor = image if tumour and foremost else self._donor(row, not tumour, draws[0])
        if donor is None:
            return None
        if foremost:
            kind, label = (Kind.ERASED, self._no_tumour) if tumour else (Kind.TUMOUR, int(self._label[donor.row]))
        else:
            kind, label = Kind.TISSUE, int(self._label[row])
        owner = image if tumour else donor
        region = owner.lesions[int(draws[1] * len(owner.lesions))]
        x, y = in_head(region.centre, owner.head)
        # the first place is where the lesion is in its own head; for tissue beside a tumour it is the other side
        start = (1 - x if tumour else x) + _JITTER * (2 * places[0, 0] - 1), y + _JITTER * (2 * places[0, 1] - 1)
        tried = np.concatenate([[start], _MIDDLE[0] + (_MIDDLE[1] - _MIDDLE[0]) * places[1:-1], [_CENTRE]])
        return Transplant(
            kind, label, image, donor, region, tried, flip=draws[2] < 0.5,
            angle=float(np.deg2rad(_ANGLE * (2 * draws[3] - 1))), scale=float(_SCALE ** (2 * draws[4] - 1)),
        )  # fmt: skip

    def _donor(self, row: int, with_tumour: bool, chance: float) -> Member | None:
        """The donor that ``chance`` chooses, or the next one of another group."""
        columns = self._dataset.columns
        donors = self._donors[columns["dataset"][row], with_tumour]
        first = int(chance * len(donors))
        for offset in range(len(donors)):
            donor = int(donors[(first + offset) % len(donors)])
            if columns["group"][donor] != columns["group"][row]:
                return self._members[donor]
        return None


def wanted(config: AugmentConfig) -> bool:
    """Whether any visit gets a transplant."""
    return bool(config.tumour_erased or config.tumour_pasted or config.tissue_pasted)


def in_head(point: tuple[float, float], head: Sequence[float]) -> tuple[float, float]:
    """A point in pixels as fractions of the sides of the head (x, y, width, height)."""
    return (point[0] - head[0]) / head[2], (point[1] - head[1]) / head[3]


def _region(box: Sequence[float], mask: npt.NDArray[np.bool_] | None) -> Region:
    """A lesion from its box in pixels and the mask of its image."""
    if mask is None:
        left, top, right, bottom = box
        return Region((left, top, max(right, left + 1), max(bottom, top + 1)))
    left, top = int(box[0]), int(box[1])
    part = mask[top : max(int(np.ceil(box[3])), top + 1), left : max(int(np.ceil(box[2])), left + 1)].copy()
    return Region((left, top, left + part.shape[1], top + part.shape[0]), part)


def _setting(config: AugmentConfig) -> str:
    """The first of the settings of transplants that is on, with its value."""
    names = ("tumour_erased", "tumour_pasted", "tissue_pasted")
    return next(f"augment.{name}={getattr(config, name)}" for name in names if getattr(config, name))
