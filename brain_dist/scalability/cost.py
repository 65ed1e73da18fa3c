"""A cost model of a training step. Pure; :mod:`brain_dist.scalability.cost_fit` fits its coefficients.

Times are in seconds. Lower-case letters and Greek letters are fitted::

    step          = max(loader, forward + backward + exposed communication + waiting + optimiser + other)
    forward + backward = micros · (a + b · micro_batch) · cpu_factor     a, b: of a network, size, precision and stage
    optimiser     = (c · stepped parameters + d) · cpu_factor            stage 0: all parameters, else a rank's share
    other         = micros · e · cpu_factor
    communication = hops · α + wire bytes / β                            α: s per hop, β: bytes/s of the slowest link
    waiting       = w · (forward + backward)                             for the slower rank, with more than one rank
    loader        = l · images of the rank · cpu_factor
    cpu_factor    = max(1 / threads, ranks on the node / cores)          on the CPU; on a GPU 1

A ring of consecutive ranks enters and leaves each node once, so all ranks of a node share one stream over the network,
and the slowest link sets the pace. α and β are therefore those of the network if there are several nodes, and those of
the link inside a node otherwise. :mod:`brain_dist.scalability.traffic` has the hops and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from brain_dist.scalability.traffic import Traffic

NOT_COUNTED = Traffic()
Key = tuple[str, int, str, int]  # network, image size [pixels], precision, ZeRO stage


@dataclass(frozen=True)
class StepCase:
    """One configuration of a training step, measured or to be predicted.

    Attributes:
        model: Name of the network.
        size: Side of an image [pixels].
        precision: train.precision.
        zero_stage: ZeRO stage.
        ranks: Number of ranks on all nodes.
        nodes: Number of machines.
        micro_batch: Images per micro-batch of a rank.
        micros: Micro-batches per step of a rank (gradient accumulation).
        parameters: Number of parameters of the network.
        traffic: Collectives of a step.
        device: cpu or cuda.
        loader: data.loader.
        cores: CPU cores of a node; None: unknown.
        threads: CPU threads of a rank; None: its share of the cores, as launch/local.py sets it.
    """

    model: str
    size: int
    precision: str
    zero_stage: int
    ranks: int
    nodes: int
    micro_batch: int
    micros: int
    parameters: int
    traffic: Traffic = NOT_COUNTED
    device: str = "cpu"
    loader: str = "synthetic"
    cores: int | None = None
    threads: int | None = None

    @property
    def key(self) -> Key:
        """What the compute time of a micro-batch depends on; stages differ in their hooks."""
        return self.model, self.size, self.precision, self.zero_stage

    @property
    def images(self) -> int:
        """Images per step of one rank."""
        return self.micro_batch * self.micros

    @property
    def stepped_parameters(self) -> float:
        """Parameters that this rank's optimiser updates."""
        return self.parameters / (self.ranks if self.zero_stage else 1)

    @property
    def cpu_factor(self) -> float:
        """Compute time relative to one thread that has a core to itself; 1 on a GPU or if the cores are unknown."""
        if self.device != "cpu" or not self.cores:
            return 1.0
        ranks_per_node = math.ceil(self.ranks / self.nodes)
        threads = self.threads or max(1, self.cores // ranks_per_node)
        return max(1 / threads, ranks_per_node / self.cores)

    @property
    def wire_bytes(self) -> float:
        """Bytes that this rank sends per step."""
        return self.traffic.wire_bytes(self.ranks, self.device)

    @property
    def hops(self) -> float:
        """Ring hops per training step."""
        return self.traffic.hops(self.ranks, self.device)

    def on(self, *, ranks: int, nodes: int, micro_batch: int, micros: int) -> StepCase:
        """The same training on other ranks.

        From stage 2 on, gradients are sent once per micro-batch. A case of one rank sent nothing; its traffic becomes
        what DeepSpeed is expected to send.
        """
        traffic = self.traffic
        if traffic == NOT_COUNTED:
            traffic = Traffic.expected(self.zero_stage, micros, self.parameters, self.precision)
        elif self.zero_stage >= 2:
            traffic = traffic.scale_gradients(micros / self.micros)
        return replace(self, ranks=ranks, nodes=nodes, micro_batch=micro_batch, micros=micros, traffic=traffic)


@dataclass(frozen=True)
class MeasuredStep:
    """Measured seconds per step of a case.

    Attributes:
        case: What was measured.
        forward: Forward passes.
        backward: Backward passes.
        optimiser: Optimiser.
        communication: Collectives inside the step, including the wait for the slower rank.
        other: What remains of the step.
        step: The whole step, undisturbed by the measurement of its parts.
        loader: The loader by itself; None: not measured.
        all_reduce: An all-reduce of all parameters in one message, by itself; None: not measured.
    """

    case: StepCase
    forward: float
    backward: float
    optimiser: float
    communication: float
    other: float
    step: float
    loader: float | None = None
    all_reduce: float | None = None


@dataclass(frozen=True)
class Link:
    """A network link.

    Attributes:
        latency: α [s per hop].
        bandwidth: β [bytes/s].
    """

    latency: float
    bandwidth: float

    def seconds(self, hops: float, wire_bytes: float) -> float:
        """Time of a collective of that many hops and bytes per rank."""
        return hops * self.latency + wire_bytes / self.bandwidth


@dataclass(frozen=True)
class Compute:
    """Compute times of one network [s], with a ``cpu_factor`` of 1.

    Attributes:
        fixed: Forward and backward, per micro-batch.
        per_image: Forward and backward, per image.
        backward_share: Share of backward in forward and backward.
        per_parameter: Optimiser, per parameter.
        per_step: Optimiser, per step.
        other: Everything else, per micro-batch.
    """

    fixed: float
    per_image: float
    backward_share: float
    per_parameter: float
    per_step: float
    other: float


@dataclass(frozen=True)
class StepParts:
    """Predicted seconds of a step; ``exposed`` is the communication that backward does not hide."""

    compute: float
    communication: float
    exposed: float
    waiting: float
    optimiser: float
    other: float
    loader: float

    @property
    def step(self) -> float:
        """The whole step."""
        return max(self.loader, self.compute + self.exposed + self.waiting + self.optimiser + self.other)


@dataclass(frozen=True)
class CostModel:
    """Coefficients of a prediction.

    Attributes:
        compute: Compute times by network, size, precision and stage.
        link: Link inside a node; None: unknown.
        network: Network between nodes; None: unknown.
        waiting: Wait for the slower rank, as a share of forward and backward.
        loader: Loader's seconds per image by (key, data.loader); a missing entry means that it never limits a step.
    """

    compute: Mapping[Key, Compute]
    link: Link | None
    network: Link | None
    waiting: float = 0.0
    loader: Mapping[tuple[Key, str], float] = field(default_factory=dict)

    def parts(self, case: StepCase, *, buckets: int = 0) -> StepParts:
        """Predict a step of ``case``.

        Args:
            case: What to predict.
            buckets: Number of gradient buckets whose communication overlaps with backward; 0: no overlap.

        Raises:
            KeyError: the model has no coefficients for the network or for the links of ``case``.
        """
        if case.key not in self.compute:
            raise KeyError(f"no measurement of {case.model} {case.size}² {case.precision}, ZeRO {case.zero_stage}")
        coefficients, factor = self.compute[case.key], case.cpu_factor
        compute = case.micros * (coefficients.fixed + coefficients.per_image * case.micro_batch) * factor
        communication = self._link(case).seconds(case.hops, case.wire_bytes) if case.ranks > 1 else 0.0
        return StepParts(
            compute=compute,
            communication=communication,
            exposed=_exposed(case, communication, compute * coefficients.backward_share, buckets),
            waiting=self.waiting * compute if case.ranks > 1 else 0.0,
            optimiser=(coefficients.per_parameter * case.stepped_parameters + coefficients.per_step) * factor,
            other=case.micros * coefficients.other * factor,
            loader=self.loader.get((case.key, case.loader), 0.0) * case.images * factor,
        )

    def _link(self, case: StepCase) -> Link:
        link = self.network if case.nodes > 1 else self.link
        if link is None:
            raise KeyError(f"no measurement of the links {'between nodes' if case.nodes > 1 else 'inside a node'}")
        return link


def _exposed(case: StepCase, communication: float, backward: float, buckets: int) -> float:
    """Communication that backward does not hide [s per step]; only that of gradients can overlap with backward."""
    if not buckets:
        return communication
    share = case.traffic.gradient_share(case.device)
    rounds = case.micros if case.zero_stage > 1 else 1  # micro-batches that send gradients
    per_round = overlapped(share * communication / rounds, backward / case.micros, buckets)
    return (1 - share) * communication + rounds * per_round


def overlapped(communication: float, backward: float, buckets: int) -> float:
    """Communication [s] that remains after the backward pass, if each bucket is sent as soon as it is full.

    Buckets have the same size and fill evenly during backward; the last one is full when backward ends. So at least one
    bucket's communication remains, and at most all of it.
    """
    per_bucket = communication / buckets
    return max(per_bucket, communication - backward * (buckets - 1) / buckets)
