"""After the questions: the recommendation, and what to do with it.

The choices are those that make sense, in the order of what is likely wanted. Each takes one line of
80 columns, so that the menu fits one screen of 24 lines.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.advice.types import Candidate
from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.types import Answers, Hardware
from advisor.record.next_step import TRIAL_ROWS
from advisor.ruleset.facts import Fact
from advisor.wizard.asking import ask_round, stopped_words
from advisor.wizard.conversation import Conversation, LeftOut
from advisor.wizard.outcome import Actions, Checks, Outcome
from advisor.wizard.prompts import Option, Ui, terminal_ui
from advisor.wizard.saved import save_answers
from advisor.wizard.walk import BACK, Relevant
from advisor.wizard.what_if import flip_words

if TYPE_CHECKING:
    from rich.console import Console

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
        mattering: Those that were not asked and may change the method.
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


def run_wizard(
    *,
    facts: Mapping[str, Fact],
    hardware: Hardware,
    advise: Callable[[Answers], Outcome],
    actions: Actions,
    console: Console,
    earlier: Answers | None = None,
    checks: Checks | None = None,
    relevant: Relevant | None = None,
    left_out: LeftOut | None = None,
    state_file: Path | None = None,
    ui: Ui | None = None,
) -> int:
    """Ask, recommend, and do what the person chooses; returns the exit code.

    0 done, 3 nothing fits, 130 stopped (the answers are saved then), else the code of the last
    training, which never ends the wizard where it failed.
    """
    ui = ui or terminal_ui(console)
    checks = checks or Checks()
    try:
        progress = ask_round(
            facts,
            hardware=hardware,
            earlier=earlier,
            ui=ui,
            checks=checks,
            relevant=relevant,
            state_file=state_file,
        )
    except Stopped as stopped:
        ui.say(stopped.text())
        return stopped.exit_code
    conversation = Conversation(
        progress,
        facts=facts,
        hardware=hardware,
        ui=ui,
        checks=checks,
        relevant=relevant,
        left_out=left_out,
    )
    try:
        code = _Closing(conversation, advise, actions).loop()
    except (KeyboardInterrupt, EOFError):
        ui.say(stopped_words(conversation.progress, state_file))
        return Stopped.exit_code
    except AdviseError:
        save_answers(conversation.progress, state_file)
        raise
    save_answers(conversation.progress, state_file)  # what was changed in the menu counts next time
    return code


class _Closing:
    """The menu after a recommendation."""

    def __init__(
        self, conversation: Conversation, advise: Callable[[Answers], Outcome], actions: Actions
    ) -> None:
        self.conversation, self.advise, self.actions = conversation, advise, actions
        self.ui, self.facts = conversation.ui, conversation.facts
        self.code = 0  # of the last training

    def loop(self) -> int:
        """Recommend, ask what now, do it, until something ends it. Returns the exit code."""
        talk = self.conversation
        outcome = self._recommend()
        looks: dict[str, Callable[[Outcome], object]] = {
            "whole": self.actions.show_all,
            "next_steps": self.actions.next_steps,
            "why": self._why,
            "plan": lambda outcome: self.ui.say(self.actions.plan_text(outcome)),
            "bundle": self._bundle,
            "trial": self._trial,
        }
        # Each returns whether the answers are others now.
        changes: dict[str, Callable[[Outcome], bool]] = {
            "ways_out": self._ways_out,
            "what_if": self._what_if,
            "change": lambda _: talk.change(),
            "skipped": lambda _: talk.answer_skipped(),
            "missing": lambda outcome: talk.put(self._askable(outcome)),
            "undo": lambda _: talk.undo(),
        }
        while True:
            skipped = talk.skipped()
            undo = talk.before[-1][-1] if talk.before else ""
            options = menu_options(
                outcome,
                askable=len(self._askable(outcome)),
                skipped=len(skipped),
                mattering=len(talk.mattering(skipped)),
                undo=undo,
            )
            chosen = self._choose(options)
            if chosen == "quit":
                self._say_later(outcome)
                return self.code or (0 if outcome.advice.fits else 3)
            if chosen == "run" and self._train(self.actions.run, outcome):
                return 0
            if chosen == "other":
                outcome = self._other(outcome) or outcome
            elif chosen in looks:
                self._look(looks[chosen], outcome)
            elif chosen in changes and changes[chosen](outcome):
                outcome = self._recommend()

    def _choose(self, options: list[Option]) -> Any:
        """What is chosen of the menu; on a small screen some of it is behind "More choices"."""
        if self.ui.rows >= ROOMY:
            return self.ui.choose("What now?", options)
        near, further = folded(options)
        while True:
            chosen = self.ui.choose("What now?", near)
            if chosen == MORE:
                chosen = self.ui.choose("What now?", [*further, Option(value=BACK, label="Back")])
            if chosen is not BACK:
                return chosen

    def _look(self, action: Callable[[Outcome], object], outcome: Outcome) -> None:
        """Do what changes no answer; what goes wrong in it is said, and is no end."""
        try:
            action(outcome)
        except Stopped:
            raise
        except (AdviseError, OSError) as error:
            self.ui.say(str(error), tone="warning")

    def _say_later(self, outcome: Outcome) -> None:
        """The command that goes on from here another time."""
        if not outcome.is_complete or outcome.plan_path is None:
            return
        path = shlex.quote(outcome.plan_path)
        self.ui.say(f"The plan is in {outcome.plan_path}. To go on later:")
        self.ui.say_line(
            f"  advise export {path} --to bundle"
            if outcome.other_machine
            else f"  advise run {path}"
        )

    # ----------------------------------------------------------------------- training

    def _train(self, action: Callable[[Outcome], int], outcome: Outcome) -> bool:
        """Whether a training ended well; what went wrong is said, and the menu comes back.

        Raises Stopped if it was interrupted: its words name the command that resumes.
        """
        try:
            self.code = action(outcome)
        except Stopped:
            raise
        except AdviseError as error:
            self.code = error.exit_code
            self.ui.say("")
            self.ui.say(error.text(), tone="warning")
        else:
            if self.code:
                self.ui.say("It ended without a result to use: see above.", tone="warning")
        return self.code == 0

    def _trial(self, outcome: Outcome) -> None:
        if self._train(self.actions.trial, outcome):
            self.ui.say("")
            self.ui.say(
                "It works. Its numbers say little about the whole run, which is the next step:"
                " Run it now, or later:"
            )
            self.ui.say_line(f"  advise run {shlex.quote(str(outcome.plan_path))}")

    def _bundle(self, outcome: Outcome) -> None:
        for line in self.actions.bundle(outcome):
            if line.startswith("  "):
                self.ui.say_line(line)
            else:
                self.ui.say(line)

    def _say_obstacles(self, outcome: Outcome) -> None:
        """What keeps the recommendation from being run, here or at all."""
        trains = bool(outcome.advice.recommendation.composition.chain)
        if outcome.missing and trains:
            self.ui.say(
                "It cannot be run yet; missing:"
                f" {', '.join(self._named(name) for name in outcome.missing)}",
                tone="warning",
            )
        if not outcome.is_complete:
            return
        if outcome.other_machine:
            self.ui.say(
                f"It cannot be run on this machine: {outcome.other_machine}.", tone="warning"
            )
            return
        for line in outcome.downloads:
            self.ui.say(line[0].upper() + line[1:], tone="quiet")
        for fault in outcome.lacking:
            self.ui.say(f"Before it can be run here: {fault.headline}", tone="warning")
            self.ui.say_line(f"  {fault.hint}")

    def _recommend(self) -> Outcome:
        """The outcome for the answers, shown.

        Answers that cannot be used are shown with the fault and may be changed.
        """
        while True:
            self.ui.say("Working it out …", tone="quiet")  # a model may have to be looked up
            try:
                outcome = self._as_taken(self.advise(self.conversation.answers))
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
                options = [
                    Option(value=True, label="Change an answer"),
                    Option(value=False, label="Quit"),
                ]
                if not self.ui.choose("These answers cannot be used as they are.", options):
                    raise
                self.conversation.change()
                continue
            unasked = [
                fact
                for fact in self._askable(outcome)
                if fact.order is None and fact.id not in self.conversation.progress.asked
            ]
            if unasked and outcome.advice.fits and self.conversation.put(unasked):
                continue
            self.actions.show(outcome)
            self._say_obstacles(outcome)
            return outcome

    def _as_taken(self, outcome: Outcome) -> Outcome:
        """The outcome with the method that was taken before, while it is still a candidate."""
        talk = self.conversation
        if talk.taken is None or talk.taken == str(outcome.advice.recommendation.composition):
            return outcome
        for candidate in outcome.advice.alternatives:
            if str(candidate.composition) == talk.taken and candidate.forced_ok:
                try:
                    return self.actions.choose(outcome, candidate)
                except AdviseError:
                    break
        self.ui.say(f"With these answers {talk.taken} cannot be taken any more.", tone="warning")
        talk.taken = None
        return outcome

    def _named(self, name: str) -> str:
        for fact in self.facts.values():
            if name in (fact.id, fact.answer) and fact.ask:
                return f"{name} ({fact.ask.split(' (')[0]})"
        return name

    def _askable(self, outcome: Outcome) -> list[Fact]:
        """The questions whose answers a runnable plan still needs."""
        wanted = outcome.missing if outcome.advice.recommendation.composition.chain else ()
        return [
            fact for fact in self.facts.values() if fact.ask and (fact.answer or fact.id) in wanted
        ]

    # ----------------------------------------------------------------------- reasons

    def _why(self, outcome: Outcome) -> None:
        if outcome.ruleset is None:
            self.actions.explain(outcome, outcome.advice.recommendation)
        else:
            from advisor.wizard.reasons import Trail

            Trail(outcome.advice, outcome.ruleset).walk(self.ui)

    def _other(self, outcome: Outcome) -> Outcome | None:
        """Everything about another candidate; the outcome with it where it is taken, else None."""
        options = [
            Option(value=candidate, label=str(candidate.composition), help=verdict_of(candidate))
            for candidate in outcome.advice.alternatives
        ]
        while (
            chosen := self.ui.choose(
                "Another method: which one?", [*options, Option(value=BACK, label="Back")]
            )
        ) is not BACK:
            self.actions.explain(outcome, chosen)
            if not chosen.forced_ok:
                continue
            take = [
                Option(value=True, label="Take it", help="the plan is written for it"),
                Option(value=False, label="Back to the list"),
            ]
            if not self.ui.choose(f"Take {chosen.composition} instead?", take):
                continue
            try:
                taken = self.actions.choose(outcome, chosen)
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
                continue
            self.conversation.remember(outcome.advice)
            self.conversation.taken = str(chosen.composition)
            self.actions.show(taken)
            self._say_obstacles(taken)
            return taken
        return None

    def _what_if(self, outcome: Outcome) -> bool:
        options = [
            Option(value=flip, label=flip_words(flip, self.facts), help=f"leads to {flip.to}")
            for flip in outcome.advice.flips
        ]
        chosen = self.ui.choose(
            "What would change it? Choose one to try it; it can be undone.",
            [*options, Option(value=BACK, label="Back")],
        )
        return self._try(outcome, chosen)

    def _try(self, outcome: Outcome, chosen: Any) -> bool:
        """Go on with a change that was chosen from a list; False for "Back"."""
        if chosen is BACK:
            return False
        self.conversation.try_change(outcome.advice, chosen.change)
        return True

    def _ways_out(self, outcome: Outcome) -> bool:
        stuck = outcome.advice.nothing_fits
        ways = stuck.ways_out if stuck is not None else ()
        for way in ways:
            self.ui.say(way.text, lead="- ")
            self.ui.say_line(f"  {way.command}")
        options = [Option(value=way, label=way.text[0].upper() + way.text[1:]) for way in ways]
        chosen = self.ui.choose(
            "Choose one to try it; it can be undone.", [*options, Option(value=BACK, label="Back")]
        )
        return self._try(outcome, chosen)
