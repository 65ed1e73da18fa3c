"""Processes that a command starts."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from brain_dist.common.children import signals_delayed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_end_of_the_block_even_if_another_thread_gets_it(number: signal.Signals) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(number, interrupt)
    ended = threading.Event()
    threading.Thread(target=ended.wait, daemon=True).start()
    steps = []

    def block() -> None:
        with signals_delayed():
            os.kill(os.getpid(), number)
            time.sleep(0.05)
            steps.append("end of the block")

    try:
        with pytest.raises(KeyboardInterrupt):
            block()
        assert signal.getsignal(number) is interrupt
    finally:
        ended.set()
        signal.signal(number, previous)
    assert steps == ["end of the block"]


def test_an_ignored_signal_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_delayed():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
