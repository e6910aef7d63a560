"""One question as prompts, and the whole round of questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from advisor.ground.errors import InputError, Stopped
from advisor.ground.types import AnswerSet, Hardware
from advisor.ground.units import format_gib
from advisor.probe.meant import MeantGpu, NamedGpu, meant_gpu
from advisor.probe.stated import MOST_GPUS
from advisor.ruleset.facts import load_facts
from advisor.situation.answers import GROUPS, answers_from_flags
from advisor.situation.names import NameLookup
from advisor.wizard.data_file import (
    DataReader,
    ask_data,
    ask_tasks,
    expanded_path,
    found_lines,
    profile_of,
    say_found,
)
from advisor.wizard.outcome import Check, Checks, Interview
from advisor.wizard.prompts import Option, Ui, ask_typed, choices_of, read_number, ways_out
from advisor.wizard.saved import Saved, load_answers, save_answers, summary
from advisor.wizard.walk import (
    BACK,
    DONT_KNOW,
    Question,
    Reply,
    Several,
    for_now,
    given_words,
    known_words,
    reply_words,
    walk,
)

LIMITS = "limits"  # what a budget may be, beside its levels
OTHER = "other"  # the task if none is stated: it decides nothing
AGAIN, KEEP = "again", "keep"  # what to do with a name, beside choosing a model


def asker(interview: Interview) -> Callable[[Question], Reply]:
    """A function that puts one question and shows its answer on one line."""

    def ask(question: Question) -> Reply:
        ui, checks, fact = interview.ui, interview.checks, question.fact
        ui.begin(fact.id, again=question.again)
        reader = DataReader(ui=ui, profile=checks.profile, task=question.answers.value("task"))
        special: dict[str, Callable[[], Reply]] = {
            "gpu": lambda: ask_gpu(question, ui, interview.hardware),
            "budget": lambda: _ask_budget(question, ui),
            "tasks": lambda: ask_tasks(question, reader),
            "task": lambda: _ask_task(question, ui),
            "model": lambda: _ask_model(question, ui, checks),
            "teacher_model": lambda: _ask_model(question, ui, checks),
            "data_path": lambda: ask_data(question, reader),
        }
        reply = special.get(fact.id, lambda: _ask_plain(question, ui, checks))()
        if reply is not BACK:
            ui.answered(fact.ask, reply_words(fact, reply))
        if fact.id in ("data_path", "tasks"):
            say_found(reply, reader)
        elif (
            fact.id == "data_examples"
            and isinstance(reply, str)
            and (found := profile_of(checks.profile, reply, None, None))
        ):
            ui.say(f"  {next(found_lines(found))}", tone="quiet")
        return reply

    return ask


def _ask_plain(question: Question, ui: Ui, checks: Checks) -> Reply:
    fact = question.fact
    # Who presses Enter alone has said nothing, here as where an answer is typed.
    silent = None if fact.required else DONT_KNOW
    current = silent if question.current is None else question.current
    if fact.type in ("choice", "flag"):
        options = [Option(value=True, label="Yes"), Option(value=False, label="No")]
        options = choices_of(fact) if fact.type == "choice" else options
        return ui.choose(question.message, [*options, *ways_out(question)], current=current)
    if fact.type == "number":
        return ask_typed(question, ui, lambda text: read_number(text, fact))
    check: Check = getattr(checks, fact.id, lambda text: None)
    path = fact.type == "path"
    return ask_typed(question, ui, lambda text: expanded_path(text, check), path=path)


def _ask_budget(question: Question, ui: Ui) -> Reply:
    """A level, or a limit in dollars, hours or both."""
    said = "such as $30, or 6 h: the cheapest cards to rent are then listed"
    typed = Option(value=LIMITS, label="Up to a limit in dollars or hours", help=said)
    options = [*choices_of(question.fact), typed, *ways_out(question)]
    current = DONT_KNOW if question.current is None else question.current
    asks = "What is the limit? ($30, or 6 h, or both: $30, 6 h)"
    while True:
        chosen = ui.choose(question.message, options, current=current)
        if chosen is BACK:
            return BACK
        found: Any = {question.fact.id: None if chosen is DONT_KNOW else chosen}
        if chosen == LIMITS:
            limit = replace(question, current=None, can_go_back=True, asks=asks)
            found = ask_typed(limit, ui, _limits_in)
        if found is not BACK:
            stated = found if isinstance(found, dict) else {}
            names = (question.fact.id, *GROUPS[question.fact.id])
            return Several(values=dict.fromkeys(names) | stated)


def _limits_in(text: str) -> dict[str, Any]:
    """What a typed limit states. Raises ValueError in words."""
    try:
        known = answers_from_flags({"budget": text}, load_facts()).known
    except InputError as error:
        what = error.faults[0].what.removeprefix("--budget ")
        raise ValueError(f"{what}. Write it like $30, or 6 h, or both.") from None
    return {name: answer.value for name, answer in known.items()}


def _ask_task(question: Question, ui: Ui) -> Reply:
    """The task, by its name or by an example of what the model should do better."""
    fact = question.fact
    options = [
        *choices_of(fact),
        Option(value=DONT_KNOW, label="I don't know", help="show me examples instead"),
        *(way for way in ways_out(question) if way.value is BACK),
    ]
    values = fact.values.items()
    examples = [
        *(Option(value=name, label=value.such_as) for name, value in values if value.such_as),
        Option(value=OTHER, label="I don't know", help="your data, money and machine decide alone"),
        Option(value=BACK, label="Back", help="to the list before"),
    ]
    which = "What do you want it to do better? Take the line that is nearest to it."
    while (chosen := ui.choose(question.message, options, current=question.current)) is DONT_KNOW:
        chosen = ui.choose(which, examples)
        if chosen is not BACK:
            break
    return chosen


# --------------------------------------------------------------------------- the model


def _ask_model(question: Question, ui: Ui, checks: Checks) -> Reply:
    """The model as the hub writes it; a name that may mean several, or none, is asked about."""
    suggests = question.fact.id == "model"
    empty = "I don't know; one is suggested" if suggests else "I don't know"

    def look_up_name(text: str) -> tuple[str, NameLookup]:
        """What a name means. Raises ValueError for a folder without a model."""
        if "/" in text:
            ui.say(f"Looking for {text} …", tone="quiet")  # the hub may take some seconds
        meant = checks.models(text)
        if meant.wrong:
            raise ValueError(meant.note)
        return text, meant

    while True:
        reply = ask_typed(question, ui, look_up_name, empty=empty)
        if not isinstance(reply, tuple):
            return reply
        name, meant = reply
        chosen, params_b = meant.id, None
        if chosen is None:
            chosen = _ask_which(name, meant, ui, suggests=suggests)
        elif meant.note:
            ui.say(f"  {meant.note}", tone="quiet")
        if chosen == KEEP:
            chosen, params_b = name, _ask_size(question, ui, name) if suggests else None
        if chosen is DONT_KNOW:
            return DONT_KNOW
        if chosen != AGAIN:
            values = {"model": chosen, "model_params_b": params_b}
            return Several(values=values) if suggests else chosen


def _ask_which(name: str, meant: NameLookup, ui: Ui, *, suggests: bool) -> Any:
    what = f"{meant.note}." if meant.note else f"No model called {name} is known here."
    what += " Did you mean one of these?" if meant.near else " What now?"
    if meant.near and not meant.misspelt and not meant.note:
        what = f"Which model is meant by {name}?"
    kept = "for advice alone: training needs a model of the hub or a folder"
    if "/" in name:
        kept = "it is looked up again before it is trained"
    unsure = "a model is suggested" if suggests else ""
    options = [
        *(Option(value=model.id, label=model.id, help=model.about) for model in meant.near),
        Option(value=AGAIN, label="Type another name"),
        *([] if meant.usual else [Option(value=KEEP, label=f"Keep {name}", help=kept)]),
        Option(value=DONT_KNOW, label="I don't know", help=unsure),
    ]
    return ui.choose(what, options)


def _ask_size(question: Question, ui: Ui, name: str) -> float | None:
    """Billions of parameters of an unknown model; None if its name says so, or nobody does."""
    from advisor.situation.catalogue import size_of

    if size_of(name, None).params is not None:
        return None
    fact = load_facts()["model_params_b"]
    asks = "How many billion parameters does it have? (8 for a model of 8B)"
    asked = Question(fact=fact, number=question.number, asks=asks)
    reply = ask_typed(asked, ui, lambda text: read_number(text.lower().removesuffix("b"), fact))
    return None if reply is DONT_KNOW else reply


# --------------------------------------------------------------------------- the whole round


def ask_round(interview: Interview, earlier: AnswerSet | None = None) -> Saved:
    """What the person answers, and what was asked.

    Raises Stopped on Ctrl-C, after the answers so far were saved.

    `earlier` holds what files and flags said; answers saved by an interrupted round are offered
    first.
    """
    facts = interview.facts
    progress = Saved(answers=earlier or AnswerSet(), asked=())

    def keep(answers: AnswerSet, asked: tuple[str, ...]) -> None:
        nonlocal progress
        progress = Saved(answers=answers, asked=asked)

    try:
        _greet(interview, progress.answers)
        progress = _offer_saved(interview, progress)
        answers = walk(
            facts,
            asker(interview),
            progress.answers,
            asked=progress.asked,
            relevant=for_now(facts, interview.relevant),
            keep=keep,
        )
    except (KeyboardInterrupt, EOFError):
        raise Stopped(save_and_stop(interview, progress)) from None
    progress = Saved(answers=answers, asked=progress.asked)
    save_answers(progress, interview.state_file)
    return progress


def _greet(interview: Interview, answers: AnswerSet) -> None:
    ui = interview.ui
    for place, line in enumerate(machine_lines(interview.hardware)):
        ui.say(line, tone="plain" if place < 2 else "quiet")
    for line in given_words(interview.facts, answers):
        ui.say(f"Known: {line}", tone="quiet")
    ui.say(
        "A few questions follow. “I don't know” is always fine. Ctrl-C stops, and keeps your"
        " answers.",
        tone="quiet",
    )
    ui.say("")


def save_and_stop(interview: Interview, progress: Saved) -> str:
    """Save what has been answered and say so: the text of the Stopped error."""
    if not progress.asked:
        kept = load_answers(interview.facts, interview.state_file)[0]
        return f"stopped; {'the saved answers stay' if kept else 'nothing had been answered yet'}"
    path, problem = save_answers(progress, interview.state_file)
    if problem:
        return f"stopped; the answers could not be saved: {problem}"
    return f"stopped; your answers are saved in {path}\n  `advise` in this folder offers them again"


def _offer_saved(interview: Interview, progress: Saved) -> Saved:
    """The saved answers with those of this time, if the person wants to continue with them."""
    facts, ui = interview.facts, interview.ui
    saved, problem = load_answers(facts, interview.state_file)
    if problem:
        ui.say(problem, tone="warning")
    if saved is None:
        return progress
    replaced = "the saved answers are replaced once you have answered"
    options = [
        Option(value=True, label="Continue with them"),
        Option(value=False, label="Start anew", help=replaced),
    ]
    if not ui.choose(f"{summary(saved, facts)}.", options):
        return progress
    # What was said on the command line this time stands; it is newer than what was saved.
    answers = AnswerSet(known={**saved.answers.known, **progress.answers.known})
    for fact in (facts[name] for name in saved.asked if name in facts):
        if fact.id not in progress.answers.known:
            ui.begin(fact.id, again=False)
            ui.answered(fact.ask, known_words(answers, fact))
    return Saved(answers=answers, asked=saved.asked)


MEMORY_HINT = "the task manager, About This Mac or nvidia-smi shows it"


def machine_lines(hardware: Hardware) -> list[str]:
    """The machine in one line or two, and what the probe has to say about it."""
    if hardware.kind == "unknown":
        return ["Nothing is known about the machine."]
    has = "no graphics card (GPU) that can be used for training"
    lines = [f"This machine has {gpu_words(hardware) if hardware.gpus else has}."]
    rest = [f"{hardware.cpu_cores} processor cores"] if hardware.cpu_cores else []
    if hardware.ram_total_bytes:
        rest.append(f"{format_gib(hardware.ram_total_bytes)} of main memory")
    if hardware.disk_free_bytes:
        rest.append(f"{format_gib(hardware.disk_free_bytes)} of free disk")
    return [*lines, *([f"Besides: {', '.join(rest)}."] if rest else []), *hardware.notes]


def gpu_words(hardware: Hardware) -> str:
    """'RTX 4090 with 24.0 GiB (22.5 GiB free)' for each GPU, equal ones counted."""
    words: Counter[str] = Counter()
    for gpu in hardware.gpus:
        total, free_bytes = " (its memory is not reported)", gpu.memory_free_bytes
        if gpu.memory_total_bytes is not None:
            total = f" with {format_gib(gpu.memory_total_bytes)}"
        free = "" if free_bytes is None else f" ({format_gib(free_bytes)} free)"
        words[f"{gpu.name}{total}{free}"] += 1
    return ", ".join(text if count == 1 else f"{count} × {text}" for text, count in words.items())


def ask_gpu(question: Question, ui: Ui, hardware: Hardware) -> Reply:
    """This machine, another GPU by name, none, or not known: name, memory and count."""
    slow = "slow, for small models"
    options = [
        Option(value="this", label="Use this machine", help=gpu_words(hardware)),
        Option(value="other", label="Another card", help="in another computer, or rented"),
        Option(value="none", label="No GPU", help=f"it trains on the processor: {slow}"),
    ]
    if hardware.kind == "unknown":
        del options[0]
    elif not hardware.gpus:  # to choose this machine is to say so: no card is rented in its place
        here = f"on its processor, without a GPU: {slow}"
        options = [Option(value="none", label="Use this machine", help=here), options[1]]
    current = {None: None, "none": "none", "unknown": DONT_KNOW}.get(question.current, "other")
    while True:
        chosen = ui.choose(question.message, [*options, *ways_out(question)], current=current)
        if chosen is BACK:
            return BACK
        if chosen != "other":
            return _gpu({"this": None, "none": "none", DONT_KNOW: "unknown"}[chosen])
        if (reply := _ask_name(question, ui)) is not BACK:
            return reply


def _gpu(name: str | None, memory_gib: float | None = None, count: int | None = None) -> Several:
    return Several(values={"gpu": name, "gpu_memory_gib": memory_gib, "gpus": count})


# --------------------------------------------------------------------------- a GPU by its name


def _ask_name(question: Question, ui: Ui) -> Reply:
    """The GPU that a person names; which one it is, if several sizes are sold under the name."""
    asks = "What is the card called, or which Mac is it? (RTX 4090, 2 x A100 80GB, M3 Max 36GB)"
    current = None if question.current in ("none", "unknown") else question.current
    named = replace(question, current=current, can_go_back=True, asks=asks)
    while True:
        meant = ask_typed(named, ui, _read_gpu)
        if meant is BACK:
            return BACK
        if meant is DONT_KNOW:
            return _gpu("unknown")
        found = meant.found or _ask_variant(ui, meant)
        if found is not BACK:
            if meant.found and meant.note:
                ui.say(f"  {meant.note}", tone="quiet")
            return _gpu(found.name, found.memory_gib, meant.count)


def _read_gpu(text: str) -> MeantGpu:
    """Raises ValueError for a name that nothing here knows, without a memory, and for a count that
    is a slip of the keyboard.
    """
    meant = meant_gpu(text)
    if meant.count is not None and not 1 <= meant.count <= MOST_GPUS:
        raise ValueError(f"{meant.count:,} cards are not possible: 1 to {MOST_GPUS:,}.")
    if meant.name.lower() in ("none", "cpu", "no gpu"):
        return replace(meant, found=NamedGpu(name="none"))
    if meant.found is None and not meant.variants:
        if meant.note:
            raise ValueError(f"{meant.name}: {meant.note}.")
        near = f" Did you mean {' or '.join(meant.near)}?" if meant.near else ""
        raise ValueError(
            f"No card called {meant.name} is known here.{near} Another card needs its memory"
            " in GB beside the name."
        )
    return meant


def _ask_variant(ui: Ui, meant: MeantGpu) -> Any:
    smallest = meant.variants[0]
    message = f"How much memory does this GPU have? ({MEMORY_HINT})"
    if meant.note:
        message = f"{meant.name}: {meant.note}. {message}"
    unsure = f"the smallest is taken: {smallest.label}"
    options = [
        *(Option(value=variant, label=variant.label) for variant in meant.variants),
        Option(value=smallest, label="I don't know", help=unsure),
        Option(value=BACK, label="Back", help="to the name"),
    ]
    return ui.choose(message, options)
