"""What differs between two collections of outputs, key by key."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

NAMES = ("id", "composition", "name")  # keys that tell the entries of a list apart
ABSENT = "(absent)"
EXACT = 1e-9  # of numbers: as good as equal
WIDTH = 100  # columns of an example


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One value that differs: its key without places in lists, where it was seen, both values."""

    key: str
    at: str
    before: Any
    after: Any

    @property
    def example(self) -> str:
        """Where, before and after, in one short line each."""
        values = (str(value) for value in (self.before, self.after))
        told = [value if len(value) <= WIDTH else value[: WIDTH - 3] + "..." for value in values]
        return f"    {self.at}\n    - {told[0]}\n    + {told[1]}"


def changes(
    before: Any, after: Any, *, key: str, at: str, limit: float = EXACT
) -> Iterator[Change]:
    """Every value that differs; of numbers those that differ by more than the limit."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            parts = before.get(name, ABSENT), after.get(name, ABSENT)
            yield from changes(*parts, key=f"{key}.{name}", at=at, limit=limit)
    elif isinstance(before, list) and isinstance(after, list):
        for one, other in _paired(before, after):
            yield from changes(one, other, key=f"{key}[]", at=at, limit=limit)
    elif not _is_equal(before, after, limit):
        yield Change(key=key, at=at, before=before, after=after)


def _is_equal(before: Any, after: Any, limit: float) -> bool:
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after)
    )
    if numbers:
        return math.isclose(before, after, rel_tol=limit, abs_tol=limit)
    return bool(before == after)


def _paired(before: list[Any], after: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Entries of two lists that belong together: by name, as lines of a text, or by place."""
    for name in NAMES:
        named = [_by_name(entries, name) for entries in (before, after)]
        if named[0] is not None and named[1] is not None:
            for one in dict.fromkeys((*named[0], *named[1])):
                yield named[0].get(one, ABSENT), named[1].get(one, ABSENT)
            if list(named[0]) != list(named[1]) and set(named[0]) == set(named[1]):
                yield f"in this order: {', '.join(named[0])}", ", ".join(named[1])
            return
    if not all(isinstance(entry, str) for entry in (*before, *after)):
        yield from zip_longest(before, after, fillvalue=ABSENT)
        return
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind != "equal":
            lines = before[start:end], after[other_start:other_end]
            yield from zip_longest(*lines, fillvalue=ABSENT)


def _by_name(entries: list[Any], name: str) -> dict[str, Any] | None:
    """Name -> entry where every entry has one of its own."""
    if not all(isinstance(entry, dict) and name in entry for entry in entries):
        return None
    found = {str(entry[name]): entry for entry in entries}
    return found if len(found) == len(entries) else None


def table(found: Sequence[Change], allowed: Sequence[Mapping[str, str]]) -> tuple[str, int]:
    """Every changed key with its count, one example and the reason; how many keys have none.

    An entry of `allowed` has `key`, a pattern as of file names, and `because`; with `text` it holds
    only for changes in which that regular expression is found, before or after.
    """
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in found:
        groups.setdefault((change.key, _reason(change, allowed)), []).append(change)
    rows = []
    for (key, reason), same in sorted(groups.items(), key=lambda item: (item[0][1], -len(item[1]))):
        rows.append(f"{len(same):5}  {key}: {reason or 'NO REASON'}\n{same[0].example}")
    open_keys = sum(not reason for _, reason in groups)
    return "\n".join(
        [*rows, f"{len(groups)} keys changed, {open_keys} without a reason"]
    ), open_keys


def _reason(change: Change, allowed: Sequence[Mapping[str, str]]) -> str:
    """Why it may differ, "" where nobody said."""
    told = f"{change.before}\n{change.after}"
    for entry in allowed:
        key = entry["key"].replace("[]", "[[]]")  # an entry of a list, no set of letters
        if fnmatchcase(change.key, key) and re.search(entry.get("text", ""), told):
            return entry["because"]
    return ""
