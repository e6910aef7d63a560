"""TRL: how it names its data (`dataset_name`, or a list of `datasets` that takes its place; it goes
by the names of columns), the keys of its own, and the shape of its rows.

Read from trl/scripts/utils.py and the trainers of TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.data.same_rows import Example
from advisor.extras.other_tools.data_sets import DataRef, FileData, names, placed, text
from advisor.extras.other_tools.file import ToolFile
from advisor.extras.other_tools.job import (
    MASK_NOTE,
    TEST,
    TRAIN,
    Job,
    evaluation,
    hub_name,
    keep_packed_rows_apart,
    long_texts,
    upload,
)
from advisor.extras.other_tools.mapping import Lost
from advisor.extras.other_tools.rows import (
    FEEDBACK,
    PAIRS,
    PROMPTS,
    TEXT,
    Layout,
    Traits,
    as_map,
    as_maps,
    messages,
    texts,
    tools_of,
)


def needs(file: ToolFile) -> tuple[tuple[str, ...], ...]:
    """The sets of columns of which the trainer of the command reads one."""
    field = text(file.values.get("dataset_text_field")) or "text"
    return {
        "sft": (("messages",), ("prompt", "completion"), (field,), ("conversations",)),
        "dpo": (("chosen", "rejected"),),
        "reward": (("chosen", "rejected"),),
        "kto": (("prompt", "completion", "label"),),
        "grpo": (("prompt",),),
        "rloo": (("prompt",),),
    }.get(file.command.name, ())


def read_data(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    listed = values.get("datasets")
    if isinstance(listed, list) and listed:
        for index, one in enumerate(listed):
            if isinstance(one, Mapping):
                found.refs.append(_of_list(file, index, one))
        if "dataset_name" in values:
            what = "'dataset_name' has no effect beside `datasets`: delete one of them"
            file.fault("warning", "dataset_name", what, {"dataset_name": None})
        if any(isinstance(one, Mapping) and one.get("fraction") is not None for one in listed):
            found.lost.append("the share of each data set (`fraction`): all rows are taken")
    elif name := text(values.get("dataset_name")):
        split = text(values.get("dataset_train_split")) or "train"
        subset = text(values.get("dataset_config"))
        found.refs.append(_ref(file, "dataset_name", name, subset=subset, split=split))
    return found


def _of_list(file: ToolFile, index: int, one: Mapping[str, Any]) -> DataRef:
    columns = names(one.get("columns"))
    folder = text(one.get("data_dir"))
    return _ref(
        file,
        f"datasets.{index}",
        text(one.get("path")),
        subset=text(one.get("name")),
        split=text(one.get("split")) or "train",
        files=[f"{folder}/{name}" if folder else name for name in names(one.get("data_files"))]
        or ([folder] if folder else []),
        lost=[f"only its columns {', '.join(columns)}"] if columns else [],
    )


def _ref(
    file: ToolFile,
    key: str,
    named: str,
    *,
    subset: str = "",
    split: str = "train",
    files: list[str] | None = None,
    lost: list[str] | None = None,
) -> DataRef:
    where = placed(file, named, files=files or [])
    lost = [*(lost or []), *where.pop("lost", ())]
    if subset and where.get("hub"):
        where["hub"] = f"{where['hub']}/{subset}"
    if split != "train":
        lost.append(f"only its split '{split}'")
    shown = ", ".join(files) if files else named
    field = text(file.values.get("dataset_text_field"))
    return DataRef(
        key=key,
        named=shown,
        form="by the names of its columns",
        roles={"text": field} if field else {},
        needs=needs(file),
        lost=tuple(lost),
        **where,
    )


# --------------------------------------------------------------------------- written


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
    """How rows are written: see Writer in write_job.py."""
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
