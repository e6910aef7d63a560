"""The recipes of all objectives: the modules of this package that have a function `train`; and what
later stages of a plan cannot do, told before the first one trains for hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol, cast

import trainers
from advisor.ground.errors import Fault, InputError, unknown_name
from trainers.job.job import Job

OURS = Path(trainers.__file__).parent


class Recipe(Protocol):
    """What the module of an objective holds."""

    def train(self, job: Job) -> None:
        """Train the stage, or measure two steps of it, and write the result into its folder."""
        ...


def load_recipe(name: str) -> Recipe:
    """The module of an objective.

    Raises InputError if there is no such module, or if it is no recipe.
    """
    if name not in _modules():
        raise InputError(
            faults=[unknown_name("objective", name, recipes(), at="python -m trainers")]
        )
    module = import_module(f"{trainers.__name__}.{name}")
    if not hasattr(module, "train"):
        raise InputError(
            "a recipe needs a function train(job), and this module has none",
            where=str(module.__file__),
            allowed=f"recipes: {', '.join(recipes())}",
        )
    return cast(Recipe, module)


def recipes() -> list[str]:
    """The names of all objectives that can be trained here.

    Imports every module of this package; one that cannot be imported is left out.
    """
    found = []
    for name in _modules():
        with suppress(Exception):  # a recipe that is broken must not hide the others
            if hasattr(import_module(f"{trainers.__name__}.{name}"), "train"):
                found.append(name)
    return found


def _modules() -> list[str]:
    return sorted(
        module.name for module in iter_modules(trainers.__path__) if not module.name.startswith("_")
    )


class ChecksPassed(Exception):
    """A stage that was to be checked alone can be trained here."""


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
            with suppress(ChecksPassed):
                recipe.train(replace(job, only_checks=True))
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise InputError(faults=faults)
