"""How the process of a command ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
