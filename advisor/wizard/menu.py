"""After the questions: the recommendation, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.advice.types import Advice, Candidate
from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.types import Answers, Hardware
from advisor.ruleset.facts import Fact
from advisor.wizard.asking import ask_round, asker, stopped_words
from advisor.wizard.checks import Checks
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

    from advisor.ruleset.model import Ruleset

VERDICTS = {
    "ranked_lower": "ranked lower",
    "forbidden": "ruled out",
    "too_big": "does not fit",
    "recommended": "recommended",
}
PAGE_NAME = "advice.html"

LeftOut = Callable[[Answers, Sequence[Fact]], list[Skipped]]


def _verdict_words(candidate: Candidate) -> str:
    if candidate.verdict == "too_big" and candidate.estimate.fits == "may_fit":
        return "may not fit"
    return VERDICTS[candidate.verdict]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What `advise` made of the answers."""

    advice: Advice
    ruleset: Ruleset | None = (
        # the rules that decided; without them the reasons are shown as they stand in the advice
        None
    )
    plan: Any = None  # complete, or None
    plan_path: str | None = None  # where it was written
    missing: tuple[str, ...] = ()  # what a runnable plan still needs: "data.path"

    @property
    def runnable(self) -> bool:
        """True where "run it now" may be offered: a complete plan that trains something which fits,
        and that `advise run` starts.
        """
        stages = self.advice.recommendation.stages
        return (
            self.plan is not None
            and not self.missing
            and bool(stages)
            and self.advice.fits
            and not any(stage.is_sharded for stage in stages)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Actions:
    """What the menu does, given by the caller."""

    show: Callable[[Outcome], None]  # print the recommendation
    run: Callable[[Outcome], int]  # train; the exit code
    plan_text: Callable[[Outcome], str]
    save_page: Callable[[Outcome, Path], Path]  # write the page; where it lies
    explain: Callable[[Outcome, Candidate], None]  # print everything about one candidate


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

    0 done, 3 nothing fits, 130 stopped (the answers are saved then), else what `actions.run`
    returned.
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

    @property
    def answers(self) -> Answers:
        return self.progress.answers

    def loop(self) -> int:
        """Recommend, ask what now, do it, until something ends it. Returns the exit code."""
        outcome = self._recommend()
        does: dict[str, Callable[[Outcome], bool]] = {
            "ways_out": self._ways_out,
            "why": self._why,
            "why_not": self._why_not,
            "what_if": self._what_if,
            "change": lambda _: self._change(),
            "skipped": lambda _: self._answer_skipped(),
            "missing": lambda outcome: self._put(self._askable(outcome)),
            "undo": lambda _: self._undo(),
            "save": self._save_page,
        }
        while True:
            if outcome.missing and outcome.advice.recommendation.composition.chain:
                self.ui.say(
                    "It cannot be run yet; missing:"
                    f" {', '.join(self._named(name) for name in outcome.missing)}",
                    tone="warning",
                )
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
                return 0 if outcome.advice.fits else 3
            if chosen == "run":
                return self.actions.run(outcome)
            if chosen == "plan":
                self.ui.say(self.actions.plan_text(outcome))
            elif does[chosen](outcome):
                outcome = self._recommend()

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
            self._say_left_out()
            self.actions.show(outcome)
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
        """Put the questions that were left out after all."""
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
        self._walk(self.relevant)

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

    def _why_not(self, outcome: Outcome) -> bool:
        options = [
            Option(
                value=candidate,
                label=f"Why not {candidate.composition}?",
                help=_verdict_words(candidate),
            )
            for candidate in outcome.advice.alternatives
        ]
        while (
            chosen := self.ui.choose("Why not?", [*options, Option(value=BACK, label="Back")])
        ) is not BACK:
            self.actions.explain(outcome, chosen)
        return False

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


def menu_options(
    outcome: Outcome, *, askable: int = 0, skipped: int = 0, mattering: int = 0, undo: str = ""
) -> list[Option]:
    """The choices that make sense: "run it now" only for a complete plan that fits, the plan only
    where there is one.
    """
    advice = outcome.advice
    options = (
        [
            Option(
                value="run",
                label="Run it now",
                help="it can be stopped at any time and goes on where it was",
            )
        ]
        if outcome.runnable
        else []
    )
    if askable:
        options.append(
            Option(
                value="missing",
                label="Answer what is missing",
                help=f"{askable} question{'s' if askable > 1 else ''}, then it can be run",
            )
        )
    if advice.nothing_fits is not None and advice.nothing_fits.ways_out:
        options.append(
            Option(value="ways_out", label="What would fit", help="each with the line to type")
        )
    if outcome.plan is not None:
        options.append(
            Option(
                value="plan",
                label="Show the plan",
                help=f"the launch file{f', {outcome.plan_path}' if outcome.plan_path else ''}",
            )
        )
    options.append(
        Option(value="why", label="Why this?", help="each rule, the facts behind it and its source")
    )
    if advice.alternatives:
        options.append(
            Option(
                value="why_not", label="Why not another?", help="reasons and numbers of the others"
            )
        )
    if advice.flips:
        options.append(
            Option(
                value="what_if",
                label="What would change it?",
                help="try another answer, other data or another card",
            )
        )
    options.append(Option(value="change", label="Change an answer"))
    if skipped:
        changes = (
            f"{mattering} may change the method" if mattering else "no answer changes the method"
        )
        options.append(
            Option(
                value="skipped",
                label="Answer what was not asked",
                help=f"{skipped} question{'s' if skipped > 1 else ''}; {changes}",
            )
        )
    if undo:
        options.append(Option(value="undo", label="Undo the change", help=f"back to {undo}"))
    return [
        *options,
        Option(value="save", label="Save as a page", help="one file to forward"),
        Option(value="quit", label="Quit"),
    ]
