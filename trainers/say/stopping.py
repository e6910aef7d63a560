"""How a trainer is asked to stop: SIGTERM, SIGINT and SIGHUP.

While steps are trained, the first signal is only noted: the step is finished and saved, in all
processes of the run after the same step. At any other time, and at the second signal, the trainer
ends at once: `KeyboardInterrupt`. A signal that the parent ignores (nohup) stays ignored.

What stops a program often sends several signals (a terminal that closes, a service manager, the
launcher and whoever signals all processes): those that come together count as one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from advisor.ground.errors import Stopped
from trainers.job.machine import any_process, several_machines, wait_for_all

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
TOGETHER_S = 0.5  # signals that are this near to the one before are one request
TOGETHER_ON_MACHINES_S = 5.0  # a scheduler's, and those that the machines pass on to each other
LOADING = "while it was loading: no step is lost"
BEFORE = "before the first step, while the base was measured: no step is lost"
STEPS = "at once: the steps since the last checkpoint are lost"
RESUMES = "the same command resumes"
AFTER = "after the last step, whose checkpoint is there, while the result was being checked"


class StopRequest:
    """Whether this process was asked to stop, and what it is doing."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.is_noted = False  # asked to stop, once the step is finished
        self.doing = LOADING
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
        if self.is_noted or self.doing != STEPS:
            raise KeyboardInterrupt
        self.is_noted = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals, until the context ends."""
        self.forget()
        previous = {
            number: signal.signal(number, self.receive)
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            self.forget()

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """Steps are trained here: a signal waits until one is finished."""
        self.doing = STEPS
        yield
        self.doing = AFTER

    def is_agreed(self, *others: bool) -> tuple[bool, ...]:
        """Whether any process was asked to stop, and for each of the others whether it holds in any
        process. Call it in every process, after the same step.
        """
        return any_process(self.is_noted, *others)


# Signals are sent to a process, not to a stage: the tasks that one trains share the request.
request = StopRequest()


def end_if_asked(step: int | None, steps: int) -> None:
    """Raise Stopped if any process was asked to stop while steps were trained, once all have
    written what they save. Call it in every process.

    Args:
        step: The step after which training stopped, before the last one; None: it is at its end.
        steps: Those of the whole run.
    """
    (is_asked,) = request.is_agreed()
    wait_for_all()
    if is_asked:
        done = f"step {step} of {steps}" if step is not None else "the last step"
        rest = "" if step is not None else "; the result is not checked yet"
        raise Stopped(f"stopped after {done}, with a checkpoint{rest}", hint=RESUMES)
