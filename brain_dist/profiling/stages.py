"""The stages of a training step, each measured alone and together; what :mod:`brain_dist.profile` prints.

Alone: on a plain copy of the network, with nothing else running. Together: in the real engine, with the device waited
for at every boundary, so that each stage's time is its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from brain_dist.config import Config
from brain_dist.ranks.world import World

if TYPE_CHECKING:
    import torch

    from brain_dist.store.dataset import Dataset
    from brain_dist.training.engine import Engine

WARM = 2  # steps before any clock starts
# DeepSpeed's own calls to the back end of torch.distributed, and which argument's bytes they move
COLLECTIVES = ("all_reduce", "all_reduce_coalesced", "all_gather_into_tensor", "all_gather_coalesced", "all_gather",
               "all_gather_base", "reduce_scatter_tensor", "reduce_scatter", "reduce", "broadcast")  # fmt: skip


class Stopwatch:
    """Seconds by stage, of the current step; waits for the device around each measured block."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.messages: dict[str, list[int]] = {}  # of a collective: how many, and their bytes
        self.inside: list[float] = []

    def settle(self) -> float:
        """Wait for the device; the time then."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add a block's time to a stage; what an inner stage takes is not the outer one's."""
        began = self.settle()
        self.inside.append(0.0)
        try:
            yield
        finally:
            took = self.settle() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self.inside.pop()
            if self.inside:
                self.inside[-1] += took

    def wrap(self, owner: Any, name: str, stage: str) -> Callable[[], None]:
        """Measure every call of ``owner.name``; returns what takes the measuring away again."""
        plain = getattr(owner, name)

        def timed(*words: Any, **named: Any) -> Any:
            with self.stage(stage):
                made = plain(*words, **named)
                if stage == "communication":
                    told = self.messages.setdefault(name, [0, 0])
                    told[0] += 1
                    told[1] += _bytes([*words, *named.values()])
                    if named.get("async_op") and made is not None:
                        made.wait()
                return made

        setattr(owner, name, timed)
        return lambda: delattr(owner, name)


def _bytes(arguments: list[Any]) -> int:
    """Size of the largest tensor, or list of tensors, among a collective's arguments: its whole message."""
    import torch

    def size(item: Any) -> int:
        if isinstance(item, torch.Tensor):
            return item.numel() * item.element_size()
        return sum(map(size, item)) if isinstance(item, (list, tuple)) else 0

    return max(map(size, arguments), default=0)


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measured rate of a large matrix product [FLOP/s] in the type that ``precision`` computes in."""
    import torch

    kind = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    side = 8192 if device.type == "cuda" else 1536
    a = torch.randn(side, side, device=device).to(kind)
    watch, best = Stopwatch(device), 0.0
    for _ in range(6):
        began = watch.settle()
        a @ a
        best = max(best, 2 * side**3 / (watch.settle() - began))
    return best


def alone(config: Config, dataset: Dataset, world: World, device: torch.device, steps: int) -> dict[str, Any]:
    """Median seconds a micro-batch of each stage by itself, floating-point operations an image, matrix rate."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from brain_dist.networks.create import create_network
    from brain_dist.stream.normalize import Normalize
    from brain_dist.training.deepspeed_setup import compute_dtype
    from brain_dist.training.optim import create_optimizer

    watch = Stopwatch(device)
    found: dict[str, Any] = {"seconds": loading(config, dataset, world, device, steps)}
    model = create_network(config.model, len(dataset.classes), seed=config.run.seed, load_weights=False).to(device)
    dtype = compute_dtype(config.train.precision)
    model = model.to(dtype).train()
    optimiser = create_optimizer(config.optim, model)
    channels = 1 if config.data.color == "gray" else 3
    shape = (config.train.micro_batch, channels, config.data.size, config.data.size)
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    if device.type == "cuda":
        pinned = image.pin_memory()
        found["seconds"]["host to device"] = _median(watch, lambda: pinned.to(device, non_blocking=True), steps)
    normalize = Normalize(config.data, config.model.in_chans, device, dtype)
    made = normalize(image.to(device))
    label = torch.zeros(config.train.micro_batch, dtype=torch.int64, device=device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "amp")

    def forward() -> torch.Tensor:
        with amp:
            return torch.nn.functional.cross_entropy(model(made).float(), label)

    with FlopCounterMode(display=False) as counter:
        forward().backward()
    found["flops_per_image"] = counter.get_total_flops() / config.train.micro_batch
    times: dict[str, list[float]] = {"forward": [], "backward": [], "optimiser": []}
    for step in range(WARM + steps):
        a = watch.settle()
        loss = forward()
        b = watch.settle()
        loss.backward()
        c = watch.settle()
        optimiser.step()
        d = watch.settle()
        if step >= WARM:
            for name, took in (("forward", b - a), ("backward", c - b), ("optimiser", d - c)):
                times[name].append(took)
    found["seconds"] |= {name: statistics.median(values) for name, values in times.items()}
    found["parameters"] = sum(p.numel() for p in model.parameters())
    if world.size > 1:
        import torch.distributed as dist

        flat = torch.zeros(found["parameters"], dtype=dtype, device=device)
        found["seconds"]["communication"] = _median(watch, lambda: dist.all_reduce(flat), max(3, steps // 2))
    found["matrix_rate"] = matrix_rate(device, config.train.precision)
    return found


def loading(config: Config, dataset: Dataset, world: World, device: torch.device, steps: int) -> dict[str, float]:
    """Seconds a micro-batch of reading the bytes, and of the loader as a whole, which reads too."""
    from brain_dist.store.reader import ShardReader
    from brain_dist.stream import plan
    from brain_dist.stream.batches import training_batches

    rows = plan.epoch_order(dataset.rows("train"), dataset.rows("train") * 0, seed=config.run.seed, epoch=0)
    reader, watch, size = ShardReader(dataset), Stopwatch(device), config.train.micro_batch
    reads = []
    for step in range(min(steps, max(1, len(rows) // size))):
        began = time.perf_counter()
        for row in rows[step * size : (step + 1) * size]:
            reader.read(int(row))
        reads.append(time.perf_counter() - began)
    batches = training_batches(config, dataset, world, device, first_step=0)
    for _ in range(WARM + config.data.prefetch):
        next(batches)
    began, count = watch.settle(), 0
    for _ in range(steps):
        if next(batches, None) is None:
            break
        count += 1
    return {"storage read": statistics.median(reads), "loader": (watch.settle() - began) / max(1, count)}


def _median(watch: Stopwatch, act: Callable[[], Any], count: int) -> float:
    taken = []
    for _ in range(count + 1):
        began = watch.settle()
        act()
        taken.append(watch.settle() - began)
    return statistics.median(taken[1:])


def together(
    config: Config, dataset: Dataset, engine: Engine, world: World, device: torch.device, steps: int, trace: str | None
) -> dict[str, Any]:
    """Real training steps: first undisturbed for the rate, then with every stage measured.

    Returns:
        step: seconds an optimiser step, undisturbed; stages: mean seconds a step of each stage (``other`` is what is
        left); measured_step: their sum; collectives: of each kind how many a step and their messages' bytes;
        gradients and buckets: bytes, see :func:`gradients`.
    """
    from deepspeed.comm import comm

    from brain_dist.stream.batches import training_batches

    batches = training_batches(config, dataset, world, device, first_step=0)
    watch = Stopwatch(device)

    def step() -> None:
        with watch.stage("waiting for data"):
            micros = [next(batches) for _ in range(engine.micros)]
        float(engine.step(micros, lr=1e-6))

    for _ in range(WARM):
        step()
    began = watch.settle()
    for _ in range(steps):
        step()
    undisturbed = (watch.settle() - began) / steps
    undo = [watch.wrap(engine.deepspeed, "backward", "backward"), watch.wrap(engine.deepspeed, "step", "optimiser")]
    undo += [watch.wrap(engine.deepspeed, "forward", "forward")]
    if world.size > 1:
        undo += [watch.wrap(comm.cdb, name, "communication") for name in COLLECTIVES if hasattr(comm.cdb, name)]
    watch.seconds, watch.messages = {}, {}
    with _traced(trace, world):
        began = watch.settle()
        for _ in range(steps):
            step()
        measured = (watch.settle() - began) / steps
    for take_away in undo:
        take_away()
    stages = {name: seconds / steps for name, seconds in watch.seconds.items()}
    stages["other"] = measured - sum(stages.values())
    sent = {name: [each / steps for each in counted] for name, counted in watch.messages.items()}
    both = {"step": undisturbed, "measured_step": measured, "stages": stages, "collectives": sent}
    return {**both, **gradients(engine, step)}


def gradients(engine: Engine, step: Callable[[], None]) -> dict[str, int]:
    """Take one more step, and look between its last backward pass and the optimiser's part of it.

    Returns:
        gradients: bytes of all gradients that this rank holds then; buckets: of what they are copied into to be sent.
    """
    from brain_dist.training.fragments import buckets, gradients

    plain, found = engine.deepspeed.step, {}

    def looking(*words: Any, **named: Any) -> Any:
        if engine.deepspeed.is_gradient_accumulation_boundary():
            for name, held in (("gradients", gradients), ("buckets", buckets)):
                found[name] = _storage(held(engine.deepspeed))
        return plain(*words, **named)

    engine.deepspeed.step = looking
    try:
        step()
    finally:
        del engine.deepspeed.step
    return found


def _storage(tensors: Iterable[Any]) -> int:
    """Bytes of the memory behind tensors, each piece once: a view keeps all of what it looks at."""
    import torch

    return sum({
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if torch.is_tensor(t)
    }.values())  # fmt: skip


@contextmanager
def _traced(path: str | None, world: World) -> Iterator[None]:
    """torch.profiler around a block, written as a Chrome trace of the main rank."""
    if path is None or not world.is_main:
        yield
        return
    from torch.profiler import profile

    with profile() as profiler:
        yield
    profiler.export_chrome_trace(path)


def memory(engine: Engine, device: torch.device) -> dict[str, int]:
    """Bytes on this rank of weights and of optimiser states (with master weights) between two steps.

    Gradients are gone by then: :func:`gradients` looks while they are there. ``peak``: on a GPU the allocator's
    highest mark, elsewhere the highest resident size of the process.
    """
    import resource

    import torch

    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    states = [value for state in inner.state.values() for value in state.values()]
    masters = [p for group in inner.param_groups for p in group["params"]]
    masters += getattr(engine.deepspeed.optimizer, "fp32_partitioned_groups_flat", [])  # stage 3 keeps them elsewhere
    # stage 3: this rank's part, and the small parameters that stay whole
    weights = [t for p in engine.module.parameters() for t in (p, getattr(p, "ds_tensor", p))]
    own = {t.untyped_storage().data_ptr() for t in weights}
    masters = [p for p in masters if p.untyped_storage().data_ptr() not in own]
    peak = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {"weights": _storage(weights), "optimiser": _storage([*states, *masters]), "peak": peak}
