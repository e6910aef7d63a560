"""One row to show to a person who is asked what its columns are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

from advisor.data.read.files import find_data
from advisor.data.read.lines import Faults
from advisor.data.read.rows import read_rows
from advisor.data.recognition.nested import with_leaves

LOOKED_AT = 20


def first_row(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Of the first rows the one with the most filled columns, with nested columns beside its own;
    empty where no row has columns.
    """
    rows = islice(read_rows(find_data(path), faults=Faults()), LOOKED_AT)
    return max(
        (with_leaves(row) for _, row in rows if isinstance(row, dict)),
        key=lambda row: sum(cell not in (None, "", [], {}) for cell in row.values()),
        default={},
    )
