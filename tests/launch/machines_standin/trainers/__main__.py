"""One process of a training on several machines: STAND_IN says how it behaves, of all processes or,
behind an @, of the one with this number. The first one writes the result, as the stand-in does.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

RANK = os.environ["RANK"]
mode, _, only = os.environ.get("STAND_IN", "ok").partition("@")
if only and only != RANK:
    mode = "wait"
words = sys.argv[1:]
folder = Path(words[words.index("--run") + 1]) / "stages" / words[words.index("--stage") + 1]
folder.mkdir(parents=True, exist_ok=True)


def leave(kind, what, code):
    error = {"kind": kind, "what": what, "exit_code": code, "rank": int(RANK), "at_s": 1.0}
    error["host"] = socket.gethostname()
    (folder / f"error-rank{RANK}.json").write_text(json.dumps(error))
    sys.exit(code)


signal.signal(signal.SIGTERM, lambda *_: leave("Stopped", "stopped after step 3 of 9", 130))
seen = {name: os.environ.get(name) for name in ("WORLD_SIZE", "LOCAL_RANK", "GLOO_SOCKET_IFNAME")}
(folder / f"process-{RANK}.json").write_text(json.dumps({"pid": os.getpid(), **seen}))
if mode == "wait":
    time.sleep(60)
elif mode == "fail":
    leave("TrainingFailed", "the loss is not a number", 5)
elif mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif RANK == "0":
    os.environ["STAND_IN"] = "ok"
    sys.argv[0] = "trainers"
    from trainers.sft import main

    main()
