"""TRL: how it names its data (`dataset_name`, or a list of `datasets` that takes its place; it goes
by the names of columns), and the way out of a plan.

Read from trl/scripts/utils.py and the trainers of TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advisor.extras.other_tools.data_sets import DataRef, FileData, names, placed, text
from advisor.extras.other_tools.file import ToolFile

# Command -> the columns that its trainer reads.
NEEDS_OF: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "dpo": (("chosen", "rejected"),), "reward": (("chosen", "rejected"),),
    "kto": (("prompt", "completion", "label"),), "grpo": (("prompt",),), "rloo": (("prompt",),),
}  # fmt: skip


def read_data(file: ToolFile) -> FileData:
    """The data sets of a file."""
    values, found = file.values, FileData()
    listed = values.get("datasets")
    if isinstance(listed, list) and listed:
        for index, one in enumerate(listed):
            if isinstance(one, Mapping):
                found.refs.append(_ref(file, f"datasets.{index}", one))
        if "dataset_name" in values:
            what = "'dataset_name' has no effect beside `datasets`: delete one of them"
            file.fault("warning", "dataset_name", what, {"dataset_name": None})
        if any(isinstance(one, Mapping) and one.get("fraction") is not None for one in listed):
            found.lost.append("the share of each data set (`fraction`): all rows are taken")
    elif name := text(values.get("dataset_name")):
        subset, split = values.get("dataset_config"), values.get("dataset_train_split")
        one = {"path": name, "name": subset, "split": split}
        found.refs.append(_ref(file, "dataset_name", one))
    return found


def _ref(file: ToolFile, key: str, one: Mapping[str, Any]) -> DataRef:
    """A data set, as an entry of `datasets` names it."""
    named, folder = text(one.get("path")), text(one.get("data_dir"))
    files = [f"{folder}/{name}" if folder else name for name in names(one.get("data_files"))]
    files = files or ([folder] if folder else [])
    where = placed(file, named, files=files)
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
