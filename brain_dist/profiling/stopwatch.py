"""Wall-clock time of stages that run on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Stopwatch:
    """Adds up the seconds of named stages, and waits for the device at the boundaries of each stage.

    Attributes:
        seconds: stage → seconds, without the stages inside it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._inner_seconds: list[float] = []  # of each open stage, the time spent in stages inside it

    def now(self) -> float:
        """Wait for the device, then read the clock: seconds from an arbitrary start."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to stage ``name``; stages may be nested."""
        start = self.now()
        self._inner_seconds.append(0.0)
        try:
            yield
        finally:
            seconds = self.now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inner_seconds.pop()
            if self._inner_seconds:
                self._inner_seconds[-1] += seconds

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """``function`` with the time of each call added to ``stage``."""

        def timed_function(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                return function(*arguments, **options)

        return timed_function

    def median(self, action: Callable[[], Any], repeats: int) -> float:
        """Median seconds of ``repeats`` calls of ``action``, after one to warm up."""
        seconds = []
        for _ in range(repeats + 1):
            start = self.now()
            action()
            seconds.append(self.now() - start)
        return statistics.median(seconds[1:])


@contextmanager
def replaced_method(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one object for the length of a block."""
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)  # uncovers the method of the class
