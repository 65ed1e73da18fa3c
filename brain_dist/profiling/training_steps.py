"""Real training steps: the undisturbed rate, then the same with every stage timed, and what the steps communicate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist.profiling.memory import measure_gradients
from brain_dist.profiling.power import measure_power
from brain_dist.profiling.stopwatch import Stopwatch, replaced
from brain_dist.ranks.device import peak_memory

if TYPE_CHECKING:
    from brain_dist.store.dataset import Dataset
    from brain_dist.stream.batch import Batch
    from brain_dist.training.engine import Engine

WARMUP_STEPS = 2
# Methods of DeepSpeed's back end of torch.distributed
COLLECTIVES = ("all_reduce", "all_reduce_coalesced", "all_gather_into_tensor", "all_gather_coalesced", "all_gather",
               "all_gather_base", "reduce_scatter_tensor", "reduce_scatter", "reduce", "broadcast")  # fmt: skip


def measure_training_steps(engine: Engine, dataset: Dataset, steps: int, trace: Path | None = None) -> dict[str, Any]:
    """Take ``total_steps(steps)`` optimiser steps on training batches; every rank must call.

    Args:
        engine: the engine; its configuration must have enough epochs for the steps.
        dataset: the shards.
        steps: steps of each measurement.
        trace: file for a Chrome trace of the timed steps on the main rank.

    Returns:
        Per optimiser step of this rank: ``step``, seconds, undisturbed. ``measured_step``, seconds with every stage
        timed, which waits for the device at each boundary. ``together``: stage → seconds, which sum to
        ``measured_step``; "other" is the rest. ``collectives``: collective → [calls, bytes of their messages].
        ``gradients`` and ``buckets``: see :func:`~brain_dist.profiling.memory.measure_gradients`. ``peak``: bytes, see
        :func:`~brain_dist.ranks.device.peak_memory`, after the undisturbed steps, before anything else is measured.
        ``power``: see :func:`~brain_dist.profiling.power.measure_power`, in the undisturbed steps.
    """
    from torch.profiler import profile

    from brain_dist.stream.batches import training_batches

    batches = training_batches(engine.config, dataset, engine.world, engine.device, first_step=0)
    watch = Stopwatch(engine.device)
    collectives: dict[str, list[float]] = {}

    def load() -> list[Batch]:
        return [next(batches) for _ in range(engine.accumulation_steps)]

    def take_step() -> None:  # as in training, which does not wait for the loss
        engine.step(load(), lr=1e-6)

    def take_timed_step() -> None:
        with watch.stage("waiting for data"):
            micro_batches = load()
        float(engine.step(micro_batches, lr=1e-6))

    for _ in range(WARMUP_STEPS):
        take_step()
    with measure_power(engine.device) as power:  # the steps before may compile, and the others wait for the device
        step = watch.mean(take_step, steps)
    peak = int(peak_memory(engine.device) * 2**30)
    tracing: Any = profile() if trace and engine.world.is_main else nullcontext()
    with _stages_timed(engine, watch, collectives), tracing as profiler:
        measured_step = watch.mean(take_timed_step, steps)
    if trace and profiler:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    together = {name: seconds / steps for name, seconds in watch.seconds.items()}
    gradients, buckets = measure_gradients(engine, take_step)
    return {
        "step": step,
        "measured_step": measured_step,
        "together": {**together, "other": measured_step - sum(together.values())},
        "collectives": {name: [value / steps for value in counts] for name, counts in collectives.items()},
        "gradients": gradients,
        "buckets": buckets,
        "peak": peak,
        "power": power,
    }


def total_steps(steps: int) -> int:
    """Optimiser steps that :func:`measure_training_steps` takes: warm-up, undisturbed, timed, and one for gradients."""
    return WARMUP_STEPS + 2 * steps + 1


@contextmanager
def _stages_timed(engine: Engine, watch: Stopwatch, collectives: dict[str, list[float]]) -> Iterator[None]:
    """Time DeepSpeed's forward, backward, optimiser and collectives inside a block."""
    from deepspeed.comm import comm

    stages = {"forward": "forward", "backward": "backward", "step": "optimiser"}
    with ExitStack() as stack:
        for name, stage in stages.items():
            stack.enter_context(watch.timing(engine.deepspeed, name, stage))
        if engine.world.size > 1:
            for name in COLLECTIVES:
                if hasattr(comm.cdb, name):
                    counted = _counted(getattr(comm.cdb, name), collectives, name)
                    stack.enter_context(replaced(comm.cdb, name, counted))
                    stack.enter_context(watch.timing(comm.cdb, name, "communication"))
        yield


def _counted(function: Callable[..., Any], collectives: dict[str, list[float]], name: str) -> Callable[..., Any]:
    """A collective that waits for its end, with the number of calls and bytes counted in ``collectives[name]``."""

    def counted_function(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        counts = collectives.setdefault(name, [0, 0])
        counts[0] += 1
        counts[1] += _message_bytes([*arguments, *options.values()])
        if options.get("async_op") and result is not None:
            result.wait()
        return result

    return counted_function


def _message_bytes(arguments: list[Any]) -> int:
    """Size of the largest tensor, or list of tensors, among a collective's arguments, which is the whole message."""
    import torch

    def size(item: Any) -> int:
        if isinstance(item, torch.Tensor):
            return item.numel() * item.element_size()
        return sum(map(size, item)) if isinstance(item, (list, tuple)) else 0

    return max(map(size, arguments), default=0)
