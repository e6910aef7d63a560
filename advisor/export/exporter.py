"""What an exporter is: a module of this folder with `NAME`, `HELP`, `TAKES`, `NEEDS` and `export`.

The folder is listed, so a new form is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be exported."""

    source: Path  # the plan file, or the run folder: what the exporter takes
    out: Path | None  # where the user wants it; None: the exporter's own place
    only: str | None  # one task or stage
    say: Callable[[str], None]  # takes messages, line by line
    # Runs a module of trainers/tools with arguments; returns its exit code.
    run_tool: Callable[..., int]
    variant: str = ""  # what stands behind the colon: Q4_K_M in --to gguf:Q4_K_M
    # For --json: filled by the exporter with what it wrote, beside its messages.
    document: dict[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """A module of this folder."""

    NAME: str  # what --to calls it
    HELP: str  # at most 62 characters, for one line of `advise export --help`
    TAKES: Literal["plan", "run"]
    NEEDS: tuple[str, ...]  # packages that `export` imports or starts
    # A module that takes --to NAME:VARIANT has `VARIANTS = True` as well.

    def export(self, wanted: Wanted) -> int:
        """Write it and say where it is. Returns the exit code; raises AdviseError."""


@cache
def exporters() -> Mapping[str, Exporter]:
    """Name -> exporter, in alphabetical order."""
    folder = Path(__file__).parent
    modules = (
        importlib.import_module(f"{__package__}.{found.name}")
        for found in pkgutil.iter_modules([str(folder)])
        if found.name != "exporter"
    )
    return {module.NAME: cast(Exporter, module) for module in modules}
