"""LLaMA-Factory: how it names its data (names, which dataset_info.json in `dataset_dir` explains),
and the way out of a plan.

Read from src/llamafactory/data/parser.py and loader.py of LLaMA-Factory 0.9.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.data_sets import (
    ELSEWHERE,
    HUB,
    DataRef,
    FileData,
    names,
    placed,
    text,
)  # fmt: skip
from advisor.extras.other_tools.file import ToolFile, found_near
from advisor.extras.other_tools.files import Job
from advisor.extras.other_tools.tool import FEEDBACK, PAIRS, TEXT
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
OTHER_PLACES = {
    "ms_hub_url": "it is on ModelScope", "om_hub_url": "it is on another hub",
    "script_url": "a script loads it", "cloud_file_name": "it is in a cloud's storage",
}  # fmt: skip
NO_PLACE = f"{INFO} does not say where it is"


def read_data(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    info = _info(file, found)
    folder = found.folder or text(values.get("dataset_dir", "data"))
    for key in ("dataset", "eval_dataset"):
        listed = ",".join(names(values.get(key))).split(",")
        for name in filter(None, map(str.strip, listed)):
            found.refs.append(_ref(file, key, name, folder, info))
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
        read = json.loads(read_at_most(path, MAX_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError, AdviseError) as error:
        file.fault("error", key, f"{path} is no JSON that can be read: {str(error)[:200]}")
        return None
    if not isinstance(read, Mapping):
        file.fault("error", key, f"{path} holds no map of data sets")
        return None
    return read


def _ref(
    file: ToolFile, key: str, name: str, folder: str, info: Mapping[str, Any] | None
) -> DataRef:
    base: dict[str, Any] = {"key": key, "named": name, "evaluates": key == "eval_dataset"}
    if info is None:
        if folder == "ONLINE" and is_hub_id(name):
            return DataRef(**base, place=HUB, hub=name, roles=_roles({}, "alpaca"))
        return DataRef(**base, why_not=f"{INFO} is not here, which says what the name stands for")
    entry = info.get(name)
    if not isinstance(entry, Mapping):
        known = [str(one) for one in info]
        near = nearest(name, known)
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
        place = placed(file, local, inside=folder)
    else:
        where = next((why for one, why in OTHER_PLACES.items() if entry.get(one)), NO_PLACE)
        place = {"place": ELSEWHERE, "why_not": f"{where}: save its rows as a file"}
    columns = entry.get("columns")
    media = [one for one in MEDIA if isinstance(columns, Mapping) and columns.get(one)]
    if media:
        place["why_not"] = f"its rows hold {' and '.join(media)}, and a plan trains on text alone"
    parts = [(one, entry.get(one)) for one in ("split", "num_samples", "folder")]
    lost = [f"{one}: {value}" for one, value in parts if value not in (None, "", "train")]
    roles = _roles(entry, form)
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


def _roles(entry: Mapping[str, Any], form: str) -> dict[str, str]:
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


def complete(job: Job) -> None:
    """Add the list of the data sets, dataset_info.json."""
    name = job.values["dataset"]
    info: dict[str, Any] = {name: {"hf_hub_url": job.entry.data.path}}
    if job.rows is not None:
        info[name] = {"file_name": f"{job.folder}/train.jsonl", **_form(job.kind)}
    if job.evaluates:
        info[f"{name}_test"] = {"file_name": f"{job.folder}/test.jsonl", **_form(job.kind)}
    job.files[INFO] = info


def _form(kind: str) -> dict[str, Any]:
    """How an entry of dataset_info.json describes the rows."""
    if kind == TEXT:
        return {"columns": {"prompt": "text"}}
    more = {PAIRS: {"chosen": "chosen", "rejected": "rejected"}, FEEDBACK: {"kto_tag": "label"}}
    return {
        "formatting": "sharegpt",
        "ranking": kind == PAIRS,
        "columns": {"messages": "messages", **more.get(kind, {})},
        "tags": {f"{one}_tag": one for one in ("role", "content", "user", "assistant", "system")},
    }
