"""How often the host waits for the device in an optimiser step."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from engine_cases import new_engine, noise_batches, of_step, with_stage
from waits import record_calls

from brain_dist.ranks.world import World

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
    if device.type == "cpu":
        with record_calls() as calls:
            engine.step(of_step(batches, 2), lr=1e-3)
        assert Counter(calls) == expected
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.step(of_step(batches, 2), lr=1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
    assert len(places) <= sum(expected.values()), places
