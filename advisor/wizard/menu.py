"""After the questions: the recommendation, and what to do with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.types import Answers, Hardware
from advisor.ruleset.facts import Fact
from advisor.wizard.asking import ask_round, asker, stopped_words
from advisor.wizard.checks import Checks
from advisor.wizard.menu_options import menu_options, verdict_of
from advisor.wizard.outcome import Actions, Outcome
from advisor.wizard.prompts import Option, Ui, terminal_ui
from advisor.wizard.saved import Saved
from advisor.wizard.walk import (
    BACK,
    Question,
    Relevant,
    Reply,
    Skipped,
    answer_of,
    applies,
    for_now,
    questions,
    skipped_questions,
    walk,
    with_reply,
    without_stale,
)
from advisor.wizard.what_if import change_answers, flip_words
from advisor.wizard.words import words_of

if TYPE_CHECKING:
    from rich.console import Console

PAGE_NAME = "advice.html"

LeftOut = Callable[[Answers, Sequence[Fact]], list[Skipped]]


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
    closing = _Closing(facts, hardware, advise, actions, ui, checks, relevant, left_out, progress)
    try:
        return closing.loop()
    except (KeyboardInterrupt, EOFError):
        ui.say(stopped_words(closing.progress, state_file))
        return Stopped.exit_code


class _Closing:
    """The menu after a recommendation; holds the answers, which it can change."""

    def __init__(
        self,
        facts: Mapping[str, Fact],
        hardware: Hardware,
        advise: Callable[[Answers], Outcome],
        actions: Actions,
        ui: Ui,
        checks: Checks,
        relevant: Relevant | None,
        left_out: LeftOut | None,
        progress: Saved,
    ) -> None:
        self.facts, self.hardware, self.advise, self.actions = facts, hardware, advise, actions
        self.ui, self.checks, self.relevant, self.left_out = ui, checks, relevant, left_out
        self.progress = progress
        self.before: list[
            tuple[Saved, str]
        ] = []  # the answers before each "what if", and the answer they led to
        self.code = 0  # of the last training

    @property
    def answers(self) -> Answers:
        return self.progress.answers

    def loop(self) -> int:
        """Recommend, ask what now, do it, until something ends it. Returns the exit code."""
        outcome = self._recommend()
        looks: dict[str, Callable[[Outcome], object]] = {
            "whole": self.actions.show_all,
            "next_steps": self.actions.next_steps,
            "why": self._why,
            "plan": lambda outcome: self.ui.say(self.actions.plan_text(outcome)),
            "save": self._save_page,
            "bundle": self._bundle,
            "trial": self._trial,
        }
        # Each returns whether the answers are others now.
        changes: dict[str, Callable[[Outcome], bool]] = {
            "ways_out": self._ways_out,
            "what_if": self._what_if,
            "change": lambda _: self._change(),
            "skipped": lambda _: self._answer_skipped(),
            "missing": lambda outcome: self._put(self._askable(outcome)),
            "undo": lambda _: self._undo(),
        }
        while True:
            skipped = self._skipped()
            undo = self.before[-1][1] if self.before else ""
            options = menu_options(
                outcome,
                askable=len(self._askable(outcome)),
                skipped=len(skipped),
                mattering=len(self._mattering(skipped)),
                undo=undo,
            )
            chosen = self.ui.choose("What now?", options)
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
                outcome = self.advise(self.answers)
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
                options = [
                    Option(value=True, label="Change an answer"),
                    Option(value=False, label="Quit"),
                ]
                if not self.ui.choose("These answers cannot be used as they are.", options):
                    raise
                self._change()
                continue
            unasked = [
                fact
                for fact in self._askable(outcome)
                if fact.order is None and fact.id not in self.progress.asked
            ]
            if unasked and outcome.advice.fits and self._put(unasked):
                continue
            self.actions.show(outcome)
            self._say_obstacles(outcome)
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

    def _put(self, facts: Sequence[Fact]) -> bool:
        """Put these questions, answered before or not. False where no answer came of it."""
        before = self.answers
        for fact in facts:
            reply = self._ask_one(fact, number=len(self.progress.asked) + 1)
            if reply is BACK:
                break
            self._take(with_reply(self.facts, self.answers, fact, reply), asked=fact.id)
        return dict(self.answers.known) != dict(before.known)

    def _ask_one(self, fact: Fact, *, number: int) -> Reply:
        return asker(self.ui, self.hardware, self.checks)(
            Question(
                fact=fact, number=number, current=answer_of(self.answers, fact), can_go_back=True
            )
        )

    # ----------------------------------------------------------------------- what was not asked

    def _skipped(self) -> list[Fact]:
        return skipped_questions(self.facts, self.answers, self.progress.asked)

    def _mattering(self, skipped: Sequence[Fact]) -> set[str]:
        """Those of the questions not asked that matter by now: another answer was tried since."""
        opened = frozenset(fact.id for fact in skipped)
        return {
            fact.id
            for fact in skipped
            if self.relevant is None or self.relevant(fact.id, self.answers, opened)
        }

    def _say_left_out(self) -> None:
        """Which questions were not asked, by the reason why not."""
        skipped = self._skipped()
        if not skipped or self.left_out is None:
            return
        mattering = self._mattering(skipped)
        by_reason: dict[str, list[Fact]] = {
            "Not asked yet, and it may change the method:": [
                fact for fact in skipped if fact.id in mattering
            ]
        }
        for one in self.left_out(
            self.answers, [fact for fact in skipped if fact.id not in mattering]
        ):
            by_reason.setdefault(f"Not asked, since {one.because}:", []).append(one.fact)
        self.ui.say("")
        for reason, facts in by_reason.items():
            for place, fact in enumerate(facts):
                if place == 0:
                    self.ui.say(reason, tone="quiet")
                self.ui.say(fact.ask.split(" (")[0], tone="quiet", lead="  - ")

    def _answer_skipped(self) -> bool:
        """Say why questions were left out, and put them after all."""
        self._say_left_out()
        wanted = {fact.id for fact in self._skipped()}
        before = self.answers
        self._walk(lambda fact_id, answers, opened: fact_id in wanted)
        return self.answers is not before

    def _walk(self, relevant: Relevant | None) -> None:
        """Put the questions that are still open and relevant."""

        def keep(answers: Answers, asked: tuple[str, ...]) -> None:
            self.progress = Saved(answers=answers, asked=asked)

        answers = walk(
            self.facts,
            asker(self.ui, self.hardware, self.checks),
            self.answers,
            asked=self.progress.asked,
            relevant=relevant,
            keep=keep,
            leave=True,
        )
        self.progress = Saved(answers=answers, asked=self.progress.asked)

    # ----------------------------------------------------------------------- other answers

    def _change(self) -> bool:
        """Ask one question again, then those that only now apply.

        False where nothing was changed.
        """
        open_facts = [
            fact for fact in questions(self.facts) if applies(fact, self.answers, self.facts)
        ]
        open_facts += [
            fact
            for fact in self.facts.values()
            if fact.order is None and fact.id in self.progress.asked
        ]
        options = [
            Option(value=fact.id, label=fact.ask.split(" (")[0], help=self._answer_words(fact))
            for fact in open_facts
        ]
        chosen = self.ui.choose("Which answer?", [*options, Option(value=BACK, label="Back")])
        if chosen is BACK:
            return False
        fact = self.facts[chosen]
        reply = self._ask_one(fact, number=1 + open_facts.index(fact))
        if reply is BACK:
            return False
        self._take(with_reply(self.facts, self.answers, fact, reply), asked=fact.id)
        return True

    def _take(self, answers: Answers, *, asked: str) -> None:
        """Go on with one other answer: what no longer applies is dropped, what only now matters is
        asked.
        """
        history = (*self.progress.asked, *((asked,) if asked not in self.progress.asked else ()))
        self.progress = Saved(answers=without_stale(self.facts, answers), asked=history)
        self._walk(for_now(self.relevant))

    def _try(self, outcome: Outcome, change: Mapping[str, Any]) -> bool:
        """Go on with one change, which can be undone; what only now matters can be answered from
        the menu.
        """
        self.before.append((self.progress, str(outcome.advice.recommendation.composition)))
        answers = without_stale(
            self.facts, change_answers(self.answers, change, outcome.advice, self.facts)
        )
        stated = (
            fact.id
            for fact in questions(self.facts)
            if fact.id in answers.known and fact.id not in self.progress.asked
        )
        self.progress = Saved(answers=answers, asked=(*self.progress.asked, *stated))
        return True

    def _undo(self) -> bool:
        self.progress, _ = self.before.pop()
        return True

    def _answer_words(self, fact: Fact) -> str:
        value = answer_of(self.answers, fact)
        if value is not None:
            return words_of(fact, value)
        if fact.id not in self.progress.asked:
            return "not asked"
        return "this machine" if fact.id == "gpu" else "I don't know"

    # ----------------------------------------------------------------------- reasons

    def _why(self, outcome: Outcome) -> bool:
        if outcome.ruleset is None:
            self.actions.explain(outcome, outcome.advice.recommendation)
        else:
            from advisor.wizard.reasons import Trail

            Trail(outcome.advice, outcome.ruleset).walk(self.ui)
        return False

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
            self.before.append((self.progress, str(outcome.advice.recommendation.composition)))
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
        return chosen is not BACK and self._try(outcome, chosen.change)

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
        return chosen is not BACK and self._try(outcome, chosen.change)

    def _save_page(self, outcome: Outcome) -> bool:
        name = (
            self.ui.enter(
                "File name of the page",
                hint="one file that you can forward; < and Enter: back",
                default=PAGE_NAME,
            ).strip()
            or PAGE_NAME
        )
        if name == "<":
            return False
        path = Path(name).expanduser()
        if path.exists():
            options = [
                Option(value=True, label="Replace it"),
                Option(value=False, label="Leave it as it is"),
            ]
            if not self.ui.choose(f"{path} exists already.", options):
                return False
        try:
            self.ui.say(f"Saved: {self.actions.save_page(outcome, path)}")
        except (AdviseError, OSError) as error:
            self.ui.say(f"The page was not saved. {error}", tone="warning")
        return False
