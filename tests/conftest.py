"""What all tests share: real collections where they are, a small phantom collection, and real processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from brain_dist.errors import run

if TYPE_CHECKING:
    from nursery import Nursery

    from brain_dist.ranks.world import World

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts `make test &` so, and every process inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# The longest files, to begin with: a worker that takes one of them last keeps the others waiting
LONGEST = ("test_slurm.py", "test_faults.py", "test_train.py", "test_elastic.py", "test_hosts.py", "test_scaling.py")
# Small enough that two processes take a step in a blink; real enough to have ConvNeXt's layers
TINY = ["--model.name", "test_convnext", "--data.size", "32", "--data.threads", "1", "--track.wandb", "off"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, the others as they come."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real collections beside the checkout."""
    path = Path(os.environ.get("BRAIN_DIST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "cheng").is_dir():
        pytest.skip(f"no real collections in {path}; BRAIN_DIST_DATA names their folder")
    return path


@pytest.fixture(scope="session")
def phantom_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 144 phantom slices of 48 patients, made by the program's own commands."""
    base = tmp_path_factory.mktemp("phantoms")
    size = ["--patients", "48", "--slices", "3", "--size", "96", "--seed", "0"]
    in_process("shard", "phantom", "--out", str(base / "images"), *size)
    in_process("shard", "build", "--source", str(base / "images"), "--out", str(base / "shards"))
    return base / "shards"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone in a process group."""
    import torch

    from brain_dist.ranks.group import process_group
    from brain_dist.ranks.world import discover

    alone = discover({})
    with process_group(alone, torch.device("cpu")):
        torch.set_num_threads(1)  # as environment() says
        yield alone


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    """Processes that start in a blink, see tests/faults/nursery.py."""
    return warm()


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """102 training phantoms in several tars."""
    from soak import phantom_shards

    return phantom_shards(tmp_path_factory.mktemp("small"))


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """This environment without a launcher's variables, without a hub and without W&B's account."""
    dropped = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "WANDB_API_KEY",
        "SLURM_STEP_NUM_TASKS",
    )
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # one thread: tiny networks lose more at OpenMP's barriers than they gain, above all beside other processes
    return {**kept, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}


def command(words: Sequence[str], *, expect: int | None = 0, timeout: float = 240, **more: str) -> Done:
    """Run a command to its end in the checkout; fails with its output when the exit code is not the expected one."""
    done = subprocess.run(
        list(words), cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=timeout, check=False
    )
    if expect is not None:
        assert done.returncode == expect, f"{' '.join(words)}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return Done(done.returncode, done.stdout, done.stderr)


def verb(name: str, *arguments: str, expect: int | None = 0, **more: str) -> Done:
    """``python -m brain_dist.NAME ARGUMENTS`` as a process of its own, born in the nursery."""
    return launch(1, name, *arguments, expect=expect, **more)


def in_process(name: str, *arguments: str, expect: int = 0) -> Done:
    """The verb's ``main`` in this process, for what a process of its own would add nothing to."""
    out, err = io.StringIO(), io.StringIO()
    module = importlib.import_module(f"brain_dist.{name}")
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = run(lambda: module.main(list(arguments)))
        except SystemExit as ended:  # argparse's way
            code = int(ended.code or 0)
    assert code == expect, f"{name} {' '.join(arguments)}\nexit {code}\n{out.getvalue()}\n{err.getvalue()}"
    return Done(code, out.getvalue(), err.getvalue())


def launch(
    processes: int, name: str, *arguments: str,
    expect: int | None = 0, inside: Mapping[str, Any] | None = None, **more: str,
) -> Done:  # fmt: skip
    """The verb in several real processes, born in the nursery; the exit code is the first one that is not 0.

    ``inside``: what tests/faults/inject.py does in them.
    """
    made = warm()
    from nursery import Ranks

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        codes = Ranks(made, processes, name, arguments, out, err, env=more, inside=inside).wait(240)
        done = Done(next((code for code in codes if code), 0), out.read_text(), err.read_text())
    if expect is not None:
        assert done.code == expect, f"{name} {' '.join(arguments)}\nexit {codes}\n{done.out}\n{done.err}"
    return done


def free_ports(count: int) -> list[int]:
    """Ports for servers that start later: free now, and below those that Linux gives to whoever asks for any."""
    with contextlib.ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            port = random.SystemRandom().randrange(10000, 20000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


@functools.cache
def warm() -> Nursery:
    """This worker's nursery; it ends with the worker."""
    sys.path.insert(0, str(ROOT / "tests" / "faults"))
    from nursery import Nursery

    made = Nursery(Path(tempfile.mkdtemp()), environment(PYTHONPATH=str(ROOT / "tests" / "faults")))
    atexit.register(made.close)
    return made


def interrupt(
    processes: int, arguments: Sequence[str], ready: Callable[[], bool], *,
    send: Callable[[subprocess.Popen[str]], None], options: Sequence[str] = (),
) -> Done:  # fmt: skip
    """Start training and, once it is ``ready``, do ``send`` to the launcher; wait for the end."""
    words = [sys.executable, "launch/local.py", "-n", str(processes), *options, "train", *arguments]
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        limit = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < limit:
            if ready():
                send(process)
                break
            time.sleep(0.02)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    return Done(process.returncode, out, err)


def children(process: int) -> list[int]:
    """Process ids of the children of a process, the oldest first; none where it has ended."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def read_metrics(path: Path) -> list[dict]:  # type: ignore[type-arg]
    """The complete lines of a metrics.jsonl, none if it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(run: Path) -> list[float]:
    """Training loss of every step, after checking that each step is told once and in order."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    return [row["loss"] for row in rows]
