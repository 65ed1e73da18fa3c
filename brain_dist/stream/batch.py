"""What every loader carries out and what it yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.augmentation.augment import Decisions
from brain_dist.augmentation.style import Style, apply_style, stretch
from brain_dist.augmentation.transplants import Transplant
from brain_dist.augmentation.upload import on_device
from brain_dist.stream.plan import MicroBatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """One micro-batch to load: which rows, and what to do to each image.

    Attributes:
        micro: the planned micro-batch.
        decisions: the augmentation of each image.
        transplants: place in the micro-batch → what is done to that image before.
        style: the random look of each image, or None.
        stretched: whether gray levels are stretched at the end (``data.stretch``).
    """

    micro: MicroBatch
    decisions: Decisions
    transplants: Mapping[int, Transplant] = field(default_factory=dict)
    style: Style | None = None
    stretched: bool = False

    def batch(self, image: torch.Tensor, labels: np.ndarray) -> Batch:
        """The batch of the loaded images uint8 [B, C, H, W], whose look is finished here, on their device.

        ``labels`` are those of all rows of the index, integers [N]; an image with a transplant has the label of that.
        """
        if self.style is not None:
            image = apply_style(self.style, image)
        if self.stretched:
            image = stretch(image)
        return Batch.of(image, self.micro, labels, {place: each.label for place, each in self.transplants.items()})


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device.

    Attributes:
        image: uint8 [B, C, H, W]; C is 1 (data.color=gray) or 3. :class:`~brain_dist.stream.normalize.Normalize` turns
            it into the network's input.
        label: int64 [B].
        row: int64 [B], rows of the index.
        valid: bool [B], False for padding.
        weight: float32 [B], weight in the loss, 0 for padding.
        micro: the planned micro-batch.
    """

    image: torch.Tensor
    label: torch.Tensor
    row: torch.Tensor
    valid: torch.Tensor
    weight: torch.Tensor
    micro: MicroBatch

    @classmethod
    def of(
        cls, image: torch.Tensor, micro: MicroBatch, labels: np.ndarray, changed: Mapping[int, int] | None = None
    ) -> Batch:
        """Add to ``image`` what the plan says about it, on its device.

        Args:
            image: uint8 [B, C, H, W].
            micro: the planned micro-batch.
            labels: integers [N], labels of all rows of the index.
            changed: place in the micro-batch → another label.
        """
        label = labels[micro.rows].astype(np.int64)
        for place, other in (changed or {}).items():
            label[place] = other
        return cls(
            image=image,
            label=on_device(label, image.device),
            row=on_device(micro.rows, image.device),
            valid=on_device(micro.valid, image.device),
            weight=on_device(micro.weight, image.device),
            micro=micro,
        )

    def without_padding(self) -> Batch:
        """The valid samples only; B becomes smaller if the batch has padding."""
        valid = self.micro.valid
        if valid.all():
            return self
        arrays = {name: getattr(self.micro, name)[valid] for name in ("rows", "valid", "position", "visit", "weight")}
        tensors = {name: getattr(self, name)[self.valid] for name in ("image", "label", "row", "valid", "weight")}
        return replace(self, micro=replace(self.micro, **arrays), **tensors)
