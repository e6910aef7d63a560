"""Runs that the page starts, follows and stops: each is `advise run` in a session of its own.

The record of a run is in its folder, so a page that is closed, and a server that ends, harm
nothing: another page finds the run again.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from advisor.commands.output import SCHEMA_VERSION, print_json
from advisor.commands.page_answers import Main, object_in
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import bytes_of, read_at_most, shown_path, text_of
from advisor.ground.resources import PACKAGE
from advisor.ground.terminal import mask_secrets
from advisor.launch.folder import is_locked, metrics_line, process_of, read_live
from advisor.launch.prepare import Options, prepare_plan
from advisor.record.files import read_record
from advisor.record.run import METRICS, RECORD, REPORT, RUNNING

RUNS = ("run", "stop", "runs")
POINTS = 200  # of a curve
MOST_REPORT = 50_000_000
LAST_WORDS = 12  # lines of what a run has said
INTERRUPTED = "interrupted"  # recorded as running, and no process works on it


class Runs:
    """What the page can do about runs.

    Args:
        notes: A folder for what the runs of this server say.
    """

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def run(self, main: Main, body: str) -> int:
        """`{"plan": PATH}`, a plan or the folder of a run that is to go on: start `advise run`."""
        given = object_in(body, "plan")
        plan = given.get("plan")
        if not isinstance(plan, str) or not plan.strip():
            raise InputError("no plan is named", where="plan", allowed="the path of a plan.yaml")
        folder = prepare_plan(Path(plan), Options()).folder
        if not is_locked(folder):
            self._start(plan, folder)
        print_json({"schema_version": SCHEMA_VERSION, **self._told(folder)})
        return 0

    def _start(self, plan: str, folder: Path) -> None:
        note = self._note(folder)
        paths = (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with note.with_suffix(".out").open("wb") as out, note.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "advisor", "run", "--json", "--", plan],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C on the server's terminal is not for it
            )
        note.write_text(json.dumps({"folder": str(folder), "process": process.pid}), "utf-8")

    def stop(self, main: Main, body: str) -> int:
        """`{"folder": PATH}`: ask the run to stop; it saves its last step."""
        folder = _folder(body)
        process = process_of(folder) if is_locked(folder) else self._starting(folder)
        if process is None:
            raise InputError("no run is at work here", where=str(folder))
        os.kill(process, signal.SIGTERM)
        print_json({"schema_version": SCHEMA_VERSION, "folder": str(folder), "stopping": process})
        return 0

    def runs(self, main: Main, body: str) -> int:
        """Every run below ./runs and of this server; with `{"folder": PATH}` that one alone, with
        its loss.
        """
        if "folder" in object_in(body, "folder"):
            folder = _folder(body)
            told = {**self._told(folder), "losses": losses(folder)}
            print_json({"schema_version": SCHEMA_VERSION, **told})
            return 0
        found = [self._told(folder) for folder in self._folders()]
        found.sort(key=lambda one: str(one["started_at"] or "~"), reverse=True)
        print_json({"schema_version": SCHEMA_VERSION, "runs": found})
        return 0

    def left_running(self) -> Iterator[str]:
        """What to say of the runs that go on without this server."""
        for folder in self._folders():
            if (live := read_live(folder)) is not None:
                yield f"{shown_path(folder)} goes on; to stop it: kill {live.process}"

    # ----------------------------------------------------------------------- one run

    def _folders(self) -> list[Path]:
        known = [path.parent for path in (Path.cwd() / "runs").glob(f"*/{RECORD}")]
        noted = [Path(json.loads(text_of(path))["folder"]) for path in self.notes.glob("*.json")]
        return [*dict.fromkeys((*known, *noted))]

    def _note(self, folder: Path) -> Path:
        return self.notes / f"{sha256(os.fsencode(folder)).hexdigest()[:16]}.json"

    def _starting(self, folder: Path) -> int | None:
        """The process of a run that this server has started and that still lives."""
        note = self._note(folder)
        if not note.is_file() or note.with_suffix(".out").stat().st_size:
            return None
        process = int(json.loads(text_of(note))["process"])
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat")
            ended = state.is_file() and text_of(state).rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return None
        return None if ended else process

    def _told(self, folder: Path) -> dict[str, Any]:
        """How far a run is, in few words."""
        fault, record = "", None
        try:
            record = read_record(folder)
        except AdviseError as error:
            fault = error.text()
        live = read_live(folder) if record is not None else None
        starting = self._starting(folder) if live is None else None
        status = "unreadable" if fault else "failed" if record is None else str(record.status)
        if live is not None or starting is not None:
            status = RUNNING if live is not None else "starting"
        elif status == RUNNING:
            status = INTERRUPTED
        document, words = self._said(folder)
        verdict = record.verdict if record is not None else None
        return {
            "folder": shown_path(folder),
            "status": status,
            "composition": record.composition if record is not None else None,
            "model": record.model if record is not None else None,
            "started_at": record.started_at if record is not None else None,
            "progress": live.to_dict() if live is not None else None,
            "verdict": verdict.to_dict() if verdict is not None else None,
            "error": document.get("error", []) if status != RUNNING else [],
            "fault": fault,
            "said": words,
            "report": (folder / REPORT).is_file(),
            "resume": f"advise run {shlex.quote(shown_path(folder))}",
        }

    def _said(self, folder: Path) -> tuple[dict[str, Any], list[str]]:
        """The document that the command printed, and the last lines of its messages."""
        note, document = self._note(folder), dict[str, Any]()
        with suppress(OSError, ValueError):
            document = json.loads(text_of(note.with_suffix(".out")))
        lines = list[str]()
        with suppress(OSError):
            said = text_of(note.with_suffix(".err"), errors="replace").replace("\r", "\n")
            lines = [mask_secrets(one) for one in said.splitlines() if one.strip()]
        return document, lines[-LAST_WORDS:]


def losses(folder: Path) -> dict[str, list[list[float]]]:
    """Stage -> [step, loss], thinned to as many points as a curve shows."""
    found: dict[str, list[list[float]]] = {}
    with suppress(OSError):
        for line in bytes_of(folder / METRICS).split(b"\n"):
            one = metrics_line(line)
            if one is not None and isinstance(one.get("loss"), int | float):
                named = " ".join(filter(None, (one.get("stage"), one.get("task"))))
                found.setdefault(named, []).append([one["step"], float(one["loss"])])
    return {name: points[:: -(-len(points) // POINTS)] for name, points in found.items()}


def report_of(folder: str) -> bytes | None:
    """The report of a run folder; None if there is none."""
    path = Path(folder).expanduser() / REPORT
    try:
        is_run = bool(folder) and (path.parent / RECORD).is_file() and path.is_file()
        return read_at_most(path, MOST_REPORT) if is_run else None
    except (OSError, ValueError, AdviseError):
        return None


def _folder(body: str) -> Path:
    folder = object_in(body, "folder").get("folder")
    if not isinstance(folder, str) or not folder.strip() or "\0" in folder:
        raise InputError("no run is named", where="folder", allowed="the folder of a run")
    return Path(folder).expanduser().absolute()
