"""What the stages that one process trains have in common: what it is doing, whether it was asked to
stop, and the bases that it keeps in memory for the next task. A job carries it.

A trainer is asked to stop by SIGTERM, SIGINT or SIGHUP. While steps are trained, the first signal
is only noted: the step is finished and saved, in all processes of the run after the same step. At
any other time, and at the second signal, the trainer ends at once: `KeyboardInterrupt`. A signal
that the parent ignores (nohup) stays ignored.

What stops a program often sends several signals (a terminal that closes, a service manager, the
launcher and whoever signals all processes): those that come together count as one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from advisor.ground.errors import Stopped
from advisor.ground.signals import receiving
from trainers.job.machine import MemoryMeter, any_process, several_machines, wait_for_all
from trainers.job.types import Model

LOADING, TRAINING, EVALUATING, SAVING = "loading", "training", "evaluating", "saving"

TOGETHER_S = 0.5  # signals that are this near to the one before are one request
TOGETHER_ON_MACHINES_S = 5.0  # a scheduler's, and those that the machines pass on to each other
# What a stop costs that ends the process at once.
WHILE_LOADING = "while it was loading: no step is lost"
BEFORE_STEPS = "before the first step, while the base was measured: no step is lost"
IN_STEPS = "at once: the steps since the last checkpoint are lost"
AFTER_STEPS = "after the last step, whose checkpoint is there, while the result was being checked"
RESUMES = "the same command resumes"


class StopRequest:
    """Whether this process was asked to stop, and what it would cost now."""

    def __init__(self) -> None:
        self.is_noted = False  # asked to stop, once the step is finished
        self.costs = WHILE_LOADING
        self.owner = os.getpid()
        self.last_s = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or raise KeyboardInterrupt."""
        if os.getpid() != self.owner:
            # A forked process that reads the data: the step that is finished needs it. The next
            # signal, which torch sends to one that hangs, ends it.
            signal.signal(number, signal.SIG_DFL)
            return
        now_s = time.monotonic()
        near_s = TOGETHER_ON_MACHINES_S if several_machines() else TOGETHER_S
        is_repeated = self.is_noted and now_s - self.last_s < near_s
        self.last_s = now_s
        if is_repeated:
            return
        if self.is_noted or self.costs != IN_STEPS:
            raise KeyboardInterrupt
        self.is_noted = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals, until the context ends."""
        with receiving(self.receive):
            yield

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Steps are trained here: a signal waits until one is finished."""
        self.costs = IN_STEPS
        yield
        self.costs = AFTER_STEPS

    def is_agreed(self, *others: bool) -> tuple[bool, ...]:
        """Whether any process was asked to stop, and for each of the others whether it holds in any
        process. Call it in every process, after the same step.
        """
        return any_process(self.is_noted, *others)

    def end_if_asked(self, step: int | None, steps: int) -> None:
        """Raise Stopped if any process was asked to stop while steps were trained, once all have
        written what they save. Call it in every process.

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

    def release(self, model: Model) -> None:
        """Take the module off a base that is kept, so that the next training finds it as it was
        loaded.

        Raises RuntimeError if the base is another one than was kept.
        """
        from peft import PeftModel

        if self.bases is None or not isinstance(model, PeftModel):
            return
        is_prompt = model.peft_config["default"].is_prompt_learning
        base = model.get_base_model() if is_prompt else model.unload()
        vars(base).pop("forward", None)  # the trainer's own loss
        for parameter in base.parameters():
            parameter.grad = None
        if not any(base is kept for kept in self.bases.values()):
            raise RuntimeError("unloading a module gave another base than the one that was loaded")
