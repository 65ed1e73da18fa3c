"""How a verb's process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ROOT, command, environment

ENDING = """
import atexit, os, sys, threading, time
from brain_dist.errors import leave

class Library:
    def __del__(self):  # as a C++ thread does that is still there when the interpreter is torn down
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


def test_a_verb_that_is_done_ends_with_its_own_code_whatever_its_libraries_do() -> None:
    for code in (0, 75):
        done = command([sys.executable, "-c", ENDING, str(code)], expect=code)
        assert done.out.split() == ["main", "thread", "handler"]
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-c", ENDING, "0"]
        buffered = environment(PYTHONUNBUFFERED="")
        lost = subprocess.run(
            words, cwd=ROOT, env=buffered, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert lost.returncode == 1
    assert lost.stderr == "brain-dist: error: what was printed is not all there: No space left on device\n"
    torn_down = ENDING.replace("leave(main)", "sys.exit(main())")
    assert command([sys.executable, "-c", torn_down, "0"], expect=None).code == -6
