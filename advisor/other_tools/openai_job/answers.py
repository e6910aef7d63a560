"""What a job tells of its owner's situation, as an answers file would say it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from advisor.ground.types import DataProfile
from advisor.other_tools.openai_job.job import Job

KINDS = {"supervised": "paired", "dpo": "preference", "reinforcement": "prompts_with_verifier"}
_ITEM = re.compile(r"\{\{\s*item\.(\w+)")


def reference_columns(job: Job) -> tuple[str, ...]:
    """The columns of an item that its grader compares with."""
    return tuple(dict.fromkeys(_ITEM.findall(json.dumps(job.grader)))) if job.grader else ()


def data_mapping(job: Job) -> dict[str, str]:
    """Role -> column of a reinforcement job whose grader reads one column; else empty."""
    columns = reference_columns(job)
    return {"messages": "messages", "ground_truth": columns[0]} if len(columns) == 1 else {}


def task_of(job: Job, profile: DataProfile | None) -> tuple[str, str]:
    """(task, what it is taken from): the nearest that the job and its data tell."""
    if profile is not None and profile.format == "tool_calls":
        return "tool_use", "the data call functions"
    if profile is not None and profile.format == "classification":
        return "classification", "the data sort texts"
    if job.method == "reinforcement":
        return "reasoning", "the job practised on graded answers"
    return "other", "neither the job nor its data name one"


def answers_of(
    job: Job, *, path: str | None, mapping: Mapping[str, str], task: str
) -> dict[str, Any]:
    """The answers that stand in a job: its data, or their kind and size, and that a prompt alone
    was not enough.

    Args:
        path: Its training file, if that is here, as a plan names it.
        mapping: Role -> column of that file; empty: the names say it.
        task: What the model is to do.
    """
    if path is not None:
        data: dict[str, Any] = {"path": path, "mapping": dict(mapping) or None}
    else:
        tokens = None
        if job.trained_tokens and job.epochs:
            tokens = job.trained_tokens // job.epochs
        data = {"kind": KINDS[job.method], "tokens": tokens}
    return {
        "task": task,
        "data": {key: value for key, value in data.items() if value is not None},
        "signals": ["prompting_tried"],
    }


def assumed(job: Job, taken_from: str, task: str, *, has_data: bool) -> list[str]:
    """What was taken for granted, each as a sentence."""
    said = [
        f"task: {task}, since {taken_from}; another one: `advise --task NAME --data FILE`",
        "a prompt alone was tried and not enough, since a job was started",
    ]
    if not has_data and job.trained_tokens and job.epochs:
        each = job.trained_tokens // job.epochs
        said.append(
            f"about {each:,} tokens of data: {job.trained_tokens:,} trained in {job.epochs} epochs,"
            " as OpenAI counts them"
        )
    return said


def method_differs(job: Job, objectives: tuple[str, ...]) -> str:
    """What is said where the advice trains by another method than the job; "" where it does not.

    Args:
        objectives: Of the recommended stages; empty: nothing is trained.
    """
    wanted: Mapping[str, tuple[str, ...]] = {
        "supervised": ("sft",),
        "dpo": ("dpo",),
        "reinforcement": ("grpo", "rloo"),
    }
    if not objectives or set(objectives) & set(wanted[job.method]):
        return ""
    names = ">".join(objectives)
    return f"the job's method was {job.method}; the advice for such data is {names}"
