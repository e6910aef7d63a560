"""LLaMA-Factory: how it names its data (names, which dataset_info.json in `dataset_dir` explains),
and the way out of a plan.

Read from src/llamafactory/data/parser.py and loader.py of LLaMA-Factory 0.9.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from advisor.data.read.hub import is_hub_id
from advisor.export.exporter import Wanted
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
from advisor.extras.other_tools.job import Job
from advisor.extras.other_tools.rows import FEEDBACK, PAIRS, TEXT
from advisor.ground.errors import AdviseError, nearest
from advisor.ground.files import read_at_most

NAME = "llamafactory"
HELP = "the file of LLaMA-Factory, with its data"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()
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


def export(wanted: Wanted) -> int:
    """Write the files and say what is in them."""
    from advisor.extras.other_tools.files import export_to

    return export_to(NAME, wanted)


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
UNKNOWN_TEMPLATE = (
    "template: no registered template is known to write the same text as this model's own, and what"
    " is derived from it goes wrong where the own one writes something once at the head, as that of"
    " Llama 3.1 does. Compare the first row, which is printed at the start, with `advise check DATA"
    " --show-row 1 --model MODEL`"
)


def complete(job: Job) -> None:
    """Add the names of the data, and the template."""
    name = job.place.replace("-", "_") or "rows"
    info: dict[str, Any] = {name: {"hf_hub_url": job.entry.data.path}}
    if job.rows is not None:
        info[name] = {"file_name": f"{job.folder}/train.jsonl", **_form(job.kind)}
    if job.evaluates:
        info[f"{name}_test"] = {"file_name": f"{job.folder}/test.jsonl", **_form(job.kind)}
        job.put("eval_dataset", f"{name}_test")
    job.files[INFO] = info
    job.put("dataset_dir", ".", f"the folder of {INFO}: start it from here")
    job.put("dataset", name)
    if job.kind != TEXT:
        known, differs = job.tool.template_of(job.plan.model)
        derived = "derived from the model's own" + (": the same text" if known == OWN else "")
        named = None if known == OWN else known
        job.put("template", named, "" if named else derived)
        if known is None or differs:
            job.notes.append(f"template: {differs}" if differs else UNKNOWN_TEMPLATE)


def _form(kind: str) -> dict[str, Any]:
    """How an entry of dataset_info.json describes the rows."""
    if kind == TEXT:
        return {"columns": {"prompt": "text"}}
    more = {PAIRS: {"chosen": "chosen", "rejected": "rejected"}, FEEDBACK: {"kto_tag": "label"}}
    tags = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}
    return {
        "formatting": "sharegpt",
        "ranking": kind == PAIRS,
        "columns": {"messages": "messages", **more.get(kind, {})},
        "tags": {f"{one}_tag": value for one, value in {**tags, "system": "system"}.items()},
    }
