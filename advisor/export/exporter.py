"""What a form of `advise export` is; optional features bring them (advisor/extras)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, field

from advisor.ground.errors import InputError
from advisor.ground.extras import extras

if TYPE_CHECKING:
    from advisor.plan.model import Plan


class ExportRequest(Struct, frozen=True, kw_only=True):
    """What is to be exported."""

    source: Path  # the plan file, or the run folder: what the exporter takes
    plan: Plan | None = None  # of answers, in place of a file; its paths start at `source`
    out: Path | None  # where the user wants it; None: the exporter's own place
    only: str | None  # one task or stage
    say: Callable[[str], None]  # takes messages, line by line
    # Runs a module of trainers/tools with arguments; returns its exit code.
    run_tool: Callable[..., int]
    form: str = ""  # what --to calls it
    variant: str = ""  # what stands behind the colon: Q4_K_M in --to gguf:Q4_K_M
    # For --json: filled by the exporter with what it wrote, beside its messages.
    document: dict[str, Any] = field(default_factory=dict)


class Form(Struct, frozen=True, kw_only=True):
    """A form of `advise export`, whose function is imported when it is used."""

    NAME: str  # what --to calls it
    HELP: str  # at most 62 characters, for one line of `advise export --help`
    TAKES: Literal["plan", "run"]
    NEEDS: tuple[str, ...] = ()  # packages that the function imports or starts
    VARIANTS: bool = False  # whether --to takes NAME:VARIANT
    ANSWERS: bool = False  # whether it takes answers in place of a plan
    # module:name; takes an ExportRequest, writes it, says where it is, returns the exit code
    function: str

    def export(self, wanted: ExportRequest) -> int:
        """Write it and say where it is. Returns the exit code; raises AdviseError."""
        module, _, name = self.function.partition(":")
        try:
            write = getattr(import_module(module), name)
        except Exception as error:  # whatever its author left in it
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"{module} cannot be used: {why}", where=f"--to {self.NAME}"
            ) from error
        return int(write(wanted))


def exporters() -> Mapping[str, Form]:
    """Name -> form, in alphabetical order."""
    forms = [form for extra in extras().values() for form in extra.EXPORTERS]
    return {form.NAME: form for form in sorted(forms, key=lambda form: str(form.NAME))}
