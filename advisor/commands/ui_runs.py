"""Runs that the page starts, follows and stops: each is `advise run` in a session of its own.

The record of a run is in its folder, so a page that is closed, and a server that ends, harm
nothing: another page finds the run again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from advisor.commands.output import SCHEMA_VERSION, with_error
from advisor.commands.page_answers import Answering, Found, object_in
from advisor.commands.typed import Main
from advisor.ground.errors import AdviseError, Fault, InputError, TrainingFailed
from advisor.ground.files import read_at_most, shown_path
from advisor.ground.resources import PACKAGE
from advisor.launch.folder import is_locked, process_of, read_live
from advisor.launch.prepare import Options, prepare_plan
from advisor.record.files import find_run, record_of
from advisor.record.run import METRICS, RECORD, REPORT, RUNNING
from advisor.render.report import read_metrics

POINTS = 200  # of a curve
CURVES = 5  # of the newest runs
MOST_REPORT = 50_000_000
LOOK_S = 0.2
INTERRUPTED = "interrupted"  # recorded as running, and no process works on it


def run(main: Main, body: str) -> Found:
    """`{"plan": PATH}`, a plan or the folder of a run that is to go on: start `advise run`, and
    answer once it is at work or has ended.
    """
    plan = _path(body, "plan")
    folder = prepare_plan(plan, Options()).folder
    if is_locked(folder):
        return 0, _told(folder)
    paths = (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))
    with TemporaryFile() as printed:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "advisor", "run", "--json", "--", str(plan)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on the server's terminal is not for it
        )
        while (code := process.poll()) is None and read_live(folder) is None:
            time.sleep(LOOK_S)
        if code:
            printed.seek(0)
            if said := printed.read():
                return code, said
            raise TrainingFailed(f"`advise run` ended with exit code {code}")
    return 0, _told(folder)


def stop(main: Main, body: str) -> Found:
    """`{"folder": PATH}`: ask the run to stop; it saves its last step."""
    folder = _path(body, "folder")
    process = process_of(folder) if is_locked(folder) else None
    if process is None:
        raise InputError("no run is at work here", where=str(folder))
    os.kill(process, signal.SIGTERM)
    return 0, {"schema_version": SCHEMA_VERSION, "folder": str(folder), "stopping": process}


def runs(main: Main, body: str) -> Found:
    """Every run below ./runs, the newest with its loss; with `{"folder": PATH}` that one alone."""
    if object_in(body, "folder"):
        return 0, {**_told(folder := _path(body, "folder")), "losses": losses(folder)}
    found = []
    for folder in _folders():
        try:
            found.append(_told(folder))
        except AdviseError as error:
            unread = {"folder": shown_path(folder), "status": "unreadable"}
            found.append(with_error(unread, error.faults))
    found.sort(key=lambda one: str(one.get("started_at") or "~"), reverse=True)
    for one in found[:CURVES]:
        one["losses"] = losses(Path(one["folder"]))
    return 0, {"schema_version": SCHEMA_VERSION, "runs": found}


RUNS: Mapping[str, Answering] = {"run": run, "stop": stop, "runs": runs}


def left_running() -> Iterator[str]:
    """What to say of the runs that go on without this server."""
    for folder in _folders():
        if is_locked(folder) and (process := process_of(folder)) is not None:
            yield f"{shown_path(folder)} goes on; to stop it: kill {process}"


def report_of(folder: str) -> bytes | None:
    """The report of a run folder; None if there is none."""
    try:
        return read_at_most(find_run(folder) / REPORT, MOST_REPORT)
    except (OSError, ValueError, AdviseError):
        return None


def losses(folder: Path) -> dict[str, list[list[float]]]:
    """Stage -> [step, loss], thinned to as many points as a curve shows."""
    found: dict[str, list[list[float]]] = {}
    for one in read_metrics(folder / METRICS):
        if isinstance(one.get("loss"), int | float) and isinstance(one.get("step"), int):
            named = " ".join(filter(None, (one.get("stage"), one.get("task"))))
            found.setdefault(named, []).append([one["step"], float(one["loss"])])
    return {name: points[:: -(-len(points) // POINTS)] for name, points in found.items()}


def _folders() -> list[Path]:
    return [path.parent for path in (Path.cwd() / "runs").glob(f"*/{RECORD}")]


def _path(body: str, key: str) -> Path:
    given = object_in(body, key).get(key)
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise InputError("no run is named", where=key, allowed="the path of a plan, or of a run")
    return Path(given).expanduser()


def _told(folder: Path) -> dict[str, Any]:
    """How far a run is, in few words. Raises InputError if its record cannot be read."""
    record, live = record_of(folder), read_live(folder)
    status = INTERRUPTED if record.status == RUNNING else record.status
    document = {
        "schema_version": SCHEMA_VERSION,
        "folder": shown_path(folder),
        "status": RUNNING if live is not None else status,
        "composition": record.composition,
        "model": record.model,
        "started_at": record.started_at,
        "progress": live.to_dict() if live is not None else None,
        "verdict": record.verdict.to_dict() if record.verdict is not None else None,
        "report": (folder / REPORT).is_file(),
    }
    errors = [stage.error for stage in record.stages if stage.error is not None]
    faults = [Fault(what=one.what, allowed=one.allowed, hint=one.hint) for one in errors]
    return with_error(document, faults)
