"""What an exporter is: a module of this folder or of an optional feature, with `NAME`, `HELP`,
`TAKES`, `NEEDS` and `export`.

The folder is listed, so a new form is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import advisor.export
from advisor.ground.extras import extras


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """What is to be exported."""

    source: Path  # the plan file, or the run folder: what the exporter takes
    out: Path | None  # where the user wants it; None: the exporter's own place
    only: str | None  # one task or stage
    say: Callable[[str], None]  # takes messages, line by line
    # Runs a module of trainers/tools with arguments; returns its exit code.
    run_tool: Callable[..., int]
    form: str = ""  # what --to calls it
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

    def export(self, wanted: ExportRequest) -> int:
        """Write it and say where it is. Returns the exit code; raises AdviseError."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """An exporter as a value, whose function is imported where it is used."""

    NAME: str
    HELP: str
    TAKES: Literal["plan", "run"]
    NEEDS: tuple[str, ...] = ()
    VARIANTS: bool = False
    function: str  # module:name

    def export(self, wanted: ExportRequest) -> int:
        """Write it and say where it is. Returns the exit code; raises AdviseError."""
        module, _, name = self.function.partition(":")
        return int(getattr(importlib.import_module(module), name)(wanted))


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The modules of this folder, and those that optional features bring."""

    sound: Mapping[str, Exporter]  # NAME -> exporter, in alphabetical order
    broken: Mapping[str, str]  # module -> one line that says why it cannot be used


def exporters() -> Mapping[str, Exporter]:
    """Name -> exporter, in alphabetical order; those that can be used."""
    return found_exporters().sound


@cache
def found_exporters() -> Found:
    """All exporters; one that cannot be imported, or lacks a name, takes only itself away."""
    values = [one for extra in extras().values() for one in extra.EXPORTERS]
    sound: dict[str, Exporter] = {
        one.NAME: cast(Exporter, one) for one in values if isinstance(one, Form)
    }
    broken: dict[str, str] = {}
    own = [f"{__package__}.{found.name}" for found in pkgutil.iter_modules(advisor.export.__path__)]
    of_extras = [
        f"advisor.extras.{name}.{module}"
        for name, extra in extras().items()
        for module in extra.EXPORTERS
        if isinstance(module, str)
    ]
    for path in (*own, *of_extras):
        if path == __name__:
            continue
        try:
            module = importlib.import_module(path)
            fault = _fault(module, sound)
        except Exception as error:  # whatever its author left in it
            fault = f"{type(error).__name__}: {error}".splitlines()[0]
        if fault:
            broken[path.rpartition(".")[2]] = f"{path.replace('.', '/')} is left out: {fault}"
        else:
            sound[module.NAME] = cast(Exporter, module)
    return Found(sound=dict(sorted(sound.items())), broken=broken)


def _fault(module: ModuleType, others: Mapping[str, Exporter]) -> str:
    """What the module lacks to be an exporter, in words; empty if nothing."""
    name, needs = getattr(module, "NAME", None), getattr(module, "NEEDS", None)
    wrong = {
        "NAME, a text that no other form has": isinstance(name, str) and name not in others,
        "HELP, a text": isinstance(getattr(module, "HELP", None), str),
        'TAKES, "plan" or "run"': getattr(module, "TAKES", None) in ("plan", "run"),
        "NEEDS, a tuple of texts": isinstance(needs, tuple)
        and all(isinstance(need, str) for need in needs),
        "export, a function": callable(getattr(module, "export", None)),
    }
    return ", ".join(f"it has no {what}" for what, is_right in wrong.items() if not is_right)
