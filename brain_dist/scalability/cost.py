"""A stated cost model of a training step, and the formulas of the ZeRO paper. Pure.

:mod:`brain_dist.scalability.cost_fit` fits it.

::

    step          = max(loader, forward + backward + exposed communication + waiting + optimiser + other)
    forward + backward = micros · (a + b · micro_batch) · crowd          a, b: of a network, size, precision and stage
    optimiser     = (c · own parameters + d) · crowd                     own: all at stage 0, else a rank's share
    other         = micros · e · crowd
    communication = hops · α + wire bytes / β                            α: s a hop, β: bytes/s of the slowest link
    waiting       = w · (forward + backward), with more than one rank    for the slower rank
    loader        = l · images of the rank · crowd
    crowd         = max(1 / threads, ranks on the node / cores)          on the CPU; on a GPU 1

A ring of consecutive ranks crosses each node's network once in and once out, so the ranks of a node share it by sending
one stream through it, and the slowest of its links sets the pace of them all: between nodes the network's α and β hold,
inside one node the link's. Wire bytes a rank are 2(p−1)/p·M for an all-reduce of M bytes among p ranks and (p−1)/p·M
for an all-gather or a reduce-scatter, in 2(p−1) and (p−1) hops (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

ADAM = 2  # states of fp32 a parameter: the mean of gradients and of their squares
BYTES = {"fp32": 4, "amp": 4, "bf16": 2, "fp16": 2}  # of a weight and of a gradient, by train.precision
Key = tuple[str, int, str, int]  # network, size [pixels], precision, ZeRO stage


# --- what crosses the wires -------------------------------------------------------------------------------------------


def passes(collective: str, device: str = "cuda") -> int:
    """How often a ring carries a message around: 2 for an all-reduce, 1 for what gathers, scatters or sends it.

    ``device``: on the CPU, gloo scatters by reducing everything everywhere and keeping a share (``benchmarks.network``
    counts it).
    """
    scattered = device == "cpu" and collective.startswith("reduce_scatter")
    return 2 if scattered or collective.startswith("all_reduce") else 1


def ring_bytes(collective: str, message: float, ranks: int, device: str = "cuda") -> float:
    """Bytes that each of ``ranks`` sends, and receives, for a message of that many bytes (the whole, not a share)."""
    return passes(collective, device) * (ranks - 1) / ranks * message


def ring_hops(collective: str, ranks: int, device: str = "cuda") -> int:
    """Steps of the ring, each of which waits for the one before."""
    return passes(collective, device) * (ranks - 1)


@dataclass(frozen=True)
class Zero:
    """What the ZeRO paper (Rajbhandari et al. 2020, sections 5 and 7) gives a rank: memory and traffic, in bytes."""

    weights: float
    gradients: float
    optimiser: float
    traffic: float  # sent a step, of one micro-batch


def zero(stage: int, parameters: float, ranks: int, precision: str, *, master: bool | None = None) -> Zero:
    """The paper's formulas for Adam: what a stage shares out is divided by the number of ranks.

    Args:
        stage: 0 shares nothing out, 1 the optimiser's states, 2 also gradients, 3 also weights.
        parameters: Ψ.
        ranks: N_d.
        precision: bf16 and fp16 keep 2-byte weights and gradients and K = 12 bytes of states (the paper's case: fp32
            weights, mean, variance); fp32 and amp 4 and 4 and K = 8.
        master: whether the optimiser keeps fp32 weights of its own; unset: in 16 bits only. DeepSpeed keeps them at
            stages 1 to 3 whatever the precision.

    Returns:
        Bytes a rank. Traffic is that of a ring: Ψ elements reduced and scattered and Ψ gathered (2Ψ) at stages 0 to 2,
        and at stage 3 gathered once more (3Ψ), each times (p−1)/p, which the paper takes for 1.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"no ZeRO stage {stage}")
    size = BYTES[precision]
    states = 4 * (ADAM + (size == 2 if master is None else master))
    share = [1 / ranks if stage >= first else 1.0 for first in (3, 2, 1)]
    sent = (3 if stage == 3 else 2) * (ranks - 1) / ranks
    return Zero(size * parameters * share[0], size * parameters * share[1], states * parameters * share[2],
                sent * size * parameters)  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """What a rank exchanges in a step: how many messages of a kind, and the bytes of all of them, each the whole."""

    gathered: tuple[float, float] = (0.0, 0.0)  # weights, which a ring carries around once
    reduced: tuple[float, float] = (0.0, 0.0)  # gradients, twice
    scattered: tuple[float, float] = (0.0, 0.0)  # gradients: once, by gloo twice

    @classmethod
    def of(cls, collectives: Mapping[str, Sequence[float]]) -> Traffic:
        """From counted collectives: name → (messages, bytes)."""
        sums = {"gathered": (0.0, 0.0), "reduced": (0.0, 0.0), "scattered": (0.0, 0.0)}
        for name, (count, size) in collectives.items():
            kind = "reduced" if name.startswith("all_reduce") else "scattered" if "reduce" in name else "gathered"
            sums[kind] = (sums[kind][0] + count, sums[kind][1] + size)
        return cls(**sums)

    @classmethod
    def expected(cls, stage: int, micros: int, parameters: float, precision: str) -> Traffic:
        """What DeepSpeed 0.19 exchanges, each kind in one message, where nothing was counted.

        It does not do what the paper counts. Stages 1 and 2 all-reduce every bucket of gradients and keep a share of
        it, then gather the weights; stage 2 reduces after each micro-batch, and so does stage 3, which reduces and
        scatters, and keeps gathered weights for the whole step as long as they fit into stage3_max_live_parameters.
        Autocast's gradients have 2 bytes, but at stage 0.
        """
        weights = (1.0, BYTES[precision] * parameters)
        rounds = micros if stage >= 2 else 1
        gradients = (float(rounds), rounds * (2 if precision == "amp" and stage else BYTES[precision]) * parameters)
        if stage == 0:
            return cls(reduced=gradients)
        return cls(weights, scattered=gradients) if stage == 3 else cls(weights, gradients)

    def _carried(self, which: int, device: str) -> tuple[float, float]:
        """(gradients, weights) times how often a ring carries them; ``which``: 0 messages, 1 bytes."""
        scattered = self.scattered[which] * passes("reduce_scatter_tensor", device)
        return self.reduced[which] * passes("all_reduce") + scattered, self.gathered[which]

    def hops(self, ranks: int, device: str) -> float:
        """Steps of the ring."""
        return (ranks - 1) * sum(self._carried(0, device))

    def wire(self, ranks: int, device: str) -> float:
        """Bytes that each rank sends."""
        return (ranks - 1) / ranks * sum(self._carried(1, device))

    def of_gradients(self, device: str) -> float:
        """Share of what the ring carries that is gradients; the rest is weights."""
        gradients, weights = self._carried(1, device)
        return gradients / (gradients + weights) if gradients else 0.0

    def with_gradients(self, times: float) -> Traffic:
        """The same with gradients sent that many times as often."""
        more = [(count * times, size * times) for count, size in (self.reduced, self.scattered)]
        return Traffic(self.gathered, *more)


# --- one configuration ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCase:
    """One configuration, measured or to be predicted; the numbers of a rank unless said otherwise."""

    model: str
    size: int
    precision: str
    zero_stage: int
    ranks: int
    nodes: int
    micro_batch: int
    micros: int
    parameters: int
    traffic: Traffic = Traffic()
    device: str = "cpu"
    loader: str = "synthetic"
    cores: int | None = None  # of a node
    threads: int | None = None  # of a rank; unset: its share of the cores, as launch/local.py gives

    @property
    def key(self) -> Key:
        """What the compute time of a micro-batch depends on: stages differ in the hooks that they put into it."""
        return self.model, self.size, self.precision, self.zero_stage

    @property
    def images(self) -> int:
        """A step, of one rank."""
        return self.micro_batch * self.micros

    @property
    def own_parameters(self) -> float:
        """Parameters whose optimiser states this rank steps."""
        return self.parameters / (self.ranks if self.zero_stage else 1)

    @property
    def crowd(self) -> float:
        """Factor on everything a rank computes, against one thread that has a core to itself."""
        if self.device != "cpu" or not self.cores:
            return 1.0
        here = math.ceil(self.ranks / self.nodes)
        return max(1 / (self.threads or max(1, self.cores // here)), here / self.cores)

    @property
    def of_gradients(self) -> float:
        """Share of what the ring carries that is gradients."""
        return self.traffic.of_gradients(self.device)

    @property
    def wire(self) -> float:
        """Bytes that this rank sends a step."""
        return self.traffic.wire(self.ranks, self.device)

    @property
    def hops(self) -> float:
        """Steps of the ring a step of training."""
        return self.traffic.hops(self.ranks, self.device)

    def on(self, *, ranks: int, nodes: int, micro_batch: int, micros: int) -> StepCase:
        """The same training on other ranks: from stage 2 on its gradients are sent after each micro-batch.

        One rank sends none: what it would send is what DeepSpeed is expected to.
        """
        traffic = self.traffic
        if traffic == Traffic():
            traffic = Traffic.expected(self.zero_stage, micros, self.parameters, self.precision)
        elif self.zero_stage >= 2:
            traffic = traffic.with_gradients(micros / self.micros)
        return replace(self, ranks=ranks, nodes=nodes, micro_batch=micro_batch, micros=micros, traffic=traffic)


@dataclass(frozen=True)
class Measured:
    """A case and the seconds a step that were measured: the parts, each alone where it was, and the whole."""

    case: StepCase
    forward: float
    backward: float
    optimiser: float
    communication: float
    other: float
    step: float
    loader: float | None = None
    all_reduce: float | None = None  # of all parameters in one message, by itself


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """α [s a hop] and β [bytes/s]."""

    latency: float
    bandwidth: float

    def seconds(self, hops: float, wire: float) -> float:
        """Of that many hops and bytes a rank."""
        return hops * self.latency + wire / self.bandwidth


@dataclass(frozen=True)
class Compute:
    """Seconds of one network: forward and backward a micro-batch, the optimiser a step, the rest a micro-batch."""

    fixed: float
    per_image: float
    backward: float  # share of forward and backward
    per_parameter: float
    per_step: float
    other: float


@dataclass(frozen=True)
class StepParts:
    """Predicted seconds of a step."""

    compute: float
    communication: float
    exposed: float
    waiting: float
    optimiser: float
    other: float
    loader: float

    @property
    def step(self) -> float:
        """The whole."""
        return max(self.loader, self.compute + self.exposed + self.waiting + self.optimiser + self.other)


@dataclass(frozen=True)
class Model:
    """Everything that a prediction needs; None where no row told."""

    compute: Mapping[Key, Compute]
    link: Link | None
    network: Link | None
    waiting: float = 0.0
    loader: Mapping[tuple[Key, str], float] = field(default_factory=dict)  # seconds an image

    def parts(self, case: StepCase, *, buckets: int = 0) -> StepParts:
        """Seconds of a step of ``case``; ``buckets`` > 0 overlaps the communication with backward in so many.

        Raises:
            KeyError: nothing is known of the network, or of the wires, that the case needs.
        """
        if case.key not in self.compute:
            raise KeyError(f"nothing measured of {case.model} {case.size}² {case.precision}, ZeRO {case.zero_stage}")
        own, crowd = self.compute[case.key], case.crowd
        compute = case.micros * (own.fixed + own.per_image * case.micro_batch) * crowd
        communication = waiting = 0.0
        if case.ranks > 1:
            link = self.network if case.nodes > 1 else self.link
            if link is None:
                raise KeyError(f"nothing known of the wires {'between nodes' if case.nodes > 1 else 'inside a node'}")
            communication, waiting = link.seconds(case.hops, case.wire), self.waiting * compute
        exposed = communication
        if buckets:  # gradients only, of each micro-batch that sends them; weights are gathered when they are needed
            share, rounds = case.of_gradients, case.micros if case.zero_stage > 1 else 1
            one = overlapped(share * communication / rounds, compute * own.backward / case.micros, buckets)
            exposed = (1 - share) * communication + rounds * one
        return StepParts(
            compute=compute,
            communication=communication,
            exposed=exposed,
            waiting=waiting,
            optimiser=(own.per_parameter * case.own_parameters + own.per_step) * crowd,
            other=case.micros * own.other * crowd,
            loader=self.loader.get((case.key, case.loader), 0.0) * case.images * crowd,
        )


def overlapped(communication: float, backward: float, buckets: int) -> float:
    """Seconds of communication that stick out of the backward pass, when each bucket is sent as soon as it is full.

    The buckets are of one size and fill evenly while backward runs; the last one is full when it ends. So what sticks
    out is never less than one bucket's, and never more than all of it.
    """
    one = communication / buckets
    return max(one, communication - backward * (buckets - 1) / buckets)
