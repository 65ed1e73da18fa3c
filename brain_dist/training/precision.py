"""``train.precision=auto``: the precision that all ranks' devices compute fast in, chosen once for a run."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from brain_dist.config import Config, ModelConfig, Precision
from brain_dist.networks.create import uses_batchnorm
from brain_dist.ranks.group import gather_objects
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch

MATRIX_SIDE = 256
REPEATS = 8


@dataclass(frozen=True)
class Support:
    """What one device computes fast in.

    Attributes:
        precisions: the fastest first; fp32 is always among them.
        reason: why the first one is the first.
    """

    precisions: tuple[Precision, ...]
    reason: str


def resolve_precision(
    config: Config, world: World, device: torch.device, saved: Precision | None = None
) -> tuple[Config, str]:
    """Replace ``train.precision=auto`` by the first precision of rank 0 that all ranks support. Every rank must call.

    Args:
        config: the run's configuration.
        world: this process among all processes.
        device: the device of this process.
        saved: the precision of the checkpoint that the run resumes from, which it keeps whatever the device.

    Returns:
        The configuration, the same on all ranks, and the reason for the choice; empty if the user chose, unless the
        user chose 16 bits and the device is faster in fp32.
    """
    if config.train.precision == "fp32":
        return config, ""
    own = device_support(device, config.model)
    if config.train.precision != "auto":
        return config, f"expect slow steps, auto takes fp32: {own.reason}" if own.precisions == ("fp32",) else ""
    ranks = [Support(tuple(names), reason) for names, reason in gather_objects([own.precisions, own.reason], world)]
    best = ranks[0].precisions[0]
    common = [name for name in ranks[0].precisions if all(name in rank.precisions for rank in ranks)]
    choice, reason = common[0], ranks[0].reason
    if choice != best:
        number, rank = next((i, rank) for i, rank in enumerate(ranks) if best not in rank.precisions)
        reason = f"rank {number}: {rank.reason}"
    if saved and saved != choice:
        effect = "" if saved in common else "; expect slow steps"
        choice, reason = saved, f"kept from the checkpoint; this machine would get {choice}: {reason}{effect}"
    return replace(config, train=replace(config.train, precision=choice)), f"auto: {reason}"


def device_support(device: torch.device, model: ModelConfig) -> Support:
    """What ``device`` computes fast in.

    On a GPU, 16-bit weights save memory, but would keep BatchNorm's statistics in 16 bits: networks with BatchNorm get
    amp instead. On a CPU, autocast is many times slower than fp32 unless the processor multiplies bf16 itself; whether
    oneDNN uses that (ONEDNN_MAX_CPU_ISA may forbid it) shows in the time of a matrix product.
    """
    import torch

    if device.type == "cuda":
        name, batchnorm = torch.cuda.get_device_name(device), uses_batchnorm(model)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Support(
                ("amp", "fp32") if batchnorm else ("bf16", "amp", "fp16", "fp32"), f"{name} computes in bf16"
            )
        if batchnorm:
            return Support(("fp32",), f"{name} has no bf16, and fp16 does not suit BatchNorm")
        return Support(("fp16", "fp32"), f"{name} has no bf16")
    features = torch.cpu.get_capabilities()
    if not any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return Support(("fp32",), "the processor has no AVX512-BF16 or AMX")
    speed = bf16_speed()
    reason = f"a matrix product in bf16 is {speed:.1f} × as fast as in fp32"
    return Support(("amp", "fp32") if speed > 1 else ("fp32",), reason)


def bf16_speed() -> float:
    """CPU time of a matrix product in fp32 as a multiple of that in bf16, on one thread, the best of several each."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock counts this thread only
    try:
        matrices = {kind: torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
        seconds = dict.fromkeys(matrices, float("inf"))
        for _ in range(REPEATS):  # alternately, so that a change of the clock rate meets both
            for kind, matrix in matrices.items():
                start = time.thread_time()
                matrix @ matrix
                seconds[kind] = min(seconds[kind], time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[torch.bfloat16]
