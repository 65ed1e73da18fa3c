"""Train and evaluate the cells that are missing on this machine, one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.grid import OWN_TEST, Cell, Grid, Test
from brain_dist.common.board import Board
from brain_dist.common.children import last_error, stop_with_parent
from brain_dist.errors import EXIT_PREEMPTED, EXIT_USER, UserError
from brain_dist.judging.predictions import read_predictions
from brain_dist.tracking.tracker import METRICS

LOCAL = Path(__file__).resolve().parents[2] / "launch" / "local.py"
LAST_ROWS = 1 << 14  # bytes at the end of metrics.jsonl, several rows
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Commands:
    """Runs commands one after the other, and passes stop signals on to the one that runs.

    Attributes:
        stop_requested: whether a signal asked to stop; no further command starts then.
    """

    def __init__(self, lock: int) -> None:
        """Set up; ``lock`` is a file descriptor that every command holds open, so that a lock outlives this process."""
        self.lock, self.stop_requested = lock, False
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def forwarding(self) -> Iterator[Commands]:
        """Forward stop signals inside a block, unless they are ignored, as SIGHUP is under nohup."""
        caught = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self._forward) for number in caught}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command with its output at the end of ``log``; returns its exit code, 75 if it was not started."""
        if self.stop_requested:
            return EXIT_PREEMPTED
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                pass_fds=[self.lock], preexec_fn=partial(stop_with_parent, os.getpid()),
            )  # fmt: skip
            if self.stop_requested:  # the signal came before the process was there
                self._process.send_signal(signal.SIGTERM)
            return self._process.wait()


def launched(processes: int, verb: str, *arguments: str) -> list[str]:
    """The command that runs a verb on this machine."""
    return [sys.executable, str(LOCAL), "-n", str(processes), verb, *arguments]


def training_commands(cell: Cell, folder: Folder) -> list[list[str]]:
    """Verb and arguments of a cell's training and of the evaluations that are missing."""
    run = folder.run(cell.key)
    commands = [["train", "--config", str(folder.settings(cell.key))]]
    for test in cell.tests:
        if not folder.is_evaluated(cell.key, test.name, test.version):
            commands.append(["evaluate", str(run), *evaluation_options(cell, test)])
    return commands


def evaluation_options(cell: Cell, test: Test) -> list[str]:
    """Options of ``brain-dist evaluate`` for one evaluation of a cell."""
    config = cell.config
    options = ["--split", test.split, "--batch", str(config.train.micro_batch), "--device", config.run.device]
    options += ["--cache-dir", config.data.cache_dir] if config.data.cache_dir else []
    options += ["--shards", test.shards] if test.shards else []
    options += ["--allow-known"] if test.allow_known else []
    return [*options, *([] if test in OWN_TEST else ["--name", test.name])]


def cell_board(grid: Grid, folder: Folder) -> Board:
    """The board of a benchmark; its rows are called as :func:`board_name` says."""
    cells = {board_name(cell, grid): cell for cell in grid.cells}
    rows = {}
    for cell in grid.cells:
        fold = [] if cell.fold is None else [str(cell.fold)]
        rows[board_name(cell, grid)] = [cell.model, cell.source, str(cell.seed), *fold]
    columns: dict[str, Literal["left", "right"]] = {"model": "left", "shards": "left", "seed": "right"}
    columns |= {} if grid.folds == (None,) else {"fold": "right"}
    return Board(rows, columns, unit="cell", result="accuracy", detail=lambda name: epochs_text(cells[name], folder))


def epochs_text(cell: Cell, folder: Folder) -> str:
    """How far the training of a cell is, from the end of its metrics.jsonl; empty before the first step."""
    try:
        with (folder.run(cell.key) / METRICS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_ROWS))
            rows = file.read().split(b"\n")[:-1]  # what follows the last line end is incomplete
    except OSError:
        return ""
    steps = [row for row in rows if row.startswith(b'{"kind": "train"') and row.endswith(b"}")]
    try:
        return f"epoch {json.loads(steps[-1])['epoch']:.1f} of {cell.config.train.epochs}" if steps else ""
    except (ValueError, KeyError, TypeError):  # the row is damaged
        return ""


def board_name(cell: Cell, grid: Grid) -> str:
    """What the board calls a cell."""
    return cell.title if len(grid.sources) == 1 else f"{cell.title}, on {cell.source}"


def run_cells(grid: Grid, folder: Folder, commands: Commands, board: Board) -> None:
    """Train and evaluate every cell that is not finished. A fault is noted on the board, and the next cell starts.

    Args:
        grid: the grid; its ``processes`` is the number of ranks.
        folder: the benchmark's folder.
        commands: runs the commands; after a stop signal the rest stays for the next time.
        board: shows the states.

    Raises:
        UserError: a training or an evaluation refuses its settings.
    """
    for cell in grid.cells:
        if folder.is_finished(cell):
            board.update(board_name(cell, grid), "kept", result=accuracy_text(cell, folder))
    for cell in grid.cells:
        name = board_name(cell, grid)
        if board.state[name] == "waiting" and not commands.stop_requested:
            board.update(name, "running")
            problem = _run_cell(cell, grid.processes or 1, folder, commands)
            if commands.stop_requested:
                board.update(name, "waiting", note="stopped; the same command goes on")
            elif problem:
                board.update(name, "failed", note=f"{problem}; {folder.log(cell.key)}")
            else:
                board.update(name, "done", result=accuracy_text(cell, folder))


def _run_cell(cell: Cell, processes: int, folder: Folder, commands: Commands) -> str:
    """Train and evaluate a cell; returns why it failed, or nothing. A mistake of the user is a UserError."""
    log = folder.log(cell.key)
    log.unlink(missing_ok=True)
    for verb, *arguments in training_commands(cell, folder):
        code = commands.run(launched(processes, verb, *arguments), log)
        commands.stop_requested |= code == EXIT_PREEMPTED
        if code == EXIT_USER:
            raise UserError(f"{cell.title}: {last_error(log)}")
        if code:
            return f"{verb}: {last_error(log)}"
    return "" if folder.is_finished(cell) else "no predictions"


def accuracy_text(cell: Cell, folder: Folder) -> str:
    """The accuracy of a cell's first evaluation, in percent."""
    predictions = read_predictions(folder.predictions(cell.key, cell.tests[0].name)).headline
    return f"{(predictions.predicted == predictions.label).mean():.1%}"
