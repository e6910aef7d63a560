"""What to do first where an answer trains nothing, or something beside training: the same steps for
the page and for the JSON document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from advisor.advice.types import Advice
from advisor.ground.types import Source
from advisor.methods import remedy
from advisor.methods.remedies import OTHER_TOOL, Way
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
NOT_SO = "if it is a model of text after all, say so: --choose {composition} --force"


@dataclass(frozen=True, kw_only=True, slots=True)
class NextSteps:
    """How to begin with one remedy."""

    remedy: str
    first: str  # the first step, in a sentence
    ways: tuple[Way, ...]
    measure: str = ""  # how to tell that it is not enough
    helps_then: str = ""  # what of this product helps then
    also: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()


def next_steps(advice: Advice) -> tuple[NextSteps, ...]:
    """The steps for each remedy of the recommendation that has any, in its order."""
    return tuple(_steps(advice))


def _steps(advice: Advice) -> Iterator[NextSteps]:
    composition = advice.recommendation.composition
    privacy = advice.facts.get("priority") == "privacy"
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
            ways=tuple(way for way in found.ways if way.where == "local" or not privacy),
            measure=found.measure,
            helps_then="" if composition.chain else found.helps_then,
            also=(*halves, *found.said_also(advice.facts)),
            sources=found.sources,
        )


def training_steps(advice: Advice) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """How to begin with a training: what to write down, and the lines to type, each with what it
    does.
    """
    return tuple(_training(advice))


def _training(advice: Advice) -> Iterator[tuple[str, tuple[str, ...]]]:
    situation, composition = advice.situation, advice.recommendation.composition
    answers, changes = situation.answers, dict[str, Any]()
    if not answers.value("data_path") and not answers.value("tasks"):
        if composition.chain[0] == "cpt":
            changes["data_path"] = "documents"
            yield (
                "Put your documents as text files into a folder, and check them:",
                ("advise check documents",),
            )
        else:
            what, file, columns = FILES[_kind_of_file(advice)]
            if composition.per_task:
                changes |= dict.fromkeys(("data_kind", "data_rows", "data_tokens"))
                changes["tasks"] = {task: f"{task}-{file}" for task in ("first", "second")}
                file, where = f"first-{file}", "of each task into a file of its own"
            else:
                changes["data_path"], where = file, "into one file"
            mapping = {} if len(columns) > 1 else {"question": columns[0]}
            if mapping:
                changes["data_mapping"] = mapping
            more = "".join(f" --map {role}={column}" for role, column in mapping.items())
            row = ", ".join(
                f'"{column}": {"true" if column == "label" and "prompt" in columns else DOTS}'
                for column in columns
            )
            yield (
                f"Put your {what} {where}, one a line such as {{{row}}}, and check it:",
                (f"advise check {file}{more}",),
            )
    if any(stage.is_sharded for stage in advice.recommendation.stages):
        return  # `advise run` does not start it, as a warning says
    if "distill" in composition.chain and not answers.value("teacher_model"):
        changes["teacher_model"] = "THE_LARGER_MODEL"
    there = ""
    if situation.hardware.origin == "stated":
        changes["gpu"] = None
        there = ", on the machine with the GPU" if situation.hardware.gpus else ""
    yield (
        f"Train{there}. This line measures the memory first (leave --dry-run out to train):",
        (f"{command_line(answers, changes)} {DRY_RUN}",),
    )
    if not composition.encoder:
        yield "Afterwards, put your own requests to the model before and after:", ("advise chat",)


def finding_out(advice: Advice) -> str | None:
    """The line that measures within minutes whether the recommendation fits, where the estimate
    cannot say; None where it can.
    """
    if advice.recommendation.estimate.fits != "may_fit":
        return None
    lines = [line for _, commands in training_steps(advice) for line in commands]
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
    instead = tuple(
        f"to train {model} here in its place: the same command with --model {model}"
        for model in outside.instead[:1]
    )
    trains = next((c.composition for c in advice.alternatives if c.composition.chain), None)
    certain = outside.instead or not outside.is_model  # it is known, and can be had in another form
    doubt = () if certain or trains is None else (NOT_SO.format(composition=trains),)
    return NextSteps(
        remedy=OTHER_TOOL,
        first=outside.where,
        ways=(Way(where="local", text="", commands=outside.first, cost=""),)
        if outside.first
        else (),
        also=(*instead, *doubt),
        sources=outside.sources,
    )
