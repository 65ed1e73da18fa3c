"""What a profile contains, and the bottleneck that it shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

STAGES = ("storage read", "loader", "host to device", "waiting for data", "forward", "backward", "optimiser",
          "communication", "other")  # fmt: skip
# Share of the step from which a stage counts as the bottleneck
DATA_SHARE, COMMUNICATION_SHARE, OPTIMISER_SHARE = 0.1, 0.2, 0.25


class Bottleneck(NamedTuple):
    """The stage that limits the rate, and what to change."""

    stage: str
    advice: str


@dataclass(frozen=True)
class Profile:
    """Measurements of all ranks; the fields are the keys of profile.json.

    Times are seconds per optimiser step, the mean over the ranks; memory is bytes, the largest of the ranks.

    Attributes:
        model, size, precision, zero_stage, loader, global_batch: settings of the run.
        device: "cpu" or "cuda".
        world: number of ranks.
        micros: accumulated micro-batches per step.
        steps: steps of each measurement.
        parameters: number of parameters of the network.
        alone: stage → seconds if nothing else runs.
        step: seconds of an undisturbed step, the largest of the ranks.
        images_per_s: undisturbed rate over all ranks.
        measured_step: seconds of a step with every stage timed.
        together: stage → seconds in a real step; they sum to ``measured_step``.
        collectives: collective → [calls, bytes] per step of the main rank.
        bytes_sent: message bytes of all collectives per step and rank.
        messages: calls of collectives per step and rank.
        flops_per_image: floating-point operations of the forward and backward pass.
        matrix_rate: measured rate of a large matrix product per device, FLOP/s.
        memory: bytes of "weights", "optimiser" (states and master weights), "peak", "gradients" and "buckets".
        power: mean "utilisation" [%] and "watts" of the main rank's GPU; empty on a CPU.
        hosts: number of hosts.
        cores: CPU cores that the ranks of the main rank's host may use.
        threads: threads of torch per rank.
        joules_per_image: energy of all GPUs per image; None on a CPU.
        mfu: model FLOP utilisation, ``flops_per_image * images_per_s / (world * matrix_rate)``.
        bottleneck: stored as "verdict" (the stage) and "advice".
        loaders: loader → images per second over all ranks if nothing else runs; None if they were not compared.
    """

    model: str
    size: int
    precision: str
    zero_stage: int
    loader: str
    device: str
    world: int
    global_batch: int
    micros: int
    steps: int
    parameters: int
    alone: dict[str, float]
    step: float
    images_per_s: float
    measured_step: float
    together: dict[str, float]
    collectives: dict[str, list[float]]
    bytes_sent: float
    messages: float
    flops_per_image: float
    matrix_rate: float
    memory: dict[str, int]
    power: dict[str, float]
    hosts: int
    cores: int
    threads: int
    joules_per_image: float | None
    mfu: float
    bottleneck: Bottleneck
    loaders: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of profile.json."""
        values = asdict(self)
        stage, advice = values.pop("bottleneck")
        loaders = values.pop("loaders")
        return {**values, "verdict": stage, "advice": advice, **({"loaders": loaders} if loaders else {})}


def find_bottleneck(alone: dict[str, float], together: dict[str, float]) -> Bottleneck:
    """The bottleneck, from the seconds of each stage alone and in a real step."""
    step = sum(together.values())
    share = {stage: seconds / step for stage, seconds in together.items()}
    data, communication = share.get("waiting for data", 0.0), share.get("communication", 0.0)
    if data >= DATA_SHARE and data >= communication:
        if alone["storage read"] > 0.5 * alone["loader"]:
            return Bottleneck("storage", "reading is slow: copy the shards to the node's disk with data.cache_dir")
        return Bottleneck(
            "loader",
            "decoding and augmentation are too slow: use more data.threads, data.color=gray, a larger data.prefetch, or"
            " shards built with a smaller --max-side",
        )
    if communication >= COMMUNICATION_SHARE:
        return Bottleneck(
            "communication",
            "a larger train.global_batch communicates less often, a lower train.zero_stage sends less; or use a faster"
            " network",
        )
    if share.get("optimiser", 0.0) >= OPTIMISER_SHARE:
        return Bottleneck(
            "optimiser",
            "a larger train.global_batch steps less often; ZeRO stages 1 and 2 divide the step among the ranks",
        )
    return Bottleneck(
        "network",
        "the forward and backward pass take most of the time, as they should: a larger train.micro_batch or"
        " train.precision=bf16 may use the device better; more devices shorten the epoch",
    )
