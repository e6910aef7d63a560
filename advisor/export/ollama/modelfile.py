"""The text of a Modelfile, and what Ollama reads of it.

How Ollama reads one was learned from its source (parser.go, version of August 2026): a value in
three quotes ends at the first three quotes before a line's end; characters that are neither
printable nor a space, a tab or a newline are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

QUOTES = '"""'


@dataclass(frozen=True, kw_only=True, slots=True)
class Modelfile:
    """What a Modelfile says."""

    model: str  # after FROM: a file beside the Modelfile
    template: str
    stops: Sequence[tuple[str, str]]  # (text, why)
    adapter: str | None = None
    parameters: Sequence[tuple[str, str, str]] = ()  # (name, value, why)
    system: str | None = None
    about: Sequence[str] = field(default_factory=tuple)  # comments at the top

    def text(self) -> str:
        """The file."""
        lines = [*(f"# {_one_line(line)}" for line in self.about), f"FROM {self.model}"]
        if self.adapter is not None:
            lines.append(f"ADAPTER {self.adapter}")
        lines += ["", f"TEMPLATE {quoted(self.template)}", ""]
        for stop, why in self.stops:
            lines += [f"# {_one_line(why)}", f"PARAMETER stop {quoted(stop)}"]
        for name, value, why in self.parameters:
            lines += [f"# {_one_line(why)}", f"PARAMETER {name} {value}"]
        if self.system is not None:
            lines += ["", f"SYSTEM {quoted(self.system)}"]
        return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """A comment that stays one."""
    return " ".join(text.split())


def quoted(text: str) -> str:
    """A value as Ollama reads it back."""
    if "\n" not in text and '"' not in text:
        return f'"{text}"'
    return f"{QUOTES}{text}{QUOTES}"


def can_hold(text: str) -> bool:
    """Whether a value, such as a system message, comes back as it is."""
    return QUOTES not in text and all(
        character in "\n\t " or character.isprintable() for character in text
    )
