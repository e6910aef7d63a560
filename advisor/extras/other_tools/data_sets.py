"""The data sets that a configuration names, found here or not, and what they hold as far as they
are here.

Read from src/axolotl/utils/schemas/datasets.py, prompt_strategies/ and prompt_tokenizers.py of
Axolotl 0.19, src/llamafactory/data/parser.py and loader.py of LLaMA-Factory 0.9.5, and
trl/scripts/utils.py and the trainers of TRL 1.16.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.file import Command, ToolFile, found_near
from advisor.extras.other_tools.mapping import CHAT, Lost
from advisor.ground.errors import AdviseError, InputError, did_you_mean
from advisor.ground.files import read_at_most
from advisor.ground.types import DataProfile

if TYPE_CHECKING:
    from advisor.data.recognition.recognise import DataSet

FILE, HUB, MISSING, ELSEWHERE = "file", "hub", "missing", "elsewhere"
MAX_FILES = 200  # of one data set
REMOTE = ("s3://", "gs://", "gcs://", "az://", "abfs://", "adl://", "oci://", "http://", "https://")
# Builders of `datasets`, whose files are named apart.
BUILDERS = ("json", "csv", "parquet", "arrow", "text")
OPTIONAL = ("context", "system", "tools", "history")  # roles whose column a row may lack
# Of an entry: what a plan means anyway, as every answer of a conversation is learned with its end.
AS_A_PLAN = {
    "split": ("train",), "roles_to_train": (["assistant"], ["assistant", "gpt"]),
    "train_on_eos": ("turn",), "shards": (1,), "fraction": (1, 1.0), "mix_strategy": ("concat",),
}  # fmt: skip


class DataRef(Struct, frozen=True, kw_only=True):
    """One data set that a file names."""

    key: str  # the dotted key that names it
    named: str  # its name there
    evaluates: bool = False  # it is measured on, not trained on
    place: str = MISSING  # file (it is here), hub, missing (it is not), or elsewhere
    files: tuple[Path, ...] = ()  # what is here: files, or one folder
    hub: str = ""  # the id on the model hub, with a folder behind it for a configuration of it
    roles: Mapping[str, str] = field(default_factory=dict)  # role of ours -> column; empty: by name
    needs: tuple[tuple[str, ...], ...] = ()  # sets of columns, of which it must find one whole
    lost: tuple[str, ...] = ()  # what a plan cannot say of it
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
    with suppress(OSError):
        inside = [] if start is None else list(start.iterdir())
        return sorted(
            one for one in inside if not one.name.startswith(".") and fnmatchcase(one.name, pattern)
        )[:MAX_FILES]
    return []


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [inner for one in value for inner in _names(one)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _unsaid(entry: Mapping[str, Any], said: Sequence[str]) -> list[str]:
    """The keys of an entry that a plan has no word for, with their values."""
    return [
        f"{key}: {str(value)[:80]}"
        for key, value in entry.items()
        if key not in said and value not in (None, "", False, *AS_A_PLAN.get(key, ()))
    ]


def _stated_roles(stated: Any, words: Mapping[str, str]) -> dict[str, str]:
    """Role of ours -> the column that an entry names for it."""
    given = stated if isinstance(stated, Mapping) else {}
    return {role: _text(given.get(word)) for word, role in words.items() if _text(given.get(word))}


def _needed(roles: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    columns = tuple(column for role, column in roles.items() if role not in OPTIONAL)
    return (columns,) if columns else ()


# --------------------------------------------------------------------------- Axolotl

LISTS = (("datasets", False), ("test_datasets", True), ("pretraining_dataset", False))
FIELDS = {
    "field_system": "system", "field_instruction": "question", "field_input": "context",
    "field_output": "answer", "field_prompt": "question", "field_chosen": "chosen",
    "field_rejected": "rejected", "field_completion": "answer", "field_label": "good",
    "field_messages": "messages", "field_tools": "tools", "field": "text", "text_column": "text",
}  # fmt: skip
OF_AXOLOTL = ("path", "name", "data_files", "ds_type", "type", *FIELDS)
TEXTS = ("completion", "pretrain")  # types of texts without requests
AS_CHATS = ("chat_template", "sharegpt")  # types that the model's own template writes
OWN_PROMPT = "Axolotl writes its own prompt around a row, a plan uses the model's chat template"


def read_axolotl(file: ToolFile) -> Iterator[DataRef]:
    """The data sets of a file."""
    count = 0
    for key, evaluates in LISTS:
        value = file.values.get(key)
        listed = [value] if isinstance(value, Mapping | str) else value
        for index, one in enumerate(listed if isinstance(listed, list) else ()):
            entry = {"path": one} if isinstance(one, str) else one
            if isinstance(entry, Mapping):
                dotted = f"{key}.{index}" if isinstance(value, list) else key
                count += not evaluates
                yield _axolotl_set(file, dotted, entry, evaluates=evaluates)
    if count > 1:
        file.notes.append("Axolotl shuffles the rows of all data sets together")


def _axolotl_set(file: ToolFile, key: str, one: Mapping[str, Any], *, evaluates: bool) -> DataRef:
    named, files, kind = _text(one.get("path")), _names(one.get("data_files")), one.get("type")
    where = locate_set(file, named, files=files)
    if where.get("hub") and _text(one.get("name")):
        where["hub"] += f"/{one['name']}"
    if named == "synthetic" or kind == "_synthetic":
        where = {"place": ELSEWHERE, "why_not": "it is made up while training"}
    lost = [*where.pop("lost", ()), *_unsaid(one, OF_AXOLOTL)]
    roles = _stated_roles(kind if isinstance(kind, Mapping) else one, FIELDS)
    words = re.split(r"[.:]", _text(kind))
    if key.startswith("pretraining_dataset") or words[0] in TEXTS:
        roles = {"text": roles.get("text", "text")}
    elif kind and not set(AS_CHATS) & set(words):
        lost.append(f"type: {_text(kind) or 'a map'}: {OWN_PROMPT}")
    return DataRef(
        key=key,
        named=", ".join([named, *files]) if files else named,
        evaluates=evaluates,
        roles=roles,
        needs=_needed(roles),
        lost=tuple(lost),
        **where,
    )


# --------------------------------------------------------------------------- LLaMA-Factory

INFO = "dataset_info.json"
MAX_INFO_BYTES = 4_000_000
COLUMNS = {
    "prompt": "question", "query": "context", "response": "answer", "system": "system",
    "history": "history", "chosen": "chosen", "rejected": "rejected", "kto_tag": "good",
    "messages": "messages", "tools": "tools",
}  # fmt: skip
FORMATTINGS = ("alpaca", "sharegpt", "openai")  # the first one if none is stated
MEDIA = ("images", "videos", "audios")
OF_LLAMAFACTORY = ("file_name", "hf_hub_url", "subset", "formatting", "columns", "tags", "ranking")


def read_llamafactory(file: ToolFile) -> Iterator[DataRef]:
    """The data sets of a file."""
    values = file.values
    folder, info = _dataset_info(file)
    mixed = {key: values.get(key) for key in ("max_samples", "mix_strategy")}
    for key in ("dataset", "eval_dataset"):
        for name in filter(None, map(str.strip, ",".join(_names(values.get(key))).split(","))):
            ref = _llamafactory_set(file, key, name, folder, info)
            yield replace(ref, lost=(*ref.lost, *_unsaid(mixed, ())))


def _dataset_info(file: ToolFile) -> tuple[str, Mapping[str, Any] | None]:
    """The folder of the data, and what dataset_info.json in it holds; None without one."""
    named = file.values.get("dataset_dir", "data")
    if isinstance(named, Mapping):
        return "", named
    folder = _text(named)
    if not folder or folder == "ONLINE" or folder.startswith("REMOTE:"):
        return folder, None
    path = found_near(file.path, f"{folder}/{INFO}")
    key = "dataset_dir" if "dataset_dir" in file.values else "dataset"
    if path is None:
        missing = f"there is no {folder}/{INFO} here"
        folder, path = ".", file.path.parent / INFO
        if not path.is_file():
            file.notes.append(f"{missing}: what the names in `dataset` stand for is not known")
            return folder, None
        # People put it beside the file; the tool looks in the folder alone and stops.
        what = f"{missing}, but one beside the file, which is read here; LLaMA-Factory stops"
        file.fault("warning", key, f"{what} without it: name its folder", {"dataset_dir": "."})
    try:
        info = json.loads(read_at_most(path, MAX_INFO_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, AdviseError) as error:
        file.fault("error", key, f"{path} is no JSON that can be read: {str(error)[:200]}")
        return folder, None
    if not isinstance(info, Mapping):
        file.fault("error", key, f"{path} holds no map of data sets")
        return folder, None
    return folder, info


def _llamafactory_set(
    file: ToolFile, key: str, name: str, folder: str, info: Mapping[str, Any] | None
) -> DataRef:
    base: dict[str, Any] = {"key": key, "named": name, "evaluates": key == "eval_dataset"}
    if info is None and folder == "ONLINE" and is_hub_id(name):
        return DataRef(**base, place=HUB, hub=name)
    if info is None:
        return DataRef(**base, why_not=f"{INFO} is not here, which says what the name stands for")
    entry = info.get(name)
    if not isinstance(entry, Mapping):
        known = [str(one) for one in info]
        near = did_you_mean(name, known)
        what = f"{INFO} has no data set '{name}'; it has {', '.join(known[:12])}"
        file.fault("error", key, f"{what}; {near}" if near else what)
        return DataRef(**base, why_not=f"{INFO} does not have it")
    form = _text(entry.get("formatting")) or FORMATTINGS[0]
    if form not in FORMATTINGS:
        what = f"the formatting '{form}' of '{name}' in {INFO} is none of {', '.join(FORMATTINGS)}"
        file.fault("error", key, what)
    if hub := _text(entry.get("hf_hub_url")):
        subset = _text(entry.get("subset"))
        place: dict[str, Any] = {"place": HUB, "hub": f"{hub}/{subset}" if subset else hub}
    elif local := _text(entry.get("file_name")):
        place = locate_set(file, local, inside=folder)
    else:
        why = f"{INFO} names neither a file nor a data set of the hub: save its rows as a file"
        place = {"place": ELSEWHERE, "why_not": why}
    columns = entry.get("columns")
    if media := [one for one in MEDIA if isinstance(columns, Mapping) and columns.get(one)]:
        place["why_not"] = f"its rows hold {' and '.join(media)}, and a plan trains on text alone"
    roles = _stated_roles(columns, COLUMNS)
    for unused in ("answer",) if entry.get("ranking") else ("chosen", "rejected"):
        roles.pop(unused, None)
    if set(roles) == {"question"} and entry.get("formatting") in (None, "alpaca"):
        roles = {"text": roles["question"]}  # the one column of a text to continue
    lost = (*place.pop("lost", ()), *_unsaid(entry, OF_LLAMAFACTORY))
    is_text = file.values.get("stage") == "pt"  # answers may be missing then
    needs = () if is_text else _needed(roles)
    return DataRef(**base, **place, roles=roles, lost=lost, needs=needs)


# --------------------------------------------------------------------------- TRL

# Command -> the columns that its trainer reads.
NEEDS_OF: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "dpo": (("chosen", "rejected"),), "reward": (("chosen", "rejected"),),
    "kto": (("prompt", "completion", "label"),), "grpo": (("prompt",),), "rloo": (("prompt",),),
}  # fmt: skip
OF_TRL = ("path", "name", "data_dir", "data_files")


def read_trl(file: ToolFile) -> Iterator[DataRef]:
    """The data sets of a file."""
    values = file.values
    listed = values.get("datasets")
    if isinstance(listed, list) and listed:
        for index, one in enumerate(listed):
            if isinstance(one, Mapping):
                yield _trl_set(file, f"datasets.{index}", one)
        if "dataset_name" in values:
            what = "'dataset_name' has no effect beside `datasets`: delete one of them"
            file.fault("warning", "dataset_name", what, {"dataset_name": None})
    elif name := _text(values.get("dataset_name")):
        subset, split = values.get("dataset_config"), values.get("dataset_train_split")
        yield _trl_set(file, "dataset_name", {"path": name, "name": subset, "split": split})


def _trl_set(file: ToolFile, key: str, one: Mapping[str, Any]) -> DataRef:
    named, folder = _text(one.get("path")), _text(one.get("data_dir"))
    files = [f"{folder}/{name}" if folder else name for name in _names(one.get("data_files"))]
    files = files or ([folder] if folder else [])
    where = locate_set(file, named, files=files)
    if where.get("hub") and _text(one.get("name")):
        where["hub"] += f"/{one['name']}"
    lost = (*where.pop("lost", ()), *_unsaid(one, OF_TRL))
    texts = _text(file.values.get("dataset_text_field"))
    of_sft = (("messages",), ("prompt", "completion"), (texts or "text",), ("conversations",))
    return DataRef(
        key=key,
        named=", ".join(files) or named,
        roles={"text": texts} if texts else {},
        needs={**NEEDS_OF, "sft": of_sft}.get(file.command.name, ()),
        lost=lost,
        **where,
    )


READERS = {"axolotl": read_axolotl, "llamafactory": read_llamafactory, "trl": read_trl}


def data_of(file: ToolFile) -> list[DataRef]:
    """What the file trains and measures on; faults of it go to the file. Reads no rows."""
    refs: list[DataRef] = list(READERS[file.tool](file))
    if file.checked == "script":  # its code may turn the rows into anything
        refs = [replace(ref, needs=(), roles={}) for ref in refs]
    for ref in refs:
        if ref.place == MISSING and ref.named and not ref.why_not:
            what = f"'{ref.named}' is not here: looked for beside the file, in the folders above it"
            known = "without its rows, time and lengths are not known"
            file.fault("warning", ref.key, f"{what} and in the current one; {known}")
    return refs


# --------------------------------------------------------------------------- what they hold


class RecognisedSet(NamedTuple):
    """What a data set that is here holds, in our words."""

    recognition: DataSet | None = None
    mapping: Mapping[str, str] | None = None  # of a plan; None: the names of the columns say it
    why_not: str = ""  # it could not be read: what our reader says


def recognise_set(ref: DataRef) -> RecognisedSet:
    """A data set that is here, recognised from a sample of its rows."""
    if ref.place != FILE or not ref.path:
        return RecognisedSet(why_not="it is not one file or folder that is here")
    from advisor.data.recognition.recognise import recognise

    recognition, why, stated = None, "", dict(ref.roles)
    try:
        recognition = recognise(ref.path)
        columns = recognition.columns
        stated = {role: column for role, column in stated.items() if column in columns}
    except AdviseError as error:
        why = error.faults[0].headline
        stated = {role: column for role, column in stated.items() if role not in OPTIONAL}
    if not stated or (recognition is not None and dict(recognition.mapping) == stated):
        return RecognisedSet(recognition, None, why)
    try:
        return RecognisedSet(recognise(ref.path, mapping=stated), stated)
    except AdviseError as error:
        return RecognisedSet(recognition, None, "" if recognition else error.faults[0].headline)


def _without_labels(
    file: ToolFile, ref: DataRef, one: RecognisedSet, notes: list[str]
) -> RecognisedSet:
    """Texts with a label as `trl sft` and transformers' Trainer read them: the texts alone, unless
    code puts the labels into them.
    """
    found = one.recognition
    if found is None or found.format != "classification" or file.tool != "trl":
        return one
    text, label = found.mapping.get("text"), found.mapping.get("label")
    if file.command.name != "sft" or not text or not label or file.reads_column(label):
        return one
    from advisor.data.recognition.recognise import recognise

    mapping = {"text": text}
    notes.append(
        f"{ref.named}: the texts of {text} alone are learned, without {label} and without a chat"
        " template"
    )
    return RecognisedSet(recognise(ref.path, mapping=mapping), mapping)


def look_for_columns(file: ToolFile, ref: DataRef, found: DataSet | None) -> None:
    """Say what the tool will not find in the rows."""
    if found is None or not ref.needs or not found.columns or found.container == "text":
        return
    if any(set(wanted) <= set(found.columns) for wanted in ref.needs):
        return
    wanted = " or ".join(" + ".join(names) for names in ref.needs)
    what = f"{file.about.title} looks for the columns {wanted} in {ref.named}"
    columns = ", ".join(found.columns[:12])
    file.fault("error", ref.key, f"{what}, and does not find them; its columns: {columns}")


# Kind of data -> the command of TRL that trains on such rows.
BY_DATA = {"preference": "dpo", "unpaired_feedback": "kto", "prompts_with_verifier": "grpo"}
OWN_ROWS = "a plan measures on rows of its own data, held out by `holdout`"
ONE_SET = "a plan trains on one file, folder or hub data set"


class MeasuredData(Struct, kw_only=True):
    """What a configuration trains on, as far as it is here."""

    words: list[str] = field(default_factory=list)
    profile: DataProfile | None = None
    plan: dict[str, Any] | None = None  # `data` of a plan
    notes: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)  # what a plan cannot say of it
    holds_out: bool = False  # rows to measure on are named
    kind: str = "rows"  # what the rows are: text, chat or rows


def measure_data(file: ToolFile) -> MeasuredData:
    """The first data that are here, measured; they settle a command that the keys leave open."""
    from advisor.data import profile as profile_of

    refs = data_of(file)
    train = [ref for ref in refs if not ref.evaluates]
    data = MeasuredData(holds_out=train != refs)
    for ref in train:
        data.words.append(ref.named or ref.key)
        one = recognise_set(ref) if ref.place == FILE else None
        one = one and _without_labels(file, ref, one, data.notes)
        mapping = one.mapping if one is not None else None
        data.lost += [Lost(key=ref.key, value=ref.named, why=why) for why in ref.lost]
        if ref.path and not ref.why_not and data.plan is not None:
            data.lost.append(Lost(key=ref.key, value=ref.named, why=ONE_SET))
        elif ref.path and not ref.why_not:
            data.plan = {"path": ref.path, **({"mapping": dict(mapping)} if mapping else {})}
        if one is None:
            continue
        look_for_columns(file, ref, one.recognition)
        if data.profile is not None:
            first = data.words[0]
            data.notes.append(f"{ref.named} is not measured: time and lengths are those of {first}")
            continue
        try:
            if one.why_not:
                raise InputError(one.why_not)
            data.profile = profile_of(ref.path, mapping=mapping)
        except AdviseError as error:
            data.notes.append(f"{ref.named} cannot be read: {error}")
    data.lost += [Lost(key=ref.key, value=ref.named, why=OWN_ROWS) for ref in refs if ref.evaluates]
    if train and all(set(ref.roles) == {"text"} for ref in train):
        data.kind = "text"  # texts without requests, as the file itself says
    elif data.profile is not None:
        is_chat = data.profile.format in CHAT
        data.kind = "text" if data.profile.kind == "raw_text" else "chat" if is_chat else "rows"
    name = BY_DATA.get(data.profile.kind) if data.profile is not None else None
    if name in file.command.likely and name != file.command.name:
        said = f"read as a file of `{file.tool} {name}`: its data are such rows"
        file.command = Command(name=name, assumed=said)
    return data
