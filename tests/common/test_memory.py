"""Workers and ranks reuse the memory of freed arrays instead of having the kernel clear it again."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import environment

from brain_dist.common.workers import worker_pool

ROUNDS, ARRAYS, SIZE = 10, 4, 2_400_000  # bytes
RANK = """
import torch
from test_memory import page_faults
from brain_dist.ranks.group import process_group
from brain_dist.ranks.world import discover
with process_group(discover({}), torch.device("cpu")):
    print(page_faults())
"""


def page_faults(_: object = None) -> int:
    """Pages that the kernel hands out while arrays are created and freed again and again."""

    def create_arrays() -> None:
        arrays = [np.ones(SIZE, dtype=np.uint8) for _ in range(ARRAYS)]
        assert len(arrays) == ARRAYS

    create_arrays()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _round in range(ROUNDS):
        create_arrays()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def assert_reused(faults: int) -> None:
    assert faults * resource.getpagesize() < SIZE  # all arrays together take 40 times as much


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_reuse_the_memory_of_freed_arrays(workers: int) -> None:
    with worker_pool(workers) as run:
        for faults in run(page_faults, range(2), 1):
            assert_reused(faults)


def test_a_rank_reuses_the_memory_of_freed_arrays() -> None:
    tests = Path(__file__).parents[1]
    variables = environment(PYTHONPATH=f"{tests}:{tests / 'common'}")
    done = subprocess.run([sys.executable, "-c", RANK], env=variables, capture_output=True, text=True, check=True)
    assert_reused(int(done.stdout))
