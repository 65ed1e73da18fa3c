"""Starting the cases of a scaling experiment and waiting for them: on this machine, as steps of a SLURM allocation, or
as a job each from a login node.

A case is done when it ended well and its profile is whole; then it is never run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brain_dist.config import dump
from brain_dist.errors import UserError
from brain_dist.scalability.board import Board
from brain_dist.scalability.cases import Case

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
JOB = Path("slurm/profile.sh")  # from a login node, one of these a case
STEP = 'source launch/slurm.sh && on_gpus "$@"'
# What SLURM calls a job that has not ended
OPEN = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING",
        "STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}  # fmt: skip
GRACE = 20.0  # seconds to end after SIGTERM
POLL = 2.0  # seconds between questions to SLURM, which serves everybody
LATE = 60.0  # seconds until a network file system shows what another node wrote


@dataclass(frozen=True)
class Place:
    """Where the cases run; ``note`` says what a node is there."""

    kind: Literal["local", "steps", "jobs"]
    per_node: int
    note: str


def find_place(where: str, per_node: int | None, nodes: Sequence[int], device: str) -> Place:
    """This machine, the SLURM allocation around this process, or SLURM's queue; UserError for what it has not got.

    ``where``: auto, local or slurm. ``per_node``: ranks a node; None takes one a GPU, or one. ``device``: run.device.
    """
    env = os.environ
    inside = "SLURM_JOB_ID" in env
    if where == "slurm" and not inside and not shutil.which("sbatch"):
        raise UserError("--where slurm: no allocation is around this process, and no sbatch is on PATH")
    if where == "local" or (where == "auto" and not inside and not _slurm_is_here()):
        return _local(per_node, max(nodes), device)
    if not JOB.is_file():
        raise UserError(f"{JOB} is not here: start it in the checkout's root, as the nodes do")
    if not inside:
        said = re.search(r"^#SBATCH --gpus-per-node=(\d+)", JOB.read_text(), re.MULTILINE)
        return Place("jobs", per_node or int(said[1] if said else 1), f"a job of {JOB} a case, one at a time")
    has = int(env.get("SLURM_JOB_NUM_NODES", "1"))
    if max(nodes) > has:
        raise UserError(f"--nodes {max(nodes)}: this allocation has {has}; give sbatch --nodes={max(nodes)}")
    gpus = _gpus_a_node(env)
    if gpus and per_node and per_node > gpus:
        raise UserError(f"--per-node {per_node}: this allocation has {gpus} GPUs a node")
    ranks = per_node or gpus or int(env.get("SLURM_NTASKS_PER_NODE", "1"))
    return Place("steps", ranks, f"steps of SLURM's job {env['SLURM_JOB_ID']}, which has {has} nodes")


def _gpus_a_node(env: Mapping[str, str]) -> int:
    """Of the allocation; salloc's shell is on no node of it and knows only what was asked for, such as a100:4."""
    return int((env.get("SLURM_GPUS_ON_NODE") or env.get("SLURM_GPUS_PER_NODE", "0")).rpartition(":")[2])


def _slurm_is_here() -> bool:
    """Whether this machine belongs to a cluster; SLURM's programs alone do not say so."""
    if not shutil.which("sbatch"):
        return False
    asked = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return "Slurmctld" in asked.stdout


def _local(per_node: int | None, most: int, device: str) -> Place:
    import torch

    if not (LAUNCH / "local.py").is_file():
        raise UserError(f"{LAUNCH} is not there: a scaling experiment starts from a checkout of the project")
    gpus, cores = 0 if device == "cpu" else torch.cuda.device_count(), len(os.sched_getaffinity(0))
    each = per_node or gpus or 1
    ranks = each * most
    if gpus:
        if ranks > gpus:
            raise UserError(f"--nodes {most} × {each} ranks: this machine has {gpus} GPUs; give --per-node or --nodes")
        return Place("local", each, f"one machine with {gpus} GPUs; a node is {each} of them")
    note = f"one machine with {cores} cores and no GPU; a node is {each} process{'es' if each > 1 else ''} of it"
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or str(_threads(ranks))  # OpenMP: one a level
    if not threads.isdecimal() or threads == "0":
        raise UserError(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}: is no number of threads")
    note += f", each with {threads} thread{'s' if threads != '1' else ''}"
    if ranks * int(threads) > cores:
        note += f"; {ranks} ranks share {cores} cores, so these figures show the machinery and no scaling"
    return Place("local", each, note)


def _threads(ranks: int) -> int:
    """Threads a rank, the same in every case: alone it would else take the cores that it has to share later."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def profile_of(case: Case, folder: Path) -> dict[str, Any] | None:
    """What the case measured; None where it has not, or was cut short while it wrote."""
    try:
        found = json.loads((folder / f"{case.name}.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "images_per_s" in found else None


def run_all(cases: Sequence[Case], place: Place, folder: Path, steps: int, board: Board) -> None:
    """Run ``cases``, one after the other; profiles, settings and logs are in ``folder``.

    A case that fails is told on the board. On SIGINT or SIGTERM what runs is ended, what waits is taken back, and
    KeyboardInterrupt goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        (folder / f"{case.name}.json").unlink(missing_ok=True)
        (folder / f"{case.name}.yaml").write_text(dump(case.config))
    with _interruptible():
        if place.kind == "jobs":
            _jobs(cases, folder, steps, board)
        else:
            most = max((case.ranks for case in cases), default=1)
            for case in cases:
                _process(case, place, folder, _words(case, folder, steps), most, board)


def _words(case: Case, folder: Path, steps: int) -> list[str]:
    return ["--config", str(folder / f"{case.name}.yaml"), "--steps", str(steps),
            "--out", str(folder / f"{case.name}.json")]  # fmt: skip


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, which SLURM and service managers send, does what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; a second one must not disturb the tidying up
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _process(case: Case, place: Place, folder: Path, words: list[str], most: int, board: Board) -> None:
    """A launcher of this machine's processes, or srun by the functions that the scripts in slurm/ share."""
    env = dict(os.environ)
    if place.kind == "local":
        command = [sys.executable, str(LAUNCH / "local.py"), "-n", str(case.ranks), "profile", *words]
        env.setdefault("OMP_NUM_THREADS", str(_threads(most)))
    else:
        command = ["bash", "-c", STEP, "scaling", "profile", *words]
        env["SLURM_NNODES"] = str(case.nodes)
        env.setdefault("SLURM_CPUS_ON_NODE", env.get("SLURM_JOB_CPUS_PER_NODE", "1").split("(")[0])  # salloc's shell
        env["SLURM_GPUS_ON_NODE" if _gpus_a_node(env) else "SLURM_NTASKS_PER_NODE"] = str(place.per_node)
    board.tell(case, "running")
    with (folder / f"{case.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    _ended(case, folder, code == 0, board)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and, if it does not do it itself, all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def _ended(case: Case, folder: Path, well: bool, board: Board) -> None:
    found = profile_of(case, folder)
    if well and found:
        board.tell(case, "done", rate=found["images_per_s"])
        return
    (folder / f"{case.name}.json").unlink(missing_ok=True)  # it must not count as done next time
    board.tell(case, "failed", note=last_error(folder / f"{case.name}.log"))


def last_error(log: Path) -> str:
    """The line of a log that says best what went wrong: our own last one, else an exception's, else the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    for pattern in (r"(brain-dist: )?error\b.*: |launch: process", r"(\[rank\d+\]: )?[\w.]*(Error|Exception)\b",
                    r"(srun|slurmstepd|sbatch): error", r"."):  # fmt: skip
        told = [line for line in lines if re.match(pattern, line)]
        if told:
            return told[-1].removeprefix("brain-dist: error: ")
    return f"it ended and said nothing in {log}"


def _jobs(cases: Sequence[Case], folder: Path, steps: int, board: Board) -> None:
    """Submit as many as SLURM takes, so that they wait together; one runs at a time, undisturbed by the others."""
    name = f"scaling-{folder.parent.name}"
    jobs: dict[str, Case] = {}

    def submit(case: Case, *options: str) -> str:
        size = [f"--nodes={case.nodes}", f"--gpus-per-node={case.ranks_per_node}"]
        log = [f"--output={folder / case.name}.log", "--open-mode=truncate"]
        script = [str(JOB), *_words(case, folder, steps)]
        return _slurm("sbatch", *options, f"--job-name={name}", *size, *log, *script).strip()

    left, waited = list(cases), dict[str, float]()
    if cases:
        submit(max(cases, key=lambda case: case.nodes), "--test-only")
    try:
        while jobs or left:
            while left:
                try:
                    with _not_now():
                        job = submit(left[0], "--parsable", "--dependency=singleton").split(";")[0]
                        jobs[job] = left.pop(0)
                except UserError:
                    if not jobs:
                        raise
                    break  # a limit on jobs a user; the rest follows when one has ended
                board.tell(jobs[job], "queued")
            time.sleep(POLL)
            states = _states(jobs)
            if states is None:
                continue
            for job, case in list(jobs.items()):
                state = states.get(job)  # None: SLURM has forgotten it, so it ended
                if state in OPEN:
                    board.tell(case, "queued" if state == "PENDING" else "running")
                    continue
                seen = waited.setdefault(job, time.monotonic())
                well = state in (None, "COMPLETED")
                if not well or profile_of(case, folder) or time.monotonic() - seen > LATE:
                    del jobs[job]
                    _ended(case, folder, well, board)
    except BaseException:
        if jobs:
            subprocess.run(["scancel", *jobs], check=False)
        raise


@contextlib.contextmanager
def _not_now() -> Iterator[None]:
    """Put off signals for a moment: a job whose number this process never got could not be cancelled."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _states(jobs: Iterable[str]) -> dict[str, str] | None:
    """State of each job that SLURM still knows; None while SLURM does not answer."""
    asked = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i %T"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    return dict(line.split() for line in answer.stdout.splitlines())


def _slurm(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise UserError(f"`{shlex.join(words[:6])} …` was refused: {said[-1]}")
    return done.stdout
