"""How a stage of a plan is trained: one recipe for each objective.

    python -P -m trainers OBJECTIVE PLAN --stage NAME --run FOLDER [--task NAME] [--dry-run]
    [--max-steps N] [--no-judge]

A recipe is a module of this package that has a function `train`: a file, or a package if one file
would be too long (ppo). OBJECTIVE is its name. The folder is all that is searched, so a new
objective needs its own file here, rules/objectives/<name>.yaml and no registration. It holds

    train(job)       Train the stage, or measure two steps of it, and write the result into the
                     stage's folder.
    check_rows(job)  Optional: raise InputError for data that cannot be trained on. If one call
                     trains several tasks, each is checked before the first is trained.

Most recipes describe themselves as a subclass of `trainers.frame.objective.Objective` (rows, model,
trainer, evaluation), and their `train` hands an instance of it to `trainers.frame.stage.train`.

| room | what is in it |
| --- | --- |
| frame | what every stage needs: job, rows, model, settings, checkpoints, progress |
| prepare | examples as token ids and labels |
| updates | which weights are trained: one module for each update scheme |
| ppo | PPO, which has its own training loop |
| rewards | where the reward of an answer comes from |
| teachers | distillation: the teacher, its answers, the distance to it |
| evaluation | the model before and after training |
| tools | what is done with results |
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Protocol, cast

from advisor.ground.errors import InputError, unknown_name
from advisor.ground.resources import method_roots

if TYPE_CHECKING:
    from trainers.frame.job import Job


# Folders in ADVISE_METHODS bring recipes of their own, found in the same way.
__path__ += [str(root / "trainers") for root in method_roots()[1:]]


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
    module = import_module(f"{__name__}.{name}")
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
            if hasattr(import_module(f"{__name__}.{name}"), "train"):
                found.append(name)
    return found


def _modules() -> list[str]:
    return sorted(
        module.name for module in iter_modules(__path__) if not module.name.startswith("_")
    )
