"""The board of running work: lines in a pipe, a table on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from brain_dist.common.board import Board


def board(count: int = 2) -> Board:
    rows = {f"work {number}": [f"net{number}", str(number)] for number in range(count)}
    return Board(
        rows, {"model": "left", "seed": "right"}, unit="cell", result="accuracy", detail=lambda name: f"{name}!"
    )


def shown(work: Board) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(work.table())
    return text.getvalue()


def test_a_pipe_gets_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    with board(3) as work:
        work.update("work 0", "kept", result="90 %")
        work.update("work 1", "running")
        work.update("work 1", "running")
        work.update("work 1", "done", result="91 %")
        work.update("work 2", "failed", note="it broke")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/3] work 1 running", "[2/3] work 1 done: 91 %, 0 s", "[3/3] work 2 failed: it broke",
    ]  # fmt: skip
    assert work.failed == ["work 2"]


def test_the_table_shows_what_runs_and_what_has_ended() -> None:
    work = board()
    work.update("work 0", "running")
    assert "work 0!, 0 s" in shown(work)
    work.update("work 0", "done", result="91 %")
    text = shown(work)
    assert "1 of 2 cells ended" in text
    assert "work 0!" not in text
    for cell in ("net0", "net1", "91 %", "done", "waiting"):
        assert cell in text
