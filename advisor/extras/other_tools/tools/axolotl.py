"""Axolotl: how it names its data (lists of data sets, each with a `type` that says how rows become
prompts), the keys of its own, and the shape of its rows.

Read from src/axolotl/utils/schemas/datasets.py, prompt_strategies/ and prompt_tokenizers.py of
Axolotl 0.19.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.data.same_rows import Example, Message
from advisor.extras.other_tools.data_sets import ELSEWHERE, DataRef, FileData, names, placed, text
from advisor.extras.other_tools.file import ToolFile
from advisor.extras.other_tools.job import (
    TEST,
    TRAIN,
    Job,
    deepspeed,
    evaluation,
    hub_name,
    keep_packed_rows_apart,
    long_texts,
    upload,
)
from advisor.extras.other_tools.rows import (
    ANSWERS,
    LONG_ANSWER,
    MORE_TURNS,
    PAIRS,
    TEXT,
    Layout,
    Traits,
    as_map,
    as_maps,
    messages,
    texts,
    tools_of,
)

LISTS = (("datasets", False), ("test_datasets", True), ("pretraining_dataset", False))
ALPACA = {"question": "instruction", "context": "input", "answer": "output"}
# First word of `type` -> role of ours -> column. A word that is not here is a strategy of its own.
TYPES: Mapping[str, Mapping[str, str]] = {
    "alpaca": ALPACA,
    "alpaca_instruct": ALPACA,
    "alpaca_chat": ALPACA,
    "alpaca_chat.load_qa": {"question": "question", "answer": "answer"},
    "alpaca_w_system": {**ALPACA, "system": "system"},
    "alpaca_w_system.load_open_orca": {
        "question": "question", "answer": "response", "system": "system_prompt",
    },
    "completion": {"text": "text"},
    "pretrain": {"text": "text"},
    "chat_template": {"messages": "messages"},
    "gpteacher": {"question": "instruction", "context": "input", "answer": "response"},
    "oasst": {"question": "INSTRUCTION", "answer": "RESPONSE"},
    "summarizetldr": {"question": "article", "answer": "summary"},
    "metharme": {"question": "prompt", "answer": "generation"},
    "context_qa": {"question": "question", "context": "article", "answer": "answer"},
    "context_qa.load_v2": {"question": "question", "context": "context", "answer": "answer"},
    "sharegpt": {"messages": "conversations"},
}  # fmt: skip
CHOICES = {"chosen": "chosen", "rejected": "rejected"}
# Column of the request in a strategy for pairs, by its last word.
PAIR_TYPES: Mapping[str, Mapping[str, str]] = {
    "argilla": CHOICES,
    "argilla_chat": CHOICES,
    "icr": {"question": "input", **CHOICES},
    "intel": {"question": "question", "system": "system", **CHOICES},
    "prompt_pairs": {"question": "prompt", "system": "system", **CHOICES},
    "ultra": {"question": "prompt", "system": "system", **CHOICES},
    "chat_template": {"messages": "messages", **CHOICES},
}
PREFERENCE = ("dpo", "ipo", "orpo", "simpo", "kto")
OPTIONAL = ("context", "system", "tools")
# What a plan means anyway: every answer of a conversation is learned, with its end.
AS_A_PLAN = {"roles_to_train": (["assistant"], ["assistant", "gpt"]), "train_on_eos": ("turn",)}
FIELDS = {
    "field_system": "system", "field_instruction": "question", "field_input": "context",
    "field_output": "answer", "field_prompt": "question", "field_chosen": "chosen",
    "field_rejected": "rejected", "field_completion": "answer", "field_label": "good",
}  # fmt: skip
USUAL_FIELDS = {"question": "instruction", "context": "input", "answer": "output"}
# How the usual texts of speakers are called; others need a name that a plan cannot give.
FORMS = ("format", "no_input_format", "prompt_format", "chosen_format", "rejected_format",
         "completion_format", "system_format", "system_prompt")  # fmt: skip


def read_data(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    for key, evaluates in LISTS:
        listed = values.get(key)
        if isinstance(listed, Mapping | str):
            listed = [listed]
        for index, one in enumerate(listed if isinstance(listed, list) else ()):
            entry = {"path": one} if isinstance(one, str) else one
            if isinstance(entry, Mapping):
                dotted = f"{key}.{index}" if isinstance(values.get(key), list) else key
                found.refs.append(_ref(file, dotted, entry, evaluates=evaluates))
    if len(found.train) > 1:
        found.notes.append("Axolotl shuffles the rows of all data sets together")
    return found


def _ref(file: ToolFile, key: str, one: Mapping[str, Any], *, evaluates: bool) -> DataRef:
    named, files = text(one.get("path")), names(one.get("data_files"))
    where = placed(file, named, files=files)
    lost = [*where.pop("lost", ())]
    why = where.pop("why_not", "")
    subset = one.get("name")
    if isinstance(subset, str) and subset and where.get("hub"):
        where["hub"] = f"{where['hub']}/{subset}"
    split = text(one.get("split"))
    if split and split != "train":
        lost.append(f"only its split '{split}'")
    if one.get("shards"):
        lost.append(f"only a part of it (shards: {one['shards']})")
    for key_of_it in ("roles_to_train", "train_on_eos", "train_on_eot", "message_field_training"):
        if one.get(key_of_it) is not None and one[key_of_it] not in AS_A_PLAN.get(key_of_it, ()):
            lost.append(f"{key_of_it}: a plan learns every answer of a row, with its end")
    if named == "synthetic" or one.get("type") == "_synthetic":
        where, why = {"place": ELSEWHERE}, "it is made up while training"
    form, roles, unread = _read_form(file, key, one)
    if unread:
        lost.append(unread)
    if where.get("hub") and files:
        lost.append(f"only its files {', '.join(files)}")
    return DataRef(
        key=key,
        named=", ".join([named, *files]) if files else named,
        evaluates=evaluates,
        form=form,
        roles=roles,
        needs=_needs(roles),
        lost=tuple(dict.fromkeys(lost)),
        why_not=why,
        **where,
    )


def _needs(roles: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    wanted = tuple(column for role, column in roles.items() if role not in OPTIONAL)
    return (wanted,) if wanted else ()


def _read_form(file: ToolFile, key: str, one: Mapping[str, Any]) -> tuple[str, dict[str, str], str]:
    """The form in Axolotl's word, role -> column, and what cannot be said of it in a plan."""
    kind = one.get("type")
    if isinstance(kind, Mapping):
        return _stated_fields(kind, is_pair=file.values.get("rl") in PREFERENCE)
    if key.startswith("pretraining_dataset"):
        return "pretrain", {"text": text(one.get("text_column")) or "text"}, ""
    word = text(kind)
    if not word:
        return "no type", {}, ""
    strategy, _, style = word.partition(":")
    last = strategy.split(".")[-1]
    if file.values.get("rl") in PREFERENCE:
        roles = dict(PAIR_TYPES.get(last) or PAIR_TYPES.get(strategy.split(".")[0]) or {})
        if strategy.startswith("chat_template") or last == "chat_template":
            roles = dict(PAIR_TYPES["chat_template"])
    else:
        roles = dict(TYPES.get(strategy) or TYPES.get(strategy.split(".")[0]) or {})
    if not roles:
        return word, {}, f"type: {word}: a plan reads its rows by the names of their columns"
    renamed = {
        "field_messages": "messages", "field_tools": "tools", "field": "text",
        "field_chosen": "chosen", "field_rejected": "rejected", "field_system": "system",
    }  # fmt: skip
    for theirs, role in renamed.items():
        if text(one.get(theirs)) and (role in roles or role == "tools"):
            roles[role] = text(one[theirs])
    lost = ""
    if "question" in roles and strategy not in ("chat_template",) and last != "chat_template":
        prompts = f" in the style {style}" if style else ""
        lost = (
            f"type: {word}: Axolotl writes its own prompt around a row{prompts}, a plan uses the"
            " model's chat template"
        )
    return word, roles, lost


def _stated_fields(kind: Mapping[str, Any], *, is_pair: bool) -> tuple[str, dict[str, str], str]:
    """A type written out as a map of fields."""
    roles = {} if is_pair else dict(USUAL_FIELDS)
    roles |= {role: text(kind[theirs]) for theirs, role in FIELDS.items() if text(kind.get(theirs))}
    if is_pair:
        roles = {**CHOICES, **roles} if "good" not in roles else roles
    forms = [one for one in FORMS if kind.get(one)]
    lost = f"{', '.join(forms)}: a plan writes rows with the model's chat template" if forms else ""
    return "fields of its own", roles, lost


# --------------------------------------------------------------------------- written


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
    """How rows are written: see Writer in write_job.py."""
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
