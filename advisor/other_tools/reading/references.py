"""Values that name something outside of them: `${MODEL}`, `${oc.env:HOME,/root}`, `{{ model }}`.

None of the tools that we read fills them in (checked with TRL 1.16, LLaMA-Factory 0.9.5, whose
OmegaConf writes values out unresolved, and Axolotl 0.19): they take the text as it is. People fill
them in with another program first, so the value is looked up here where it can be, and it is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.ground.yaml_reader import Path_
from advisor.other_tools.reading.hidden import may_be_shown

_DOLLAR = re.compile(r"\$\{([^{}]{1,200})\}|\$([A-Z][A-Z0-9_]{1,60})\b")
_BRACES = re.compile(r"\{\{.{0,200}?\}\}|\{%")
_ENV = re.compile(
    r"(?:oc\.env:|env:)?\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:(?::?-|,)\s*(.*))?$", re.DOTALL
)
# Keys whose texts are templates or prompts, in which these marks are meant.
_TEMPLATES = ("template", "format", "prompt", "jinja", "system", "kwargs", "plugin")
MAX_TEXT = 500
MAX_ROUNDS = 5  # of a value that names one that names another


@dataclass(kw_only=True, slots=True)
class References:
    """What was found: path -> what stands there, and whether a value was found for it."""

    filled: dict[Path_, tuple[str, str]] = field(default_factory=dict)  # written, where from
    open: dict[Path_, str] = field(default_factory=dict)  # written; no value is known

    @property
    def all(self) -> dict[Path_, str]:
        """Every one, as it is written."""
        return {path: written for path, (written, _) in self.filled.items()} | self.open


def fill_in(
    values: dict[str, Any], environment: Mapping[str, str]
) -> tuple[dict[str, Any], References]:
    """The values with their references looked up, and what was found. `values` stays as it is."""
    found = References()
    filled: dict[str, Any] = {
        key: _value(value, (key,), values, environment, found) for key, value in values.items()
    }
    return filled, found


def _value(
    value: Any,
    path: Path_,
    top: Mapping[str, Any],
    environment: Mapping[str, str],
    found: References,
) -> Any:
    if isinstance(value, dict):
        return {
            key: _value(inner, (*path, key), top, environment, found)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _value(inner, (*path, index), top, environment, found)
            for index, inner in enumerate(value)
        ]
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\n" in value:
        return value
    if _holds_templates(path):
        return value
    if _BRACES.search(value):
        found.open[path] = value
        return value
    return _text(value, path, top, environment, found)


def _holds_templates(path: Path_) -> bool:
    names = [str(step).lower() for step in path]
    # LLaMA-Factory's `template` is the name of one.
    return names != ["template"] and any(mark in name for name in names for mark in _TEMPLATES)


def _text(
    text: str,
    path: Path_,
    top: Mapping[str, Any],
    environment: Mapping[str, str],
    found: References,
) -> Any:
    written, sources = text, []
    for _ in range(MAX_ROUNDS):
        match = _DOLLAR.search(text)
        if match is None:
            break
        named = match[1] or match[2]
        value, source = _looked_up(named, path, top, environment)
        if source == "":
            found.open[path] = written
            return written
        sources.append(source)
        if match[0] == text and not isinstance(value, str):
            found.filled[path] = (written, source)
            return value
        text = (text[: match.start()] + str(value) + text[match.end() :])[:MAX_TEXT]
    else:
        found.open[path] = written
        return written
    if sources:
        found.filled[path] = (written, ", ".join(dict.fromkeys(sources)))
    return text


def _looked_up(
    named: str, path: Path_, top: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[Any, str]:
    """A value and where it is from; an empty source if there is none."""
    other: Any = top
    for part in named.split("."):
        other = other.get(part) if isinstance(other, Mapping) else None
    if other is not None and not isinstance(other, dict | list) and tuple(named.split(".")) != path:
        return other, f"'{named}' of the file"
    match = _ENV.match(named)
    if match is None:
        return None, ""
    name, default = match[1], match[2]
    if name in environment and may_be_shown(name, environment[name]):
        return environment[name], f"the environment variable {name}"
    if default is not None:
        return default.strip().strip("'\""), f"the default of {name}"
    return None, ""
