"""Part of docs/programs.md: the keys of run.json and dry_run.json, from their types."""

from __future__ import annotations

from advisor.ground.annotated import JsonObject, object_shape, parts_of
from advisor.record.run import DryRunRecord, RunRecord
from tools.generate.markdown import grid
from tools.generate.words import cell


def part() -> str:
    """A row for each part; the schemas explain the keys."""
    parts = dict.fromkeys((*parts_of(RunRecord), *parts_of(DryRunRecord)))
    rows = [
        [one.__name__, cell(_summary(one)), ", ".join(f"`{key}`" for key in object_shape(one).keys)]
        for one in parts
    ]
    return "\n".join(grid(["part", "what it is", "its keys"], rows))


def _summary(part: type[JsonObject]) -> str:
    return (part.__doc__ or "").strip().splitlines()[0]
