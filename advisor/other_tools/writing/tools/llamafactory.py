"""What LLaMA-Factory alone has: keys beside those of a plan, and the shape of its rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from advisor.data.example import Example, Message
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.rows import ANSWERS, FEEDBACK, PAIRS, TEXT, Shape, Traits
from advisor.other_tools.writing.shapes import (
    LONG_ANSWER,
    WRONG_ORDER,
    Layout,
    as_map,
    as_maps,
    texts,
)
from advisor.other_tools.writing.shared import (
    MASK_NOTE,
    TEST,
    TRAIN,
    deepspeed,
    evaluation,
    hub_name,
    long_texts,
    upload,
)

# `templates` of rules/tools/llamafactory.yaml: the template that it derives from the model's own.
OWN = "own"
TEMPLATES = {
    OWN: "derived from the model's own: the same text",
    None: "derived from the model's own",
}
UNKNOWN_TEMPLATE = (
    "template: no registered template is known to write the same text as this model's own, and what"
    " is derived from it goes wrong where the own one writes something once at the head, as that of"
    " Llama 3.1 does. Compare the first row, which is printed at the start, with `advise check DATA"
    " --show-row 1 --model MODEL`"
)


def complete(job: Job) -> None:
    """Add the keys that no key of a plan stands beside."""
    long_texts(job, is_split=job.values.get("packing"))
    name = job.place.replace("-", "_") or "rows"
    info: dict[str, Any] = {}
    layout = job.layout.name if job.layout else ""
    if job.rows is None:
        info[name] = {"hf_hub_url": hub_name(job)}
    else:
        parts = [(name, TRAIN)] + ([(f"{name}_test", TEST)] if job.evaluates else [])
        for known, file in parts:
            info[known] = {"file_name": f"{job.folder}/{file}", **_form(layout)}
    job.files["dataset_info.json"] = json.dumps(info, indent=2)
    job.put("dataset_dir", ".", "the folder of dataset_info.json: start it from here")
    job.put("dataset", name)
    if job.evaluates:
        job.put("eval_dataset", f"{name}_test")
    if layout != TEXT:
        known, differs = job.tool.template_of(job.plan.model)
        job.put("template", None if known == OWN else known, TEMPLATES.get(known, ""))
        if known is None or differs:
            job.notes.append(f"template: {differs}" if differs else UNKNOWN_TEMPLATE)
        job.notes.append(MASK_NOTE)
    thinking = job.plan.template.get("enable_thinking")
    if isinstance(thinking, bool):
        job.put("enable_thinking", thinking)
    job.put("packing", job.values.get("packing", False))
    evaluation(job, "per_device_eval_batch_size")
    job.put("output_dir", job.output)
    job.put("logging_steps", 10)
    job.put("logging_first_step", True)
    upload(job, push_to_hub=True, hub_private_repo=True)
    if job.plan.launch.device == "cpu":
        job.put("use_cpu", True)
    deepspeed(job)
    job.found("processes")


def _form(layout: str) -> dict[str, Any]:
    """How an entry of dataset_info.json describes the rows."""
    if layout == TEXT:
        return {"columns": {"prompt": "text"}}
    columns = {"messages": "messages"}
    if layout.startswith(PAIRS):
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if layout.startswith(FEEDBACK):
        columns["kto_tag"] = "label"
    has_tools = layout.endswith("-tools")
    if has_tools:
        columns["tools"] = "tools"
    tags = {
        "role_tag": "role", "content_tag": "content", "user_tag": "user",
        "assistant_tag": "assistant", "system_tag": "system",
        **({"observation_tag": "tool", "function_tag": "function_call"} if has_tools else {}),
    }  # fmt: skip
    return {
        "formatting": "openai" if has_tools else "sharegpt",
        **({"ranking": True} if layout.startswith(PAIRS) else {}),
        "columns": columns,
        "tags": tags,
    }


def start_of(job: Job, command: str) -> str:
    """The command that trains it."""
    if job.plan.launch.processes == 1:
        return command
    return f"FORCE_TORCHRUN=1 NPROC_PER_NODE={job.plan.launch.processes} {command}"


# --------------------------------------------------------------------------- rows


def layout_of(objective: str, traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
    """How rows are written. writer.py says what the arguments are."""
    if traits.kind == TEXT:
        return Layout(name=TEXT, shape=texts)
    name = f"{traits.kind}-tools" if traits.has_tools else traits.kind
    notes: tuple[str, ...] = (
        ("tools and their calls are written by LLaMA-Factory's template, not by the model's own",)
        if traits.has_tools
        else ()
    )
    if traits.kind == ANSWERS and traits.weighted:
        notes += (
            f"{traits.weighted:,} rows have answers that are not to be learned; it learns every"
            " answer",
        )
    shape = {ANSWERS: _lf_answers, PAIRS: _lf_pair}.get(traits.kind, _lf_feedback)
    return Layout(name=name, shape=_with_tools(shape) if traits.has_tools else shape, notes=notes)


def _alternates(turns: Sequence[Message], *, answered: bool) -> bool:
    """Whether users (or tools) and the assistant take turns, after a system text."""
    body = list(turns[1:] if turns and turns[0].role == "system" else turns)
    merged: list[str] = []
    for turn in body:
        if turn.role == "system":
            return False
        if turn.role == "tool" and merged[-1:] == ["tool"]:
            continue  # answers of several tools are one turn there
        merged.append(turn.role)
    asks = [role in ("user", "tool") for role in merged]
    expected = [place % 2 == 0 for place in range(len(asks))]
    return bool(asks) and asks == expected and (len(asks) % 2 == 0) == answered


def _with_tools(shape: Shape) -> Shape:
    """With the tools as the text that its loader reads, empty where a row has none: the column has
    to be there.
    """

    def row(example: Example) -> list[dict[str, Any]] | str:
        shaped = shape(example)
        if isinstance(shaped, str):
            return shaped
        return [{**one, "tools": _declared(example)} for one in shaped]

    return row


def _declared(example: Example) -> str:
    if not example.tools:
        return ""
    declared = [dict(tool.get("function", tool)) for tool in example.tools]
    return json.dumps(declared, ensure_ascii=False)


def _lf_answers(example: Example) -> list[dict[str, Any]] | str:
    turns = example.messages
    if not _alternates(turns, answered=True):
        return WRONG_ORDER
    return [{"messages": as_maps(turns)}]


def _lf_pair(example: Example) -> list[dict[str, Any]] | str:
    if len(example.chosen) != 1 or len(example.rejected) != 1:
        return LONG_ANSWER
    if not _alternates(example.messages, answered=False):
        return WRONG_ORDER
    row = {
        "messages": as_maps(example.messages),
        "chosen": as_map(example.chosen[0]),
        "rejected": as_map(example.rejected[0]),
    }
    return [{**row}]


def _lf_feedback(example: Example) -> list[dict[str, Any]] | str:
    if not _alternates(example.messages, answered=True):
        return WRONG_ORDER
    return [{"messages": as_maps(example.messages), "label": example.good}]
