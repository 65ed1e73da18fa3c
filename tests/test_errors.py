"""How the process of a command starts and ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, command, environment

ENDING = """
import atexit, os, sys, threading, time
from brain_dist.errors import leave

class Library:
    def __del__(self):  # as a C++ thread that still runs while the interpreter is torn down
        os.abort()

library = Library()
atexit.register(lambda: print("handler"))

def late():
    time.sleep(0.3)
    print("thread")

def main():
    threading.Thread(target=late).start()
    print("main")
    return int(sys.argv[1])

leave(main)
"""


def test_a_finished_command_keeps_its_exit_code_whatever_its_libraries_do() -> None:
    for code in (0, 75):
        result = command([sys.executable, "-c", ENDING, str(code)], expect=code)
        assert result.out.split() == ["main", "thread", "handler"]
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-c", ENDING, "0"]
        buffered = environment(PYTHONUNBUFFERED="")
        result = subprocess.run(
            arguments, cwd=ROOT, env=buffered, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1
    assert result.stderr == "brain-dist: error: the output is incomplete: No space left on device\n"
    torn_down = ENDING.replace("leave(main)", "sys.exit(main())")
    assert command([sys.executable, "-c", torn_down, "0"], expect=None).code == -6


LONG_OUTPUT = """
import sys
from brain_dist.errors import UserError, leave

def main():
    for number in range(20000):
        print("line", number)
    raise UserError("Görüntü – %r" % sys.argv[1:])

leave(main)
"""


def test_a_command_keeps_its_exit_code_if_the_reader_of_its_output_leaves() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_OUTPUT], cwd=ROOT, env=environment(PYTHONUNBUFFERED=""), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read().startswith("brain-dist: error: Görüntü –")
    process.stderr.close()
    assert process.wait() == 2


def test_a_command_without_standard_streams_keeps_its_exit_code() -> None:
    closed = subprocess.run(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, "-c", LONG_OUTPUT],
        cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip
    assert closed.returncode == 2


def test_text_and_file_names_are_utf8_in_every_locale(tmp_path: Path) -> None:
    localedef = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(tmp_path / "tr_TR.ISO-8859-9")]
    if shutil.which("localedef") is None or subprocess.run(localedef, capture_output=True, check=False).returncode:
        pytest.skip("this machine has no sources of locales")
    turkish = environment(LOCPATH=str(tmp_path), LC_ALL="tr_TR.ISO-8859-9")
    encoding = [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"]
    assert subprocess.run(encoding, env=turkish, capture_output=True, text=True, check=True).stdout == "iso8859-9\n"
    result = subprocess.run(
        [sys.executable, "-c", LONG_OUTPUT, "Görüntü –"], cwd=ROOT, env=turkish, capture_output=True, check=False
    )
    assert result.stderr.decode() == "brain-dist: error: Görüntü – ['Görüntü –']\n"
    assert result.returncode == 2
