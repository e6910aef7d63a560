"""One stage to train: what the command line and the plan say of it; and what the process that
trains it is doing.

A trainer is asked to stop by SIGTERM, SIGINT or SIGHUP. While it trains steps, the signal is noted:
the step is finished and saved, in all processes of the run after the same step. At any other time
the system ends the process at once, as it would by SIGKILL: what is on the disk is whole at any
moment, and `advise run` records the stop. Nothing is raised: code of a library may drop an
exception, or report it as its own error. A signal that the parent ignores (nohup) stays ignored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from msgspec.structs import replace

from advisor.ground.errors import InputError, Stopped, did_you_mean
from advisor.ground.signals import STOPS, receiving
from advisor.model_files.hub_cache import is_hub_id
from advisor.plan.entries import Entry, entries, path_from, start_folder_of, whole_model
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, PlanData, Stage
from advisor.record.run import DOING
from advisor.record.stage import Doing
from trainers.job.files import write_json
from trainers.job.machine import (
    MemoryMeter,
    over_processes,
    process_count,
    process_rank,
    wait_for_all,
)

LOADING, TRAINING, EVALUATING, SAVING = "loading", "training", "evaluating", "saving"

RESUMES = "the same command resumes"


class StopRequest:
    """Whether this process was asked to stop while it trains steps."""

    def __init__(self) -> None:
        self.is_noted = False
        self.owner = os.getpid()

    @contextmanager
    def in_steps(self) -> Iterator[None]:
        """Only note a signal as long as the context lasts."""
        with receiving(self._note):
            yield
        if self.is_noted:  # nothing ends this process while it says that it stopped
            for number in STOPS:
                signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_noted = True
        if os.getpid() != self.owner:
            # A forked process that reads the data: the step that is finished needs it. The next
            # signal, which torch sends to one that hangs, ends it.
            signal.signal(number, signal.SIG_DFL)

    def is_agreed(self, *others: bool) -> tuple[bool, ...]:
        """Whether any process was asked to stop, and for each of the others whether it holds in any
        process. Call it in every process, after the same step.
        """
        return tuple(map(bool, over_processes((self.is_noted, *others), "MAX")))

    def end_if_asked(self, step: int | None, steps: int) -> None:
        """Raise Stopped if any process was asked to stop in its steps, once all have written what
        they save. Call it in every process.

        Args:
            step: The step after which training stopped, before the last one; None: it is at its
                end.
            steps: Those of the whole run.
        """
        (is_asked,) = self.is_agreed()
        wait_for_all()
        if is_asked:
            done = f"step {step} of {steps}" if step is not None else "the last step"
            rest = "" if step is not None else "; the result is not checked yet"
            raise Stopped(f"stopped after {done}, with a checkpoint{rest}", hint=RESUMES)


@dataclass
class Process:
    """What the trainings of one process share."""

    doing: str = LOADING  # memory that runs out while a model is loaded asks for something else
    stop: StopRequest = field(default_factory=StopRequest)
    memory: MemoryMeter | None = None  # counts from before the first model was loaded
    # The bases in memory for the modules of several tasks, by what they were loaded as: each is
    # loaded once, and given unchanged from one training to the next. None: there is one training.
    bases: dict[Any, Any] | None = None

    def release(self, model: Any) -> None:
        """Take the module off a base that is kept, so that the next training finds it as it was
        loaded.

        Raises RuntimeError if the base is another one than was kept.
        """
        if self.bases is None or not hasattr(model, "peft_config"):
            return
        base = model.get_base_model()
        for name, module in list(base.named_modules()):
            if hasattr(module, "original_module"):  # PEFT would leave the copy that was trained
                base.set_submodule(name, module.original_module)
        if not model.peft_config["default"].is_prompt_learning:
            model.unload()
        vars(base).pop("forward", None)  # the trainer's own loss
        base.zero_grad()
        if not any(base is kept for kept in self.bases.values()):
            raise RuntimeError("unloading a module gave another base than the one that was loaded")


# --------------------------------------------------------------------------- the job

TRAIN, JUDGE = "train", "judge"  # the parts of a stage


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one training of a stage depends on."""

    plan: Plan
    entry: Entry
    folder: Path  # what relative paths of the plan are relative to
    run: Path
    dry_run: bool = False
    max_steps: int | None = None  # of a trial: caps the stage, and guards warn instead of failing
    judge: bool = True  # whether the model is evaluated before and after
    part: str | None = None  # TRAIN or JUDGE alone; None: both, one after the other
    attention: str | None = None  # what `attention: auto` is on this machine; None: as planned
    process: Process = field(default_factory=Process, compare=False, repr=False)
    most_rows: int | None = None  # of a micro-batch, that memory has room for; None: as planned

    @property
    def stage(self) -> Stage:
        """The stage, with the task's overrides applied, what `auto` is on this machine, and a
        micro-batch that fits into memory.
        """
        stage = self.entry.stage
        if self.attention is not None:
            stage = replace(stage, attention=self.attention)
        if self.most_rows is not None and self.most_rows < stage.micro_batch_size:
            size, whole = self.most_rows, stage.effective_batch_size
            micro = next(rows for rows in range(size, 0, -1) if whole % rows == 0)
            stage = replace(stage, micro_batch_size=micro, grad_accum=whole // micro)
        return stage

    @property
    def task(self) -> str | None:
        """The task's name; None if the plan has no tasks."""
        return self.entry.task.name if self.entry.task else None

    @property
    def options(self) -> dict[str, Any]:
        """The keys of the stage's update and objective, with declared defaults filled in."""
        return key_specs().effective(self.stage)

    @property
    def output(self) -> Path:
        """The folder for the stage's result."""
        return self.run / "stages" / self.entry.name

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    @property
    def data(self) -> PlanData:
        return self.entry.data

    @property
    def data_path(self) -> Path:
        """The data's path, if it is no data set of the hub."""
        return path_from(self.folder, self.data.path)

    @property
    def base_model(self) -> str:
        """The folder or hub id of the plan's model.

        Raises InputError for a folder that is not there.
        """
        return model_source(self.folder, self.plan.model)

    @property
    def start(self) -> Path | None:
        """The folder of the model or adapter that this stage continues from; None: the plan's
        model.

        Raises InputError for a folder without either.
        """
        path = start_folder_of(self.entry, run=self.run, folder=self.folder)
        if path is None:
            return None
        if not any((path / file).is_file() for file in ("adapter_config.json", "config.json")):
            raise InputError(
                f"stage {self.stage.name} starts from {path}, which holds no model and no adapter",
                where=f"stage {self.stage.name}",
                hint="run the stage before it first" if self.entry.starts_from else "",
            )
        return path

    def enter(self, what: str) -> None:
        """From here on the stage does this: errors say so, and the launcher reads it if the kernel
        ends the process.
        """
        self.process.doing = what
        if process_rank() == 0 and not self.dry_run:
            write_json(self.output / DOING, Doing(doing=what).to_dict())

    def whole_model(self, start: Path | None) -> str:
        """The folder or hub id of the whole model that a start is, or that its module belongs to;
        of no start, the plan's model.
        """
        found = whole_model(self.plan, start, run=self.run, folder=self.folder)
        return self.base_model if found is None else str(found)


def label(job: Job) -> str:
    """What messages call the stage."""
    return job.stage.name if job.task is None else f"{job.task} {job.stage.name}"


def model_source(folder: Path, model: str) -> str:
    """The model as `from_pretrained` takes it.

    Raises InputError for a folder that is not there or holds no model.
    """
    path = path_from(folder, model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"{path} has no config.json",
                where="model",
                allowed="a folder in Hugging Face layout, or a hub id",
            )
        return str(path.resolve())
    if not is_hub_id(model):
        raise InputError(
            f"no such folder: {path}",
            where="model",
            allowed="a folder in Hugging Face layout, or a hub id such as Qwen/Qwen3-0.6B",
        )
    return model


def make_job(
    plan: Plan, *, stage: str, run: Path, folder: Path, task: str | None = None, **rest: Any
) -> Job:
    """The job of one stage of a plan, by the names of the stage and of its task; `rest` are further
    fields of Job.

    Raises InputError for names the plan does not have.
    """
    stages, tasks = [item.name for item in plan.stages], [item.name for item in plan.tasks]
    if stage not in stages:
        raise InputError(
            f"the plan has no stage '{stage}'",
            allowed=f"stages: {', '.join(stages)}",
            hint=did_you_mean(stage, stages),
        )
    if task is not None and task not in tasks:
        raise InputError(
            f"the plan has no task '{task}'",
            allowed=f"tasks: {', '.join(tasks) or 'none'}",
            hint=did_you_mean(task, tasks),
        )
    if task is None and tasks:
        raise InputError(
            "the plan has tasks: one of them must be named",
            allowed=f"--task with one of {', '.join(tasks)}",
        )
    if rest.get("max_steps") is not None and rest["max_steps"] < 1:
        raise InputError("--max-steps must be 1 or more", where="--max-steps")
    entry = next(
        entry
        for entry in entries(plan)
        if entry.stage.name == stage and (entry.task.name if entry.task else None) == task
    )
    if process_count() > 1:  # they train, whoever started them; one process judges
        rest["part"] = rest.get("part") or TRAIN
    return Job(plan=plan, entry=entry, run=run.resolve(), folder=folder, **rest)
