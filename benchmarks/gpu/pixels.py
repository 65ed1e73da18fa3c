"""Stage ``pixels``: images that DALI decodes on the GPU, beside DALI on the CPU and the loader ``torch``.

All load the same rows with the same augmentation, so the only differences are those of decoders and operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.frame import Check
from benchmarks.gpu.settings import create_config

if TYPE_CHECKING:
    import torch

    from brain_dist.stream.batch import Batch

    Images = list[torch.Tensor]  # uint8 [B, C, H, W] each

STRONG: dict[str, Any] = {
    "scale": (0.4, 1.0),
    "ratio": (0.7, 1.4),
    "rotate": 30,
    "brightness": 0.3,
    "contrast": 0.3,
    "erase": 0.5,
}
SECONDS = 12  # of one case


@dataclass(frozen=True)
class Case:
    """Which images to load, and how.

    Attributes:
        shards: the shard folder.
        color: gray or rgb.
        augmented: strong augmentation of the training split in its order; else its rows, cropped to the head.
    """

    shards: Path
    color: str
    augmented: bool

    @property
    def labels(self) -> dict[str, Any]:
        """Columns that name the case."""
        return {"shards": self.shards.name, "color": self.color, "augmented": self.augmented}


def run_pixels(check: Check) -> None:
    """Compare the loaders for each case, then look for races and for an influence of the batch size."""
    loads = _Loads(check)
    worked = False
    for shards, augmented, color in product(check.all_shards, (True, False), ("gray", "rgb")):
        if check.has_time(SECONDS):
            worked |= compare_loaders(loads, Case(shards, color, augmented))
    if not worked:
        check.dali_failed.touch()
        return
    case = Case(check.shards, "gray", augmented=True)
    check.attempt("race", lambda: count_races(loads, case))
    if check.has_time(6):
        check.attempt("grouping", lambda: compare_batch_sizes(loads, case))


def compare_loaders(loads: _Loads, case: Case) -> bool:
    """Record the differences of one case; return whether DALI on the device could be compared with DALI on the CPU."""
    check = loads.check
    on_device = check.attempt("mixed", lambda: loads.images(case), **case.labels)
    if on_device is None:
        return False
    on_cpu = loads.images(case, loads.cpu)
    compared = check.attempt("gpu/cpu", lambda: differences(on_device, on_cpu), **case.labels)
    if case.shards == check.shards:
        plain = loads.images(case, loads.cpu, loader="torch")
        check.attempt("gpu/plain", lambda: differences(on_device, plain), **case.labels)
        check.attempt("cpu/plain", lambda: differences(on_cpu, plain), **case.labels)
    return compared is not None


def differences(images: Images, others: Images) -> dict[str, Any]:
    """Absolute differences in gray levels, over all pixels of two lists of batches.

    Returns:
        mean, 99 % and 99.9 % quantile, maximum; the share of pixels that differ by more than 2; the largest mean of an
        image; number of images; standard deviation of the first batch, which shows that it is not empty.
    """
    import numpy as np
    import torch

    gaps = [(a.cpu().float() - b.cpu().float()).abs() for a, b in zip(images, others, strict=True)]
    image_means = torch.cat([gap.mean((1, 2, 3)) for gap in gaps])
    pixels = np.concatenate([gap.numpy().ravel() for gap in gaps])  # torch.quantile has a limit of 16 million values
    return {
        "mean": float(pixels.mean()),
        "p99": float(np.quantile(pixels, 0.99)),
        "p999": float(np.quantile(pixels, 0.999)),
        "max": float(pixels.max()),
        "over2": float((pixels > 2).mean()),
        "worst_image_mean": float(image_means.max()),
        "images": len(image_means),
        "std": float(images[0].float().std()),
    }


def count_races(loads: _Loads, case: Case) -> dict[str, int]:
    """Load the same batches again while the stream is busy.

    A buffer of DALI that is used again before its copy has run would show as other pixels.
    """
    import torch

    count, side = (4, 64) if loads.check.dry else (40, 6144)
    quiet = [image.cpu() for image in loads.images(case, count=count)]
    matrix = torch.randn(side, side, device=loads.device)

    def keep_busy() -> None:
        for _ in range(4):
            matrix @ matrix

    busy = loads.images(case, count=count, before_each=keep_busy)
    differing = sum(not torch.equal(a, b.cpu()) for a, b in zip(quiet, busy, strict=True))
    return {"batches": count, "batches_that_differ": differing}


def compare_batch_sizes(loads: _Loads, case: Case) -> dict[str, Any]:
    """Load the same images in batches a quarter as large.

    Which decoder takes an image may depend on its place in the batch. If its pixels did too, another number of ranks
    would train on other pixels.
    """
    import torch

    whole = torch.cat([image.cpu() for image in loads.images(case, count=2)])
    parts = torch.cat([image.cpu() for image in loads.images(case, count=8, batch=loads.batch // 4)])
    gap = (whole.float() - parts.float()).abs()
    differing = int((gap.amax((1, 2, 3)) > 0).sum())
    return {"images": len(whole), "images_that_differ": differing, "max": float(gap.max()), "mean": float(gap.mean())}


class _Loads:
    """Loads images with any loader.

    Attributes:
        check: the stage.
        device: the device to measure.
        cpu: the CPU.
        batch: images per batch.
    """

    def __init__(self, check: Check) -> None:
        import torch

        self.check, self.device, self.cpu = check, check.device(), torch.device("cpu")
        self.batch, self._count = (8, 2) if check.dry else (64, 4)

    def images(
        self,
        case: Case,
        device: torch.device | None = None,
        *,
        loader: str = "dali",
        count: int | None = None,
        batch: int | None = None,
        before_each: Callable[[], None] | None = None,
    ) -> Images:
        """The first ``count`` batches of a case; fewer if the split has fewer."""
        batches = self._batches(case, device or self.device, loader, batch or self.batch)
        images: Images = []
        for _ in range(count or self._count):
            if before_each:
                before_each()
            if (next_batch := next(batches, None)) is not None:
                images.append(next_batch.image)
        return images

    def _batches(self, case: Case, device: torch.device, loader: str, batch: int) -> Iterator[Batch]:
        from brain_dist.config import AugmentConfig
        from brain_dist.ranks.world import discover
        from brain_dist.store.dataset import open_dataset
        from brain_dist.stream.batches import evaluation_batches, training_batches

        sizes, dataset = self.check.sizes, open_dataset(case.shards)
        threads = 4 if loader == "torch" and not self.check.dry else sizes.threads
        settings = {"shards": case.shards, "color": case.color, "loader": loader, "threads": threads, "batch": batch}
        config = create_config(self.check, settings)
        size = 2 * sizes.size if self.check.dry else sizes.size
        data = replace(config.data, size=size, head_crop=not case.augmented)
        if not case.augmented:
            return evaluation_batches(data, dataset, dataset.rows("train"), micro_batch=batch, device=device)
        config = replace(config, data=data, augment=AugmentConfig(**STRONG))
        return training_batches(config, dataset, discover({}), device, first_step=0)
