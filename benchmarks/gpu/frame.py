"""What all stages share: folders, sizes, the time limit, and the rows of results.jsonl."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements.

    Attributes:
        model: the network that is measured.
        small_model: the network of runs that only need many steps.
        size: height and width of the network's input.
        batch: images per micro-batch.
        steps: timed steps.
        warmup: steps before them.
        threads: decoding threads.
    """

    model: str = "convnext_base"
    small_model: str = "convnext_atto"
    size: int = 224
    batch: int = 256
    steps: int = 10
    warmup: int = 4
    threads: int = 12


DRY_SIZES = Sizes("test_convnext", "test_convnext", size=32, batch=8, steps=2, warmup=1, threads=1)


@dataclass
class Check:
    """One stage of a check.

    Attributes:
        stage: name of the stage.
        kit: folder that is kept between calls: images, results so far, runs, caches.
        out: folder for the results of this call.
        dry: small sizes on the CPU.
        seconds: time limit of the stage.
    """

    stage: str
    kit: Path
    out: Path
    dry: bool = False
    seconds: float = 60
    _deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds

    @property
    def sizes(self) -> Sizes:
        """Sizes of the measurements."""
        return DRY_SIZES if self.dry else Sizes()

    @property
    def shards(self) -> Path:
        """The kit's images with a longest side of 256, or phantoms if the kit has no images."""
        real = self.kit / "data" / "real256"
        return real if real.is_dir() else self.kit / "data" / "phantoms"

    @property
    def all_shards(self) -> list[Path]:
        """:attr:`shards`, and images as published if the kit has them."""
        published = self.kit / "data" / "raw512"
        return [self.shards, published] if published.is_dir() else [self.shards]

    @property
    def dali_failed(self) -> Path:
        """File that exists if DALI does not work here; later stages then use the loader ``torch``."""
        return self.kit / "dali-failed"

    @property
    def loader(self) -> str:
        """The loader for real images."""
        return "torch" if self.dali_failed.exists() else "dali"

    def device(self) -> torch.device:
        """The device to measure: the first GPU, or one thread of the CPU."""
        import torch

        if self.dry:
            torch.set_num_threads(1)
            return torch.device("cpu")
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)

    def now(self) -> float:
        """Wait for the device, then read the clock: seconds from an arbitrary start."""
        if not self.dry:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def peak_gib(self) -> float:
        """Peak memory of tensors on the GPU since the last :func:`release_cached_memory`."""
        if self.dry:
            return 0.0
        import torch

        return torch.cuda.max_memory_allocated() / 2**30

    def has_time(self, seconds: float) -> bool:
        """Whether ``seconds`` are left before the stage's limit."""
        return time.monotonic() < self._deadline - seconds

    def record(self, **row: Any) -> None:
        """Append a row to results.jsonl in both folders and write it to disk, because the stage may be killed."""
        line = json.dumps({"stage": self.stage, "t": round(time.time(), 1), **row}, default=str)
        for folder in (self.kit, self.out):
            with (folder / RESULTS).open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        print(line, flush=True)

    def attempt(self, what: str, measure: Callable[[], T], **labels: Any) -> T | None:
        """Run one measurement and record what it returns.

        Args:
            what: name of the measurement.
            measure: returns the columns of the row as a dict; anything else is not recorded.
            labels: further columns.

        Returns:
            The result; None if ``measure`` failed. An error is recorded and does not end the stage.
        """
        start, result = time.monotonic(), None
        try:
            result = measure()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:600]
            self.record(what=what, **labels, error=message, where=traceback.format_exc()[-1500:])
        else:
            if isinstance(result, dict):
                self.record(what=what, **labels, **result, took=round(time.monotonic() - start, 1))
        release_cached_memory()
        return result


def release_cached_memory() -> None:
    """Collect garbage, return cached GPU memory and reset its peak."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def release_all_tensors(device_type: str = "cuda") -> None:
    """Free the storage of every tensor on the GPU.

    DeepSpeed's backward hooks keep engines of ZeRO stages 1 to 3 alive as long as the process.
    """
    import torch

    gc.collect()
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.device.type == device_type:
            try:
                item.untyped_storage().resize_(0)
            except (RuntimeError, NotImplementedError):  # its storage can't be resized
                continue
    release_cached_memory()
