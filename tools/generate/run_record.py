"""Part of docs/programs.md: the keys of run.json and dry_run.json, from their types."""

from __future__ import annotations

from collections.abc import Iterable

from advisor.ground.annotated import JsonObject, object_shape, parts_of
from advisor.record.run import DryRunRecord, RunRecord
from tools.generate.markdown import grid
from tools.generate.words import cell

# What most readers want; run.schema.json explains the keys of every part of run.json.
EXPLAINED = ("Verdict",)


def part() -> str:
    """A row for each key of the parts that most readers want, and one for each other part."""
    parts = parts_of(RunRecord)
    dry = [one for one in parts_of(DryRunRecord) if one not in parts]
    shown = [one for one in parts if one.__name__ in EXPLAINED]
    rows = [row for one in (*shown, *dry) for row in _keys(one)]
    others = [
        [one.__name__, cell(_summary(one)), ", ".join(f"`{key}`" for key in object_shape(one).keys)]
        for one in parts
        if one not in shown
    ]
    tables = (
        grid(["part", "key", "value", "what it says"], rows),
        grid(["other part", "what it is", "its keys"], others),
    )
    return "\n\n".join("\n".join(table) for table in tables)


def _summary(part: type[JsonObject]) -> str:
    return (part.__doc__ or "").strip().splitlines()[0]


def _keys(part: type[JsonObject]) -> Iterable[list[str]]:
    whole = object_shape(part)
    for key, shape in whole.keys.items():
        said = cell(shape.help) + (" (left out if null)" if key in whole.omit_null else "")
        null = " or null" if shape.null else ""
        yield [part.__name__, f"`{key}`", f"{shape.words()}{null}", said]
