"""Wall-clock time of stages that run on a device, and methods that are replaced for the length of a block."""

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
        """Add the time of a block, or of each call of a decorated function, to a stage; stages may be nested."""
        start = self.now()
        self._inner_seconds.append(0.0)
        try:
            yield
        finally:
            seconds = self.now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inner_seconds.pop()
            if self._inner_seconds:
                self._inner_seconds[-1] += seconds

    @contextmanager
    def timing(self, owner: Any, method: str, stage: str) -> Iterator[None]:
        """Add the time of each call of ``owner.method`` inside a block to a stage."""
        with replaced(owner, method, self.stage(stage)(getattr(owner, method))):
            yield

    def mean(self, action: Callable[[], Any], repeats: int) -> float:
        """Mean seconds of ``repeats`` calls of ``action``, without waiting for the device in between."""
        start = self.now()
        for _ in range(repeats):
            action()
        return (self.now() - start) / repeats

    def median(self, action: Callable[[], Any], repeats: int) -> float:
        """Median seconds of ``repeats`` calls of ``action``, after one to warm up."""
        seconds = []
        for _ in range(repeats + 1):
            start = self.now()
            action()
            seconds.append(self.now() - start)
        return statistics.median(seconds[1:])


@contextmanager
def replaced(owner: Any, method: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Set ``owner.method`` to ``replacement`` inside a block."""
    is_own, original = method in vars(owner), getattr(owner, method)
    setattr(owner, method, replacement)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, method, original)
        else:  # the class has it
            delattr(owner, method)
