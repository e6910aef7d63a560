"""What several tests of data files share."""

import json
from pathlib import Path
from typing import Any


def jsonl(folder: Path, rows: list[Any], name: str = "a.jsonl") -> Path:
    """A file with one row a line."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
