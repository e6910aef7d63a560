"""Train one stage of a plan. `advise run` calls this.

    python -P -m trainers OBJECTIVE PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run]
    [--max-steps N] [--no-judge]

Whatever goes wrong becomes stages/<name>/error.json, a message on stderr, and the exit code of its
kind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from advisor.ground.errors import (
    AdviseError,
    InputError,
    MachineNotReady,
    Stopped,
    TrainingFailed,
)
from advisor.methods import update
from advisor.plan.model import Stage
from advisor.plan.read import read_plan
from advisor.plan.record import ERROR, ErrorRecord
from trainers import load_recipe
from trainers.frame.bases import sharing_bases
from trainers.frame.files import make_folder, write_json
from trainers.frame.job import Job, make_job
from trainers.frame.machine import is_main_process

# Set by `advise run`, which shows what error.json says, so that it is not printed twice.
CALLER_SHOWS_ERRORS = "ADVISE_TELLS_ERRORS"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one call. Writes error.json if the stage's folder is known."""
    given = parse_arguments(argv)
    job: Job | None = None
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        recipe = load_recipe(given.objective)
        jobs = requested_jobs(given)
        check = getattr(recipe, "check_rows", None)
        if check is not None and len(jobs) > 1:
            job = jobs[0]
            check_all(check, jobs)
        with sharing_bases() if len(jobs) > 1 else nullcontext():
            for job in jobs:
                (job.output / ERROR).unlink(missing_ok=True)
                make_folder(job.output)
                recipe.train(job)
    except KeyboardInterrupt:
        return record_failure(
            job, Stopped("stopped", hint="the same command resumes from the last checkpoint")
        )
    except AdviseError as error:
        return record_failure(job, error)
    except Exception as error:
        return record_failure(job, explain_error(error, job))
    finally:
        signal.signal(signal.SIGTERM, previous)
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
    return parser.parse_args(argv)


def requested_jobs(given: argparse.Namespace) -> list[Job]:
    """The job of a command line, or one for each task named there.

    Raises InputError for names the plan does not have, and for a plan that cannot be read.
    """
    plan = read_plan(given.plan)
    return [
        make_job(
            plan,
            objective=given.objective,
            stage=given.stage,
            task=task,
            run=given.run,
            folder=given.plan.resolve().parent,
            dry_run=given.dry_run,
            max_steps=given.max_steps,
            judge=not given.no_judge,
        )
        for task in given.task or [None]
    ]


def check_all(check: Callable[[Job], None], jobs: Sequence[Job]) -> None:
    """Raise InputError with the faults of every job's data, each under its task's name."""
    faults = []
    for job in jobs:
        try:
            check(job)
        except InputError as error:
            faults += [
                replace(fault, what=f"task {job.task}: {fault.what}") for fault in error.faults
            ]
    if faults:
        raise InputError(faults=faults)


def _stop(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


# --------------------------------------------------------------------------- what went wrong


def explain_error(error: Exception, job: Job | None) -> AdviseError:
    """What a library's exception means for the person who started the run; a bug if it means
    nothing known, with the traceback in the stage's trainer-error.log.
    """
    text = str(error)
    if (
        type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate" in text
        or isinstance(error, MemoryError)
    ):
        return TrainingFailed(
            f"out of memory: {text.splitlines()[0] if text else 'the device is full'}",
            hint=next_smaller_setting(job.stage) if job else "",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return MachineNotReady(
            f"{error.filename or 'file'}: {error.strerror}", hint="check free space and permissions"
        )
    if isinstance(error, OSError):  # transformers: a model that is not there, offline, gated
        return InputError(
            f"the model cannot be loaded: {text.splitlines()[0] if text else error!r}",
            hint=(
                "check the model's name, `hf auth login` for gated models, and the connection"
                " (HF_HUB_OFFLINE)"
            ),
        )
    bug = AdviseError(
        f"unexpected {type(error).__name__}: {text.splitlines()[0] if text else ''}",
        hint="this is a bug",
    )
    if job is not None:
        log = job.output / "trainer-error.log"
        make_folder(job.output)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        bug = AdviseError(bug.faults[0].what, hint=f"this is a bug; the details are in {log}")
    return bug


def next_smaller_setting(stage: Stage) -> str:
    """The next smaller setting, the one that changes the result least first."""
    if stage.micro_batch_size > 1:
        return (
            f"set micro_batch_size: {max(1, stage.micro_batch_size // 2)} and grad_accum:"
            f" {stage.grad_accum * 2} (the same effective batch size)"
        )
    if not stage.gradient_checkpointing:
        return "set gradient_checkpointing: true"
    if update(stage.update).is_module and stage.quantization is None:
        return "set quantization: nf4"
    if not update(stage.update).is_module:
        return "use update: lora"
    return f"set seq_len: {max(8, stage.seq_len // 2)}, or use a smaller model"


def record_failure(job: Job | None, error: AdviseError) -> int:
    """Write error.json if the stage's folder is known and print the error; its exit code."""
    if not is_main_process():
        return error.exit_code
    shown = False
    if job is not None:
        try:
            write_json(job.output / ERROR, ErrorRecord.of(error).to_dict())
            shown = bool(os.environ.get(CALLER_SHOWS_ERRORS))
        except AdviseError as second:
            print(f"error: {second.text()}", file=sys.stderr)
    if not shown:
        print(f"error: {error.text()}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
