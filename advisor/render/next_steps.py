"""What to do first where an answer trains nothing, or something beside training: the same steps for
the page and for the JSON document.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from advisor.advice.types import Advice
from advisor.ground.types import Source
from advisor.methods import remedy
from advisor.methods.remedies import OTHER_TOOL, Remedy, Way
from advisor.render.words import is_chosen, stays_at_home
from advisor.situation.answers import command_line

# What a person has to write down for each kind of data: what it is, its file, a row of it.
FILES = {
    "classes": ("texts with their labels", "labels.jsonl", ("text", "label")),
    "paired": ("requests with the right answer", "examples.jsonl", ("prompt", "completion")),
    "preference": (
        "pairs of a better and a worse answer",
        "pairs.jsonl",
        ("prompt", "chosen", "rejected"),
    ),
    "unpaired_feedback": (
        "answers with their marks",
        "marks.jsonl",
        ("prompt", "completion", "label"),
    ),
    "prompts_with_verifier": (
        "problems with their right answers",
        "problems.jsonl",
        ("prompt", "ground_truth"),
    ),
    "requests": ("requests", "requests.jsonl", ("prompt",)),
}
DOTS = '"..."'
DRY_RUN = "--dry-run"
CHAT = "advise chat"


@dataclass(frozen=True, kw_only=True, slots=True)
class NextSteps:
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


def next_steps(advice: Advice) -> tuple[NextSteps, ...]:
    """The steps for each remedy of the recommendation that has any, in its order."""
    return tuple(_steps(advice))


def _steps(advice: Advice) -> Iterator[NextSteps]:
    composition = advice.recommendation.composition
    at_home = stays_at_home(advice)
    for name in composition.remedies:
        if name == OTHER_TOOL:
            yield _other_tool(advice)
            continue
        found = remedy(name)
        if not found.first:
            continue
        halves = (found.beside_training,) if composition.chain and found.beside_training else ()
        yield NextSteps(
            remedy=name,
            first=found.first,
            # What must not leave the house is not sent to a provider.
            ways=tuple(way for way in found.ways if way.where == "local" or not at_home),
            measure=found.measure,
            helps_then="" if composition.chain else found.helps_then,
            write=found.write,
            again=() if composition.chain else _again(advice, found),
            also=(*halves, *found.said_also(advice.facts)),
            sources=found.sources,
        )


def is_elsewhere(advice: Advice) -> bool:
    """Whether the GPU is in another machine than the one that is asked."""
    hardware = advice.situation.hardware
    return hardware.origin == "stated" and bool(hardware.gpus)


def _again(advice: Advice, found: Remedy) -> tuple[str, ...]:
    """The lines that check what was written, and ask again with it."""
    if not found.again:
        return ()
    answers, states = advice.situation.answers, dict(found.again)
    taken_back = {name for name, value in states.items() if value is None}
    stated = (*answers.signals, *states.pop("signals", ()))
    signals = tuple(dict.fromkeys(name for name in stated if name not in taken_back))
    states |= dict.fromkeys(signals) | {"signals": signals or None}  # no denial beside it
    asked = command_line(answers, states, command="advise")
    return (f"advise check {states['data_path']}", asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a training that starts."""

    text: str
    short: str = ""  # the same in one line of a terminal, where there is a shorter way to say it
    commands: tuple[str, ...]


def training_steps(advice: Advice) -> tuple[Step, ...]:
    """How to begin with a training: what to write down, and the lines to type."""
    return tuple(_training(advice))


def _training(advice: Advice) -> Iterator[Step]:
    from advisor.advice.planning import lacks_scores  # what plans need is no part of a quick answer

    situation, composition = advice.situation, advice.recommendation.composition
    answers, changes = situation.answers, dict[str, Any]()
    if not answers.value("data_path") and not answers.value("tasks"):
        step, changes = _to_write_down(advice)
        yield step
    if "distill" in composition.chain and not answers.value("teacher_model"):
        changes["teacher_model"] = "THE_LARGER_MODEL"
    if lacks_scores(situation, composition.chain):
        changes["reward_model"] = "REWARD_MODEL_FOLDER"
    # What has the form of a hub id may be one that is not known here.
    stated = answers.value("model") or answers.value("model_params_b")
    no_model = situation.model is None or situation.model.origin == "size"
    if stated and "/" not in str(stated) and no_model:
        changes["model"] = "NAME_ON_THE_HUB"
    there = ""
    if situation.hardware.origin == "stated":
        changes["gpu"] = None
        there = " on the machine with the GPU" if situation.hardware.gpus else ""
    yield Step(
        text=f"Train{there}; --dry-run measures the memory first, and trains nothing:",
        short=f"Train{there}; --dry-run measures the memory first:",
        commands=(f"{command_line(answers, changes)}{_by_hand(advice)} {DRY_RUN}",),
    )
    if not composition.encoder:
        after = "Afterwards, put your own requests to the model before and after:"
        yield Step(text=after, commands=(CHAT,))


def _by_hand(advice: Advice) -> str:
    """The flags that choose what the answer is about, where that is not what is recommended."""
    if not is_chosen(advice):
        return ""
    return f" --choose {shlex.quote(str(advice.recommendation.composition))} --force"


def _to_write_down(advice: Advice) -> tuple[Step, dict[str, Any]]:
    """The file that is still missing, and what it changes in the answers."""
    composition = advice.recommendation.composition
    if composition.chain[0] == "cpt":
        return Step(
            text="Put your documents as text files into a folder, and check them:",
            commands=("advise check documents",),
        ), {"data_path": "documents"}
    what, file, columns = FILES[_kind_of_file(advice)]
    changes: dict[str, Any] = {"data_path": file}
    where = "into one file"
    if composition.per_task:
        changes = dict.fromkeys(("data_kind", "data_rows", "data_tokens"))
        changes["tasks"] = {task: f"{task}-{file}" for task in ("first", "second")}
        file, where = f"first-{file}", "of each task into a file of its own"
    mapping = {} if len(columns) > 1 else {"question": columns[0]}
    if mapping:
        changes["data_mapping"] = mapping
    more = "".join(f" --map {role}={column}" for role, column in mapping.items())
    row = ", ".join(
        f'"{column}": {"true" if column == "label" and "prompt" in columns else DOTS}'
        for column in columns
    )
    short_where = "a file for each task" if composition.per_task else "a file"
    checked = "each" if composition.per_task else "it"
    return Step(
        text=f"Put your {what} {where}, one per line, such as {{{row}}}, and check {checked}:",
        short=f"Put lines like {{{row}}} into {short_where}, and check {checked}:",
        commands=(f"advise check {file}{more}",),
    ), changes


def finding_out(advice: Advice) -> str | None:
    """The line that measures whether it fits, where the estimate cannot say; else None."""
    if advice.recommendation.estimate.fits != "may_fit":
        return None
    lines = [line for step in training_steps(advice) for line in step.commands]
    return next((line for line in lines if line.endswith(DRY_RUN)), None)


def _kind_of_file(advice: Advice) -> str:
    composition = advice.recommendation.composition
    kind = str(advice.situation.answers.value("data_kind") or "paired")
    if composition.encoder and advice.facts.get("task") == "classification":
        return "classes"
    if composition.chain[0] == "distill" and kind not in FILES:
        return "requests"
    return kind if kind in FILES else "paired"


def _other_tool(advice: Advice) -> NextSteps:
    outside = advice.situation.outside
    assert outside is not None  # nothing else leads to this remedy
    answers = advice.situation.answers

    def way(text: str, *commands: str) -> Way:
        return Way(where="local", text=text, commands=commands, cost="")

    instead = []
    for model in outside.instead[:1]:
        line = command_line(answers, {"model": model}, command="advise")
        instead.append(way(f"To train {model} here in its place:", line))
    trains = next((c.composition for c in advice.alternatives if c.composition.chain), None)
    certain = outside.instead or not outside.is_model  # it is known, and can be had in another form
    if trains is not None and not certain:
        line = f"{command_line(answers, {}, command='advise')} --choose {trains} --force"
        instead.append(way("If it is a model of text after all:", line))
    ways = (*([way("To begin:", *outside.first)] if outside.first else []), *instead)
    return NextSteps(remedy=OTHER_TOOL, first=outside.where, ways=ways, sources=outside.sources)
