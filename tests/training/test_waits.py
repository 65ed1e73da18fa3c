"""How often the host waits for the device in an optimiser step."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from engine_cases import new_engine, noise_batches, of_step, with_stage
from waits import record_calls

from brain_dist.augmentation.augment import Frames, no_augmentation
from brain_dist.augmentation.style import draw_style
from brain_dist.config import AugmentConfig, DataConfig
from brain_dist.inference.logits import predict_logits
from brain_dist.ranks.world import World
from brain_dist.stream.batch import Batch, Job
from brain_dist.stream.normalize import Normalize
from brain_dist.stream.plan import evaluation_micro_batches

OWN = {"brain_dist/training/nonfinite.py:guard": 1}
INVALID = "deepspeed/runtime/utils.py:is_invalid_grad_norm"
# Whether a step is skipped is decided on the host, so one wait per step cannot be avoided. DeepSpeed has more of them
# per parameter group, of which there are two. None of them is in a micro-step that only accumulates.
WAITS = {
    (0, "fp32"): OWN,
    (0, "amp"): OWN,
    (0, "bf16"): {"deepspeed/runtime/utils.py:get_weight_norm": 2 * 2},
    **{(stage, precision): {INVALID: 1 + 2} for stage in (1, 2) for precision in ("fp32", "amp", "bf16")},
    **{(3, precision): {INVALID: 1} for precision in ("fp32", "amp", "bf16")},
}


@pytest.mark.parametrize(("zero_stage", "precision"), WAITS)
def test_a_step_of_three_micro_batches_waits_only_to_check_the_gradient(
    world: World, device: torch.device, zero_stage: int, precision: str
) -> None:
    engine, batches = new_engine(with_stage(zero_stage, precision=precision), world, device), noise_batches(36, device)
    for step in range(2):  # the first steps create what later ones use
        engine.step(of_step(batches, step), lr=1e-3)
    expected = WAITS[zero_stage, precision]
    places = waits(lambda: engine.step(of_step(batches, 2), lr=1e-3), device)
    if device.type == "cpu":
        assert Counter(places) == expected
    else:
        assert len(places) <= sum(expected.values()), places


def waits(work: Callable[[], object], device: torch.device) -> list[str]:
    """Where ``work`` waits for the device: file and function, on a GPU file and line."""
    if device.type == "cpu":
        with record_calls() as calls:
            work()
        return calls
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]


def test_an_evaluation_waits_once_however_many_batches_it_has(world: World, device: torch.device) -> None:
    normalize = Normalize(DataConfig(), 3, device, torch.float32)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4)).to(device)
    image = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8).to(device)

    def evaluate(count: int) -> np.ndarray:
        rows = np.arange(count)[::-1]
        plan = evaluation_micro_batches(rows, micro_batch=8, rank=0, world_size=1)
        return predict_logits(model, normalize, (Batch.of(image, micro, rows) for micro in plan), rows, world)

    assert evaluate(20).shape == (20, 4)
    assert len(waits(lambda: evaluate(44), device)) == len(waits(lambda: evaluate(4), device)) > 0


def test_the_look_of_a_batch_is_finished_without_waiting(device: torch.device) -> None:
    rows = np.arange(8)
    every = AugmentConfig(curves=1, resolution=1, blur=1, bias=1, noise=1, jpeg=1, rim=1, network=1)
    style = draw_style(every, rows, seed=0, epoch=0, visit=rows)
    micro = evaluation_micro_batches(rows, micro_batch=8, rank=0, world_size=1)
    frames = Frames(*(np.zeros(8, dtype=np.int64),) * 2, *(np.full(8, 64),) * 2)
    job = Job(next(iter(micro)), no_augmentation(frames, rows), style=style, stretched=True)
    image = torch.randint(0, 256, (8, 1, 64, 64), dtype=torch.uint8).to(device)
    job.batch(image, rows)  # the first batch creates what later ones use
    assert waits(lambda: job.batch(image, rows), device) == []
