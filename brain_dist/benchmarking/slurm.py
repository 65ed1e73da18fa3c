"""The missing cells of a benchmark as one SLURM job array, a task of slurm/benchmark.sh for each cell."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import Grid
from brain_dist.benchmarking.measured import is_measured
from brain_dist.benchmarking.trainings import training_commands
from brain_dist.common.files import write_atomically
from brain_dist.common.records import read_record
from brain_dist.errors import Fault, UserError
from brain_dist.scalability.slurm_jobs import slurm_command

SCRIPT = Path("slurm/benchmark.sh")
JOB = "slurm.json"
FORGOTTEN = "Invalid job id"  # what squeue says of a job that ended long ago


def require_slurm(folder: Folder) -> None:
    """Check that jobs can be submitted from here, and that no earlier array of this benchmark is active.

    Raises:
        UserError: sbatch or the script is missing, an array waits or runs, or the record of it is damaged.
        Fault: SLURM does not say whether an array waits or runs.
    """
    if not shutil.which("sbatch"):
        raise UserError("--slurm: sbatch is not on PATH; start on a login node, or leave --slurm out")
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT} does not exist here; start from the root of the checkout, as the nodes do")
    job = submitted_job(folder)
    if job is None:
        return
    query = ["squeue", "--noheader", f"--jobs={job}", "--array", "--format=%T"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode and FORGOTTEN not in answer.stderr:
        raise Fault(
            f"whether job {job} of this benchmark still runs is not known, because squeue failed"
            f" ({answer.stderr.strip().rpartition(chr(10))[2]}); try again when SLURM answers"
        )
    active = answer.stdout.split()
    if active:
        raise UserError(
            f"job {job} of this benchmark still has {len(active)} tasks ({', '.join(sorted(set(active)))}); wait for"
            f" it, or end it with `scancel {job}`"
        )


def submitted_job(folder: Folder) -> str | None:
    """Number of the job array that was submitted last; None if there was none.

    Raises:
        UserError: the record of it is damaged.
    """
    advice = "delete it if `squeue --me` lists no array of this benchmark, and give the same command again"
    file = folder.out / JOB
    return str(read_record(file, advice, {"job": str})["job"]) if file.is_file() else None


def submit_cells(grid: Grid, folder: Folder, *, costs: bool = True) -> str | None:
    """Submit the cells that are not finished; returns the job's number, or None if all are finished.

    The file ``cells/KEY.sh`` has the commands of a task, which use the functions of launch/slurm.sh. With ``costs``,
    the first task of a network also measures its costs, unless they were measured.

    Raises:
        UserError: SLURM rejects the job.
    """
    cells = [cell for cell in grid.cells if not folder.is_finished(cell)]
    if not cells:
        return None
    names = grid.record()["costs"]
    measured = {names[model] for model in grid.models if is_measured(folder.costs(grid.record(), model))}
    for cell in cells:
        commands = [f"on_gpus {shlex.join(words)}" for words in training_commands(cell, folder)]
        if costs and names[cell.model] not in measured:
            measured.add(names[cell.model])
            commands.append(f"on_one {shlex.join(['benchmark', 'costs', str(folder.out), '--model', cell.model])}")
        (folder.cells / f"{cell.key}.sh").write_text(" &&\n  ".join(commands) + "\n", encoding="utf-8")
    job = slurm_command(
        "sbatch", "--parsable", f"--array=0-{len(cells) - 1}", f"--output={folder.cells}/%x-%A_%a.log", str(SCRIPT),
        str(folder.out), *(cell.key for cell in cells),
    ).strip().split(";")[0]  # fmt: skip
    write_atomically(folder.out / JOB, json.dumps({"job": job, "cells": [cell.key for cell in cells]}) + "\n")
    return job
