"""Axolotl: how it names its data (lists of data sets, each with a `type` that says how rows become
prompts), and the way out of a plan.

Read from src/axolotl/utils/schemas/datasets.py, prompt_strategies/ and prompt_tokenizers.py of
Axolotl 0.19.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.extras.other_tools.data_sets import ELSEWHERE, DataRef, FileData, names, placed, text
from advisor.extras.other_tools.file import ToolFile

LISTS = (("datasets", False), ("test_datasets", True), ("pretraining_dataset", False))
ALPACA = {"question": "instruction", "context": "input", "answer": "output"}
# First word of `type` -> role of ours -> column. A word that is not here is a strategy of its own.
TYPES: Mapping[str, Mapping[str, str]] = {
    "alpaca": ALPACA, "alpaca_instruct": ALPACA, "alpaca_chat": ALPACA,
    "alpaca_chat.load_qa": {"question": "question", "answer": "answer"},
    "alpaca_w_system": {**ALPACA, "system": "system"},
    "alpaca_w_system.load_open_orca": {
        "question": "question", "answer": "response", "system": "system_prompt",
    },
    "completion": {"text": "text"}, "pretrain": {"text": "text"},
    "chat_template": {"messages": "messages"}, "sharegpt": {"messages": "conversations"},
    "gpteacher": {"question": "instruction", "context": "input", "answer": "response"},
    "oasst": {"question": "INSTRUCTION", "answer": "RESPONSE"},
    "context_qa": {"question": "question", "context": "article", "answer": "answer"},
}  # fmt: skip
CHOICES = {"chosen": "chosen", "rejected": "rejected"}
# Column of the request in a strategy for pairs, by its last word.
PAIR_TYPES: Mapping[str, Mapping[str, str]] = {
    "argilla": CHOICES, "argilla_chat": CHOICES, "icr": {"question": "input", **CHOICES},
    "intel": {"question": "question", "system": "system", **CHOICES},
    "prompt_pairs": {"question": "prompt", "system": "system", **CHOICES},
    "ultra": {"question": "prompt", "system": "system", **CHOICES},
    "chat_template": {"messages": "messages", **CHOICES},
}  # fmt: skip
PREFERENCE = ("dpo", "ipo", "orpo", "simpo", "kto")
OPTIONAL = ("context", "system", "tools")
# What a plan means anyway: every answer of a conversation is learned, with its end.
AS_A_PLAN = {"roles_to_train": (["assistant"], ["assistant", "gpt"]), "train_on_eos": ("turn",)}
TRAINED = ("roles_to_train", "train_on_eos", "train_on_eot", "message_field_training")
RENAMED = {
    "field_messages": "messages", "field_tools": "tools", "field": "text",
    "field_chosen": "chosen", "field_rejected": "rejected", "field_system": "system",
}  # fmt: skip
FIELDS = {
    "field_system": "system", "field_instruction": "question", "field_input": "context",
    "field_output": "answer", "field_prompt": "question", "field_chosen": "chosen",
    "field_rejected": "rejected", "field_completion": "answer", "field_label": "good",
}  # fmt: skip
# Texts around a row, which a plan cannot give.
FORMS = ("format", "no_input_format", "prompt_format", "chosen_format", "rejected_format",
         "completion_format", "system_format", "system_prompt")  # fmt: skip


def read_data(file: ToolFile) -> FileData:
    """The data sets of a file."""
    found = FileData()
    for key, evaluates in LISTS:
        value = file.values.get(key)
        listed = [value] if isinstance(value, Mapping | str) else value
        for index, one in enumerate(listed if isinstance(listed, list) else ()):
            entry = {"path": one} if isinstance(one, str) else one
            if isinstance(entry, Mapping):
                dotted = f"{key}.{index}" if isinstance(value, list) else key
                found.refs.append(_ref(file, dotted, entry, evaluates=evaluates))
    if len(found.train) > 1:
        found.notes.append("Axolotl shuffles the rows of all data sets together")
    return found


def _ref(file: ToolFile, key: str, one: Mapping[str, Any], *, evaluates: bool) -> DataRef:
    named, files = text(one.get("path")), names(one.get("data_files"))
    where = placed(file, named, files=files)
    lost = [*where.pop("lost", ())]
    if where.get("hub") and text(one.get("name")):
        where["hub"] += f"/{one['name']}"
    if (split := text(one.get("split"))) and split != "train":
        lost.append(f"only its split '{split}'")
    if one.get("shards"):
        lost.append(f"only a part of it (shards: {one['shards']})")
    for trained in TRAINED:
        if one.get(trained) is not None and one[trained] not in AS_A_PLAN.get(trained, ()):
            lost.append(f"{trained}: a plan learns every answer of a row, with its end")
    if named == "synthetic" or one.get("type") == "_synthetic":
        where = {"place": ELSEWHERE, "why_not": "it is made up while training"}
    roles, unread = _roles(file, key, one)
    needs = tuple(column for role, column in roles.items() if role not in OPTIONAL)
    return DataRef(
        key=key,
        named=", ".join([named, *files]) if files else named,
        evaluates=evaluates,
        roles=roles,
        needs=(needs,) if needs else (),
        lost=tuple(dict.fromkeys(filter(None, (*lost, unread)))),
        **where,
    )


def _roles(file: ToolFile, key: str, one: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Role -> column, and what cannot be said of the form in a plan."""
    kind, is_pair = one.get("type"), file.values.get("rl") in PREFERENCE
    if isinstance(kind, Mapping):  # a type written out as a map of fields
        stated = {role: text(kind[name]) for name, role in FIELDS.items() if text(kind.get(name))}
        usual = ALPACA if not is_pair else CHOICES if "good" not in stated else {}
        forms = ", ".join(name for name in FORMS if kind.get(name))
        lost = f"{forms}: a plan writes rows with the model's chat template" if forms else ""
        return {**usual, **stated}, lost
    if key.startswith("pretraining_dataset"):
        return {"text": text(one.get("text_column")) or "text"}, ""
    word = text(kind)
    if not word:
        return {}, ""
    strategy, _, style = word.partition(":")
    first, last = strategy.split(".")[0], strategy.split(".")[-1]
    if "chat_template" in (first, last):
        first = last = strategy = "chat_template"
    table, tried = (PAIR_TYPES, (last, first)) if is_pair else (TYPES, (strategy, first))
    roles = dict(table.get(tried[0]) or table.get(tried[1]) or {})
    if not roles:
        return {}, f"type: {word}: a plan reads its rows by the names of their columns"
    for theirs, role in RENAMED.items():
        if text(one.get(theirs)) and (role in roles or role == "tools"):
            roles[role] = text(one[theirs])
    if "question" not in roles:
        return roles, ""
    prompts = f" in the style {style}" if style else ""
    lost = f"type: {word}: Axolotl writes its own prompt around a row{prompts}, a plan uses the"
    return roles, f"{lost} model's chat template"
