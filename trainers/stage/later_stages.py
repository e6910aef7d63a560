"""What later stages of a plan cannot do, told before the first one trains for hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import trainers
from advisor.ground.errors import Fault, InputError
from trainers.job.job import Job
from trainers.stage.recipes import load_recipe

OURS = Path(trainers.__file__).parent
_alone: ContextVar[bool] = ContextVar("checks_alone", default=False)


class ChecksPassed(Exception):
    """A stage that was to be checked alone can be trained here."""


def end_of_checks() -> None:
    """Raise ChecksPassed if the stage was to be checked alone."""
    if _alone.get():
        raise ChecksPassed


@contextmanager
def _checking_alone() -> Iterator[None]:
    mark = _alone.set(True)
    try:
        yield
    except ChecksPassed:
        pass
    finally:
        _alone.reset(mark)


def check_later_stages(jobs: Sequence[Job]) -> None:
    """Raise InputError with what the stages behind these cannot do here: their keys, and what they
    pass on to TRL and PEFT. Recipes of somebody else are not asked: they might begin to train.
    """
    faults: list[Fault] = []
    for job in jobs:
        recipe = load_recipe(job.stage.objective)
        if not Path(str(getattr(recipe, "__file__", ""))).is_relative_to(OURS):
            continue
        try:
            with _checking_alone():
                recipe.train(job)
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise InputError(faults=faults)
