"""What data-parallel training sends and holds: ring collectives, the ZeRO paper's formulas, DeepSpeed's messages.

All functions are pure. Sizes are in bytes per rank unless a docstring says otherwise. A ring of p ranks sends
2(p−1)/p·M bytes per rank for an all-reduce of M bytes, in 2(p−1) hops, and (p−1)/p·M bytes for an all-gather or a
reduce-scatter, in p−1 hops (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BYTES = {"fp32": 4, "amp": 4, "bf16": 2, "fp16": 2}  # bytes of a weight and of a gradient, by train.precision
ADAM_STATES = 2  # fp32 values per parameter: running mean of the gradient and of its square


def ring_passes(collective: str, device: str = "cuda") -> int:
    """Number of times that a ring carries the message around: 2 for an all-reduce, otherwise 1.

    On the CPU gloo implements reduce-scatter as an all-reduce of which each rank keeps its share, hence 2
    (``benchmarks.network`` measures it).
    """
    scatters_by_all_reduce = device == "cpu" and collective.startswith("reduce_scatter")
    return 2 if scatters_by_all_reduce or collective.startswith("all_reduce") else 1


def ring_bytes(collective: str, message: float, ranks: int, device: str = "cuda") -> float:
    """Bytes that each of ``ranks`` ranks sends, and receives, for a message of ``message`` bytes in total."""
    return ring_passes(collective, device) * (ranks - 1) / ranks * message


def ring_hops(collective: str, ranks: int, device: str = "cuda") -> int:
    """Number of sequential steps of the ring."""
    return ring_passes(collective, device) * (ranks - 1)


@dataclass(frozen=True)
class ZeroFootprint:
    """Memory and traffic of one rank [bytes], by the formulas of the ZeRO paper.

    Attributes:
        weights: Memory of the weights.
        gradients: Memory of the gradients.
        optimiser: Memory of the optimiser's states, master weights included.
        traffic: Bytes that the rank sends in a step of one micro-batch.
    """

    weights: float
    gradients: float
    optimiser: float
    traffic: float


def zero_footprint(
    stage: int, parameters: float, ranks: int, precision: str, *, master_weights: bool | None = None
) -> ZeroFootprint:
    """Memory and traffic of a rank under Adam (Rajbhandari et al. 2020, "ZeRO", SC20, sections 5 and 7).

    Memory that a stage partitions is divided by the number of ranks. Traffic is that of a ring: a reduce-scatter and
    an all-gather of Ψ elements (2Ψ) at stages 0 to 2, one more all-gather at stage 3 (3Ψ), each times (p−1)/p, which
    the paper approximates by 1.

    Args:
        stage: 0 partitions nothing, 1 the optimiser's states, 2 also gradients, 3 also weights.
        parameters: Number of parameters, Ψ in the paper.
        ranks: Number of ranks, N_d in the paper.
        precision: train.precision. bf16 and fp16 have 2-byte weights and gradients and K = 12 bytes of optimiser states
            per parameter (the paper's case: fp32 master weights, mean, variance). fp32 and amp have 4, 4 and K = 8.
        master_weights: Whether the optimiser keeps fp32 master weights. None: only in 16 bits. DeepSpeed keeps them at
            stages 1 to 3 in every precision.

    Raises:
        ValueError: ``stage`` is not 0, 1, 2 or 3.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO stage {stage}: must be 0, 1, 2 or 3")
    size = BYTES[precision]
    has_master_weights = size == 2 if master_weights is None else master_weights
    elements_sent = (3 if stage == 3 else 2) * (ranks - 1) / ranks * parameters
    return ZeroFootprint(
        weights=size * parameters / (ranks if stage >= 3 else 1),
        gradients=size * parameters / (ranks if stage >= 2 else 1),
        optimiser=4 * (ADAM_STATES + has_master_weights) * parameters / (ranks if stage >= 1 else 1),
        traffic=size * elements_sent,
    )


@dataclass(frozen=True)
class Traffic:
    """Collectives of one training step: (number of messages, total bytes of the messages) by kind.

    Attributes:
        gathered: All-gathers and broadcasts of weights.
        reduced: All-reduces of gradients.
        scattered: Reduce-scatters of gradients.
    """

    gathered: tuple[float, float] = (0.0, 0.0)
    reduced: tuple[float, float] = (0.0, 0.0)
    scattered: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def from_counts(cls, collectives: Mapping[str, Sequence[float]]) -> Traffic:
        """Sum counted collectives, given as name → (messages, bytes)."""
        sums = {"gathered": (0.0, 0.0), "reduced": (0.0, 0.0), "scattered": (0.0, 0.0)}
        for name, (count, size) in collectives.items():
            kind = "reduced" if name.startswith("all_reduce") else "scattered" if "reduce" in name else "gathered"
            sums[kind] = (sums[kind][0] + count, sums[kind][1] + size)
        return cls(**sums)

    @classmethod
    def expected(cls, stage: int, micros: int, parameters: float, precision: str) -> Traffic:
        """Traffic of DeepSpeed 0.19 with one message per kind, for a configuration whose messages were not counted.

        DeepSpeed differs from the paper. Stages 1 and 2 all-reduce every bucket of gradients, keep a share of it, and
        all-gather the weights. Stages 2 and 3 reduce after each micro-batch; stage 3 uses reduce-scatter, and keeps
        gathered weights for the whole step while they fit into stage3_max_live_parameters. Gradients under autocast
        have 2 bytes at stages 1 to 3.
        """
        weights = (1.0, BYTES[precision] * parameters)
        rounds = micros if stage >= 2 else 1
        gradient_bytes = 2 if precision == "amp" and stage else BYTES[precision]
        gradients = (float(rounds), rounds * gradient_bytes * parameters)
        if stage == 0:
            return cls(reduced=gradients)
        return cls(weights, scattered=gradients) if stage == 3 else cls(weights, gradients)

    def hops(self, ranks: int, device: str) -> float:
        """Number of sequential steps of the ring."""
        return (ranks - 1) * sum(self._carried(0, device))

    def wire_bytes(self, ranks: int, device: str) -> float:
        """Bytes that each rank sends."""
        return (ranks - 1) / ranks * sum(self._carried(1, device))

    def gradient_share(self, device: str) -> float:
        """Share of the bytes on the wire that is gradients; the rest is weights."""
        gradients, weights = self._carried(1, device)
        return gradients / (gradients + weights) if gradients else 0.0

    def scale_gradients(self, factor: float) -> Traffic:
        """The same traffic with gradients sent ``factor`` times as often."""
        reduced, scattered = ((count * factor, size * factor) for count, size in (self.reduced, self.scattered))
        return Traffic(self.gathered, reduced, scattered)

    def _carried(self, index: int, device: str) -> tuple[float, float]:
        """(gradients, weights) times the passes of the ring; ``index`` 0: messages, 1: bytes."""
        reduced = self.reduced[index] * ring_passes("all_reduce")
        scattered = self.scattered[index] * ring_passes("reduce_scatter_tensor", device)
        return reduced + scattered, self.gathered[index]
