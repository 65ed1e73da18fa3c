"""The clock of the loaders' benchmark stops when a loader waits, however slow the machine is."""

from __future__ import annotations

import threading
import time

import pytest

from benchmarks.support import processes
from benchmarks.support.processes import cpu_seconds
from brain_dist.errors import Fault


def compute(seconds: float) -> None:
    """Use CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.timeout(120)
def test_the_cpu_time_of_waiting_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly() -> float:
        compute(0.003)  # 60 ms in a second, more than the resolution
        return cpu_seconds()

    monkeypatch.setattr(processes, "cpu_seconds", slowly)
    before = cpu_seconds()
    work = threading.Thread(target=compute, args=(0.3,))
    work.start()
    _, used = processes.wait_until_idle()
    work.join()
    assert used - before == pytest.approx(0.3, abs=0.05)


def test_a_process_that_is_never_idle_ends_with_a_reason() -> None:
    work = threading.Thread(target=compute, args=(2.0,))
    work.start()
    with pytest.raises(Fault, match="has not been idle for 1 s"):
        processes.wait_until_idle(limit=1)
    work.join()
