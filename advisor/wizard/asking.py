"""One question as prompts: choices with a line of help, numbers as people write them, the graphics
card, and the whole round.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import Stopped
from advisor.ground.files import FOLDER_NAME, is_folder_name
from advisor.ground.types import Answers, Hardware
from advisor.ground.units import format_gib
from advisor.ruleset.facts import Fact
from advisor.wizard.prompts import Option, Ui
from advisor.wizard.saved import Saved, load_answers, save_answers
from advisor.wizard.walk import (
    BACK,
    DONT_KNOW,
    GIVEN_BEFORE,
    Question,
    Relevant,
    Reply,
    Several,
    answer_of,
    walk,
)

Check = Callable[[str], str | None]  # what a person typed -> what is wrong with it, or None
BACK_SIGN = "<"
NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmb]?)$")
THOUSANDS_BY_POINT = re.compile(r"[0-9]{1,3}(\.[0-9]{3})+$")
CARD_COUNT = re.compile(r"^\s*([0-9]{1,3})\s*[x×]\s+(?=\S)", re.IGNORECASE)
CARD_MEMORY = re.compile(r"[\s,(]+([0-9]+(?:\.[0-9]+)?)\s*(?:gb|gib)\s*\)?\s*$", re.IGNORECASE)
CARD_FACTS = ("gpu", "gpu_memory_gib", "gpus")


def nothing_wrong(text: str) -> str | None:
    """A check that accepts everything."""
    return None


def path_exists(text: str) -> str | None:
    """What is wrong with a data path: nothing there, with the nearest names beside it."""
    path = Path(text).expanduser()
    if path.exists():
        return None
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder}."
    import difflib

    near = difflib.get_close_matches(
        path.name, sorted(item.name for item in folder.iterdir()), n=3, cutoff=0.5
    )
    return f"There is no file or folder {text}." + (
        f" Did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """Checks of typed answers, given by the caller: each returns what is wrong, or None."""

    data_path: Check = path_exists
    data_examples: Check = path_exists
    model: Check = nothing_wrong
    reward_model: Check = nothing_wrong
    gpu: Check = nothing_wrong
    found: Callable[[str], str] = lambda path: (
        ""
    )  # what was recognised in a data file, said once it is named


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
            relevant=relevant,
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
        "A few questions follow. “I don't know” is always fine; Ctrl-C stops and keeps your"
        " answers.",
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
    return f"stopped; your answers are saved in {path}\n  `advise` offers to go on with them"


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
        if wrong := next(filter(None, map(checks.data_path, files)), None):
            ui.say(f"Of the saved answers, one no longer holds: {wrong}", tone="warning")
            saved = saved.without(fact_id)
    count = len(saved.asked)
    options = [
        Option(
            value="continue",
            label="Continue with them",
            help=f"{count} question{'s' if count != 1 else ''} answered",
        ),
        Option(
            value="anew",
            label="Start anew",
            help="the saved answers are replaced once you have answered",
        ),
    ]
    if ui.choose(f"There are answers from {saved.saved_at or 'before'}.", options) == "anew":
        return progress
    # What was said on the command line this time stands; it is newer than what was saved.
    known = {**saved.answers.known, **progress.answers.known}
    for fact_id in saved.asked:
        if (
            fact_id in facts
            and (answer := known.get(fact_id)) is not None
            and answer.origin == "asked"
        ):
            ui.answered(facts[fact_id].ask, words_of(facts[fact_id], answer.value))
    return Saved(answers=Answers(known=known), asked=saved.asked)


def asker(ui: Ui, hardware: Hardware, checks: Checks) -> Callable[[Question], Reply]:
    """A function that puts one question and shows its answer on one line."""

    def ask(question: Question) -> Reply:
        if question.fact.id == "gpu":
            reply = _ask_gpu(question, ui, hardware, checks)
        else:
            reply = (
                _ask_tasks(question, ui, checks)
                if question.fact.id == "tasks"
                else _ask_plain(question, ui, checks)
            )
        if reply is not BACK:
            ui.answered(question.fact.ask, reply_words(question.fact, reply))
        if question.fact.id in ("data_path", "data_examples", "tasks"):
            for name, file in reply.items() if isinstance(reply, Mapping) else [("", reply)]:
                if isinstance(file, str) and (found := checks.found(file)):
                    ui.say(f"  {name}: {found}" if name else f"  {found}", tone="quiet")
        return reply

    return ask


def reply_words(fact: Fact, reply: Reply) -> str:
    """A reply as it is shown back."""
    if reply is DONT_KNOW:
        return f"I don't know ({fact.unknown})" if fact.unknown else "I don't know"
    if isinstance(reply, Several):
        parts = [
            str(reply.values[name])
            for name in ("gpus", "gpu")
            if reply.values.get(name) is not None
        ]
        memory = reply.values.get("gpu_memory_gib")
        named = {"none": "no graphics card", "unknown": f"I don't know ({fact.unknown})"}.get(
            " × ".join(parts), " × ".join(parts)
        )
        return (named or "this machine") + (f", {memory:g} GiB" if memory is not None else "")
    return words_of(fact, reply)


def words_of(fact: Fact, value: Any) -> str:
    """A value as the person chose it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value in fact.values:
        return fact.values[value].label
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ask_plain(question: Question, ui: Ui, checks: Checks) -> Reply:
    fact = question.fact
    message = f"{question.number}. {fact.ask}"
    if fact.type == "choice":
        options = [
            Option(value=name, label=value.label, help=value.help)
            for name, value in fact.values.items()
        ]
        return ui.choose(message, [*options, *_ways_out(question)], current=question.current)
    if fact.type == "flag":
        options = [Option(value=True, label="Yes"), Option(value=False, label="No")]
        return ui.choose(message, [*options, *_ways_out(question)], current=question.current)
    if fact.type == "number":
        return _typed(question, ui, message, lambda text: number_of(text, fact))
    check = {
        name: getattr(checks, name)
        for name in ("data_path", "data_examples", "model", "reward_model")
    }.get(fact.id, nothing_wrong)
    return _typed(
        question, ui, message, lambda text: _checked(text, check), path=fact.type == "path"
    )


def _ways_out(question: Question) -> list[Option]:
    unknown = (
        []
        if question.fact.required
        else [Option(value=DONT_KNOW, label="I don't know", help=question.fact.unknown)]
    )
    return unknown + (
        [Option(value=BACK, label="Back", help="to the question before")]
        if question.can_go_back
        else []
    )


def _typed(
    question: Question,
    ui: Ui,
    message: str,
    read: Callable[[str], Any],
    *,
    path: bool = False,
    empty: str = "I don't know",
) -> Reply:
    """A typed answer, asked for again with the reason until it can be read.

    Nothing typed is DONT_KNOW; `empty` says what that means.
    """
    hint = f"Enter alone: {empty}" + (
        f"; {BACK_SIGN} and Enter: back" if question.can_go_back else ""
    )
    default = "" if question.current is None else str(question.current)
    while True:
        text = ui.enter(message, hint=hint, default=default, path=path).strip()
        if text == BACK_SIGN and question.can_go_back:
            return BACK
        if text in ("", "?"):
            return DONT_KNOW
        try:
            return read(text)
        except ValueError as error:
            ui.say(str(error), tone="warning")
            default = text


def _checked(text: str, check: Check) -> str:
    text = os.path.expanduser(text)
    if wrong := check(text):
        raise ValueError(wrong)
    return text


def _ask_tasks(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The name and the data file of each team, until no more is named."""
    before = dict(question.current or {})
    named: dict[str, str] = {}
    while True:
        message = (
            f"{question.number}. {question.fact.ask} What is the first team called? (such as legal)"
            if not named
            else f"What is the next team called? (so far: {', '.join(named)})"
        )
        unnamed = [name for name in before if name not in named]
        asked = replace(
            question,
            current=unnamed[0] if unnamed else None,
            can_go_back=question.can_go_back or bool(named),
        )
        name = _typed(
            asked,
            ui,
            message,
            lambda text: _task_name(text, named),
            empty="that was the last" if named else "I don't know",
        )
        if name is DONT_KNOW:
            return named or DONT_KNOW
        if name is BACK and not named:
            return BACK
        if name is BACK:
            named.popitem()
            continue
        asked = replace(question, current=before.get(name), can_go_back=True)
        file = _typed(
            asked,
            ui,
            f"Where are the examples of {name}? (a file or a folder)",
            lambda text: _checked(text, checks.data_path),
            path=True,
            empty=f"leave {name} out",
        )
        if isinstance(file, str):
            named[name] = file


def _task_name(text: str, taken: Collection[str]) -> str:
    """What somebody called a team, as the plan writes it: 'Human Resources' is human-resources.

    Raises ValueError with the plan's rule.
    """
    name = "-".join(text.lower().split())
    if not is_folder_name(name):
        raise ValueError(f"{text} cannot be the name. Allowed: {FOLDER_NAME}.")
    if name in taken:
        raise ValueError(f"{name} is named already.")
    return name


def number_of(text: str, fact: Fact) -> int | float:
    """The number somebody typed: '5000', '5,000', '5 000', '5k', '1.2m'.

    Raises ValueError in words.
    """
    compact = re.sub(r"^(about|ca\.?|circa|~|≈)\s*", "", text.strip().lower())
    compact = re.sub(r"(?<=[0-9])[,_'’ \u00a0\u202f](?=[0-9]{3}(?![0-9]))", "", compact)
    compact = re.sub(r"\s+(?=[kmb]$)", "", compact)
    if fact.integer and THOUSANDS_BY_POINT.match(compact):
        raise ValueError(
            f"{text} can be read in two ways: write {compact.replace('.', '')} or"
            f" {compact.split('.')[0]}."
        )
    match = NUMBER.match(compact)
    if match is None:
        raise ValueError(f"{text} is not a number. Write it like 5000, 5,000 or 5k.")
    value = round(
        float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}[match[2]], 6
    )
    if fact.integer and value != int(value):
        raise ValueError(f"{text} is not a whole number.")
    for limit, wrong, side in (
        (fact.min, fact.min is not None and value < fact.min, "least"),
        (fact.max, fact.max is not None and value > fact.max, "most"),
    ):
        if wrong:
            raise ValueError(f"{text} is not possible: at {side} {limit:g}.")
    return int(value) if fact.integer else value


# --------------------------------------------------------------------------- the machine


def machine_lines(hardware: Hardware) -> list[str]:
    """The machine in one line or two, and what the probe has to say about it."""
    if hardware.kind == "unknown":
        return ["Nothing is known about the machine."]
    lines = [
        (
            f"This machine has {cards_words(hardware)}."
            if hardware.gpus
            else "This machine has no graphics card that can be used for training."
        )
    ]
    rest = [f"{hardware.cpu_cores} processor cores"] if hardware.cpu_cores else []
    if hardware.ram_total_bytes:
        rest.append(f"{format_gib(hardware.ram_total_bytes)} of main memory")
    if hardware.disk_free_bytes:
        rest.append(f"{format_gib(hardware.disk_free_bytes)} of free disk")
    return lines + ([f"Besides: {', '.join(rest)}."] if rest else []) + list(hardware.notes)


def cards_words(hardware: Hardware) -> str:
    """'RTX 4090 with 24.0 GiB (22.5 GiB free)' for each card, equal ones counted."""
    words: dict[str, int] = {}
    for gpu in hardware.gpus:
        total = (
            f" with {format_gib(gpu.memory_total_bytes)}"
            if gpu.memory_total_bytes is not None
            else " (its memory is not reported)"
        )
        free = (
            f" ({format_gib(gpu.memory_free_bytes)} free)"
            if gpu.memory_free_bytes is not None
            else ""
        )
        words[f"{gpu.name}{total}{free}"] = words.get(f"{gpu.name}{total}{free}", 0) + 1
    return ", ".join(text if count == 1 else f"{count} × {text}" for text, count in words.items())


def _ask_gpu(question: Question, ui: Ui, hardware: Hardware, checks: Checks) -> Reply:
    """This machine, another card by name, none, or not known.

    The answer sets name, memory and count together.
    """
    machine = (
        cards_words(hardware) if hardware.gpus else "no graphics card: it trains on the processor"
    )
    options = (
        [Option(value="this", label="Use this machine", help=machine)]
        if hardware.kind != "unknown"
        else []
    )
    options.append(
        Option(value="other", label="Another card", help="in another computer, or rented")
    )
    if hardware.gpus or hardware.kind == "unknown":
        options.append(
            Option(
                value="none",
                label="No graphics card",
                help="it trains on the processor: slow, for small models",
            )
        )
    current = {None: None, "none": "none", "unknown": DONT_KNOW}.get(question.current, "other")
    while True:
        chosen = ui.choose(
            f"{question.number}. {question.fact.ask}",
            [*options, *_ways_out(question)],
            current=current,
        )
        if chosen is BACK:
            return BACK
        if chosen != "other":
            return Several(
                values={
                    **dict.fromkeys(CARD_FACTS),
                    "gpu": {"this": None, "none": "none", DONT_KNOW: "unknown"}[chosen],
                }
            )
        named = Question(fact=question.fact, number=question.number, can_go_back=True)
        reply = _typed(
            named,
            ui,
            "What is the card called? (such as RTX 4090, or 2 x A100 80GB)",
            lambda text: _card(text, checks.gpu),
        )
        if reply is DONT_KNOW:
            return Several(values={**dict.fromkeys(CARD_FACTS), "gpu": "unknown"})
        if reply is not BACK:
            return reply


def _card(text: str, check: Check) -> Several:
    """'2 x RTX 4090' or 'Mystery 9000 24 GB' as name, memory and count.

    Raises ValueError with the near names.
    """
    count = CARD_COUNT.match(text)
    name = text[count.end() :].strip() if count else text.strip()
    memory = CARD_MEMORY.search(name)
    if wrong := check(name):
        if memory is None:
            raise ValueError(
                f"{wrong} If the name is right, add the memory of the card, such as: {name} 24 GB"
            )
        return Several(
            values={
                "gpu": name[: memory.start()].strip() or name,
                "gpu_memory_gib": float(memory[1]),
                "gpus": int(count[1]) if count else None,
            }
        )
    return Several(
        values={"gpu": name, "gpu_memory_gib": None, "gpus": int(count[1]) if count else None}
    )


def given_words(facts: Mapping[str, Fact], answers: Answers) -> list[str]:
    """What files and flags said already, one line each."""
    return [
        f"{fact.ask or fact.id} {words_of(fact, answer_of(answers, fact))} (from a"
        f" {answers.known[fact.id].origin})"
        for fact in facts.values()
        if fact.id in answers.known and answers.known[fact.id].origin in GIVEN_BEFORE
    ]
