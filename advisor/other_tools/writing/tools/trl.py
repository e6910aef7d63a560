"""What TRL alone has: keys beside those of a plan, and the shape of its rows."""

from __future__ import annotations

from typing import Any

from advisor.data.example import Example
from advisor.other_tools.tables.mapping import Lost
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.rows import FEEDBACK, PAIRS, PROMPTS, TEXT, Traits
from advisor.other_tools.writing.shapes import (
    Layout,
    as_map,
    as_maps,
    messages,
    texts,
    tools_of,
)
from advisor.other_tools.writing.shared import (
    MASK_NOTE,
    TEST,
    TRAIN,
    evaluation,
    hub_name,
    keep_packed_rows_apart,
    long_texts,
    upload,
)


def complete(job: Job) -> None:
    """Add the keys that no key of a plan stands beside."""
    long_texts(job, is_split=job.values.get("packing"))
    keep_packed_rows_apart(job, packing="packing")
    stage, launch = job.entry.stage, job.plan.launch
    layout = job.layout.name if job.layout else ""
    if job.rows is None:
        job.put("dataset_name", hub_name(job))
    else:
        job.put("dataset_name", f"./{job.folder}", f"{TRAIN} and {TEST}, written beside this file")
        job.put("dataset_test_split", "test")
    job.put("dataset_train_split", "train")
    if job.command == "sft":
        if layout == "marked":
            job.put("completion_only_loss", False)
            job.put("assistant_only_loss", True, "every answer of a conversation is learned")
        elif layout == TEXT:
            job.put("completion_only_loss", False, "every token is learned")
            job.put("assistant_only_loss", False)
        else:
            job.put("assistant_only_loss", False)
        if layout in ("completion", "marked"):
            job.notes.append(MASK_NOTE)
        job.put("eval_packing", False)
        if layout == TEXT:
            job.put("packing_strategy", "bfd_split", "texts over max_length are split, not cut")
    if job.plan.template and layout != TEXT:
        job.columns = {"chat_template_kwargs": dict(job.plan.template)}
        job.notes.append("the arguments of the chat template stand in each row")
    evaluation(job, "per_device_eval_batch_size")
    job.put("output_dir", job.output)
    job.put("logging_steps", 10)
    job.put("logging_first_step", True)
    upload(job, push_to_hub=True, hub_private_repo=True)
    if launch.device == "cpu":
        job.put("use_cpu", True)
    strategy = launch.strategy
    if launch.processes > 1 or strategy not in (None, "ddp"):
        names = {"zero2": "zero2", "zero3": "zero3", "fsdp": "fsdp2"}
        job.put("accelerate_config", names.get(strategy or "", "multi_gpu"))
        job.put("num_processes", launch.processes, "one for each GPU")
        job.found("strategy")
    job.found("processes")
    if stage.objective in ("grpo", "rloo"):
        _answers(job)


def _answers(job: Job) -> None:
    """TRL counts answers where a plan counts prompts."""
    stage = job.entry.stage
    answers = int(job.values["num_generations"])
    job.because["gradient_accumulation_steps"] = f"of answers, {answers} to each prompt"
    if "per_device_eval_batch_size" in job.values:
        job.put("per_device_eval_batch_size", answers, "the answers to one prompt")
    job.found("seq_len")
    job.lost += [
        Lost(key="seq_len", value=stage.seq_len, why="TRL leaves prompts as long as they are"),
    ]
    job.notes.append("answers are generated in the training process, with TRL's own settings")


def start_of(job: Job, command: str) -> str:
    """The command that trains it."""
    return command  # `num_processes` stands in the file


# --------------------------------------------------------------------------- rows


def layout_of(objective: str, traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
    """How rows are written. writer.py says what the arguments are."""
    if traits.kind == TEXT:
        return Layout(name=TEXT, shape=texts)
    if traits.kind == PAIRS:
        return Layout(name=PAIRS, shape=_trl_pair)
    if traits.kind == FEEDBACK:
        return Layout(name=FEEDBACK, shape=_trl_feedback)
    if traits.kind == PROMPTS:
        return Layout(name=PROMPTS, shape=_trl_prompt)
    if learn_all:
        return Layout(name="messages", shape=messages)
    if traits.only_last:
        return Layout(name="completion", shape=_completions)
    if marks and not traits.weighted:
        return Layout(name="marked", shape=messages)
    return Layout(
        name="completion",
        shape=_completions,
        notes=(
            "a conversation with several answers became one row for each of them: TRL has no"
            " template of this model in which the answers are marked",
        ),
    )


def _completions(example: Example) -> list[dict[str, Any]] | str:
    """One row for each answer that is learned, with what was said before it."""
    return [
        {
            "prompt": as_maps(example.messages[:place]),
            "completion": [as_map(turn)],
            **tools_of(example),
        }
        for place, turn in enumerate(example.messages)
        if turn.role == "assistant" and turn.weight > 0
    ]


def _trl_pair(example: Example) -> list[dict[str, Any]] | str:
    row = {
        "prompt": as_maps(example.messages),
        "chosen": as_maps(example.chosen),
        "rejected": as_maps(example.rejected),
    }
    return [{**row, **tools_of(example)}]


def _trl_feedback(example: Example) -> list[dict[str, Any]] | str:
    *asked, answer = example.messages
    row = {"prompt": as_maps(asked), "completion": [as_map(answer)], "label": example.good}
    return [{**row, **tools_of(example)}]


def _trl_prompt(example: Example) -> list[dict[str, Any]] | str:
    answer = {} if example.answer is None else {"answer": example.answer}
    return [{"prompt": as_maps(example.messages), **answer, **tools_of(example)}]
