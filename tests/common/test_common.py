"""Locks, durable files and progress display."""

from __future__ import annotations

import operator
import os
import pty
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from helpers import ROOT

from brain_dist.common import locks
from brain_dist.common.files import partial_folder, write_atomically
from brain_dist.common.progress import show_progress
from brain_dist.common.workers import worker_pool
from brain_dist.errors import Fault, UserError


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


def test_without_file_system_locks_work_goes_on(tmp_path):
    """As on Lustre mounted without ``flock``: processes do without locks, and remove nothing of each other."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    code = """
import sys
import time
from pathlib import Path
from brain_dist.common.files import partial_folder
from brain_dist.common.locks import locked
base = Path(sys.argv[1])
with locked(base / "lock") as is_held:
    assert not is_held
(base / ".out.partial-other").mkdir()
with partial_folder(base / "out") as folder:
    (folder / "file").write_text("x")
"""
    inject = [strace, "-f", "-qq", "-e", "trace=flock", "-e", "inject=flock:error=ENOSYS", "-o", os.devnull]
    subprocess.run([*inject, sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", ".out.partial-other", "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_folder_that_another_process_has_just_written(tmp_path):
    def write() -> None:
        with partial_folder(tmp_path / "out") as folder:
            (folder / "mine").write_text("x")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("x")

    with pytest.raises(UserError, match="another process has just written it"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_processes_that_start_at_the_same_time_write_a_folder_once(tmp_path):
    code = """
import sys, time
from pathlib import Path
from brain_dist.common.files import partial_folder
from brain_dist.errors import run
def main():
    while time.time() < float(sys.argv[2]):
        pass
    with partial_folder(Path(sys.argv[1])) as folder:
        (folder / "file").write_text("x")
        time.sleep(0.3)
    return 0
sys.exit(run(main))
"""
    for attempt in range(3):
        out = tmp_path / str(attempt) / "out"
        words = [sys.executable, "-c", code, str(out), str(time.time() + 1.5)]
        processes = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
        outputs = [process.communicate(timeout=60)[1] for process in processes]
        codes = [process.returncode for process in processes]
        assert set(codes) <= {0, 2}, outputs
        assert codes.count(0) <= 1
        assert all("another process" in output for output, code in zip(outputs, codes, strict=True) if code)
        assert [path.name for path in out.parent.iterdir()] == ["out"] * codes.count(0)


def test_a_long_folder_for_temporary_files(tmp_path):
    """A socket's path has at most 108 bytes, and the worker processes are started through one."""
    code = """
from brain_dist.common.workers import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as run:
        assert list(run(len, ["a", "bb"], 1)) == [1, 2]
"""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(tmp_path / "main.py")], env=environment, check=True, timeout=60)
    assert list(long.iterdir()) == []


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
        with pytest.raises(UserError, match="another process is writing"), partial_folder(out):
            pass
    assert [path.name for path in out.iterdir()] == ["whole"]


@pytest.mark.parametrize("relative", [False, True])
def test_an_error_of_another_file_is_not_one_of_the_folder(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    base = Path() if relative else tmp_path

    def copy(source: Path, target: str) -> None:
        with partial_folder(base / "out") as folder:
            (folder / target).write_bytes(source.read_bytes())

    source = base / "source"
    with pytest.raises(Fault, match=f"^{source}: No such file or directory; {tmp_path}/out was not written$"):
        copy(source, "file")
    source.write_bytes(b"x")
    with pytest.raises(UserError, match=f"^{tmp_path}/out cannot be written .No such file or directory.; free some"):
        copy(source, "absent/file")
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


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


def test_workers_have_stopped_when_the_error_of_one_is_raised(tmp_path: Path) -> None:
    failing = partial(subprocess.run, ["sh", "-c", "until [ -e started ]; do sleep 0.1; done; exit 1"], check=True)
    writing = partial(subprocess.run, ["sh", "-c", "touch started; sleep 1; touch written"], check=True)
    tasks = [partial(task, cwd=tmp_path) for task in (failing, writing)]
    with worker_pool(2) as run:
        with pytest.raises(subprocess.CalledProcessError):
            list(run(operator.call, tasks, 1))
        assert (tmp_path / "written").exists()


def test_a_place_that_a_folder_cannot_take_is_refused_before_the_work(tmp_path, monkeypatch):
    """A rename replaces an empty folder, but neither a link to one nor a mount point."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("absent")
    inside = tmp_path / "here" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for out, reason in (
        (tmp_path / "link", r"is a symbolic link; give the folder that it leads to \(real\)"),
        (tmp_path / "dangling", r"is a symbolic link; give the folder that it leads to \(absent\)"),
        (Path("/proc"), "is a mount point, which a complete folder cannot replace; choose a folder inside it"),
        (Path(), "is the current folder or contains it; start the command elsewhere, or choose another folder"),
        (inside.parent, "is the current folder or contains it"),
    ):
        with pytest.raises(UserError, match=reason), partial_folder(out):
            pytest.fail("the work began")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "here", "link", "real"]
    with partial_folder(tmp_path / "real") as folder:
        (folder / "file").write_text("x")
    assert [path.name for path in (tmp_path / "link").iterdir()] == ["file"]
