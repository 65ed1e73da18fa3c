"""Command lines from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from brain_dist.common.commands import parse_command
from brain_dist.errors import UserError


@dataclass(frozen=True)
class Copy:
    """Copy files.

    Copies files to a folder.

    Args:
        files: the files
        out: the folder
        max_size: limit in bytes
        mode: what to do with existing files
        skip: patterns to skip; may be repeated
        dry_run: only list the files
    """

    files: list[Path]
    out: Path = field(kw_only=True)
    max_size: int | None = None
    mode: Literal["keep", "replace"] = "keep"
    skip: list[str] = field(default_factory=list)
    dry_run: bool = False

    def run(self) -> int:
        return 0


def parse(*words: str):
    return parse_command("prog", "A program.", {"copy": Copy}, words)


def test_fields_are_positional_arguments_and_flags():
    assert parse("copy", "1", "null", "--out", "3.0") == Copy([Path("1"), Path("null")], out=Path("3.0"))
    words = ["--max-size", "5", "--mode", "replace", "--skip", "a", "--skip", "b", "--dry-run", "x"]
    assert parse("copy", "--out", "o", *words) == Copy([Path("x")], 5, "replace", ["a", "b"], True, out=Path("o"))


def test_a_path_may_begin_with_the_home_folder(monkeypatch):
    """Shells leave the ~ of ``--out=~/DIR`` as it is; a folder of that name is dangerous to remove."""
    monkeypatch.setenv("HOME", "/home/me")
    expected = Copy([Path("/home/me/a"), Path("b~")], out=Path("/home/me/b"), skip=["~/c"])
    assert parse("copy", "~/a", "b~", "--out=~/b", "--skip=~/c") == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected .*command.* one of {copy}"),
        (["move"], "invalid choice: 'move'"),
        (["cpoy"], r"^command: invalid choice: 'cpoy' \(did you mean copy\?\); choose from copy;"),
        (["copy", "x", "--out", "o", "--max", "5"], r"^unknown option --max"),
        (["copy", "x", "--out", "o", "--dry-rnu"], r"^unknown option --dry-rnu \(did you mean --dry-run\?\);"),
        (["copy", "--out", "o"], "arguments are required: files;"),
        (["copy", "x"], "arguments are required: --out;"),
        (["copy", "x", "--out", "o", "--max-size", "many"], "^--max-size many: must be an integer; see"),
        (["copy", "x", "--out", "o", "--max-size", "-1"], "--max-size -1 must be ≥ 0$"),
        (
            ["copy", "x", "--out", "o", "--max-size", str(2**64)],
            r"--max-size 18446744073709551616 must be ≥ 0 and < 2\*\*63",
        ),
        (
            ["copy", "x", "--out", "o", "--mode", "drop"],
            "^--mode drop: must be one of keep, replace;",
        ),
        (["copy", "x", "--out", "o", "--size", "1"], r"^unknown option --size \(did you mean --max-size\?\);"),
    ],
)
def test_errors_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)


def test_help_shows_descriptions_and_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        parse("copy", "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: prog" in text
    assert "Copies files to a folder." in text
    assert "what to do with existing files (default: keep)" in text
