"""In a pipe, what takes long prints a line every few seconds, and what is short prints nothing."""

from __future__ import annotations

import io
import re
import time
from contextlib import redirect_stderr

import pytest

from brain_dist.common import progress
from brain_dist.common.progress import show_activity, show_progress, track


def test_a_long_stage_prints_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    err = io.StringIO()
    with redirect_stderr(err), show_progress() as update:
        assert list(track("abcd", "predicting", 4, update)) == list("abcd")
        update("decoding", 0, 9)
    lines = err.getvalue().splitlines()
    assert [re.sub(r"\d+ s", "0 s", line) for line in lines] == [
        f"brain-dist: predicting {percent}%, 0 s left" for percent in (25, 50, 75, 100)
    ]


def test_lines_are_seconds_apart_and_a_short_stage_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    err = io.StringIO()
    with redirect_stderr(err), show_progress() as update:
        for i in range(1, 21):  # a step a second
            now += 1.0
            update("decoding", i, 40)
        for i in range(1, 11):
            now += 0.1
            update("writing", i, 10)
    assert [line.split(", ")[0] for line in err.getvalue().splitlines()] == [
        f"brain-dist: decoding {percent}%" for percent in (8, 20, 32, 45)
    ]


def test_a_long_activity_prints_lines_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.001)
    monkeypatch.setattr(progress, "EVERY", 0.001)
    err = io.StringIO()
    with redirect_stderr(err):
        with show_activity("starting", enabled=False):
            time.sleep(0.05)
        assert not err.getvalue()
        with show_activity("starting"):
            deadline = time.monotonic() + 60
            while err.getvalue().count("\n") < 2 and time.monotonic() < deadline:
                time.sleep(0.001)
        text = err.getvalue()
        time.sleep(0.05)
    assert err.getvalue() == text
    assert set(text.splitlines()) == {"brain-dist: starting, 0 s so far"}
