"""What Axolotl alone has: keys beside those of a plan, and the shape of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.data.example import Example, Message
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.rows import ANSWERS, PAIRS, TEXT, Traits
from advisor.other_tools.writing.shapes import (
    LONG_ANSWER,
    MORE_TURNS,
    Layout,
    as_map,
    as_maps,
    messages,
    texts,
    tools_of,
)
from advisor.other_tools.writing.shared import (
    TEST,
    TRAIN,
    deepspeed,
    evaluation,
    hub_name,
    keep_packed_rows_apart,
    long_texts,
    upload,
)


def complete(job: Job) -> None:
    """Add the keys that no key of a plan stands beside."""
    long_texts(job, is_split=True)
    keep_packed_rows_apart(job, packing="sample_packing")
    layout = job.layout.name if job.layout else ""
    if job.rows is None:
        job.put("datasets", [{"path": hub_name(job), **_axolotl_form("answers")}])
    else:
        form = {"ds_type": "json", **_axolotl_form(layout)}
        job.put("datasets", [{"path": f"{job.folder}/{TRAIN}", **form}])
        if job.evaluates:
            held = {"path": f"{job.folder}/{TEST}", "split": "train", **form}
            job.put("test_datasets", [held])
    job.put("val_set_size", 0.0, "the held-out rows are a file of their own")
    if layout in ("answers", "weighted"):
        job.notes.append(
            "the end of an answer is learned where it is the tokenizer's end token; if the template"
            " ends a turn with another one, name it in eot_tokens"
        )
    if job.plan.template:
        job.put("chat_template_kwargs", dict(job.plan.template))
    evaluation(job, "eval_batch_size")
    job.put("dataset_prepared_path", f"{job.output}/prepared")
    job.put("output_dir", job.output)
    job.put("logging_steps", 10)
    trackers = job.plan.extra_key("trackers", "trackers") or ()
    for tracker in trackers:
        job.put(f"use_{tracker}", True)
    if "wandb" in trackers:
        job.put("wandb_project", job.plan.name)
    job.found("trackers")
    upload(job)  # into a private repository, as it always does
    deepspeed(job)
    job.found("processes")


def _axolotl_form(layout: str) -> dict[str, Any]:
    if layout == TEXT:
        return {"type": "completion", "field": "text"}
    if layout == "reward":
        return {"type": "bradley_terry.chat_template"}
    if layout == PAIRS:
        return {
            "type": "chat_template.default", "field_messages": "messages",
            "field_chosen": "chosen", "field_rejected": "rejected",
        }  # fmt: skip
    form: dict[str, Any] = {
        "type": "chat_template", "field_messages": "messages",
        "roles_to_train": ["assistant"], "train_on_eos": "turn",
    }  # fmt: skip
    if layout == "weighted":
        form |= {"message_field_training": "train"}
    return form


def start_of(job: Job, command: str) -> str:
    """The command that trains it."""
    processes = job.plan.launch.processes
    if processes == 1:
        return command
    return f"{command} --launcher accelerate -- --num_processes={processes}"


# --------------------------------------------------------------------------- rows


def layout_of(objective: str, traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
    """How rows are written. writer.py says what the arguments are."""
    if traits.kind == TEXT:
        return Layout(name=TEXT, shape=texts)
    if traits.kind == ANSWERS:
        return Layout(
            name="weighted" if traits.weighted else ANSWERS,
            shape=_axolotl_weighted if traits.weighted else messages,
        )
    return Layout(
        name="reward" if objective == "rm" else PAIRS,
        shape=_axolotl_reward if objective == "rm" else _axolotl_pair,
    )


def _axolotl_weighted(example: Example) -> list[dict[str, Any]] | str:
    turns = [{**as_map(turn), "train": _is_learned(turn)} for turn in example.messages]
    return [{"messages": turns, **tools_of(example)}]


def _is_learned(turn: Message) -> bool:
    return turn.role == "assistant" and turn.weight > 0


def _axolotl_pair(example: Example) -> list[dict[str, Any]] | str:
    if len(example.chosen) != 1 or len(example.rejected) != 1:
        return LONG_ANSWER
    return [
        {
            "messages": as_maps(example.messages),
            "chosen": _plain(example.chosen[0]),
            "rejected": _plain(example.rejected[0]),
        }
    ]


def _plain(turn: Message) -> Mapping[str, str]:
    return {"role": turn.role, "content": turn.content}


def _axolotl_reward(example: Example) -> list[dict[str, Any]] | str:
    """Its reward models read a system text, one question and two answers."""
    if len(example.chosen) != 1 or len(example.rejected) != 1:
        return LONG_ANSWER
    turns = example.messages
    system = turns[0].content if turns and turns[0].role == "system" else ""
    asked = turns[1:] if system else turns
    if len(asked) != 1 or asked[0].role != "user":
        return MORE_TURNS
    return [
        {
            "system": system,
            "input": asked[0].content,
            "chosen": example.chosen[0].content,
            "rejected": example.rejected[0].content,
        }
    ]
