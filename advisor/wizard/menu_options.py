"""The choices of the closing menu: those that make sense, in the order of what is likely wanted.

Each takes one line of 80 columns, so that the menu fits one screen of 24 lines.
"""

from __future__ import annotations

from collections.abc import Iterator

from advisor.advice.types import Candidate
from advisor.plan.next_run import TRIAL_ROWS
from advisor.wizard.outcome import Outcome
from advisor.wizard.prompts import Option

VERDICTS = {
    "ranked_lower": "ranked lower",
    "forbidden": "ruled out",
    "too_big": "does not fit",
    "recommended": "recommended",
}
# On a screen of fewer lines the answer and the whole menu do not stand beside each other.
ROOMY = 34
NEAR = ("run", "trial", "bundle", "missing", "ways_out", "next_steps", "whole", "change", "quit")
MORE = "more"


def verdict_of(candidate: Candidate) -> str:
    """'does not fit': what became of a candidate, in two or three words."""
    if candidate.verdict == "too_big" and candidate.estimate.fits == "may_fit":
        return "may not fit"
    return VERDICTS[candidate.verdict]


def menu_options(
    outcome: Outcome, *, askable: int = 0, skipped: int = 0, mattering: int = 0, undo: str = ""
) -> list[Option]:
    """The choices for an outcome.

    "Run it now" comes first where this machine can run the plan, the bundle where another one must.

    Args:
        askable: Questions whose answers the plan still needs.
        skipped: Questions that were not asked.
        mattering: Those of them that may change the method.
        undo: The answer before the last change; empty without one.
    """
    return [
        *_training(outcome),
        *_missing(outcome, askable),
        *_looking(outcome),
        *_changing(outcome, skipped, mattering, undo),
        Option(value="quit", label="Quit"),
    ]


def folded(options: list[Option]) -> tuple[list[Option], list[Option]]:
    """The menu of a small screen, and what its "More choices" opens."""
    near = [option for option in options if option.value in NEAR]
    further = [option for option in options if option.value not in NEAR]
    if len(further) < 2:
        return options, []
    more = Option(value=MORE, label="More choices", help="why, other methods, the plan, a page")
    return [*near[:-1], more, near[-1]], further


def _training(outcome: Outcome) -> Iterator[Option]:
    if outcome.is_runnable:
        help_ = outcome.first or "Ctrl-C saves and stops; it resumes"
        yield Option(value="run", label="Run it now", help=help_)
        if outcome.trial_steps:
            yield Option(
                value="trial",
                label=f"Try it on {TRIAL_ROWS} rows",
                help=f"{outcome.trial_steps} steps, to see that it works",
            )
    elif outcome.is_complete:
        yield Option(value="bundle", label="Make a bundle to carry to that machine")


def _missing(outcome: Outcome, askable: int) -> Iterator[Option]:
    if askable:
        some = f"{askable} question{'s' if askable > 1 else ''}"
        yield Option(
            value="missing", label="Answer what is missing", help=f"{some}, then it can be run"
        )
    stuck = outcome.advice.nothing_fits
    if stuck is not None and stuck.ways_out:
        yield Option(value="ways_out", label="What would fit", help="each with the line to type")
    elif not outcome.advice.recommendation.composition.chain:
        yield Option(value="next_steps", label="What to do next", help="step by step")


def _looking(outcome: Outcome) -> Iterator[Option]:
    advice = outcome.advice
    yield Option(value="whole", label="The whole answer", help="every reason and number")
    yield Option(value="why", label="Why this?", help="each rule, its facts and its source")
    if advice.alternatives:
        yield Option(value="other", label="Another method", help="why not, and take it anyway")
    if advice.flips:
        yield Option(value="what_if", label="What would change it?", help="try another answer")
    if outcome.plan is not None:
        yield Option(value="plan", label="Show the plan", help=outcome.plan_path or "")


def _changing(outcome: Outcome, skipped: int, mattering: int, undo: str) -> Iterator[Option]:
    yield Option(value="change", label="Change an answer")
    if skipped:
        some = f"{skipped} question{'s' if skipped > 1 else ''}"
        changes = f"{mattering} may change the method" if mattering else "the method stays"
        yield Option(value="skipped", label="Answer what was not asked", help=f"{some}; {changes}")
    if undo:
        yield Option(value="undo", label="Undo the change", help=f"back to {undo}")
