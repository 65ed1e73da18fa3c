"""Locks, durable files and progress display."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from brain_dist.common import locks
from brain_dist.common.files import partial_folder, write_atomically
from brain_dist.common.progress import show_progress
from brain_dist.errors import UserError


def test_a_lock_is_busy_until_its_holder_closes_it(tmp_path):
    holder = locks.take_lock(tmp_path / "lock")
    with pytest.raises(locks.Busy):
        locks.take_lock(tmp_path / "lock", timeout=0.01)
    holder.close()
    locks.take_lock(tmp_path / "lock").close()


def test_waiting_for_a_lock_is_reported_once_and_succeeds(tmp_path):
    holder = locks.take_lock(tmp_path / "lock")
    calls = []

    def on_wait() -> None:
        calls.append("waiting")
        holder.close()

    with locks.locked(tmp_path / "lock", patience=0.01, on_wait=on_wait), pytest.raises(locks.Busy):
        locks.take_lock(tmp_path / "lock")
    assert calls == ["waiting"]


def test_without_file_system_locks_only_an_optional_lock_succeeds(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(OSError, match="no locks available"):
        locks.take_lock(tmp_path / "lock")
    locks.take_lock(tmp_path / "lock", required=False).close()


def test_partial_folder_appears_complete_or_not_at_all(tmp_path):
    out = tmp_path / "out"

    def fail() -> None:
        with partial_folder(out) as folder:
            (folder / "half").write_text("x")
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / ".out.partial-1"
    killed.mkdir()
    with partial_folder(out) as folder:
        assert not killed.exists()
        (folder / "whole").write_text("x")
        with pytest.raises(UserError, match="another build is writing"), partial_folder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_atomic_write_keeps_the_old_content_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fsync(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_progress_shows_nothing_if_stderr_is_not_a_terminal(capsys):
    with show_progress() as progress:
        progress("decoding", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "text"), [("images", "500/1000"), ("bytes", "0.5/1.0 kB")])
def test_progress_shows_a_bar_on_a_terminal(unit, text):
    code = f"""
from brain_dist.common.progress import show_progress
with show_progress("{unit}") as progress:
    progress("a stage", 500, 1000)
"""
    ours, theirs = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, cwd=root, env=environment, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "a stage" in shown
    assert text in shown
