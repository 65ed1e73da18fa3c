"""What a profile contains, and the bottleneck that it shows."""

from __future__ import annotations

import math
import statistics
from typing import Any

from brain_dist.config import Config
from brain_dist.profiling.calibration import reason_for_doubt

STAGES = ("storage read", "loader", "host to device", "waiting for data", "forward", "backward", "optimiser",
          "communication", "other")  # fmt: skip
STAGES_OF_STEP = ("optimiser", "communication")  # measured alone per step; the others per micro-batch
# Share of the step from which a stage counts as the bottleneck
DATA_SHARE, COMMUNICATION_SHARE, OPTIMISER_SHARE = 0.1, 0.2, 0.25
ADVICE = {
    "storage": "reading is slow: copy the shards to the node's disk with data.cache_dir",
    "loader": "decoding and augmentation are too slow: use more data.threads, data.color=gray, a larger data.prefetch,"
    " or shards built with a smaller --max-side",
    "communication": "a larger train.global_batch communicates less often, a lower train.zero_stage sends less; or use"
    " a faster network",
    "optimiser": "a larger train.global_batch steps less often; ZeRO stages 1 and 2 divide the step among the ranks",
    "compute": "the forward and backward pass take most of the time, as they should: a larger train.micro_batch"
    " may use the device better; more devices shorten the epoch",
}
UNKNOWN = "unknown"  # the verdict of a profile whose times cannot be believed

Profile = dict[str, Any]


def combine(ranks: list[dict[str, Any]], config: Config, device: str, steps: int) -> Profile:
    """The content of profile.json, from the measurements of all ranks in rank order.

    Times are seconds per optimiser step, the mean over the ranks; memory is bytes, the largest of the ranks.

    Returns:
        Settings of the run (``model``, ``size``, ``precision``, ``zero_stage``, ``loader``, ``global_batch``) and:

        - ``device``: "cpu" or "cuda"; ``world``: number of ranks; ``micros``: accumulated micro-batches per step;
          ``steps``: steps of each measurement; ``parameters``: number of parameters of the network.
        - ``alone``: stage → seconds if nothing else runs; ``together``: stage → seconds in a real step, which sum to
          ``measured_step``, a step with every stage timed; ``step``: an undisturbed step, the largest of the ranks;
          ``images_per_s``: undisturbed rate over all ranks.
        - ``collectives``: collective → [calls, bytes] per step of the main rank; ``bytes_sent`` and ``messages``: the
          sums of all collectives per step and rank.
        - ``flops_per_image``: floating-point operations of the forward and backward pass; ``matrix_rate``: measured
          rate of a large matrix product per device, FLOP/s; ``cpu_share``: smallest share of the CPU time that its
          threads asked for and got; ``mfu``: model FLOP utilisation,
          ``flops_per_image * images_per_s / (world * matrix_rate)``, None if the verdict is unknown.
        - ``memory``: "weights", "optimiser" (states and master weights), "peak", "gradients" and "buckets";
          ``power``: mean "utilisation" [%] and "watts" of the main rank's GPU, empty on a CPU; ``joules_per_image``:
          energy of all GPUs per image, None on a CPU.
        - ``hosts``: number of hosts; ``cores``: CPU cores that the ranks of the main rank's host may use; ``threads``:
          threads of torch per rank; ``verdict``: the bottleneck of the slowest rank, "unknown" if the times cannot be
          believed; ``advice``: what to change, or why they cannot.
    """
    main, train = ranks[0], config.train

    def mean(name: str) -> float:
        return statistics.fmean(rank[name] for rank in ranks)

    def stage_means(group: str) -> dict[str, float]:
        stages = sorted({stage for rank in ranks for stage in rank[group]}, key=STAGES.index)
        return {stage: statistics.fmean(rank[group].get(stage, 0.0) for rank in ranks) for stage in stages}

    micros = train.global_batch // (train.micro_batch * len(ranks))
    alone, together = stage_means("alone"), stage_means("together")
    alone = {stage: seconds * (1 if stage in STAGES_OF_STEP else micros) for stage, seconds in alone.items()}
    step = max(rank["step"] for rank in ranks)
    images_per_s, matrix_rate = train.global_batch / step, mean("matrix_rate")
    watts = [rank["power"].get("watts") for rank in ranks]
    rate_needed = main["flops_per_image"] * images_per_s / len(ranks)
    calibration = {
        "matrix_rate": matrix_rate, "cpu_share": min(rank["cpu_share"] for rank in ranks),
        "mfu": rate_needed / matrix_rate if matrix_rate else math.inf,
    }  # fmt: skip
    doubt = reason_for_doubt(calibration)
    waits = [rank["together"].get("communication", 0.0) for rank in ranks]
    slowest, wait = waits.index(min(waits)), max(waits) - min(waits)  # the others wait for it in their collectives
    verdict = UNKNOWN if doubt else find_bottleneck(ranks[slowest]["alone"], ranks[slowest]["together"])
    advice = f"{doubt}: profile again on a quiet machine" if doubt else ADVICE[verdict]
    if not doubt and wait >= DATA_SHARE * mean("measured_step"):
        place = f"rank {slowest} on {ranks[slowest]['host']}"
        advice = f"{place} is the slowest, another one waits {1e3 * wait:.0f} ms a step for it. There, {advice}"
    # a scheduler may give each rank of a host different cores
    cores = len({core for rank in ranks if rank["host"] == main["host"] for core in rank["cores"]})
    return {
        "model": config.model.name, "size": config.data.size, "precision": train.precision,
        "zero_stage": train.zero_stage, "loader": config.data.loader, "device": device, "world": len(ranks),
        "global_batch": train.global_batch, "micros": micros, "steps": steps, "parameters": main["parameters"],
        "alone": alone, "step": step, "images_per_s": images_per_s, "measured_step": mean("measured_step"),
        "together": together, "collectives": main["collectives"],
        "bytes_sent": statistics.fmean(sum(size for _, size in rank["collectives"].values()) for rank in ranks),
        "messages": statistics.fmean(sum(calls for calls, _ in rank["collectives"].values()) for rank in ranks),
        "flops_per_image": main["flops_per_image"], **calibration, "mfu": None if doubt else calibration["mfu"],
        "memory": {kind: max(rank["memory"][kind] for rank in ranks) for kind in main["memory"]},
        "power": main["power"], "hosts": len({rank["host"] for rank in ranks}),
        "cores": min(cores, main["quota"] or cores), "threads": main["threads"],
        "joules_per_image": sum(watts) * step / train.global_batch if all(watts) else None,
        "verdict": verdict, "advice": advice,
    }  # fmt: skip


def find_bottleneck(alone: dict[str, float], together: dict[str, float]) -> str:
    """The bottleneck, a key of ``ADVICE``, from the seconds of each stage alone and in a real step."""
    shares = {stage: seconds / sum(together.values()) for stage, seconds in together.items()}
    data, communication = shares.get("waiting for data", 0.0), shares.get("communication", 0.0)
    if data >= DATA_SHARE and data >= communication:
        return "storage" if alone["storage read"] > 0.5 * alone["loader"] else "loader"
    if communication >= COMMUNICATION_SHARE:
        return "communication"
    return "optimiser" if shares.get("optimiser", 0.0) >= OPTIMISER_SHARE else "compute"
