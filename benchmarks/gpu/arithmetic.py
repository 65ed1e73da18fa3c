"""Stage ``zero``: the engine's numbers on this device, for every ZeRO stage and precision."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.engines import Engines, engines
from benchmarks.gpu.frame import Check

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config
    from brain_dist.stream.batch import Batch

OFFLOAD = "configs/deepspeed/zero3_offload.json"
PRECISIONS = (("bf16", 2), ("fp16", 2), ("amp", 2), ("bf16", 0), ("bf16", 3), ("fp16", 0), ("amp", 0), ("fp16", 3))
RESUMES = ((2, 2, "bf16"), (2, 3, "bf16"), (3, 0, "bf16"), (2, 2, "amp"), (0, 1, "amp"))  # saved at, resumed at


def run_zero(check: Check) -> None:
    """Compare with plain PyTorch, train in each precision, resume at other stages, repeat, and offload."""
    import torch

    with engines(check) as bench:
        # TF32 rounds the products of float32 to 10 bits
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        for zero in range(4):
            check.attempt("beside plain AdamW", lambda zero=zero: compare_with_plain(bench, zero), zero=zero)  # type: ignore[misc]
        for precision, zero in PRECISIONS:
            if check.dry and precision == "fp16":
                continue  # DeepSpeed has no fp16 on the CPU
            labels = {"zero": zero, "precision": precision}
            check.attempt("precision", lambda labels=labels: train_in_precision(bench, **labels), **labels)  # type: ignore[misc]
        for zero, then, precision in RESUMES:
            labels = {"zero": zero, "then": then, "precision": precision}
            check.attempt("resume", lambda labels=labels: resume_at_stage(bench, **labels), **labels)  # type: ignore[misc]
        check.attempt("deterministic twice", lambda: train_twice(bench))
        check.attempt("zero3 offload", lambda: compare_offload(bench))


def small_config(check: Check, zero: int, precision: str = "fp32", deepspeed: str | None = None) -> Config:
    """A tiny network with global batches of 12 in micro-batches of 4."""
    from brain_dist.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig

    return Config(
        run=RunConfig(device="cpu" if check.dry else "cuda"),
        data=DataConfig(size=32),
        model=ModelConfig(name="test_convnext"),
        optim=OptimConfig(lr=1e-2, clip=0.5, label_smoothing=0.1, warmup_epochs=0),
        train=TrainConfig(
            epochs=1,
            global_batch=12,
            micro_batch=4,
            precision=precision,  # type: ignore[arg-type]
            zero_stage=zero,  # type: ignore[arg-type]
            deepspeed=deepspeed,
        ),
    )


def noise_steps(bench: Engines, samples: int) -> list[list[Batch]]:
    """The micro-batches of each step of an epoch of noise images; the last step may have padding."""
    import numpy as np
    import torch

    from brain_dist.stream.batch import Batch
    from brain_dist.stream.plan import TrainingPlan

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (samples, 1, 32, 32), dtype=np.uint8)
    labels, rows = generator.integers(0, 4, samples), np.arange(samples, dtype=np.int64)
    plan = TrainingPlan(rows=rows, shard=rows * 0, label=labels, seed=0, epochs=1, global_batch=12, micro_batch=4)
    steps: list[list[Batch]] = []
    for micro in plan.micro_batches(rank=0, world_size=1):
        if micro.micro_step == 0:
            steps.append([])
        steps[-1].append(Batch.of(torch.from_numpy(images[micro.rows]).to(bench.device), micro, labels))
    return steps


def compare_with_plain(bench: Engines, zero: int) -> dict[str, Any]:
    """Two steps of the engine and of plain PyTorch in fp32; the second step has padding.

    Returns:
        Largest relative difference of the losses, largest difference of the weights, and whether both are small.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from brain_dist.networks.create import create_network
    from brain_dist.training.optim import create_optimizer

    config = small_config(bench.check, zero)
    engine, plain = bench.create(config), create_network(config.model, 4, seed=0).to(bench.device)
    optimizer, loss_gap = create_optimizer(config.optim, plain), 0.0
    for batches in noise_steps(bench, 22):
        engine_loss = float(engine.step(batches, lr=1e-2))
        image = torch.cat([engine.normalize(batch.image)[batch.valid] for batch in batches])
        label = torch.cat([batch.label[batch.valid] for batch in batches])
        loss = cross_entropy(plain(image), label, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        loss_gap = max(loss_gap, abs(engine_loss - float(loss)) / float(loss))
    apart = largest_difference(engine.weights(), plain.state_dict())
    return {"loss_gap": loss_gap, "weights_apart": apart, "ok": loss_gap < 1e-4 and apart < 1e-3}


def largest_difference(weights: dict[str, Any], others: dict[str, Any]) -> float:
    """Largest absolute difference between two networks' weights and buffers."""
    return max(float((value.float() - others[name].float().cpu()).abs().max()) for name, value in weights.items())


def train_in_precision(bench: Engines, zero: int, precision: str) -> dict[str, Any]:
    """Eight steps over the same two batches; the loss must stay finite and fall."""
    engine = bench.create(small_config(bench.check, zero, precision))
    losses = [float(engine.step(batches, lr=3e-3)) for batches in 4 * noise_steps(bench, 24)]
    return {
        "first": losses[0],
        "last": losses[-1],
        "loss_scale": engine.loss_scale,
        "skipped": engine.skipped.total,
        "grad_norm": engine.grad_norm.item(),
        "ok": all(map(math.isfinite, losses)) and losses[-1] < losses[0],
    }


def resume_at_stage(bench: Engines, zero: int, then: int, precision: str) -> dict[str, Any]:
    """Save after one step, resume at ZeRO stage ``then``, and compare the weights after the next step."""
    from brain_dist.training.restoring import restore
    from brain_dist.training.saving import Saver

    folder = bench.check.kit / "across" / f"{zero}{then}{precision}-{time.time()}"
    first, second = noise_steps(bench, 24)
    engine = bench.create(small_config(bench.check, zero, precision))
    engine.step(first, lr=1e-2)
    saver = Saver(folder, engine, {}, keep=1)
    saver.begin(1)
    saver.finish()
    engine.step(second, lr=1e-2)
    resumed = bench.create(small_config(bench.check, then, precision))
    restore(folder, 1, resumed)
    resumed.step(second, lr=1e-2)
    apart = largest_difference(engine.weights(), resumed.weights())
    return {"apart": apart, "same_bits": apart == 0.0}


def train_twice(bench: Engines) -> dict[str, bool]:
    """The same two steps twice with deterministic kernels; the weights must be equal bit for bit."""
    import torch

    from brain_dist.config import ModelConfig
    from brain_dist.ranks.device import enable_determinism

    config = small_config(bench.check, 2, "bf16")
    config = dataclasses.replace(config, model=ModelConfig(name="test_convnext", drop_path=0.3, drop=0.3))

    def train(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)  # the engine seeds dropout itself
        engine = bench.create(config)
        for batches in noise_steps(bench, 24):
            engine.step(batches, lr=1e-2)
        return engine.weights()

    enable_determinism()
    try:
        weights, repeated = train(1), train(2)
    finally:
        torch.use_deterministic_algorithms(False)
    return {"same_bits": all(torch.equal(value, repeated[name]) for name, value in weights.items())}


def compare_offload(bench: Engines) -> dict[str, Any]:
    """The loss of the second step with and without the optimiser's states in host memory."""

    def second_loss(deepspeed: str | None) -> float:
        engine = bench.create(small_config(bench.check, 3, deepspeed=deepspeed))
        return [float(engine.step(batches, lr=1e-2)) for batches in noise_steps(bench, 24)][1]

    plain, offloaded = second_loss(None), second_loss(OFFLOAD)
    return {"plain": plain, "offloaded": offloaded, "ok": abs(plain - offloaded) < 1e-4}
