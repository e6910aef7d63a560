"""One training of a plan on its way into another tool's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.other_tools.tables.mapping import Lost
from advisor.other_tools.tables.tool import Tool
from advisor.other_tools.writing.rows import Rows
from advisor.other_tools.writing.shapes import Layout
from advisor.plan.entries import Entry
from advisor.plan.model import Plan

EVALUATIONS = 0.1  # of all steps: about ten, as in a run


@dataclass(kw_only=True, slots=True)
class Job:
    """What is written for one training."""

    tool: Tool
    plan: Plan
    entry: Entry
    place: str  # of this training in the names of its files: "", "legal", "2-dpo"
    model: str  # a hub id, a folder, or the result of the training before
    rows: Rows | None  # None: a data set of the hub, whose name is passed on
    layout: Layout | None
    values: dict[str, Any] = field(default_factory=dict)  # their keys, in the order of the file
    because: dict[str, str] = field(default_factory=dict)  # their key -> the comment beside it
    lost: list[Lost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)  # commands to be given first
    files: dict[str, str] = field(default_factory=dict)  # further files: name -> text
    columns: Mapping[str, Any] = field(default_factory=dict)  # the same in every row
    command: str = ""  # of the tool's command line
    written: Mapping[str, int] = field(default_factory=dict)  # data file -> rows

    @property
    def folder(self) -> str:
        """Where its data lies, in the folder of the export."""
        return f"data/{self.place}" if self.place else "data"

    @property
    def output(self) -> str:
        """Where the tool writes its result."""
        return f"out/{self.place}" if self.place else "out"

    @property
    def file(self) -> str:
        """The name of the configuration: trl.yaml, trl.2-dpo.yaml."""
        stem, dot, ending = self.tool.file.rpartition(".")
        return f"{stem}.{self.place}{dot}{ending}" if self.place else self.tool.file

    @property
    def evaluates(self) -> bool:
        """Whether rows are held out."""
        return self.rows is not None and any(self.rows.held)

    def put(self, key: str, value: Any, because: str = "") -> None:
        """Write a key of theirs, with a comment."""
        self.values[key] = value
        if because:
            self.because[key] = because

    def found(self, ours: str) -> bool:
        """Drop what was noted as lost of a key of ours, since it is said in another way."""
        before = len(self.lost)
        self.lost = [one for one in self.lost if one.key != ours]
        return len(self.lost) < before


def local(path: str) -> bool:
    """Whether it is a file or folder of this machine."""
    return Path(path).exists()
