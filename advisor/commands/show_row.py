"""`advise check DATA --show-row N`: one row as the trainers see it, asked from their own code in a
child process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from advisor.ground.errors import AdviseError, InputError, MachineNotReady
from advisor.ground.resources import trainers_root
from advisor.launch.failure_report import KINDS

NEEDED = ("transformers", "tokenizers", "jinja2")


def row_as_trained(
    data: str, *, row: int, model: str | None = None, mapping: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The row as plain values: its stretches of text with `learned`, counts, notes.

    Raises:
        InputError: No such row, file or model.
        MachineNotReady: The training packages are not installed.
    """
    if row < 1:
        raise InputError(f"--show-row {row}: rows are counted from 1")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MachineNotReady(
            f"--show-row needs {', '.join(missing)}", hint="pip install 'finetune-advisor[train]'"
        )
    command = [
        sys.executable,
        "-P",
        "-m",
        "trainers.tools.show_row",
        data,
        "--row",
        str(row),
        *(["--model", model] if model else []),
    ]
    command += (
        ["--map", *(f"{role}={column}" for role, column in mapping.items())] if mapping else []
    )
    paths = [
        str(trainers_root()),
        *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    try:
        document: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[
            -1
        ]
        raise AdviseError(f"the row could not be shown: {last}", hint="this is a bug") from None
    error = document.get("error")
    if error is not None:
        raise KINDS.get(int(error["exit_code"]), AdviseError)(
            error["what"], error["allowed"], error["hint"]
        )
    return document
