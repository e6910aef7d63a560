"""How a process of several ends."""

import os
import subprocess
import sys

import pytest

ENDS = """
from trainers.job.machine import run_and_leave

class Held:
    def __del__(self):
        print("taken down")

held = Held()
import sys
sys.exit(run_and_leave(lambda: {main}))
"""


@pytest.mark.parametrize(("main", "code"), [("0", 0), ("3", 3), ("sys.exit(2)", 2), ("1 / 0", 1)])
def test_one_of_several_processes_ends_before_the_interpreter_is_taken_down(main, code):
    """Threads of gloo that ask for the interpreter's lock by then abort the process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", ENDS.format(main=main)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == code
    assert "taken down" not in done.stdout
    assert ("ZeroDivisionError" in done.stderr) == (main == "1 / 0")
