"""The comments of a launch file: what stands above a stage, made from its keys; and a changed copy
of the file, which keeps the reasons that still hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from advisor.ground.counting import counted
from advisor.ground.yaml_files import parse_yaml
from advisor.methods import methods
from advisor.methods.stage import stage_keys
from advisor.plan.model import Comments, Place, Plan, Stage
from advisor.plan.write import flat_place, plan_data

BY_SET = "set with --set"
_OPENS = re.compile(r"(?:^|[\s,:\[{-])$")


def comments_of(text: str, *, name: str) -> Comments:
    """Path of a value -> the comment at the end of its line; of a stage the lines above it.

    Other lines that are comments as a whole are left out.
    """
    document = parse_yaml(text, name=name)
    # Several keys on a line: the last one.
    keys = sorted(document.positions[0].items(), key=lambda item: item[1])
    by_line: dict[int, Place] = {line: path for path, (line, _) in keys}
    # YAML ends lines at these, too.
    lines, found = re.split("\r\n|[\r\n\x85\u2028\u2029]", text), dict[Place, str]()
    for number, place in by_line.items():
        if comment := _comment(lines[number - 1]):
            found[place] = comment
        is_first = place[:1] == ("stages",) and len(place) > 2 and place[:2] not in found
        if is_first and lines[number - 1].lstrip().startswith("-"):
            above = number - 1
            while above and lines[above - 1].lstrip().startswith("#"):
                above -= 1
            said = [line.lstrip().lstrip("#").strip() for line in lines[above : number - 1]]
            if said:
                found[place[:2]] = "\n".join(said)
    return found


def comments_after(comments: Comments | None, before: Plan, after: Plan) -> Comments:
    """The comments of a plan that --set changed: a changed value loses its reason and says who
    changed it; the reasons of the same stage, or of all if a key beside the stages changed, say
    that they are older.
    """
    known = {flat_place(place): text for place, text in (comments or {}).items()}
    old, new = (leaves(plan_data(plan, known)) for plan in (before, after))
    changed = {place for place in old | new if old.get(place) != new.get(place)}
    found: dict[Place, str] = {}
    for place, text in known.items():
        newer = sorted(filter(None, (_newer(place, one) for one in changed)))
        if place in changed:
            continue
        if len(place) == 2 and place[0] == "stages" and newer:
            if int(place[1]) < len(after.stages):
                found[place] = stage_notes(after, int(place[1]))
            continue
        is_older = newer and BY_SET not in text
        found[place] = f"{text}; chosen before {newer[0]} was {BY_SET}" if is_older else text
    return found | {place: BY_SET for place in changed if place in new}


def _newer(place: Place, changed: Place) -> str:
    """The changed key, if a reason at a place may rest on it; else ''."""
    is_of_stage = changed[:1] == ("stages",)
    if place[0] not in ("stages", "tasks") or changed == ("name",):
        return ""
    if is_of_stage and place[0] == "stages" and changed[:2] != place[:2]:
        return ""
    key = stage_keys().get(str(changed[2])) if is_of_stage and len(changed) > 2 else None
    if key is not None and not (key.uses.memory or key.uses.result):  # when it saves, say
        return ""
    return ".".join(map(str, changed[2:] if is_of_stage else changed))


def leaves(value: Any, place: Place = ()) -> dict[Place, Any]:
    """Every value of plain data by its place; a list of plain values is one value."""
    if isinstance(value, dict) and value:
        parts: Any = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        parts = enumerate(value)
    else:
        return {place: value}
    return {at: one for key, part in parts for at, one in leaves(part, (*place, key)).items()}


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


IN_ALL = re.compile(r"; [^;\n]* steps in all[^;\n]*")  # of the lines above a stage
LEARNED = {"answers": "the answers alone", "all": "every token"}
TOO_LONG = {
    "stop": "left out; above 5 % of the rows the run stops instead",
    "drop": "left out",
    "truncate": "cut",
}
OWN_TEMPLATE = "the model's own"
PLAIN_TEMPLATE = (
    "the model's own if it has one, else a plain one (User: ... Assistant: ...), stored with the"
    " result"
)


def stage_notes(plan: Plan, index: int, *, steps: int | None = None, instruct: bool = False) -> str:
    """The lines above a stage, joined by line breaks.

    Args:
        index: Of the stage.
        steps: Optimizer steps in all; None: not known.
        instruct: The model follows instructions already, so it brings a chat template.
    """
    lines = [_batch(plan, plan.stages[index], steps), *_of_stage(plan.stages[index], instruct)]
    before = _of_stage(plan.stages[index - 1], instruct) if index else []
    return "\n".join(line for line in lines if line not in before)


def borrowed_rate_warnings(data: Any, plan: Plan) -> Iterator[str]:
    """A warning for each stage that compares or scores answers and names no learning rate: it takes
    that of its update, which is one for learning given texts.

    Args:
        data: The plan file as it was written.
        plan: What was read from it, and changed.
    """
    for given, stage in zip(data["stages"], plan.stages, strict=False):
        learned, update = methods().objective(stage.objective), methods().update(stage.update)
        usual = update.defaults.get("learning_rate")
        named = "learning_rate" in given or "learning_rate" in learned.defaults
        if not named and not learned.learns_texts and stage.learning_rate == usual:
            yield (
                f"stage {stage.name} names no learning_rate and takes {usual:g}, which is usual for"
                f" supervised fine-tuning with {update.id}; {learned.id} usually takes a tenth of"
                " it or less: a plan that `advise` writes has one by rule"
            )


def comments_of_trial(comments: Comments | None, max_steps: int) -> Comments | None:
    """The comments for the copy of a plan in a trial's folder: its stages end earlier."""
    if comments is None:
        return None
    ends = f"; a trial of at most {max_steps:,} step{'' if max_steps == 1 else 's'} (--max-steps)."
    return {
        place: IN_ALL.sub(ends, said, count=1) if place[:1] == ("stages",) else said
        for place, said in comments.items()
    }


def _of_stage(stage: Stage, instruct: bool) -> list[str]:
    """What of a row is learned, its template, long rows, held-out rows and checkpoints."""
    objective, said = methods().objective(stage.objective), []
    if stage.options.get("head") not in ("classes", "seq2seq"):
        if objective.splits_documents:
            said.append("Loss: on every token.")
        elif "loss_on" in objective.keys:
            loss_on = stage.options.get("loss_on", objective.keys["loss_on"].default)
            said.append(f"Loss: on {LEARNED[str(loss_on)]}.")
        if not objective.splits_documents:
            said.append(f"Chat template: {OWN_TEMPLATE if instruct else PLAIN_TEMPLATE}.")
    if objective.splits_documents:
        said.append("Documents over seq_len are split, nothing is lost.")
    else:
        fate = TOO_LONG[stage.truncation]
        said.append(f"Rows over seq_len: {fate} (truncation: {stage.truncation}).")
    if stage.holdout:
        between = "" if objective.generates else ", and up to ten times between"
        share = f"{100 * stage.holdout:.3g} %"
        said.append(f"Held out: {share} of the rows, measured before and after{between}.")
    else:
        said.append("Held out: no rows, so nothing tells how good the result is.")
    saved = "about ten in a run, at least every 500 steps"
    saved = saved if stage.save_steps is None else f"every {counted(stage.save_steps, 'step')}"
    last = f"Checkpoints: {saved}; the last two stay. Log: metrics.jsonl. Seed: {stage.seed}."
    return [*said, last]


def _batch(plan: Plan, stage: Stage, steps: int | None) -> str:
    each, accum, processes = stage.micro_batch_size, stage.grad_accum, plan.launch.world_size
    device = "GPU" if plan.launch.device != "cpu" else "process"
    unit = "sequence" if stage.packing else "row"
    count = each * accum * processes
    devices = device if processes == 1 else f"{device}s" if device == "GPU" else f"{device}es"
    said = (
        f"{count:,} {unit}{'' if count == 1 else 's'} a step = {each} (micro_batch_size) x {accum}"
        f" (grad_accum) x {processes} {devices}"
    )
    if any({"micro_batch_size", "grad_accum"} & set(task.overrides) for task in plan.tasks):
        said += ", unless a task's overrides say otherwise"
    if stage.max_steps is not None:
        return f"{said}; {counted(stage.max_steps, 'step')} in all (max_steps)."
    return f"{said}; about {counted(steps, 'step')} in all." if steps else f"{said}."
