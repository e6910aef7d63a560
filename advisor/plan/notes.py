"""What stands above a stage of a launch file: what follows from its keys, and what a run does
without one.

The lines are comments. They are made from the plan, so that they are true of it, and made again
where `--set` changes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from advisor.methods import methods
from advisor.plan.model import Comments, Plan, Stage

IN_ALL = re.compile(r"; [^;\n]* steps in all[^;\n]*")  # of the lines above a stage
LEARNED = {"answers": "the answers alone", "all": "every token"}
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


def borrowed_rates(data: Any, plan: Plan) -> Iterator[str]:
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
                " it or less: `advise --plan FILE` chooses one"
            )


def in_trial(comments: Comments | None, max_steps: int) -> Comments | None:
    """The comments for the copy of a plan in a trial's folder: its stages end earlier."""
    if comments is None:
        return None
    ends = f"; a trial of at most {max_steps:,} step{'' if max_steps == 1 else 's'} (--max-steps)."
    return {
        place: IN_ALL.sub(ends, said, count=1) if place[:1] == ("stages",) else said
        for place, said in comments.items()
    }


def _of_stage(stage: Stage, instruct: bool) -> list[str]:
    saved = (
        f"every {stage.save_steps:,} steps"
        if stage.save_steps is not None
        else "about ten in a run, at least every 500 steps"
    )
    return [
        *_texts(stage, instruct),
        _too_long(stage),
        _held_out(stage),
        f"Checkpoints: {saved}; the last two stay. Log: metrics.jsonl. Seed: {stage.seed}.",
    ]


def _batch(plan: Plan, stage: Stage, steps: int | None) -> str:
    """Rows of an optimizer step in words, and the steps in all."""
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
        return f"{said}; {stage.max_steps:,} steps in all (max_steps)."
    return f"{said}; about {steps:,} steps in all." if steps else f"{said}."


def _held_out(stage: Stage) -> str:
    if not stage.holdout:
        return "Held out: no rows, so nothing tells how good the result is."
    writes = stage.objective in methods().objectives and (
        methods().objectives[stage.objective].generates
    )
    between = "" if writes else ", and up to ten times between"
    share = f"{100 * stage.holdout:.3g} %"
    return f"Held out: {share} of the rows, measured before and after{between}."


def _texts(stage: Stage, instruct: bool) -> list[str]:
    """What of a row is learned, and the template that it is written with."""
    objective = methods().objectives.get(stage.objective)
    if objective is None or stage.options.get("head") in ("classes", "seq2seq"):
        return []
    if objective.splits_documents:
        return ["Loss: on every token."]
    template = f"Chat template: {OWN_TEMPLATE if instruct else PLAIN_TEMPLATE}."
    if "loss_on" not in objective.keys:
        return [template]
    loss_on = stage.options.get("loss_on", objective.keys["loss_on"].default)
    return [f"Loss: on {LEARNED[str(loss_on)]}.", template]


def _reads_documents(stage: Stage) -> bool:
    objective = methods().objectives.get(stage.objective)
    return objective is not None and objective.splits_documents


def _too_long(stage: Stage) -> str:
    if _reads_documents(stage):
        return "Documents over seq_len are split, nothing is lost."
    said = {
        "stop": "left out; above 5 % of the rows the run stops instead",
        "drop": "left out",
        "truncate": "cut",
    }
    return f"Rows over seq_len: {said[stage.truncation]} (truncation: {stage.truncation})."
