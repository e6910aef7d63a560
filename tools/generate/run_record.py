"""Part of docs/programs.md: every key of run.json and dry_run.json, from their types."""

from __future__ import annotations

import re
from collections.abc import Iterable

from advisor.ground.annotated import JsonObject, object_shape, parts_of
from advisor.record.run import DryRunRecord, RunRecord
from tools.generate.markdown import grid


def part() -> str:
    """A table for each part of the two files."""
    run_parts = parts_of(RunRecord)
    dry_parts = [one for one in parts_of(DryRunRecord) if one not in run_parts]
    names = [one.__name__ for one in (*run_parts, *dry_parts)]
    blocks: list[str] = []
    for one in (*run_parts, *dry_parts):
        blocks += [f"### {one.__name__}", _summary(one), "\n".join(_keys(one, names))]
    return "\n\n".join(blocks) + "\n"


def _summary(part: type[JsonObject]) -> str:
    return (part.__doc__ or "").strip().splitlines()[0]


def _keys(part: type[JsonObject], names: Iterable[str]) -> Iterable[str]:
    """A table of the keys of a part, with a link to each part inside it."""
    a_part = re.compile(rf"\b({'|'.join(names)})\b")
    whole = object_shape(part)
    rows = (
        [
            f"`{key}`",
            a_part.sub(_link, shape.words() + (" or null" if shape.null else "")),
            shape.help.replace("|", "\\|")
            + (" (left out if null)" if key in whole.omit_null else ""),
        ]
        for key, shape in whole.keys.items()
    )
    return grid(["key", "value", "what it says"], rows)


def _link(found: re.Match[str]) -> str:
    return f"[{found[0]}](#{found[0].lower()})"
