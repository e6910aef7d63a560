"""The data sets that a configuration names, each as one value, found here or not.

Read from src/axolotl/utils/schemas/datasets.py, prompt_strategies/ and prompt_tokenizers.py of
Axolotl 0.19, src/llamafactory/data/parser.py and loader.py of LLaMA-Factory 0.9.5, and
trl/scripts/utils.py and the trainers of TRL 1.16.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.file import ToolFile, found_near
from advisor.ground.errors import AdviseError, did_you_mean
from advisor.ground.files import read_at_most

FILE, HUB, MISSING, ELSEWHERE = "file", "hub", "missing", "elsewhere"
MAX_FILES = 200  # of one data set
REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "adl://", "oci://", "http://", "https://")
# Builders of `datasets`, whose files are named apart.
BUILDERS = ("json", "csv", "parquet", "arrow", "text")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRef:
    """One data set that a file names."""

    key: str  # the dotted key that names it
    named: str  # its name there
    evaluates: bool = False  # it is measured on, not trained on
    place: str = MISSING  # file (it is here), hub, missing (it is not), or elsewhere
    files: tuple[Path, ...] = ()  # what is here: files, or one folder
    hub: str = ""  # the id on the model hub, with a folder behind it for a configuration of it
    roles: Mapping[str, str] = field(default_factory=dict)  # role of ours -> column; empty: by name
    needs: tuple[tuple[str, ...], ...] = ()  # sets of columns, of which it must find one whole
    lost: tuple[str, ...] = ()  # what a plan cannot say of it: sentences
    why_not: str = ""  # why a plan cannot hold it at all

    @property
    def path(self) -> str:
        """What a plan names: a file, a folder or a hub id; empty if there is no such thing."""
        if self.place == HUB:
            return self.hub
        if len(self.files) == 1:
            return os.fspath(self.files[0])
        folders = {path.parent for path in self.files}
        for folder in folders if len(folders) == 1 else ():
            with suppress(OSError):  # a folder that holds these files and no other ones
                inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
                return os.fspath(folder) if set(inside) == set(self.files) else ""
        return ""


@dataclass(kw_only=True, slots=True)
class FileData:
    """All data sets of a file."""

    refs: list[DataRef] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # of how they are mixed: sentences
    notes: list[str] = field(default_factory=list)
    folder: str = ""  # where its data are, if that is not where it says

    @property
    def train(self) -> list[DataRef]:
        """Those that are trained on."""
        return [ref for ref in self.refs if not ref.evaluates]


def locate_set(
    file: ToolFile, named: str, *, inside: str = "", files: Sequence[str] = ()
) -> dict[str, Any]:
    """Where a data set is, as arguments of DataRef; `files` stand beside it (`data_files`)."""
    if named.startswith(REMOTE) or any(one.startswith(REMOTE) for one in files):
        return {"place": ELSEWHERE, "why_not": "it is on another machine: download it first"}
    if files and (named in BUILDERS or not named or found_near(file.path, named) is None):
        wanted = list(files)
        if named not in BUILDERS and named and is_hub_id(named):
            return {"place": HUB, "hub": named, "lost": (f"only its files {', '.join(files)}",)}
    elif files:
        wanted = [os.path.join(named, one) for one in files]
    else:
        wanted = [os.path.join(inside, named) if inside else named]
    here = [path for one in wanted for path in _matches(file, one)]
    if here:
        return {"place": FILE, "files": tuple(here[:MAX_FILES])}
    if not files and not inside and is_hub_id(named):
        return {"place": HUB, "hub": named}
    return {"place": MISSING}


def _matches(file: ToolFile, named: str) -> list[Path]:
    """The files of a name, whose last part may be a pattern: data/*.jsonl."""
    folder, pattern = os.path.split(named)
    if not any(mark in named for mark in "*?["):
        one = found_near(file.path, named)
        return [] if one is None else [one]
    start = found_near(file.path, folder or ".")
    if start is None:
        return []
    with suppress(OSError):
        inside = [one for one in start.iterdir() if not one.name.startswith(".")]
        return sorted(one for one in inside if fnmatchcase(one.name, pattern))[:MAX_FILES]
    return []


def names(value: Any) -> list[str]:
    """A text, a list of texts or a map of them as a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return [inner for one in value for inner in names(one)]
    return []


def text(value: Any) -> str:
    """A text; an empty one for anything else."""
    return value if isinstance(value, str) else ""


# --------------------------------------------------------------------------- Axolotl

LISTS = (("datasets", False), ("test_datasets", True), ("pretraining_dataset", False))
COLUMNS_OF_ALPACA = {"question": "instruction", "context": "input", "answer": "output"}
# First word of `type` -> role of ours -> column. A word that is not here is a strategy of its own.
TYPES: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("alpaca", "alpaca_instruct", "alpaca_chat"), COLUMNS_OF_ALPACA),
    "alpaca_chat.load_qa": {"question": "question", "answer": "answer"},
    "alpaca_w_system": {**COLUMNS_OF_ALPACA, "system": "system"},
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
FIELD_NAMES = {
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


def read_axolotl(file: ToolFile) -> FileData:
    """The data sets of a file."""
    found = FileData()
    for key, evaluates in LISTS:
        value = file.values.get(key)
        listed = [value] if isinstance(value, Mapping | str) else value
        for index, one in enumerate(listed if isinstance(listed, list) else ()):
            entry = {"path": one} if isinstance(one, str) else one
            if isinstance(entry, Mapping):
                dotted = f"{key}.{index}" if isinstance(value, list) else key
                found.refs.append(_axolotl_set(file, dotted, entry, evaluates=evaluates))
    if len(found.train) > 1:
        found.notes.append("Axolotl shuffles the rows of all data sets together")
    return found


def _axolotl_set(file: ToolFile, key: str, one: Mapping[str, Any], *, evaluates: bool) -> DataRef:
    named, files = text(one.get("path")), names(one.get("data_files"))
    where = locate_set(file, named, files=files)
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
    roles, unread = _axolotl_roles(file, key, one)
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


def _axolotl_roles(file: ToolFile, key: str, one: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Role -> column, and what cannot be said of the form in a plan."""
    kind, is_pair = one.get("type"), file.values.get("rl") in PREFERENCE
    if isinstance(kind, Mapping):  # a type written out as a map of fields
        stated = {role: text(kind[name]) for name, role in FIELDS.items() if text(kind.get(name))}
        usual = COLUMNS_OF_ALPACA if not is_pair else CHOICES if "good" not in stated else {}
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
    for theirs, role in FIELD_NAMES.items():
        if text(one.get(theirs)) and (role in roles or role == "tools"):
            roles[role] = text(one[theirs])
    if "question" not in roles:
        return roles, ""
    prompts = f" in the style {style}" if style else ""
    lost = f"type: {word}: Axolotl writes its own prompt around a row{prompts}, a plan uses the"
    return roles, f"{lost} model's chat template"


# --------------------------------------------------------------------------- LLaMA-Factory

INFO = "dataset_info.json"
MAX_INFO_BYTES = 4_000_000
# Column of theirs -> role of ours.
ALPACA = {
    "prompt": "question", "query": "context", "response": "answer", "system": "system",
    "history": "history", "chosen": "chosen", "rejected": "rejected", "kto_tag": "good",
}  # fmt: skip
SHAREGPT = {
    "messages": "messages", "system": "system", "tools": "tools", "chosen": "chosen",
    "rejected": "rejected", "kto_tag": "good",
}  # fmt: skip
USUAL = {"prompt": "instruction", "query": "input", "response": "output"}
USUAL_MESSAGES = {"messages": "conversations"}
FORMATTINGS = ("alpaca", "sharegpt", "openai")
MEDIA = ("images", "videos", "audios")
OTHER_PLACES = {
    "ms_hub_url": "it is on ModelScope", "om_hub_url": "it is on another hub",
    "script_url": "a script loads it", "cloud_file_name": "it is in a cloud's storage",
}  # fmt: skip
NO_PLACE = f"{INFO} does not say where it is"


def read_llamafactory(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    info = _info(file, found)
    folder = found.folder or text(values.get("dataset_dir", "data"))
    for key in ("dataset", "eval_dataset"):
        listed = ",".join(names(values.get(key))).split(",")
        for name in filter(None, map(str.strip, listed)):
            found.refs.append(_llamafactory_set(file, key, name, folder, info))
    strategy = values.get("mix_strategy", "concat")
    if strategy != "concat" and len(found.train) > 1:
        found.lost.append(f"how the data sets are mixed (mix_strategy: {strategy})")
    if (most := values.get("max_samples")) is not None:
        found.lost.append(f"max_samples: {most}: all rows of each data set are taken")
    return found


def _info(file: ToolFile, found: FileData) -> Mapping[str, Any] | None:
    """What dataset_info.json holds; None without one."""
    folder = file.values.get("dataset_dir", "data")
    if isinstance(folder, Mapping):
        return folder
    named = text(folder)
    if not named or named == "ONLINE" or named.startswith("REMOTE:"):
        return None
    path = found_near(file.path, f"{named}/{INFO}")
    key = "dataset_dir" if "dataset_dir" in file.values else "dataset"
    if path is None:
        missing = f"there is no {named}/{INFO} here"
        path = file.path.parent / INFO
        if not path.is_file():
            found.notes.append(f"{missing}: what the names in `dataset` stand for is not known")
            return None
        # People put it beside the file; the tool looks in the folder alone and stops.
        what = f"{missing}, but one beside the file, which is read here; LLaMA-Factory stops"
        file.fault("warning", key, f"{what} without it: name its folder", {"dataset_dir": "."})
        found.folder = "."
    try:
        read = json.loads(read_at_most(path, MAX_INFO_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, AdviseError) as error:
        file.fault("error", key, f"{path} is no JSON that can be read: {str(error)[:200]}")
        return None
    if not isinstance(read, Mapping):
        file.fault("error", key, f"{path} holds no map of data sets")
        return None
    return read


def _llamafactory_set(
    file: ToolFile, key: str, name: str, folder: str, info: Mapping[str, Any] | None
) -> DataRef:
    base: dict[str, Any] = {"key": key, "named": name, "evaluates": key == "eval_dataset"}
    if info is None:
        if folder == "ONLINE" and is_hub_id(name):
            return DataRef(**base, place=HUB, hub=name, roles=_llamafactory_roles({}, "alpaca"))
        return DataRef(**base, why_not=f"{INFO} is not here, which says what the name stands for")
    entry = info.get(name)
    if not isinstance(entry, Mapping):
        known = [str(one) for one in info]
        near = did_you_mean(name, known)
        what = f"{INFO} has no data set '{name}'; it has {', '.join(known[:12])}"
        file.fault("error", key, f"{what}; {near}" if near else what)
        return DataRef(**base, why_not=f"{INFO} does not have it")
    form = text(entry.get("formatting")) or "alpaca"
    if form not in FORMATTINGS:
        what = f"the formatting '{form}' of '{name}' in {INFO} is none of {', '.join(FORMATTINGS)}"
        file.fault("error", key, what)
    if hub := text(entry.get("hf_hub_url")):
        subset = text(entry.get("subset"))
        place: dict[str, Any] = {"place": HUB, "hub": f"{hub}/{subset}" if subset else hub}
    elif local := text(entry.get("file_name")):
        place = locate_set(file, local, inside=folder)
    else:
        where = next((why for one, why in OTHER_PLACES.items() if entry.get(one)), NO_PLACE)
        place = {"place": ELSEWHERE, "why_not": f"{where}: save its rows as a file"}
    columns = entry.get("columns")
    media = [one for one in MEDIA if isinstance(columns, Mapping) and columns.get(one)]
    if media:
        place["why_not"] = f"its rows hold {' and '.join(media)}, and a plan trains on text alone"
    parts = [(one, entry.get(one)) for one in ("split", "num_samples", "folder")]
    lost = [f"{one}: {value}" for one, value in parts if value not in (None, "", "train")]
    roles = _llamafactory_roles(entry, form)
    needs = [roles[role] for role in ("text", "messages", "question") if role in roles][:1]
    if file.values.get("stage") != "pt":
        answer = () if "good" in roles else ("answer",)
        needs += [roles[one] for one in ("chosen", "rejected", *answer) if one in roles]
    return DataRef(
        **base,
        roles=roles,
        needs=(tuple(needs),) if needs else (),
        **{**place, "lost": (*place.get("lost", ()), *lost)},
    )


def _llamafactory_roles(entry: Mapping[str, Any], form: str) -> dict[str, str]:
    """Role -> column. Columns that an entry with `columns` does not name are not read at all."""
    wanted, usual = (ALPACA, USUAL) if form == "alpaca" else (SHAREGPT, USUAL_MESSAGES)
    stated = entry.get("columns")
    columns = stated if isinstance(stated, Mapping) else usual
    unused = ("answer",) if entry.get("ranking") else ("chosen", "rejected")
    found = {
        role: text(columns.get(theirs))
        for theirs, role in wanted.items()
        if text(columns.get(theirs)) and role not in unused
    }
    if form == "alpaca" and set(found) == {"question"}:
        return {"text": found["question"]}  # the one column of a text to continue
    return found


# --------------------------------------------------------------------------- TRL

# Command -> the columns that its trainer reads.
NEEDS_OF: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "dpo": (("chosen", "rejected"),), "reward": (("chosen", "rejected"),),
    "kto": (("prompt", "completion", "label"),), "grpo": (("prompt",),), "rloo": (("prompt",),),
}  # fmt: skip


def read_trl(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    listed = values.get("datasets")
    if isinstance(listed, list) and listed:
        for index, one in enumerate(listed):
            if isinstance(one, Mapping):
                found.refs.append(_trl_set(file, f"datasets.{index}", one))
        if "dataset_name" in values:
            what = "'dataset_name' has no effect beside `datasets`: delete one of them"
            file.fault("warning", "dataset_name", what, {"dataset_name": None})
        if any(isinstance(one, Mapping) and one.get("fraction") is not None for one in listed):
            found.lost.append("the share of each data set (`fraction`): all rows are taken")
    elif name := text(values.get("dataset_name")):
        subset, split = values.get("dataset_config"), values.get("dataset_train_split")
        one = {"path": name, "name": subset, "split": split}
        found.refs.append(_trl_set(file, "dataset_name", one))
    return found


def _trl_set(file: ToolFile, key: str, one: Mapping[str, Any]) -> DataRef:
    """A data set, as an entry of `datasets` names it."""
    named, folder = text(one.get("path")), text(one.get("data_dir"))
    files = [f"{folder}/{name}" if folder else name for name in names(one.get("data_files"))]
    files = files or ([folder] if folder else [])
    where = locate_set(file, named, files=files)
    if where.get("hub") and text(one.get("name")):
        where["hub"] += f"/{one['name']}"
    columns = names(one.get("columns"))
    lost = [f"only its columns {', '.join(columns)}"] if columns else []
    lost += where.pop("lost", ())
    if (split := text(one.get("split"))) not in ("", "train"):
        lost.append(f"only its split '{split}'")
    field = text(file.values.get("dataset_text_field"))
    # The sets of columns of which the trainer of the command reads one.
    columns_of_sft = (("messages",), ("prompt", "completion"), (field or "text",))
    return DataRef(
        key=key,
        named=", ".join(files) or named,
        roles={"text": field} if field else {},
        needs={**NEEDS_OF, "sft": (*columns_of_sft, ("conversations",))}.get(file.command.name, ()),
        lost=tuple(lost),
        **where,
    )


READERS = {"axolotl": read_axolotl, "llamafactory": read_llamafactory, "trl": read_trl}


def data_of(file: ToolFile) -> FileData:
    """What the file trains and measures on; faults of it go to the file. Reads no rows."""
    found: FileData = READERS[file.tool](file)
    for ref in found.refs:
        if ref.place == MISSING and ref.named and not ref.why_not:
            file.fault(
                "warning", ref.key,
                f"'{ref.named}' is not here: looked for beside the file, in the folders above it"
                " and in the current one; without its rows, time and lengths are not known",
            )  # fmt: skip
    return found
