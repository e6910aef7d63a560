"""The names of columns in the first row of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MOST_NAME_CHARS = 100


def column_names(header: Sequence[str]) -> list[str]:
    """The names of columns. A nameless first one is what pandas writes for its index."""
    return [
        name.strip() or (f"column_{place}" if place > 1 else "index")
        for place, name in enumerate(header, 1)
    ]


def header_fault(header: Sequence[str]) -> str:
    """What is wrong with the names of columns; '' if nothing is."""
    names = [name.strip() for name in header]
    if any(len(name) > MOST_NAME_CHARS or name[:1] in ("[", "{") for name in names):
        return "a row stands in the first line, in place of the names of the columns"
    twice = sorted(name for name, count in Counter(filter(None, names)).items() if count > 1)
    return f"two columns are called {', '.join(twice)}" if twice else ""
