"""The stages in the order in which they run, the most valuable first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.arithmetic import run_zero
from benchmarks.gpu.facts import run_facts
from benchmarks.gpu.faults import run_resume
from benchmarks.gpu.frame import Check
from benchmarks.gpu.loading import run_loader, run_real
from benchmarks.gpu.peers import run_peer, run_peercompile
from benchmarks.gpu.pixels import run_pixels
from benchmarks.gpu.runs import run_profile, run_train
from benchmarks.gpu.steps import run_compile, run_kernels, run_step


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        run: measures and records.
        limit: seconds after which it is ended.
        least: seconds that must be left to start it.
    """

    run: Callable[[Check], None]
    limit: float
    least: float = 25


STAGES = {
    "facts": Stage(run_facts, 40),
    "pixels": Stage(run_pixels, 70),
    "step": Stage(run_step, 110),
    "loader": Stage(run_loader, 60),
    "real": Stage(run_real, 75),
    "kernels": Stage(run_kernels, 55),
    "peer": Stage(run_peer, 75),
    "zero": Stage(run_zero, 85),
    "compile": Stage(run_compile, 100, least=60),
    "resume": Stage(run_resume, 110, least=70),
    "peercompile": Stage(run_peercompile, 90, least=45),
    "profile": Stage(run_profile, 90, least=45),
    "train": Stage(run_train, 240, least=80),
}
