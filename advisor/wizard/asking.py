"""One question as prompts: choices with a line of help, numbers as people write them, the graphics
card, and the whole round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from advisor.ground.errors import Stopped
from advisor.ground.types import Answers, Hardware
from advisor.ruleset.facts import Fact
from advisor.wizard.checks import Checks, nothing_wrong
from advisor.wizard.data_file import ask_data, profile_of, say_found
from advisor.wizard.machine import CARD_FACTS, ask_gpu, machine_lines
from advisor.wizard.model import ask_model
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.saved import (
    Saved,
    load_answers,
    save_answers,
    set_aside_unplaced,
    summary,
)
from advisor.wizard.task import ask_task
from advisor.wizard.teams import ask_tasks
from advisor.wizard.typed import checked, number_of, typed, ways_out
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Relevant, Reply, Several, for_now, walk
from advisor.wizard.words import given_words, reply_words


def ask_round(
    facts: Mapping[str, Fact],
    *,
    hardware: Hardware,
    earlier: Answers | None,
    ui: Ui,
    checks: Checks | None = None,
    relevant: Relevant | None = None,
    state_file: Path | None = None,
) -> Saved:
    """What the person answers, and what was asked.

    Raises Stopped on Ctrl-C, after the answers so far were saved.

    `earlier` holds what files and flags said; answers saved by an interrupted round are offered
    first.
    """
    checks = checks or Checks()
    progress = Saved(answers=earlier or Answers(), asked=())
    try:
        _greet(ui, hardware, facts, progress.answers)
        progress = _offer_saved(facts, ui, progress, checks, state_file)

        def keep(answers: Answers, asked: tuple[str, ...]) -> None:
            nonlocal progress
            progress = Saved(answers=answers, asked=asked)

        answers = walk(
            facts,
            asker(ui, hardware, checks),
            progress.answers,
            asked=progress.asked,
            relevant=for_now(relevant),
            keep=keep,
        )
    except (KeyboardInterrupt, EOFError):
        raise Stopped(stopped_words(progress, state_file)) from None
    progress = Saved(answers=answers, asked=progress.asked)
    save_answers(progress, state_file)
    return progress


def _greet(ui: Ui, hardware: Hardware, facts: Mapping[str, Fact], answers: Answers) -> None:
    """The machine first, then what is known already, then how to answer."""
    for place, line in enumerate(machine_lines(hardware)):
        ui.say(line, tone="plain" if place < 2 else "quiet")
    for line in given_words(facts, answers):
        ui.say(f"Known: {line}", tone="quiet")
    ui.say(
        "A few questions follow. “I don't know” is always fine: Enter alone says it. Ctrl-C stops"
        " and keeps your answers.",
        tone="quiet",
    )
    ui.say("")


def stopped_words(progress: Saved, state_file: Path | None) -> str:
    """Save what has been answered and say so: the text of the Stopped error."""
    if not progress.asked:
        return "stopped; nothing had been answered yet"
    path, problem = save_answers(progress, state_file)
    if problem:
        return f"stopped; the answers could not be saved: {problem}"
    return f"stopped; your answers are saved in {path}\n  `advise` in this folder offers them again"


def _offer_saved(
    facts: Mapping[str, Fact], ui: Ui, progress: Saved, checks: Checks, state_file: Path | None
) -> Saved:
    if unplaced := set_aside_unplaced():
        ui.say(unplaced, tone="quiet")
    saved, problem = load_answers(facts, state_file)
    if problem:
        ui.say(problem, tone="warning")
    if saved is None:
        return progress
    for fact_id in ("data_path", "tasks"):
        answer = saved.answers.value(fact_id)
        files = answer.values() if isinstance(answer, Mapping) else [answer] if answer else []
        mapping = saved.answers.value("data_mapping")
        if checks.profile is not None and mapping:
            files = [one for one in files if not profile_of(checks.profile, one, mapping, None)]
        if wrong := next(filter(None, map(checks.data_path, files)), None):
            ui.say(f"Of the saved answers, one no longer holds: {wrong}", tone="warning")
            saved = saved.without(fact_id)
    options = [
        Option(value="continue", label="Continue with them"),
        Option(
            value="anew",
            label="Start anew",
            help="the saved answers are replaced once you have answered",
        ),
    ]
    if ui.choose(f"{summary(saved, facts)}.", options) == "anew":
        return progress
    # What was said on the command line this time stands; it is newer than what was saved.
    known = {**saved.answers.known, **progress.answers.known}
    for fact_id in saved.asked:
        if (
            fact_id in facts
            and (answer := known.get(fact_id)) is not None
            and answer.origin == "asked"
        ):
            parts = {name: known[name].value for name in CARD_FACTS if name in known}
            reply = Several(values=parts) if fact_id == "gpu" else answer.value
            ui.answered(facts[fact_id].ask, reply_words(facts[fact_id], reply))
    return Saved(answers=Answers(known=known), asked=saved.asked)


def asker(ui: Ui, hardware: Hardware, checks: Checks) -> Callable[[Question], Reply]:
    """A function that puts one question and shows its answer on one line."""

    def ask(question: Question) -> Reply:
        if question.fact.id == "gpu":
            reply = ask_gpu(question, ui, hardware)
        elif question.fact.id == "tasks":
            reply = ask_tasks(question, ui, checks)
        elif question.fact.id == "task":
            reply = ask_task(question, ui)
        elif question.fact.id in ("model", "teacher_model"):
            reply = ask_model(question, ui, checks)
        else:
            reply = _ask_plain(question, ui, checks)
        if reply is not BACK:
            ui.answered(question.fact.ask, reply_words(question.fact, reply))
        if question.fact.id in ("data_path", "tasks") and checks.profile is not None:
            say_found(ui, reply, question.answers.value, checks.profile)
        elif question.fact.id in ("data_path", "data_examples", "tasks"):
            for name, file in reply.items() if isinstance(reply, Mapping) else [("", reply)]:
                if isinstance(file, str) and (found := checks.found(file)):
                    ui.say(f"  {name}: {found}" if name else f"  {found}", tone="quiet")
        return reply

    return ask


def _ask_plain(question: Question, ui: Ui, checks: Checks) -> Reply:
    fact = question.fact
    message = f"{question.number}. {fact.ask}"
    # Who presses Enter alone has said nothing, here as where an answer is typed.
    silent = None if fact.required else DONT_KNOW
    current = silent if question.current is None else question.current
    if fact.type == "choice":
        options = [
            Option(value=name, label=value.label, help=value.help)
            for name, value in fact.values.items()
        ]
        return ui.choose(message, [*options, *ways_out(question)], current=current)
    if fact.type == "flag":
        options = [Option(value=True, label="Yes"), Option(value=False, label="No")]
        return ui.choose(message, [*options, *ways_out(question)], current=current)
    if fact.type == "number":
        return typed(question, ui, message, lambda text: number_of(text, fact))
    if fact.id == "data_path" and checks.profile is not None:
        return ask_data(question, ui, checks.profile)
    check = {
        name: getattr(checks, name) for name in ("data_path", "data_examples", "reward_model")
    }.get(fact.id, nothing_wrong)
    return typed(question, ui, message, lambda text: checked(text, check), path=fact.type == "path")
