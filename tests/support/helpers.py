"""Start commands of the program, and read what runs write."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fork_server import ForkServer, Ranks

from brain_dist.errors import run

ROOT = Path(__file__).resolve().parents[2]
# Settings of a network with ConvNeXt's layers that trains in seconds on a CPU
TINY = ["--model.name", "test_convnext", "--data.size", "32", "--data.threads", "1", "--track.wandb", "off"]
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def without_progress(err: str) -> str:
    """``err`` without the lines that a command prints only if it takes more than two seconds."""
    return re.sub(r"^brain-dist: .*, \d+ s (so far|left)\n", "", err, flags=re.MULTILINE)


def environment(**variables: str) -> dict[str, str]:
    """This environment and ``variables``, without a launcher's variables, GPUs, the hub and the W&B account."""
    removed = (*LAUNCHER_VARIABLES, "WANDB_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    # one thread: OpenMP's barriers cost tiny networks more time than threads save
    return {**kept, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **variables}


def command(arguments: Sequence[str], *, expect: int | None = 0, timeout: float = 240, **variables: str) -> Result:
    """Run a command in the checkout; fail with its output unless it exits with ``expect`` (None: any code)."""
    process = subprocess.run(
        list(arguments),
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    result = Result(process.returncode, process.stdout, without_progress(process.stderr))
    if expect is not None:
        assert result.code == expect, f"{' '.join(arguments)}\nexit {result.code}\n{result.out}\n{result.err}"
    return result


def in_process(name: str, *arguments: str, expect: int = 0) -> Result:
    """Run a verb's ``main`` in this process, which is faster than a process for it."""
    out, err = io.StringIO(), io.StringIO()
    module = importlib.import_module(f"brain_dist.{name}")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run(lambda: module.main(list(arguments)))
        except SystemExit as exit_:  # from argparse
            code = int(exit_.code or 0)
    assert code == expect, f"{name} {' '.join(arguments)}\nexit {code}\n{out.getvalue()}\n{err.getvalue()}"
    return Result(code, out.getvalue(), without_progress(err.getvalue()))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may become larger than so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def verb(name: str, *arguments: str, expect: int | None = 0, **variables: str) -> Result:
    """Run ``python -m brain_dist.NAME ARGUMENTS`` in its own process."""
    return launch(1, name, *arguments, expect=expect, inject=None, **variables)


def launch(
    processes: int, name: str, *arguments: str,
    expect: int | None = 0, inject: Mapping[str, Any] | None = None, **variables: str,
) -> Result:  # fmt: skip
    """Run a verb in several real processes, which :mod:`fork_server` starts.

    Args:
        processes: Number of ranks.
        name: The verb.
        arguments: The verb's arguments.
        expect: Exit code that the first failing rank, or all ranks, must have; None: any.
        inject: Arguments of :func:`inject.prepare`.
        variables: Additional environment variables.

    Returns:
        Output of all ranks and the first exit code that is not 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        ranks = Ranks(fork_server(), processes, name, arguments, out, err, env=variables, inject=inject)
        codes = ranks.wait(240)
        result = Result(next((code for code in codes if code), 0), out.read_text(), without_progress(err.read_text()))
    if expect is not None:
        assert result.code == expect, f"{name} {' '.join(arguments)}\nexit {codes}\n{result.out}\n{result.err}"
    return result


@functools.cache
def fork_server() -> ForkServer:
    """The fork server of this pytest worker; it stops with the worker."""
    folder = tempfile.TemporaryDirectory()
    server = ForkServer(Path(folder.name), environment())
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server


def interrupt(
    processes: int, arguments: Sequence[str], ready: Callable[[], bool], *,
    send: Callable[[subprocess.Popen[str]], None], options: Sequence[str] = (),
) -> Result:  # fmt: skip
    """Start training with launch/local.py, call ``send`` with the launcher once ``ready``, and wait for the end."""
    command = [sys.executable, "launch/local.py", "-n", str(processes), *options, "train", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            if ready():
                send(process)
                break
            time.sleep(0.02)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    return Result(process.returncode, out, without_progress(err))


def free_ports(count: int) -> list[int]:
    """Free ports for servers that start later, below the range from which Linux assigns ports."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = random.SystemRandom().randrange(10000, 20000)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


def children(process: int) -> list[int]:
    """Process ids of a process's children, oldest first; empty if it has ended."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; empty if there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(run: Path) -> list[float]:
    """Training loss of each step; checks that every step is logged once and in order."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]
