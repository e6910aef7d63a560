"""Stands in for the comparison of the tasks' modules: STAND_IN_COMPARES says how it ends."""

import json
import os
import signal
import sys
import time
from pathlib import Path

run = Path(sys.argv[sys.argv.index("--run") + 1])
match os.environ.get("STAND_IN_COMPARES", ""):
    case "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    case "stopped":
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(20)
tasks = ("legal", "hr")
losses = {task: {"base": 2.0, **dict.fromkeys(tasks, 1.0)} for task in tasks}
(run / "cross.json").write_text(json.dumps({"losses": losses}))
