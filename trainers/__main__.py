"""Train one stage of a plan. `advise run` calls this.

    python -P -m trainers OBJECTIVE PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run]
    [--max-steps N] [--no-judge] [--part train | judge]

Several processes (torchrun) train and save; `--part judge`, in one process, then judges what they
saved.

Whatever goes wrong becomes stages/<name>/error.json (of several processes: error-rank<N>.json), a
message on stderr, and the exit code of its kind.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

from advisor.ground.errors import AdviseError, InputError, MachineNotReady, OutOfMemory
from advisor.ground.resources import install_line
from advisor.ground.signals import receiving
from advisor.ground.terminal import mask_secrets, show_streams, shown
from advisor.plan.model import Plan
from advisor.plan.read import read_plan
from advisor.record.run import ERROR
from advisor.record.smaller import NOTHING_SMALLER, as_settings, next_change
from advisor.record.stage import ErrorRecord, error_of_rank
from trainers.job.files import make_folder, write_json
from trainers.job.job import JUDGE, LOADING, TRAIN, Job, Process, make_job
from trainers.job.libraries import first_line, lack_of_memory, refused_code
from trainers.job.machine import (
    ConnectionLost,
    process_count,
    process_rank,
    run_and_leave,
    several_machines,
)

try:
    from trainers.stage.load import check_later_stages, check_rows
    from trainers.stage.objective import load_recipe
    from trainers.start.model_files import CHECK_NAME
    from trainers.step.settings import refused_by_library
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    lacking = f"training needs {error.name}, which is not installed"
    print(f"error: {MachineNotReady(lacking, hint=install_line()).text()}", file=sys.stderr)
    sys.exit(MachineNotReady.exit_code)

# Set by `advise run`, which shows what error.json says, so that it is not printed twice.
CALLER_SHOWS_ERRORS = "ADVISE_TELLS_ERRORS"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one call. Writes error.json if the stage's folder is known."""
    show_streams()
    given = parse_arguments(argv)
    process = Process()
    with receiving(signal.SIG_DFL):  # outside of the steps a signal ends the process
        return train_all(given, process)


def train_all(given: argparse.Namespace, process: Process) -> int:
    """Train what the command line says; the exit code."""
    job: Job | None = None
    try:
        recipe = load_recipe(given.objective)
        plan = read_plan(given.plan)
        jobs = [replace(job, process=process) for job in requested_jobs(given, plan)]
        process.bases = {} if len(jobs) > 1 else None
        if not given.dry_run:  # which comes to each stage at once
            job = jobs[0]
            names = [stage.name for stage in plan.stages]
            behind = names[names.index(given.stage) + 1 :]
            check_later_stages([one for name in behind for one in jobs_of(given, plan, name)])
        if len(jobs) > 1:
            job = jobs[0]
            check_rows(jobs)
        for job in jobs:
            (job.output / error_file()).unlink(missing_ok=True)
            make_folder(job.output)
            recipe.train(job)
    except AdviseError as error:
        return record_failure(job, error)
    except Exception as error:
        return record_failure(job, explain_error(error, job))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of the command line. Exits with code 2 if they cannot be understood."""
    parser = argparse.ArgumentParser(
        prog="trainers", description="Train one stage of a plan. `advise run` calls this."
    )
    parser.add_argument("objective", help="the name of a recipe, such as sft")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument(
        "--task", action="append", default=[], help="repeatable: one base for all of them"
    )
    parser.add_argument("--dry-run", action="store_true", help="measure two steps, save nothing")
    parser.add_argument("--max-steps", type=int, help="of a trial")
    parser.add_argument("--no-judge", action="store_true", help="skip the evaluation")
    parser.add_argument(
        "--part",
        choices=(TRAIN, JUDGE),
        help="train and save, or judge what is saved; default: both, and several processes train",
    )
    return parser.parse_args(argv)


def requested_jobs(given: argparse.Namespace, plan: Plan) -> list[Job]:
    """The job of a command line, or one for each task named there.

    Raises InputError for names the plan does not have, and for a stage of another objective.
    """
    jobs = jobs_of(given, plan, given.stage)
    objective = jobs[0].stage.objective
    if objective != given.objective:
        raise InputError(
            f"stage {given.stage} has objective {objective}, not {given.objective}",
            where=f"stage {given.stage}",
            allowed=f"python -P -m trainers {objective}",
        )
    return jobs


def jobs_of(given: argparse.Namespace, plan: Plan, stage: str) -> list[Job]:
    """The jobs of one stage: one for each task that the command line names."""
    return [
        make_job(
            plan,
            stage=stage,
            task=task,
            run=given.run,
            folder=given.plan.resolve().parent,
            dry_run=given.dry_run,
            max_steps=given.max_steps,
            judge=not given.no_judge,
            part=part_of(given),
        )
        for task in given.task or [None]
    ]


def part_of(given: argparse.Namespace) -> str | None:
    """The part of a stage that the command line names; None: none.

    Raises InputError if several processes are asked to judge, which one does.
    """
    if given.part == JUDGE and process_count() > 1:
        raise InputError(
            f"--part {JUDGE} is for one process, and there are {process_count()}",
            hint="start it without torchrun",
        )
    return str(given.part) if given.part else None


# --------------------------------------------------------------------------- what went wrong


def explain_error(error: Exception, job: Job | None) -> AdviseError:
    """What a library's exception means for the person who started the run; a bug if it means
    nothing known, with the traceback in the stage's trainer-error.log.
    """
    said = first_line(error)
    if lacking := lack_of_memory(error):
        return out_of_memory(lacking, job)
    if process_count() > 1 and is_lost_connection(error):
        return ConnectionLost(
            f"the connection to another process was lost: {said}",
            hint=(
                "that process ended without a message of its own; its output is above (a crash"
                " inside a library, or the kernel's out-of-memory killer: `dmesg` says)"
            ),
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename or "file")
        return MachineNotReady(
            str(error.strerror), where=where, hint="check free space and permissions"
        )
    if isinstance(error, OSError):  # transformers: a model that is not there, offline, gated
        return InputError(f"the model cannot be loaded: {said}", hint=CHECK_NAME)
    refused = refused_code(error, job.base_model if job is not None else "the model")
    if refused is not None:
        return refused
    what = f"unexpected {type(error).__name__}: {said}"
    if job is None:
        return AdviseError(what, hint="this is a bug")
    log = make_folder(job.output) / f"trainer-{Path(error_file()).stem}.log"
    trace = mask_secrets(shown("".join(traceback.format_exception(error))))
    log.write_text(trace, encoding="utf-8")
    passed = refused_by_library(error, job, log)
    return passed or AdviseError(what, hint=f"this is a bug; the details are in {log}")


# What torch.distributed, gloo and NCCL say in the processes that remain.
LOST_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")
LOST_WORDS = (
    "gloo",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "remote process exited",
    "nccl communicator was aborted",
    "nccl error",
    "ncclremoteerror",
    "ncclsystemerror",
    "socket closed",
    "timed out waiting",
    "watchdog caught collective operation timeout",
)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process of the run does not answer any more."""
    if type(error).__name__ in LOST_TYPES:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in LOST_WORDS)


def out_of_memory(text: str, job: Job | None) -> OutOfMemory:
    """The error of a trainer that ran out of memory, with the next smaller setting if it needs
    one.
    """
    doing = LOADING if job is None else job.process.doing
    change = next_change(job.stage, loading=doing == LOADING) if job is not None else None
    return OutOfMemory(
        f"out of memory while {doing}: {text}",
        hint=(
            f"run again with {as_settings(job.entry, change)} ({change.why})"
            if job is not None and change is not None
            else NOTHING_SMALLER
        ),
    )


def error_file() -> str:
    """The name of the file for this process's error."""
    return ERROR if process_count() == 1 else error_of_rank(process_rank())


def record_failure(job: Job | None, error: AdviseError) -> int:
    """Write the error's file if the stage's folder is known and print the error; its exit code.

    Each of several processes writes a file of its own: only the launcher can tell which of them
    failed first.
    """
    shown = False
    process: dict[str, Any] = {}
    if job is not None and isinstance(error, OutOfMemory):
        process["doing"] = job.process.doing
    if process_count() > 1:
        process |= {
            "rank": process_rank(),
            "host": socket.gethostname() if several_machines() else None,
            "at_s": time.time(),
            "lost_others": isinstance(error, ConnectionLost) or None,
        }
    if job is not None:
        try:
            write_json(
                job.output / error_file(),
                structs.replace(ErrorRecord.of(error), **process).to_dict(),
            )
            shown = bool(os.environ.get(CALLER_SHOWS_ERRORS))
        except AdviseError as second:
            print(f"error: {second.text()}", file=sys.stderr)
    if not shown:
        who = f"process {process_rank()}: " if process_count() > 1 else ""
        print(f"error: {who}{error.text()}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main() if process_count() == 1 else run_and_leave(main))
