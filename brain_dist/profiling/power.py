"""Utilisation and power of this process's GPU, by NVML, while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EVERY = 0.05  # seconds between two looks


@contextmanager
def measure_power(device: torch.device) -> Iterator[dict[str, float]]:
    """A dict that is filled at the block's end: ``utilisation`` [%] and ``watts``, means over it; empty off a GPU."""
    found: dict[str, float] = {}
    if device.type != "cuda":
        yield found
        return
    import pynvml
    import torch

    pynvml.nvmlInit()
    # by its identity: NVML counts the machine's GPUs, torch those that CUDA_VISIBLE_DEVICES leaves
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    over, looks = threading.Event(), []

    def look() -> None:
        while not over.wait(EVERY):
            looks.append((pynvml.nvmlDeviceGetUtilizationRates(handle).gpu, pynvml.nvmlDeviceGetPowerUsage(handle)))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
        if looks:
            found["utilisation"] = sum(busy for busy, _ in looks) / len(looks)
            found["watts"] = sum(milliwatts for _, milliwatts in looks) / len(looks) / 1e3
        pynvml.nvmlShutdown()
