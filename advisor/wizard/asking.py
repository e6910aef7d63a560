"""One question as prompts: choices with a line of help, numbers as people write them, the graphics
card, the task, the model, the file of each team; and the whole round.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from advisor.data.read.source import team_files
from advisor.ground.errors import Stopped
from advisor.ground.files import FOLDER_NAME, is_folder_name
from advisor.ground.types import Answers, Hardware
from advisor.ruleset.facts import Fact, load_facts
from advisor.situation.model_choice import Meant
from advisor.wizard.data_file import (
    ask_data,
    ask_file,
    ask_teams,
    profile_of,
    read_teams,
    say_found,
)
from advisor.wizard.machine import CARD_FACTS, ask_gpu, machine_lines
from advisor.wizard.outcome import Checks, nothing_wrong
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.saved import Saved, load_answers, save_answers, summary
from advisor.wizard.typed import checked, number_of, typed, ways_out
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Relevant, Reply, Several, for_now, walk
from advisor.wizard.words import given_words, reply_words

OTHER = "other"  # the task where none is stated: it decides nothing


def ask_task(question: Question, ui: Ui) -> Reply:
    """The task, by its name or by an example of what the model should do better."""
    fact = question.fact
    options = [
        *choices_of(fact),
        Option(value=DONT_KNOW, label="I don't know", help="show me examples instead"),
        *(way for way in ways_out(question) if way.value is BACK),
    ]
    examples = [
        *(
            Option(value=name, label=value.such_as)
            for name, value in fact.values.items()
            if value.such_as
        ),
        Option(value=OTHER, label="I don't know", help="your data, money and machine decide alone"),
        Option(value=BACK, label="Back", help="to the list before"),
    ]
    while True:
        chosen = ui.choose(f"{question.number}. {fact.ask}", options, current=question.current)
        if chosen is not DONT_KNOW:
            return chosen
        chosen = ui.choose(
            "What do you want it to do better? Take the line that is nearest to it.", examples
        )
        if chosen is not BACK:
            return chosen


def choices_of(fact: Fact) -> list[Option]:
    """The values that a question may be answered with."""
    return [
        Option(value=name, label=value.label, help=value.help)
        for name, value in fact.values.items()
    ]


AGAIN, KEEP = "again", "keep"  # what to do with a name, beside choosing a model


def ask_model(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The model as the hub or the file system writes it. A name that may mean several, or that
    nothing knows, is asked about at once; nothing is accepted here that fails later for its name.
    """
    message = f"{question.number}. {question.fact.ask}"
    suggests = question.fact.id == "model"
    while True:
        reply = typed(
            question,
            ui,
            message,
            lambda text: _meant(text, ui, checks),
            empty="I don't know; one is suggested" if suggests else "I don't know",
        )
        if not isinstance(reply, tuple):
            return reply
        name, meant = reply
        if meant.id is not None:
            if meant.note:
                ui.say(f"  {meant.note}", tone="quiet")
            return _answer(question, meant.id)
        chosen = ui.choose(_question(name, meant), _options(name, meant, suggests=suggests))
        if chosen is DONT_KNOW:
            return DONT_KNOW
        if chosen == KEEP:
            return _answer(question, name, _size(question, ui, name) if suggests else None)
        if chosen != AGAIN:
            return _answer(question, chosen)


def _meant(text: str, ui: Ui, checks: Checks) -> tuple[str, Meant]:
    """Raises ValueError for a folder that is no model: there is nothing to choose, but to correct
    it.
    """
    if "/" in text:
        ui.say(f"Looking for {text} …", tone="quiet")  # the hub may take some seconds
    meant = checks.models(text)
    if meant.wrong:
        raise ValueError(meant.note)
    return text, meant


def _question(name: str, meant: Meant) -> str:
    if meant.near and not meant.misspelt and not meant.note:
        return f"Which model is meant by {name}?"
    what = f"{meant.note}." if meant.note else f"No model called {name} is known here."
    return what + (" Did you mean one of these?" if meant.near else " What now?")


def _options(name: str, meant: Meant, *, suggests: bool) -> list[Option]:
    kept = (
        "it is looked up again before it is trained"
        if "/" in name
        else "for advice alone: training needs a model of the hub or a folder"
    )
    return [
        *(Option(value=model.id, label=model.id, help=model.about) for model in meant.near),
        Option(value=AGAIN, label="Type another name"),
        Option(value=KEEP, label=f"Keep {name}", help=kept),
        Option(
            value=DONT_KNOW, label="I don't know", help="a model is suggested" if suggests else ""
        ),
    ]


def _size(question: Question, ui: Ui, name: str) -> Any:
    """Billions of parameters of a model that nothing here knows; None where its name says so, or
    nobody does.
    """
    from advisor.situation.model_names import size_of

    if size_of(name, None).params is not None:
        return None
    fact = load_facts()["model_params_b"]
    reply = typed(
        Question(fact=fact, number=question.number),
        ui,
        "How many billion parameters does it have? (8 for a model of 8B)",
        lambda text: number_of(text.lower().removesuffix("b"), fact),
    )
    return None if reply in (DONT_KNOW, BACK) else reply


def _answer(question: Question, name: str, params_b: Any = None) -> Reply:
    if question.fact.id != "model":
        return name
    return Several(values={"model": name, "model_params_b": params_b})


def ask_tasks(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The name and the data file of each team, until no more is named."""
    before = dict(question.current or {})
    named: dict[str, str] = {}
    mapping: Mapping[str, str] | None = None
    while True:
        message = (
            f"{question.number}. {question.fact.ask} What is the first team called? (such as"
            " legal; or a folder with one file for each team)"
            if not named
            else f"What is the next team called? (so far: {', '.join(named)})"
        )
        unnamed = [name for name in before if name not in named]
        asked = replace(
            question,
            current=unnamed[0] if unnamed else None,
            can_go_back=question.can_go_back or bool(named),
        )
        name = typed(
            asked,
            ui,
            message,
            partial(_task_name, taken=dict(named), folders=not named),
            empty="that was the last" if named else "I don't know",
        )
        if name is DONT_KNOW:
            return _reply(named, mapping, checks)
        if name is BACK and not named:
            return BACK
        if name is BACK:
            named.popitem()
            continue
        if isinstance(name, Mapping):  # a folder with one file for each team
            folder = os.path.dirname(next(iter(name.values())))
            if checks.profile is None:
                return dict(name)
            if (found := ask_teams(question, ui, folder, name, checks.profile)) is not None:
                return found
            continue
        asked = replace(question, current=before.get(name), can_go_back=True)
        message = f"Where are the examples of {name}? (a file or a folder)"
        empty = f"leave {name} out"
        if checks.profile is not None:
            file = ask_file(asked, ui, message, checks.profile, empty=empty)
            if isinstance(file, str):
                read, mapping = read_teams(question, ui, {name: file}, checks.profile, mapping)
                named |= read
            continue
        file = typed(
            asked,
            ui,
            message,
            lambda text: checked(text, checks.data_path),
            path=True,
            empty=empty,
        )
        if isinstance(file, str):
            named[name] = file


def _reply(named: dict[str, str], mapping: Mapping[str, str] | None, checks: Checks) -> Reply:
    """The teams with the columns that were asked for."""
    if not named:
        return DONT_KNOW
    if checks.profile is None:
        return named
    return Several(values={"tasks": named, "data_mapping": mapping})


def _task_name(text: str, taken: Collection[str], *, folders: bool = False) -> str | dict[str, str]:
    """What somebody called a team, as the plan writes it: 'Human Resources' is human-resources; or
    the files of a folder that holds one for each team.

    Raises ValueError with the plan's rule.
    """
    if folders and (teams := team_files(os.path.expanduser(text))):
        return teams
    name = "-".join(text.lower().split())
    if not is_folder_name(name):
        raise ValueError(f"{text} cannot be the name. Allowed: {FOLDER_NAME}.")
    if name in taken:
        raise ValueError(f"{name} is named already.")
    return name


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
        return ui.choose(message, [*choices_of(fact), *ways_out(question)], current=current)
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
