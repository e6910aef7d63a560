"""LLaMA-Factory: how it names its data (names, which dataset_info.json in `dataset_dir` explains),
the keys of its own, and the shape of its rows.

Read from src/llamafactory/data/parser.py and loader.py of LLaMA-Factory 0.9.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.data.read.hub import is_hub_id
from advisor.data.same_rows import Example, Message
from advisor.extras.other_tools.data_sets import (
    ELSEWHERE,
    HUB,
    MISSING,
    DataRef,
    FileData,
    names,
    placed,
    text,
)
from advisor.extras.other_tools.file import ToolFile, found_near
from advisor.extras.other_tools.job import (
    MASK_NOTE,
    TEST,
    TRAIN,
    Job,
    deepspeed,
    evaluation,
    hub_name,
    long_texts,
    upload,
)
from advisor.extras.other_tools.rows import (
    ANSWERS,
    FEEDBACK,
    LONG_ANSWER,
    PAIRS,
    TEXT,
    WRONG_ORDER,
    Layout,
    Shape,
    Traits,
    as_map,
    as_maps,
    texts,
)
from advisor.ground.errors import AdviseError, nearest
from advisor.ground.files import read_at_most

INFO = "dataset_info.json"
MAX_BYTES = 4_000_000
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


def read_data(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    folder = values.get("dataset_dir", "data")
    info = _info(file, folder, found)
    folder = found.folder or folder
    for key, evaluates in (("dataset", False), ("eval_dataset", True)):
        for name in _listed(values.get(key)):
            found.refs.append(_ref(file, key, name, folder, info, evaluates=evaluates))
    strategy = values.get("mix_strategy", "concat")
    if strategy != "concat" and len(found.train) > 1:
        found.lost.append(f"how the data sets are mixed (mix_strategy: {strategy})")
    if (most := values.get("max_samples")) is not None:
        found.lost.append(f"max_samples: {most}: all rows of each data set are taken")
    return found


def _listed(value: Any) -> list[str]:
    return [one.strip() for listed in names(value) for one in listed.split(",") if one.strip()]


def _info(file: ToolFile, folder: Any, found: FileData) -> Mapping[str, Any] | None:
    """What dataset_info.json holds; None without one."""
    if isinstance(folder, Mapping):
        return folder
    named = text(folder)
    if not named or named == "ONLINE":
        return None
    if named.startswith("REMOTE:"):
        found.notes.append(f"{INFO} is on the hub ({named[7:]}) and was not read")
        return None
    path = found_near(file.path, f"{named}/{INFO}")
    key = "dataset_dir" if "dataset_dir" in file.values else "dataset"
    if path is None:
        default = "" if key == "dataset_dir" else ", the default of dataset_dir"
        missing = f"there is no {named}/{INFO} here{default}"
        path = file.folder / INFO
        if not path.is_file():
            found.notes.append(f"{missing}: what the names in `dataset` stand for is not known")
            return None
        # People put it beside the file; the tool looks in the folder alone and stops.
        what = f"{missing}, but one beside the file, which is read here"
        stops = "LLaMA-Factory stops without it: name its folder"
        file.fault("warning", key, f"{what}; {stops}", {"dataset_dir": "."})
        found.folder = "."
    try:
        read = json.loads(read_at_most(path, MAX_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, AdviseError) as error:
        file.fault("error", key, f"{path} is no JSON that can be read: {str(error)[:200]}")
        return None
    if not isinstance(read, Mapping):
        file.fault("error", key, f"{path} holds no map of data sets")
        return None
    return read


def _ref(
    file: ToolFile,
    key: str,
    name: str,
    folder: Any,
    info: Mapping[str, Any] | None,
    *,
    evaluates: bool,
) -> DataRef:
    base: dict[str, Any] = {"key": key, "named": name, "evaluates": evaluates}
    if info is None:
        if folder == "ONLINE" and is_hub_id(name):
            return DataRef(**base, place=HUB, hub=name, form="alpaca", roles=_roles({}, "alpaca"))
        why = f"{INFO} is not here, which says what the name stands for"
        return DataRef(**base, place=MISSING, why_not=why)
    entry = info.get(name)
    if not isinstance(entry, Mapping):
        known = [str(one) for one in info]
        near = nearest(name, known)
        what = f"{INFO} has no data set '{name}'; it has {', '.join(known[:12])}"
        file.fault("error", key, f"{what}; {near}" if near else what)
        return DataRef(**base, place=MISSING, why_not=f"{INFO} does not have it")
    form = text(entry.get("formatting")) or "alpaca"
    if form not in FORMATTINGS:
        what = f"the formatting '{form}' of '{name}' in {INFO} is none of {', '.join(FORMATTINGS)}"
        file.fault("error", key, what)
    place = _place(file, entry, text(folder))
    roles = _roles(entry, form)
    lost = [*place.pop("lost", ()), *_lost(entry)]
    columns = entry.get("columns")
    media = [one for one in MEDIA if isinstance(columns, Mapping) and columns.get(one)]
    why = place.pop("why_not", "")
    if media:
        why = f"its rows hold {' and '.join(media)}, and a plan trains on text alone"
    return DataRef(
        **base,
        form=form + (", chosen and rejected" if entry.get("ranking") else ""),
        roles=roles,
        needs=_needs(file, roles, bool(entry.get("ranking"))),
        lost=tuple(lost),
        why_not=why,
        **place,
    )


def _place(file: ToolFile, entry: Mapping[str, Any], folder: str) -> dict[str, Any]:
    if hub := text(entry.get("hf_hub_url")):
        subset = text(entry.get("subset"))
        return {"place": HUB, "hub": f"{hub}/{subset}" if subset else hub}
    if named := text(entry.get("file_name")):
        return placed(file, named, inside=folder)
    kind = next(
        (
            one
            for one in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
            if entry.get(one)
        ),
        "",
    )
    where = {
        "ms_hub_url": "it is on ModelScope", "om_hub_url": "it is on another hub",
        "script_url": "a script loads it", "cloud_file_name": "it is in a cloud's storage",
    }.get(kind, f"{INFO} does not say where it is")  # fmt: skip
    return {"place": ELSEWHERE, "why_not": f"{where}: save its rows as a file"}


def _roles(entry: Mapping[str, Any], form: str) -> dict[str, str]:
    """Role -> column. Columns that an entry with `columns` does not name are not read at all."""
    wanted, usual = (ALPACA, USUAL) if form == "alpaca" else (SHAREGPT, USUAL_MESSAGES)
    stated = entry.get("columns")
    columns = stated if isinstance(stated, Mapping) else usual
    found = {
        role: text(columns.get(theirs))
        for theirs, role in wanted.items()
        if text(columns.get(theirs))
    }
    if entry.get("ranking"):
        found.pop("answer", None)
    else:
        found.pop("chosen", None)
        found.pop("rejected", None)
    if form == "alpaca" and set(found) == {"question"}:
        return {"text": found["question"]}  # the one column of a text to continue
    return found


def _needs(file: ToolFile, roles: Mapping[str, str], ranking: bool) -> tuple[tuple[str, ...], ...]:
    first = [roles[role] for role in ("text", "messages", "question") if role in roles][:1]
    rest = [roles[role] for role in ("chosen", "rejected") if ranking and role in roles]
    answer = [roles["answer"]] if "answer" in roles and "good" not in roles else []
    wanted = (*first, *rest, *answer) if file.values.get("stage") != "pt" else tuple(first)
    return (wanted,) if wanted else ()


def _lost(entry: Mapping[str, Any]) -> list[str]:
    found = []
    if (split := text(entry.get("split"))) and split != "train":
        found.append(f"only its split '{split}'")
    if entry.get("num_samples") is not None:
        found.append(f"num_samples: {entry['num_samples']}")
    if folder := text(entry.get("folder")):
        found.append(f"only its folder '{folder}'")
    return found


# --------------------------------------------------------------------------- written

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
    """How rows are written: see Writer in write_job.py."""
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
