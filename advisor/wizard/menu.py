"""After the questions: the recommendation, and what to do with it.

The choices are those that make sense, in the order of what is likely wanted. Each takes one line of
80 columns, so that the menu fits one screen of 24 lines.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from advisor.advice.types import Candidate, Flip, WayOut
from advisor.ground.errors import AdviseError, Stopped
from advisor.ground.types import AnswerSet
from advisor.methods import methods, remedy
from advisor.record.next_step import TRIAL_ROWS
from advisor.ruleset.facts import Fact
from advisor.ruleset.phrases import method_words
from advisor.wizard.asking import ask_round, save_and_stop
from advisor.wizard.conversation import Conversation, can_be_tried
from advisor.wizard.outcome import Actions, Interview, WizardOutcome
from advisor.wizard.prompts import GO_BACK, Option
from advisor.wizard.saved import save_answers
from advisor.wizard.walk import BACK, short_question

# On a screen of fewer lines the answer and the whole menu do not stand beside each other.
ROOMY = 34
NEAR = ("run", "trial", "bundle", "missing", "ways_out", "next_steps", "whole", "change", "quit")
MORE = "more"
TRY = "Choose one to try it; “Change an answer” takes it back."


def run_wizard(
    interview: Interview,
    advise: Callable[[AnswerSet], WizardOutcome],
    actions: Actions,
    *,
    earlier: AnswerSet | None = None,
) -> int:
    """Ask, recommend, and do what the person chooses; returns the exit code.

    0 done, 3 nothing fits, 130 stopped (the answers are saved then), else the code of the last
    training, which never ends the wizard if it failed.
    """
    try:
        conversation = Conversation(interview, ask_round(interview, earlier))
    except Stopped as stopped:
        interview.ui.say(stopped.text())
        return stopped.exit_code
    try:
        code = _Closing(conversation, advise, actions).loop()
    except (KeyboardInterrupt, EOFError):
        interview.ui.say(save_and_stop(interview, conversation.progress))
        return Stopped.exit_code
    except AdviseError:
        save_answers(conversation.progress, interview.state_file)
        raise
    # What was changed in the menu counts next time.
    save_answers(conversation.progress, interview.state_file)
    return code


def menu_options(
    outcome: WizardOutcome, *, askable: int = 0, skipped: int = 0, mattering: int = 0
) -> Iterator[Option]:
    """The choices for an outcome.

    "Run it now" comes first if this machine can run the plan, the bundle if another one must.

    Args:
        askable: Questions whose answers the plan still needs.
        mattering: Those that were not asked and may change the method.
    """
    advice, stuck = outcome.advice, outcome.advice.nothing_fits
    outside = advice.situation.outside
    # Of a model whose weights nobody has there is no other method, and no answer makes one.
    is_closed = outside is not None and outside.is_model and bool(outside.instead)
    if outcome.is_complete and not outcome.other_machine:
        help_ = outcome.first or "Ctrl-C saves and stops; it resumes"
        yield Option(value="run", label="Run it now", help=help_)
        steps = f"{outcome.trial_steps} steps, to see that it works"
        if outcome.trial_steps:
            yield Option(value="trial", label=f"Try it on {TRIAL_ROWS} rows", help=steps)
    elif outcome.is_complete:
        yield Option(value="bundle", label="Make a bundle to carry to that machine")
    if askable:
        some = f"{_questions(askable)}, then it can be run"
        yield Option(value="missing", label="Answer what is missing", help=some)
    if stuck is not None and stuck.ways_out:
        yield Option(value="ways_out", label="What would fit", help="each with the line to type")
    elif not advice.recommendation.composition.chain or advice.recommendation.engine:
        yield Option(value="next_steps", label="What to do next", help="step by step")
    yield Option(value="whole", label="The whole answer", help="every reason and number")
    yield Option(value="why", label="Why this?", help="each rule, its facts and its source")
    if advice.alternatives and not is_closed:
        yield Option(value="other", label="Another method", help="why not, and take it anyway")
    if any(map(can_be_tried, advice.flips)) and not is_closed:
        yield Option(value="what_if", label="What would change it?", help="try another answer")
    if outcome.general is not None:
        mixes = "{" in outcome.general
        label = "Keep its general ability" if mixes else "Train on your rows alone"
        help_ = "mix in general questions, which it answers itself"
        help_ = help_ if mixes else "without the general questions that are mixed in"
        yield Option(value="general", label=label, help=help_)
    if outcome.plan is not None:
        yield Option(value="plan", label="Show the plan", help=outcome.plan_path or "")
    yield Option(value="change", label="Change an answer")
    if skipped and not is_closed:
        changes = f"{mattering} may change the method" if mattering else "the method stays"
        some = f"{_questions(skipped)}; {changes}"
        yield Option(value="skipped", label="Answer what was not asked", help=some)
    yield Option(value="quit", label="Quit")


def _in_words(candidate: Candidate) -> str:
    """'ranked lower: learning from examples, with QLoRA'."""
    composition, known = candidate.composition, methods().objectives
    parts = [remedy(name).phrase for name in composition.remedies]
    if composition.chain:
        steps = ", then ".join(known[name].short for name in composition.chain)
        tasks = " for each task" if composition.per_task else ""
        parts.append(f"{steps}, with {method_words(str(composition.scheme))}{tasks}")
    return f"{candidate.verdict_words}: {'; '.join(parts)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _questions(count: int) -> str:
    return f"{count} question{'s' if count > 1 else ''}"


def folded(options: Sequence[Option]) -> tuple[list[Option], list[Option]]:
    """The menu of a small screen, and what its "More choices" opens."""
    near = [option for option in options if option.value in NEAR]
    further = [option for option in options if option.value not in NEAR]
    if len(further) < 2:
        return list(options), []
    more = Option(value=MORE, label="More choices", help="why, other methods, the plan")
    return [*near[:-1], more, near[-1]], further


class _Closing:
    """The menu after a recommendation."""

    def __init__(
        self,
        conversation: Conversation,
        advise: Callable[[AnswerSet], WizardOutcome],
        actions: Actions,
    ) -> None:
        self.conversation, self.advise, self.actions = conversation, advise, actions
        self.ui, self.facts = conversation.ui, conversation.facts
        self.code = 0  # of the last training

    def loop(self) -> int:
        """Recommend, ask what now, do it, until something ends it. Returns the exit code."""
        talk = self.conversation
        outcome = self._recommend()
        looks: dict[str, Callable[[WizardOutcome], object]] = {
            "whole": self.actions.show_all,
            "next_steps": self.actions.next_steps,
            "why": self.actions.why,
            "plan": self.actions.plan,
            "bundle": self._bundle,
            "trial": self._trial,
        }
        # Each returns whether the answers are others now.
        changes: dict[str, Callable[[WizardOutcome], bool]] = {
            "ways_out": self._ways_out,
            "what_if": self._what_if,
            "change": lambda _: talk.change(),
            "skipped": lambda _: talk.answer_skipped(),
            "missing": lambda outcome: talk.put(self._askable(outcome)),
        }
        while True:
            chosen = self._choose(outcome)
            if chosen == "quit":
                self._say_later(outcome)
                return self.code or (0 if outcome.advice.fits else 3)
            if chosen == "run" and self._train(self.actions.run, outcome):
                return 0
            if chosen == "other":
                outcome = self._other(outcome) or outcome
            elif chosen == "general":
                outcome = self.actions.set_general(outcome)
                rows = (
                    "your rows alone" if "{" in str(outcome.general) else "general questions, too"
                )
                self.ui.say(f"It trains on {rows}: {outcome.plan_path}.")
            elif chosen in looks:
                self._look(looks[chosen], outcome)
            elif chosen in changes and changes[chosen](outcome):
                outcome = self._recommend()

    def _choose(self, outcome: WizardOutcome) -> Any:
        talk = self.conversation
        skipped = talk.skipped()
        options = list(
            menu_options(
                outcome,
                askable=len(self._askable(outcome)),
                skipped=len(skipped),
                mattering=len(talk.mattering(skipped)),
            )
        )
        # On a low screen the answer has scrolled off, or what was looked at meanwhile hides it.
        is_low = self.ui.rows < ROOMY
        near, further = folded(options) if is_low else (options, [])
        asks = f"{outcome.headline}\nWhat now?".lstrip() if is_low else "What now?"
        chosen: Any = BACK
        while chosen is BACK:
            chosen = self.ui.choose(asks, near)
            if chosen == MORE:
                chosen = self.ui.choose("What now?", [*further, GO_BACK])
        return chosen

    def _look(self, action: Callable[[WizardOutcome], object], outcome: WizardOutcome) -> None:
        try:
            action(outcome)
        except Stopped:
            raise
        except (AdviseError, OSError) as error:
            self.ui.say(str(error), tone="warning")

    def _say_later(self, outcome: WizardOutcome) -> None:
        if outcome.is_complete and outcome.plan_path is not None:
            path = shlex.quote(outcome.plan_path)
            line = f"export {path} --to bundle" if outcome.other_machine else f"run {path}"
            self.ui.say(f"The plan is in {outcome.plan_path}. To go on later:")
            self.ui.say_line(f"  advise {line}")

    # ----------------------------------------------------------------------- training

    def _train(self, action: Callable[[WizardOutcome], int], outcome: WizardOutcome) -> bool:
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

    def _trial(self, outcome: WizardOutcome) -> None:
        if self._train(self.actions.trial, outcome):
            self.ui.say("It works. Its numbers say little about the whole run: “Run it now”.")

    def _bundle(self, outcome: WizardOutcome) -> None:
        for line in self.actions.bundle(outcome):
            say = self.ui.say_line if line.startswith("  ") else self.ui.say
            say(line)

    # ----------------------------------------------------------------------- the recommendation

    def _recommend(self) -> WizardOutcome:
        """The outcome for the answers, shown.

        Answers that cannot be used are shown with the fault and may be changed.
        """
        talk = self.conversation
        while True:
            self.ui.say("Working it out …", tone="quiet")  # a model may have to be looked up
            try:
                outcome = self._with_chosen(self.advise(talk.answers))
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
                options = [
                    Option(value=True, label="Change an answer"),
                    Option(value=False, label="Quit"),
                ]
                if not self.ui.choose("These answers cannot be used as they are.", options):
                    raise
                talk.change()
                continue
            unasked = [fact for fact in self._askable(outcome) if fact.order is None]
            if outcome.first_ask and talk.answers.value(outcome.first_ask) is None:
                unasked.append(self.facts[outcome.first_ask])
            unasked = [fact for fact in unasked if fact.id not in talk.progress.asked]
            if not (unasked and outcome.advice.fits and talk.put(unasked)):
                self._show(outcome)
                return outcome

    def _show(self, outcome: WizardOutcome) -> None:
        self.actions.show(outcome)
        if self._waited_for(outcome):
            names = ", ".join(self._named(name) for name in self._waited_for(outcome))
            self.ui.say(f"It cannot be run yet; still open: {names}", tone="warning")
        if outcome.is_complete and outcome.other_machine:
            why = outcome.other_machine
            self.ui.say(f"It cannot be run on this machine: {why}.", tone="warning")
        elif outcome.is_complete:
            for line in outcome.downloads:
                self.ui.say(_capital(line), tone="quiet")
            for fault in outcome.lacking:
                self.ui.say(f"Before it can be run here: {fault.headline}", tone="warning")
                self.ui.say_line(f"  {fault.hint}")

    def _named(self, name: str) -> str:
        asked = (fact for fact in self.facts.values() if name in (fact.id, fact.answer))
        return next((short_question(fact) for fact in asked if fact.ask), "") or name

    def _with_chosen(self, outcome: WizardOutcome) -> WizardOutcome:
        """The outcome with the method that was chosen before, while it is still a candidate."""
        chosen = self.conversation.chosen
        if chosen is None or chosen == str(outcome.advice.recommendation.composition):
            return outcome
        for candidate in outcome.advice.alternatives:
            if str(candidate.composition) == chosen and candidate.forced_ok:
                try:
                    return self.actions.choose(outcome, candidate)
                except AdviseError:
                    break
        self.ui.say(f"With these answers {chosen} cannot be taken any more.", tone="warning")
        self.conversation.chosen = None
        return outcome

    @staticmethod
    def _waited_for(outcome: WizardOutcome) -> tuple[str, ...]:
        """What a plan lacks; nothing if there is none, since nothing or another engine trains."""
        ours = outcome.advice.recommendation
        return outcome.missing if ours.composition.chain and ours.engine is None else ()

    def _askable(self, outcome: WizardOutcome) -> list[Fact]:
        wanted = self._waited_for(outcome)
        return [
            fact for fact in self.facts.values() if fact.ask and (fact.answer or fact.id) in wanted
        ]

    # ----------------------------------------------------------------------- other answers

    def _other(self, outcome: WizardOutcome) -> WizardOutcome | None:
        options = [
            Option(value=candidate, label=str(candidate.composition), help=_in_words(candidate))
            for candidate in outcome.advice.alternatives
        ]
        take = [
            Option(value=True, label="Take it", help="the plan is written for it"),
            Option(value=False, label="Back to the list"),
        ]
        while True:
            chosen = self.ui.choose("Another method: which one?", [*options, GO_BACK])
            if chosen is BACK:
                return None
            self.actions.explain(outcome, chosen)
            asks = f"Take {chosen.composition} instead?"
            if not (chosen.forced_ok and self.ui.choose(asks, take)):
                continue
            try:
                taken = self.actions.choose(outcome, chosen)
            except AdviseError as error:
                self.ui.say(error.text(), tone="warning")
                continue
            self.conversation.chosen = str(chosen.composition)
            self._show(taken)
            return taken

    def _what_if(self, outcome: WizardOutcome) -> bool:
        options = [
            Option(value=flip, label=_capital(flip.text), help=f"leads to {flip.to}")
            for flip in outcome.advice.flips
            if can_be_tried(flip)
        ]
        return self._try(f"What would change it? {TRY}", options)

    def _ways_out(self, outcome: WizardOutcome) -> bool:
        stuck = outcome.advice.nothing_fits
        ways = stuck.ways_out if stuck is not None else ()
        for way in ways:
            self.ui.say(way.text, lead="- ")
            self.ui.say_line(f"  {way.command}")
        return self._try(TRY, [Option(value=way, label=_capital(way.text)) for way in ways])

    def _try(self, asks: str, options: Sequence[Option]) -> bool:
        chosen: Flip | WayOut | Any = self.ui.choose(asks, [*options, GO_BACK])
        if chosen is not BACK:
            self.conversation.try_change(chosen.change)
        return chosen is not BACK
