"""Utilisation and power of this process's GPU, by NVML."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

INTERVAL = 0.05  # seconds between two samples


@contextmanager
def measure_power(device: torch.device) -> Iterator[dict[str, float]]:
    """Sample the GPU during a block.

    Yields:
        A dict with ``utilisation`` [%] and ``watts``, means over the block; filled at its end. Empty if ``device`` is
        not a GPU, or NVML cannot measure it, such as a slice of a GPU (MIG).
    """
    power: dict[str, float] = {}
    handle = _nvml_handle(device) if device.type == "cuda" else None
    if handle is None:
        yield power
        return
    import pynvml

    stop, samples = threading.Event(), []

    def sample() -> None:
        while not stop.wait(INTERVAL):
            utilisation = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
            samples.append((utilisation, pynvml.nvmlDeviceGetPowerUsage(handle)))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield power
    finally:
        stop.set()
        thread.join()
        if samples:
            power["utilisation"] = statistics.fmean(utilisation for utilisation, _ in samples)
            power["watts"] = statistics.fmean(milliwatts for _, milliwatts in samples) / 1e3
        pynvml.nvmlShutdown()


def _nvml_handle(device: torch.device) -> Any:
    """The GPU as NVML knows it; None if NVML cannot measure it."""
    import pynvml
    import torch

    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        # by UUID: NVML counts all GPUs of the machine, torch only those in CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetUtilizationRates(handle)
        pynvml.nvmlDeviceGetPowerUsage(handle)
        return handle
    return None
