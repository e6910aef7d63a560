"""What to do first, with a remedy or a training, for the page and for JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from advisor.advice.types import Advice
from advisor.ground.files import free_path
from advisor.ground.types import Source
from advisor.methods import remedy
from advisor.methods.remedies import OTHER_TOOL, Remedy, Way
from advisor.render.words import is_chosen, stays_at_home
from advisor.situation.answers import command_line

# What a person has to write down for each kind of data: what it is, its file, the columns of a row.
FILES = {
    "classes": ("texts with their labels", "labels.jsonl", "text label"),
    "paired": ("requests with the right answer", "examples.jsonl", "prompt completion"),
    "preference": ("pairs of a better and a worse answer", "pairs.jsonl", "prompt chosen rejected"),
    "unpaired_feedback": ("answers with their marks", "marks.jsonl", "prompt completion label"),
    "prompts_with_verifier": (
        "problems with their right answers",
        "problems.jsonl",
        "prompt ground_truth",
    ),
    "requests": ("requests", "requests.jsonl", "prompt"),
}
DRY_RUN = "--dry-run"
CHAT = "advise chat"


class NextSteps(Struct, frozen=True, kw_only=True):
    """How to begin with one remedy."""

    remedy: str
    first: str  # the first step, in a sentence
    ways: tuple[Way, ...]
    measure: str = ""  # how to tell that it is not enough
    helps_then: str = ""  # what of this product helps then
    write: str = ""  # what to write into a file for it
    again: tuple[str, ...] = ()  # the lines to type then: check the file, and ask again with it
    also: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


class TrainingStep(Struct, frozen=True, kw_only=True):
    """One step of a training that starts."""

    text: str
    short: str = ""  # the same in one line of a terminal, if there is a shorter way to say it
    commands: tuple[str, ...]


def next_steps(advice: Advice) -> tuple[NextSteps, ...]:
    """The steps for each remedy of the recommendation that has any, in its order."""
    found = map(remedy, advice.recommendation.composition.remedies)
    return tuple(
        _other_tool(advice) if one.id == OTHER_TOOL else _remedy_steps(advice, one)
        for one in found
        if one.id == OTHER_TOOL or one.first
    )


def _remedy_steps(advice: Advice, found: Remedy) -> NextSteps:
    trains = bool(advice.recommendation.composition.chain)
    halves = (found.beside_training,) if trains and found.beside_training else ()
    at_home, begun = stays_at_home(advice), " ".join(found.notes_for(advice.facts, found.begun))
    suited = (one for one in found.ways if one.when.items() <= dict(advice.facts).items())
    ways = sorted(suited, key=lambda way: not way.when)
    return NextSteps(
        remedy=found.id,
        first=begun or found.first,
        # What must not leave the house is not sent to a provider.
        ways=() if begun else tuple(way for way in ways if way.where == "local" or not at_home),
        measure=found.measure,
        helps_then="" if trains else found.helps_then,
        write=found.write,
        again=_check_and_ask_again(advice, found) if found.again and not trains else (),
        also=(*halves, *found.notes_for(advice.facts)),
        sources=found.sources,
    )


def _check_and_ask_again(advice: Advice, found: Remedy) -> tuple[str, ...]:
    answers, states = advice.situation.answers, dict(found.again)
    files = answers.value("tasks") or {"": found.again["data_path"]}
    states |= {} if "" in files else {"data_path": None}  # each task has its file
    denied = {name for name, value in states.items() if value is None}
    stated = (*answers.signals, *states.pop("signals", ()))
    signals = tuple(dict.fromkeys(name for name in stated if name not in denied))
    states |= dict.fromkeys(signals) | {"signals": signals or None}  # no denial beside it
    checks = (f"advise check {shlex.quote(str(file))}" for file in files.values())
    return (*checks, command_line(answers, states, command="advise"))


def _other_tool(advice: Advice) -> NextSteps:
    outside, answers = advice.situation.outside, advice.situation.answers
    assert outside is not None  # nothing else leads to this remedy

    def way(text: str, *commands: str) -> Way:
        return Way(where="local", text=text, commands=commands, cost="")

    ways = [way("To begin:", *outside.first)] if outside.first else []
    for model in outside.instead[:1]:
        line = command_line(answers, {"model": model}, command="advise")
        ways.append(way(f"To train {model} here in its place:", line))
    trains = next((c.composition for c in advice.alternatives if c.composition.chain), None)
    certain = outside.instead or not outside.is_model  # it is known, and can be had in another form
    if trains is not None and not certain:
        method = shlex.quote(str(trains))
        line = f"{command_line(answers, {}, command='advise')} --choose {method} --force"
        ways.append(way("If it is a model of text after all:", line))
    return NextSteps(remedy=OTHER_TOOL, first=outside.where, ways=(*ways,), sources=outside.sources)


def is_elsewhere(advice: Advice) -> bool:
    """Whether the GPU is in another machine than the one that is asked."""
    hardware = advice.situation.hardware
    return hardware.origin == "stated" and bool(hardware.gpus)


def training_steps(advice: Advice) -> tuple[TrainingStep, ...]:
    """How to begin with a training: what to write down, and the lines to type."""
    situation, composition = advice.situation, advice.recommendation.composition
    answers, steps, changes = situation.answers, list[TrainingStep](), dict[str, Any]()
    if not answers.value("data_path") and not answers.value("tasks"):
        step, changes = file_to_write(advice)
        steps.append(step)
    if _reads_examples(advice):
        steps.append(_examples_to_write())
        changes["data_examples"] = FILES["paired"][1]
    if lacking := dict(_lacking(advice)):
        # Only the person knows it: without a task the questions ask for all that is open.
        changes |= dict.fromkeys(("task", *lacking))
        asks = command_line(answers, changes, command="advise")
        named = " and ".join(lacking.values())
        text = f"Training waits for {named}. The questions ask for what is open:"
        return (*steps, TrainingStep(text=text, commands=(asks,)))
    if (engine := advice.recommendation.engine) is not None:
        from advisor.render.other_engine import engine_lines

        lines = engine_lines(advice, engine, changes.get("data_path"))
        return (*steps, *(TrainingStep(text=text, commands=(line,)) for text, line in lines))
    if situation.hardware.not_supported is not None:
        line = command_line(answers, {**changes, "gpu": "unknown"}, command="advise")
        text = "No engine is known for that device. Ask again for another GPU:"
        return (*steps, TrainingStep(text=text, commands=(line,)))
    by_hand = f" --choose {shlex.quote(str(composition))} --force" if is_chosen(advice) else ""
    if advice.rent and situation.hardware.kind == "unknown":
        text = "Write the plan for the card that you rent, such as the first:"
        first = advice.rent[0]
        if advice.rent_instead is not None:
            other, first = advice.rent_instead
            by_hand = f" --choose {shlex.quote(str(other))} --force"
            text = f"Write the plan that keeps the limit, by {other}:"
        changes |= {"gpu": first.card.name, "gpus": first.count if first.count > 1 else None}
        line = f"{command_line(answers, changes, command='advise')}{by_hand} --plan {free_path()}"
        return (*steps, TrainingStep(text=text, commands=(line,)))
    if situation.hardware.origin == "stated":
        changes["gpu"] = None
    train = f"Train{' on the machine with the GPU' if is_elsewhere(advice) else ''}; --dry-run"
    step = TrainingStep(
        text=f"{train} measures the memory first, and trains nothing:",
        short=f"{train} measures the memory first:",
        commands=(f"{command_line(answers, changes)}{by_hand} {DRY_RUN}",),
    )
    steps.append(step)
    if not composition.encoder:
        after = "Afterwards, put your own requests to the model before and after:"
        steps.append(TrainingStep(text=after, commands=(CHAT,)))
    return tuple(steps)


def _reads_examples(advice: Advice) -> bool:
    """Whether a stage waits for requests with their answers beside data that it cannot read."""
    situation, chain = advice.situation, advice.recommendation.composition.chain
    kind = situation.answers.value("data_kind") if situation.data is None else situation.data.kind
    is_beside = kind in ("raw_text", "unpaired_feedback") or chain[0] == "cpt"
    return "sft" in chain and is_beside and not situation.answers.value("data_examples")


def _examples_to_write() -> TrainingStep:
    what, file, columns = FILES["paired"]
    row = json.dumps(dict.fromkeys(columns.split(), "..."))
    return TrainingStep(
        text=f"Put {what} into a file of their own, one per line, such as {row}, and check it:",
        short=f"Put lines like {row} into a file of their own, and check it:",
        commands=(f"advise check {file}",),
    )


def _lacking(advice: Advice) -> Iterator[tuple[str, str]]:
    """Each fact that a training waits for and only the person knows, with what to name."""
    from advisor.advice.planning import lacks_scores  # what plans need is no part of a quick answer

    situation, chain = advice.situation, advice.recommendation.composition.chain
    answers = situation.answers
    # Rows of a kind that nobody has stated are what a stated teacher teaches with.
    is_open = answers.value("data_kind") in (None, "none") and not answers.value("data_path")
    has_teacher = answers.value("teacher") == "model" and is_open
    if ("distill" in chain or has_teacher) and not answers.value("teacher_model"):
        yield "teacher_model", "the larger model (--teacher-model)"
    if lacks_scores(situation, chain):
        yield "reward_model", "a model that scores answers (--reward-model)"
    # What has the form of a hub id may be one that is not known here.
    stated = answers.value("model") or answers.value("model_params_b")
    no_model = situation.model is None or situation.model.origin == "size"
    if stated and "/" not in str(stated) and no_model:
        yield "model", "a model of the hub or a folder (--model)"


def commands(advice: Advice, *, plan_path: str | None = None) -> list[str]:
    """The lines to type next, in their order, as the page prints them; behind a measuring line the
    same without --dry-run, which trains.
    """
    if advice.nothing_fits is not None:
        ways = [way.command for way in advice.nothing_fits.ways_out]
        asked = command_line(advice.situation.answers, {}, command="advise")
        return ways or [f"{asked} --why"]
    found: list[str] = []
    for steps in next_steps(advice):
        found += [line for way in steps.ways for line in way.commands]
        found += steps.again
    composition = advice.recommendation.composition
    if plan_path is not None and composition.chain:
        return [*found, plan_command(advice, plan_path)]
    trained = training_steps(advice) if composition.chain else ()
    lines = [line for step in trained for line in step.commands]
    both = (one for line in lines for one in (line, line.removesuffix(f" {DRY_RUN}")))
    return [*found, *dict.fromkeys(both)]


def plan_command(advice: Advice, plan_path: str) -> str:
    """The line that trains a written plan, or packs it for the machine that will."""
    plan = shlex.quote(plan_path)
    return f"advise export {plan} --to bundle" if is_elsewhere(advice) else f"advise run {plan}"


def file_to_write(advice: Advice) -> tuple[TrainingStep, dict[str, Any]]:
    composition = advice.recommendation.composition
    if composition.chain[0] == "cpt":
        text = "Put your documents as text files into a folder, and check them:"
        step = TrainingStep(text=text, commands=("advise check documents",))
        return step, {"data_path": "documents"}
    kind = str(advice.situation.answers.value("data_kind") or "paired")
    if composition.encoder and advice.facts.get("task") == "classification":
        kind = "classes"
    elif kind not in FILES:
        kind = "requests" if composition.chain[0] == "distill" else "paired"
    what, file, columns = FILES[kind]
    changes: dict[str, Any] = {"data_path": file}
    where, short_where, checked = "into one file", "a file", "it"
    if composition.per_task:
        changes = dict.fromkeys(("data_kind", "data_rows", "data_tokens"))
        changes["tasks"] = {task: f"{task}-{file}" for task in ("first", "second")}
        where, short_where = "of each task into a file of its own", "a file for each task"
        file, checked = f"first-{file}", "each"
    mapped = ""
    if kind == "requests":
        changes["data_mapping"] = {"question": columns}
        mapped = f" --map question={columns}"
    cells: dict[str, Any] = dict.fromkeys(columns.split(), "...")
    if kind == "unpaired_feedback":
        cells["label"] = True
    row = json.dumps(cells)
    step = TrainingStep(
        text=f"Put your {what} {where}, one per line, such as {row}, and check {checked}:",
        short=f"Put lines like {row} into {short_where}, and check {checked}:",
        commands=(f"advise check {file}{mapped}",),
    )
    return step, changes


def finding_out(advice: Advice) -> str | None:
    """The line that measures whether it fits, if the estimate cannot say; else None."""
    best = advice.recommendation
    if best.estimate.fits != "may_fit" or best.engine or not best.composition.chain:
        return None
    lines = [line for step in training_steps(advice) for line in step.commands]
    return next((line for line in lines if line.endswith(DRY_RUN)), None)
