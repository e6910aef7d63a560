"""TRL: how it names its data (`dataset_name`, or a list of `datasets` that takes its place; it goes
by the names of columns), and the way out of a plan.

Read from trl/scripts/utils.py and the trainers of TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from advisor.export.exporter import Wanted
from advisor.extras.other_tools.data_sets import DataRef, FileData, names, placed, text
from advisor.extras.other_tools.file import ToolFile

NAME = "trl"
HELP = "the file of TRL, with its data"
TAKES: Literal["plan", "run"] = "plan"
NEEDS: tuple[str, ...] = ()


def export(wanted: Wanted) -> int:
    """Write the files and say what is in them."""
    from advisor.extras.other_tools.files import export_to

    return export_to(NAME, wanted)


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
