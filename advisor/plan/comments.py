"""The comments of a launch file, so that a changed copy of it keeps the reasons that still hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from advisor.ground.yaml_reader import parse_yaml
from advisor.plan.model import Comments, Plan
from advisor.plan.notes import stage_notes
from advisor.plan.write import Place, flat_place, plan_data

BY_SET = "set with --set"
# A reason holds as long as what it rests on is what it was: every reason of a stage on these, and
# what was fitted on further ones. `*` is everything in the stage that takes memory.
RESTS_ON = ("objective", "update", "quantization", "data", "model", "launch.device", "data.path")
MEMORY = ("*", "launch.processes", "launch.nodes", "launch.strategy", "launch.offload")
FITTED: Mapping[str, Collection[str]] = {
    "micro_batch_size": MEMORY,
    "gradient_checkpointing": MEMORY,
    "grad_accum": ("micro_batch_size", "launch.processes", "launch.nodes"),
    "epochs": ("max_steps",),
    "seq_len": ("response_tokens",),
    "response_tokens": ("seq_len",),
}
# What a reason that counts optimizer steps rests on besides.
COUNTS_STEPS = "optimizer step"
OF_STEPS = (
    "micro_batch_size", "grad_accum", "epochs", "max_steps", "holdout", "packing",
    "launch.processes", "launch.nodes",
)  # fmt: skip
# What the lines above a stage are made from (notes.py), and the steps in them.
NOTED = {
    *OF_STEPS, "objective", "data", "head", "loss_on", "seq_len", "truncation", "save_steps",
    "seed",
}  # fmt: skip
NO_MEMORY = {
    "name", "start_from", "learning_rate", "epochs", "max_steps", "warmup", "scheduler",
    "weight_decay", "holdout", "save_steps", "save_minutes", "seed", "truncation",
}  # fmt: skip

_OPENS = re.compile(r"(?:^|[\s,:\[{-])$")


def comments_of(text: str, *, name: str) -> Comments:
    """Path of a value -> the comment at the end of its line; of a stage the lines above it.

    Other lines that are comments as a whole are left out.
    """
    document = parse_yaml(text, name=name)
    by_line: dict[int, tuple[str | int, ...]] = {}
    for path, (line, _) in sorted(document.key_marks.items(), key=lambda item: item[1]):
        by_line[line] = path  # several keys on a line: the last one
    found = {}
    for number, line_text in enumerate(text.split("\n"), 1):
        comment = _comment(line_text)
        if comment and number in by_line:
            found[by_line[number]] = comment
    return found | _above_stages(text.split("\n"), by_line)


def _above_stages(
    lines: list[str], by_line: Mapping[int, tuple[str | int, ...]]
) -> dict[tuple[str | int, ...], str]:
    """The lines that are comments as a whole and stand right above a stage."""
    first: dict[tuple[str | int, ...], int] = {}
    for number, place in sorted(by_line.items()):
        if place[:1] == ("stages",) and len(place) > 2:
            first.setdefault(place[:2], number)
    found: dict[tuple[str | int, ...], str] = {}
    for stage, number in first.items():
        above = number - 1
        while above and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        said = [line.lstrip().lstrip("#").strip() for line in lines[above : number - 1]]
        if said and lines[number - 1].lstrip().startswith("-"):
            found[stage] = "\n".join(said)
    return found


def comments_after(comments: Comments | None, before: Plan, after: Plan) -> Comments:
    """The comments of a plan that --set changed: a changed value loses its reason and says who
    changed it, and so does a value whose reason rests on one that is changed.
    """
    known = {flat_place(place): text for place, text in (comments or {}).items()}
    old, new = (dict(_leaves(plan_data(plan, known))) for plan in (before, after))
    changed = {place for place in old | new if old.get(place) != new.get(place)}
    if not changed:
        return known
    found = {place: text for place, text in known.items() if place not in changed}
    for stage in [place for place in found if _is_stage(place)]:
        if any(_is_noted(stage, one) for one in changed):
            del found[stage]
            if int(stage[1]) < len(after.stages):
                found[stage] = stage_notes(after, int(stage[1]))
    for place in found:
        if _is_stage(place):
            continue
        more = OF_STEPS if COUNTS_STEPS in found[place] else ()
        inputs = {_rests_on(place, one, more) for one in changed} - {""}
        if inputs:
            first = min(inputs, key=lambda key: (key not in RESTS_ON, key))
            found[place] = f"chosen before {first} was {BY_SET}"
    return found | {place: BY_SET for place in changed if place in new}


def _is_stage(place: Place) -> bool:
    return place[:1] == ("stages",) and len(place) == 2


def _is_noted(stage: Place, changed: Place) -> bool:
    """Whether the lines above a stage rest on a changed value."""
    if changed[:2] == stage:
        return len(changed) < 3 or changed[2] in NOTED
    return changed[:1] in (("launch",), ("model",), ("data",), ("tasks",))


def _rests_on(place: Place, changed: Place, more: Collection[str]) -> str:
    """The changed key that the reason at a place rests on, one of `more` too; '' if none."""
    of_stage = changed[:1] == ("stages",) and len(changed) > 2
    if place[:1] == ("tasks",) and of_stage:  # a task has what its stage has, and its overrides
        return str(changed[2]) if changed[2] in more else ""
    if place[:1] != ("stages",) or (of_stage and changed[:2] != place[:2]):
        return ""
    key = str(changed[2]) if of_stage else ".".join(map(str, changed))
    inputs = (*RESTS_ON, *FITTED.get(str(place[-1]), ()), *more)
    return key if key in inputs or ("*" in inputs and of_stage and key not in NO_MEMORY) else ""


def _leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value of plain data with its place; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, (*place, key))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for index, part in enumerate(value):
            yield from _leaves(part, (*place, index))
    else:
        yield place, value


def _comment(line: str) -> str:
    """What follows the first # outside quotes and after a space; '' for a whole line of comment."""
    quote = ""
    skip = False
    for index, character in enumerate(line):
        if skip:
            skip = False
        elif quote:
            skip = quote == '"' and character == "\\"
            quote = "" if character == quote else quote
        elif character in "\"'" and _OPENS.search(line[:index]):
            quote = character
        elif character == "#" and index and line[index - 1] in " \t":
            return line[index + 1 :].strip() if line[:index].strip() else ""
    return ""
