"""The rate of a large matrix product, which the steps are compared with, and whether it can be believed."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from brain_dist.profiling.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch

REPEATS = 6
SMALLEST_CPU_SHARE = 0.8  # of the time of the threads; less, and other processes use these cores


def calibrate(device: torch.device, precision: str) -> dict[str, float]:
    """Multiply large matrices in the type that ``precision`` computes in.

    Returns:
        ``rate``: the best of several products, FLOP/s. ``cpu_share``: CPU time of all products as a share of their
        duration times the number of threads; 1 on a GPU, where other processes are not seen.
    """
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    side = 8192 if device.type == "cuda" else 1536
    matrix = torch.randn(side, side, device=device).to(dtype)
    matrix @ matrix  # the first one prepares kernels
    watch, seconds = Stopwatch(device), []
    cpu_start = time.process_time()
    for _ in range(REPEATS):
        start = watch.now()
        matrix @ matrix
        seconds.append(watch.now() - start)
    cpu_seconds = time.process_time() - cpu_start
    share = 1.0 if device.type == "cuda" else cpu_seconds / (sum(seconds) * torch.get_num_threads())
    return {"rate": 2 * side**3 / min(seconds), "cpu_share": share}


def reason_for_doubt(profile: dict[str, Any]) -> str:
    """Why the times of a profile cannot be believed, as a clause; empty if nothing speaks against them."""
    if profile["cpu_share"] < SMALLEST_CPU_SHARE:
        return (
            f"the machine is busy with other work (a matrix product got {profile['cpu_share']:.0%} of the CPU time that"
            " its threads could use)"
        )
    if not 0 < profile["matrix_rate"] < math.inf:
        return f"the measured matrix rate is {profile['matrix_rate']:g} FLOP/s"
    if not 0 < profile["mfu"] <= 1:
        return (
            f"the steps computed {profile['mfu']:.2f} times as fast as the matrix product that they are compared with"
        )
    return ""
