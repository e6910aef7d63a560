"""What several tests of data files share."""

import json
from pathlib import Path

from advisor.data import profile
from advisor.data.measure import Depth

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def jsonl(folder: Path, rows: list, name: str = "a.jsonl") -> Path:
    """A file with one row a line."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    """Questions and answers, all different."""
    return [{"question": f"What is {n}?", "answer": f"It is number {n}."} for n in range(count)]


def labelled(**counts: int) -> list[dict[str, str]]:
    """So many rows of each class."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [{"text": f"Message number {n}", "label": label} for n, label in enumerate(labels)]


def findings(path: Path, depth: Depth | None = None, **more) -> dict:
    """Id -> finding of the profile of a file; `depth` is strict=False where nobody says."""
    return {one.id: one for one in profile(path, depth or Depth(strict=False), **more).findings}
