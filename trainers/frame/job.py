"""One stage to train, read from the command line and the plan; and the frame every trainer's `main`
runs in.

    python -P -m trainers.sft PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run] [--max-steps
    N] [--no-judge]

The frame turns whatever goes wrong into stages/<name>/error.json, a message on stderr, and the exit
code of its kind.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import (
    AdviseError,
    InputError,
    MachineNotReady,
    Stopped,
    TrainingFailed,
    nearest,
)
from advisor.plan.entries import Entry, entries
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, PlanData, Stage
from trainers.frame.bases import sharing_bases
from trainers.frame.files import make_folder, write_json
from trainers.frame.machine import is_main_process

# set by `advise run`, which shows what error.json says: twice would be once too often
CALLER_TELLS = "ADVISE_TELLS_ERRORS"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything one call of a trainer depends on."""

    plan: Plan
    entry: Entry
    folder: Path  # that relative paths of the plan are meant from
    run: Path
    dry_run: bool = False
    max_steps: int | None = None  # of a trial: caps the stage, and guards warn instead of failing
    judge: bool = True

    @property
    def stage(self) -> Stage:
        """The stage, with the task's overrides applied."""
        return self.entry.stage

    @property
    def task(self) -> str | None:
        """The task's name, where the plan has tasks."""
        return self.entry.task.name if self.entry.task else None

    @property
    def options(self) -> dict[str, Any]:
        """The keys of the stage's update and objective, with declared defaults filled in."""
        return key_specs().effective(
            self.stage.options, objective=self.stage.objective, update=self.stage.update
        )

    @property
    def output(self) -> Path:
        """Where the stage's result goes."""
        return self.run / "stages" / self.entry.name

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    @property
    def data(self) -> PlanData:
        """The data this stage trains on."""
        return self.entry.data

    @property
    def data_path(self) -> Path:
        return self.folder / Path(self.data.path).expanduser()

    @property
    def base_model(self) -> str:
        """The folder or hub id of the plan's model.

        Raises InputError for a folder that is not there.
        """
        return model_source(self.folder, self.plan.model)

    @property
    def start(self) -> Path | None:
        """The folder of the model or adapter this stage goes on from; None: the plan's model."""
        if self.entry.starts_from is not None:
            path = self.run / "stages" / self.entry.starts_from
        elif self.entry.start_folder is not None:
            path = self.folder / Path(self.entry.start_folder).expanduser()
        else:
            return None
        if not any((path / file).is_file() for file in ("adapter_config.json", "config.json")):
            raise InputError(
                f"stage {self.stage.name} starts from {path}, which holds no model and no adapter",
                hint="run the stage before it first" if self.entry.starts_from else "",
            )
        return path


def is_hub_id(text: str) -> bool:
    """True for 'owner/name' and 'name', false for what can only be a path."""
    return not text.startswith((".", "/", "~")) and text.count("/") <= 1 and "\\" not in text


def model_source(folder: Path, model: str) -> str:
    """The model as `from_pretrained` takes it."""
    path = folder / Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"model: {path} has no config.json",
                allowed="a folder in Hugging Face layout, or a hub id",
            )
        return str(path.resolve())
    if not is_hub_id(model):
        raise InputError(
            f"model: no such folder: {path}",
            allowed="a folder in Hugging Face layout, or a hub id such as Qwen/Qwen3-0.6B",
        )
    return model


def read_jobs(argv: Sequence[str] | None, *, objectives: tuple[str, ...], prog: str) -> list[Job]:
    """The job of a command line, or one for each task named there.

    Raises InputError for what the plan does not have.
    """
    from advisor.plan.read import read_plan

    parser = argparse.ArgumentParser(
        prog=prog, description="Train one stage of a plan. `advise run` calls this."
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument(
        "--task", action="append", default=[], help="repeatable: one base for all of them"
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--no-judge", action="store_true")
    given = parser.parse_args(argv)
    plan = read_plan(given.plan)
    common: dict[str, Any] = {
        "stage": given.stage,
        "run": given.run,
        "folder": given.plan.resolve().parent,
        "dry_run": given.dry_run,
        "max_steps": given.max_steps,
    }
    return [
        make_job(plan, task=task, judge=not given.no_judge, objectives=objectives, **common)
        for task in given.task or [None]
    ]


def make_job(
    plan: Plan,
    *,
    stage: str,
    run: Path,
    folder: Path,
    task: str | None = None,
    objectives: tuple[str, ...] = (),
    **rest: Any,
) -> Job:
    """The job of one stage of a plan. Raises InputError for names the plan does not have."""
    stages, tasks = [item.name for item in plan.stages], [item.name for item in plan.tasks]
    if stage not in stages:
        raise InputError(
            f"the plan has no stage '{stage}'",
            allowed=f"stages: {', '.join(stages)}",
            hint=nearest(stage, stages),
        )
    if task is not None and task not in tasks:
        raise InputError(
            f"the plan has no task '{task}'",
            allowed=f"tasks: {', '.join(tasks) or 'none'}",
            hint=nearest(task, tasks),
        )
    if task is None and tasks:
        raise InputError(
            "the plan has tasks: one of them must be named",
            allowed=f"--task with one of {', '.join(tasks)}",
        )
    if rest.get("max_steps") is not None and rest["max_steps"] < 1:
        raise InputError("--max-steps must be 1 or more")
    entry = next(
        entry
        for entry in entries(plan)
        if entry.stage.name == stage and (entry.task.name if entry.task else None) == task
    )
    if objectives and entry.stage.objective not in objectives:
        raise InputError(
            f"stage {stage} has objective {entry.stage.objective}",
            allowed=f"this trainer does {', '.join(objectives)}",
        )
    return Job(plan=plan, entry=entry, run=run.resolve(), folder=folder, **rest)


def run_trainer(
    train: Callable[[Job], None],
    argv: Sequence[str] | None,
    *,
    objectives: tuple[str, ...],
    prog: str,
    check: Callable[[Job], None] | None = None,
) -> int:
    """The exit code of one call. Writes error.json where the stage's folder is known.

    Args:
        check: Raises InputError for data that cannot be trained on. Of several jobs each is checked
            before the first is trained.
    """
    job: Job | None = None
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        jobs = read_jobs(argv, objectives=objectives, prog=prog)
        if check is not None and len(jobs) > 1:
            job = jobs[0]
            _check_all(check, jobs)
        with sharing_bases() if len(jobs) > 1 else nullcontext():
            for job in jobs:
                (job.output / "error.json").unlink(missing_ok=True)
                make_folder(job.output)
                train(job)
    except KeyboardInterrupt:
        return _fail(
            job, Stopped("stopped", hint="the same command goes on from the last checkpoint")
        )
    except AdviseError as error:
        return _fail(job, error)
    except Exception as error:
        return _fail(job, explain_error(error, job))
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _check_all(check: Callable[[Job], None], jobs: Sequence[Job]) -> None:
    """Raises InputError with the faults of every job, each under its task's name."""
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


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def explain_error(error: Exception, job: Job | None) -> AdviseError:
    """What a library's exception means for the person who started the run; a bug where it means
    nothing known.
    """
    text = str(error)
    if (
        type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator: can't allocate" in text
        or isinstance(error, MemoryError)
    ):
        return TrainingFailed(
            f"out of memory: {text.splitlines()[0] if text else 'the device is full'}",
            hint=_smaller(job.stage) if job else "",
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


def _smaller(stage: Stage) -> str:
    """The next smaller setting, the one that changes the result least first."""
    if stage.micro_batch_size > 1:
        return (
            f"set micro_batch_size: {max(1, stage.micro_batch_size // 2)} and grad_accum:"
            f" {stage.grad_accum * 2} (the same effective batch)"
        )
    if not stage.gradient_checkpointing:
        return "set gradient_checkpointing: true"
    if stage.update != "full" and stage.quantization is None:
        return "set quantization: nf4"
    if stage.update == "full":
        return "use update: lora"
    return f"set seq_len: {max(8, stage.seq_len // 2)}, or take a smaller model"


def _fail(job: Job | None, error: AdviseError) -> int:
    if not is_main_process():
        return error.exit_code
    told = False
    if job is not None:
        first = error.faults[0]
        record = {
            "kind": type(error).__name__,
            "what": error.text() if len(error.faults) > 1 else first.what,
            "allowed": first.allowed,
            "hint": first.hint,
        }
        try:
            write_json(job.output / "error.json", record | {"exit_code": error.exit_code})
            told = bool(os.environ.get(CALLER_TELLS))
        except AdviseError as second:
            print(f"error: {second.text()}", file=sys.stderr)
    if not told:
        print(f"error: {error.text()}", file=sys.stderr)
    return error.exit_code
