"""The keys of each tool that no key of a plan stands beside: data, evaluation, output, several
processes. What they are called is read from the tools' own classes (rules/tools/TOOL/).
"""

from __future__ import annotations

import json
from typing import Any

from advisor.other_tools.tables.mapping import Lost
from advisor.other_tools.writing.job import EVALUATIONS, Job
from advisor.other_tools.writing.rows import FEEDBACK, PAIRS, TEXT

TRAIN, TEST = "train.jsonl", "test.jsonl"
ZERO = {"zero2": 2, "zero3": 3}
MASK_NOTE = "it learns what the template writes behind an answer too, such as a line end"


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
FLASH = "flash_attention_2"


def complete(job: Job) -> None:
    """Add them to the values of a job."""
    if job.layout is not None and job.layout.name == TEXT:
        _say_what_happens_to_long_texts(job)
    if job.tool.id != "llamafactory":  # which masks packed rows whatever computes attention
        _keep_packed_rows_apart(job)
    {"trl": _trl, "llamafactory": _llamafactory, "axolotl": _axolotl}[job.tool.id](job)


def _say_what_happens_to_long_texts(job: Job) -> None:
    """A run splits texts over the length without loss, whatever `truncation` says."""
    if not job.found("truncation"):
        return
    is_split = job.tool.id == "axolotl" or job.values.get("packing")
    why = (
        "it is about rows; texts over the length are split, as in a run"
        if is_split
        else "texts over the length are cut there; a run splits them"
    )
    value = job.entry.stage.truncation
    job.lost.append(Lost(key="truncation", value=value, why=why))


def _keep_packed_rows_apart(job: Job) -> None:
    """Packed rows see each other in these tools unless a flash attention computes them."""
    packing = "packing" if job.tool.id == "trl" else "sample_packing"
    attention = job.values.get("attn_implementation")
    if not job.values.get(packing) or (attention and "flash" in str(attention)):
        return
    if job.plan.launch.device == "cuda":
        job.put(
            "attn_implementation", FLASH,
            f"packed rows see each other without it: pip install flash-attn, or {packing}: false",
        )  # fmt: skip
        job.lost.append(
            Lost(
                key="attention",
                value=job.entry.stage.attention,
                why=f"packed rows see each other there without {FLASH}, which is written",
            )
        )
        return
    for key in (packing, "eval_sample_packing", "pad_to_sequence_len"):
        if key in job.values:
            job.put(key, False)
    job.lost.append(
        Lost(
            key="packing",
            value=True,
            why="packed rows see each other there without a flash attention, which needs a GPU",
        )
    )


def _evaluation(job: Job, batch: str) -> None:
    """Held-out rows are measured about ten times, as in a run."""
    if not job.evaluates:
        job.put("eval_strategy", "no", "no rows are held out")
        return
    job.put("eval_strategy", "steps")
    job.put("eval_steps", EVALUATIONS, "a share of all steps: ten times")
    job.put(batch, job.entry.stage.micro_batch_size)


def _hub(job: Job) -> str:
    job.notes.append("the data set stays on the hub: its columns must be those that the tool reads")
    job.notes.append("no rows are held out, since they were not read")
    return job.entry.data.path


# --------------------------------------------------------------------------- TRL


def _trl(job: Job) -> None:
    stage, launch = job.entry.stage, job.plan.launch
    layout = job.layout.name if job.layout else ""
    if job.rows is None:
        job.put("dataset_name", _hub(job))
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
        job.notes.append("the arguments of the chat template stand in each row")
    _evaluation(job, "per_device_eval_batch_size")
    job.put("output_dir", job.output)
    job.put("logging_steps", 10)
    job.put("logging_first_step", True)
    job.put("report_to", "none")
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


# --------------------------------------------------------------------------- LLaMA-Factory


def _llamafactory(job: Job) -> None:
    name = job.place.replace("-", "_") or "rows"
    info: dict[str, Any] = {}
    layout = job.layout.name if job.layout else ""
    if job.rows is None:
        info[name] = {"hf_hub_url": _hub(job)}
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
    _evaluation(job, "per_device_eval_batch_size")
    job.put("output_dir", job.output)
    job.put("logging_steps", 10)
    job.put("logging_first_step", True)
    job.put("report_to", "none")
    if job.plan.launch.device == "cpu":
        job.put("use_cpu", True)
    _deepspeed(job)
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


def _deepspeed(job: Job) -> None:
    """DeepSpeed's own file, which these tools name."""
    stage = ZERO.get(job.plan.launch.strategy or "")
    if stage is None:
        return
    auto = "auto"
    settings = {
        "train_batch_size": auto, "train_micro_batch_size_per_gpu": auto,
        "gradient_accumulation_steps": auto, "gradient_clipping": auto,
        "bf16": {"enabled": auto}, "fp16": {"enabled": auto},
        "zero_optimization": {
            "stage": stage, "overlap_comm": True, "contiguous_gradients": True,
            **({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}),
        },
    }  # fmt: skip
    name = f"deepspeed-zero{stage}.json"
    job.files[name] = json.dumps(settings, indent=2)
    job.put("deepspeed", name)
    job.found("strategy")


# --------------------------------------------------------------------------- Axolotl


def _axolotl(job: Job) -> None:
    layout = job.layout.name if job.layout else ""
    if job.rows is None:
        job.put("datasets", [{"path": _hub(job), **_axolotl_form("answers")}])
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
    _evaluation(job, "eval_batch_size")
    job.put("dataset_prepared_path", f"{job.output}/prepared")
    job.put("output_dir", job.output)
    job.put("logging_steps", 10)
    _deepspeed(job)
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


def start_of(job: Job) -> str:
    """The command that trains it, in the folder of the export."""
    command = job.tool.start.format(file=job.file, command=job.command)
    processes = job.plan.launch.processes
    if processes == 1:
        return command
    if job.tool.id == "llamafactory":
        return f"FORCE_TORCHRUN=1 NPROC_PER_NODE={processes} {command}"
    if job.tool.id == "axolotl":
        return f"{command} --launcher accelerate -- --num_processes={processes}"
    return command  # TRL: num_processes stands in the file
