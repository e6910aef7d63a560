"""The files that a data path stands for, as values; files.py finds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """One file of a data path."""

    path: Path
    shown: str  # as messages name it
    container: str  # json | jsonl | csv | text | parquet | arrow
    gzipped: bool = False
    encoding: str = "utf-8"  # another one only where its first bytes tell; see decoding.py

    @property
    def is_wide(self) -> bool:
        """Whether it is UTF-16 or UTF-32, which is turned into UTF-8 before lines are cut."""
        return self.encoding.startswith(("utf-16", "utf-32"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The files a path stands for, all of one container, in reading order."""

    files: tuple[DataFile, ...]
    container: str
    folder: bool = False
    notes: tuple[str, ...] = ()  # files that were left out, and why
    root: Path | None = None  # of a folder: where its files' own names begin

    @property
    def size_bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)
