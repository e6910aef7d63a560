"""A function of the user that scores answers, for all trainers that learn from a reward.

    reward: scoring.py:score

    def score(prompts: list[str], completions: list[str], **columns) -> list[float | None]

with the arguments that TRL's trainers use; the column `answer` is the right answer in the data, or
None. A score of None says that the function cannot judge the answer.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.errors import InputError, TrainingFailed

Score = Callable[[Sequence[str], Sequence[str], Sequence[str | None]], list[float | None]]


def load_user_reward(named: str, folder: Path) -> Score:
    """The function that `reward: file.py:function` names, checked at each call.

    Raises InputError if there is none.

    Args:
        folder: What a relative path is relative to.
    """
    file, _, name = named.rpartition(":")
    if not file or not name.isidentifier():
        raise InputError(
            f"'{named}' does not name a function",
            where="reward",
            allowed="file.py:function, such as scoring.py:score",
        )
    path = folder / Path(file).expanduser()
    if not path.is_file():
        raise InputError(
            f"no such file: {path}",
            where="reward",
            allowed="file.py:function, relative to the plan",
        )
    spec = importlib.util.spec_from_file_location("own_reward", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file", where="reward")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}", where="reward"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(
            f"{path} has no function '{name}'",
            where="reward",
            allowed=", ".join(there) or "it defines no function",
        )
    return _with_checks(function, named)


def _with_checks(function: Callable[..., Any], named: str) -> Score:
    parameters = inspect.signature(function).parameters
    takes_columns = "answer" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )

    def score(
        prompts: Sequence[str], completions: Sequence[str], answers: Sequence[str | None]
    ) -> list[float | None]:
        columns = {"answer": list(answers)} if takes_columns else {}
        try:
            found = list(function(prompts=list(prompts), completions=list(completions), **columns))
            scores = [None if value is None else float(value) for value in found]
        except (Exception, SystemExit) as error:
            raise TrainingFailed(
                f"{named} failed: {type(error).__name__}: {error}",
                where="reward",
                hint="it is called as f(prompts=[...], completions=[...], answer=[...])",
            ) from error
        if len(scores) != len(completions):
            raise TrainingFailed(
                f"{named} returned {len(scores)} scores for {len(completions)} answers",
                where="reward",
                allowed="one number for each answer",
            )
        bad = next(
            (
                place
                for place, value in enumerate(scores)
                if value is not None and not math.isfinite(value)
            ),
            None,
        )
        if bad is not None:
            raise TrainingFailed(
                f"{named} gave {scores[bad]} for the answer {completions[bad][:80]!r}",
                where="reward",
                allowed="finite numbers; None where it cannot judge an answer",
            )
        return scores

    return score
