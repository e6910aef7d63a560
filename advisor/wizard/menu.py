"""After the questions: the recommendation, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.errors import AdviseError, Stopped
from advisor.facts import Fact
from advisor.types import Advice, Answers, Candidate, Hardware
from advisor.wizard.asking import Checks, ask_answers, asker, stopped_words, words_of
from advisor.wizard.prompts import Option, Ui, terminal_ui
from advisor.wizard.saved import Saved
from advisor.wizard.walk import BACK, Question, Relevant, answer_of, applies, questions, walk, with_reply, without_stale

if TYPE_CHECKING:
    from rich.console import Console

VERDICTS = {"ranked_lower": "ranked lower", "forbidden": "ruled out", "too_big": "does not fit", "recommended": "recommended"}
PAGE_NAME = "advice.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What `advise` made of the answers."""

    advice: Advice
    plan: Any = None  # complete and runnable, or None
    plan_path: str | None = None  # where it was written
    missing: tuple[str, ...] = ()  # what a runnable plan still needs: "data.path"

    @property
    def runnable(self) -> bool:
        """True where "run it now" may be offered: a complete plan that trains something which fits."""
        return self.plan is not None and not self.missing and bool(self.advice.recommendation.composition.chain) and self.advice.fits


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
    state_file: Path | None = None,
    ui: Ui | None = None,
) -> int:
    """Ask, recommend, and do what the person chooses; returns the exit code.

    0 done, 3 nothing fits, 130 stopped (the answers are saved then), else what `actions.run` returned.
    """
    ui = ui or terminal_ui(console)
    checks = checks or Checks()
    try:
        answers = ask_answers(facts, hardware=hardware, earlier=earlier, ui=ui, checks=checks, relevant=relevant, state_file=state_file)
    except Stopped as stopped:
        ui.say(stopped.text())
        return stopped.exit_code
    closing = _Closing(facts, hardware, advise, actions, ui, checks, relevant)
    try:
        return closing.loop(answers)
    except (KeyboardInterrupt, EOFError):
        ui.say(stopped_words(Saved(answers=closing.answers, asked=tuple(fact.id for fact in questions(facts))), state_file))
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
    ) -> None:
        self.facts, self.hardware, self.advise, self.actions = facts, hardware, advise, actions
        self.ui, self.checks, self.relevant = ui, checks, relevant
        self.answers = Answers()

    def loop(self, answers: Answers) -> int:
        """Recommend, ask what now, do it, until something ends it. Returns the exit code."""
        self.answers = answers
        outcome = self._recommend()
        while True:
            if outcome.missing and outcome.advice.recommendation.composition.chain:
                self.ui.say(f"It cannot be run yet; missing: {', '.join(self._named(name) for name in outcome.missing)}", tone="warning")
            chosen = self.ui.choose("What now?", menu_options(outcome))
            if chosen == "quit":
                return 0 if outcome.advice.fits else 3
            if chosen == "run":
                return self.actions.run(outcome)
            if chosen == "plan":
                self.ui.say(self.actions.plan_text(outcome))
            elif chosen == "save":
                self._save_page(outcome)
            elif chosen == "why":
                self._why(outcome)
            elif self._change():
                outcome = self._recommend()

    def _recommend(self) -> Outcome:
        """The outcome for the answers, shown. Answers that cannot be used are shown with the fault and may be changed."""
        while True:
            try:
                outcome = self.advise(self.answers)
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
                options = [Option(value=True, label="Change an answer"), Option(value=False, label="Quit")]
                if not self.ui.choose("These answers cannot be used as they are.", options):
                    raise
                self._change()
                continue
            self.actions.show(outcome)
            return outcome

    def _named(self, name: str) -> str:
        for fact in self.facts.values():
            if name in (fact.id, fact.answer) and fact.ask:
                return f"{name} ({fact.ask.split(' (')[0]})"
        return name

    def _change(self) -> bool:
        """Ask one question again, then those that only now apply. False where nothing was changed."""
        open_facts = [fact for fact in questions(self.facts) if applies(fact, self.answers, self.facts)]
        options = [Option(value=fact.id, label=fact.ask.split(" (")[0], help=self._answer_words(fact)) for fact in open_facts]
        chosen = self.ui.choose("Which answer?", [*options, Option(value=BACK, label="Back")])
        if chosen is BACK:
            return False
        ask = asker(self.ui, self.hardware, self.checks)
        fact = self.facts[chosen]
        reply = ask(Question(fact=fact, number=1 + open_facts.index(fact), current=answer_of(self.answers, fact), can_go_back=True))
        if reply is BACK:
            return False
        changed = without_stale(self.facts, with_reply(self.answers, fact, reply))
        self.answers = walk(self.facts, ask, changed, asked=[fact.id for fact in open_facts], relevant=self.relevant)
        return True

    def _answer_words(self, fact: Fact) -> str:
        value = answer_of(self.answers, fact)
        if value is None:
            return "this machine" if fact.id == "gpu" else "I don't know"
        return words_of(fact, value)

    def _save_page(self, outcome: Outcome) -> None:
        name = self.ui.enter("File name of the page", hint="one file that you can forward; < and Enter: back", default=PAGE_NAME).strip() or PAGE_NAME
        if name == "<":
            return
        path = Path(name).expanduser()
        if path.exists():
            options = [Option(value=True, label="Replace it"), Option(value=False, label="Leave it as it is")]
            if not self.ui.choose(f"{path} exists already.", options):
                return
        try:
            self.ui.say(f"Saved: {self.actions.save_page(outcome, path)}")
        except (AdviseError, OSError) as error:
            self.ui.say(f"The page was not saved. {error}", tone="warning")

    def _why(self, outcome: Outcome) -> None:
        advice = outcome.advice
        options = [Option(value=advice.recommendation, label=f"Why {advice.recommendation.composition}")]
        options += [Option(value=candidate, label=f"Why not {candidate.composition}", help=VERDICTS[candidate.verdict]) for candidate in advice.alternatives]
        while (chosen := self.ui.choose("Why?", [*options, Option(value=BACK, label="Back")])) is not BACK:
            self.actions.explain(outcome, chosen)


def menu_options(outcome: Outcome) -> list[Option]:
    """The choices that make sense: "run it now" only for a complete plan that fits, the plan only where there is one."""
    options = [Option(value="run", label="Run it now", help="it can be stopped at any time and goes on where it was")] if outcome.runnable else []
    if outcome.plan is not None:
        options.append(Option(value="plan", label="Show the plan", help="the launch file"))
    return [
        *options,
        Option(value="change", label="Change an answer"),
        Option(value="save", label="Save as a page", help="one file to forward"),
        Option(value="why", label="Why?", help="walk through the reasons"),
        Option(value="quit", label="Quit"),
    ]
