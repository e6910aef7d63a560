"""Changes of a command line in a script as text: the other lines and flags stay as they are."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.ground.secrets import MASK, is_secret_key
from advisor.other_tools.reading.command_line import (
    REDIRECTIONS,
    command_lines,
    flag_of,
    started,
)

# A word of a shell: what quotes hold is one; a backslash at the end of a line is none.
_SHELL_WORD = re.compile(r"""(?:[^\s"'\\]|\\[^\n]|"(?:\\.|[^"\\])*"|'[^']*')+""", re.DOTALL)
_ASSIGNED = re.compile(r"""\b([A-Za-z_]\w*)=([^\s"'$]\S*|"[^"$]*"|'[^']*')""")
_ENDS = {*REDIRECTIONS, "&&", "||", ";", "|"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flag:
    """A flag with its values: `text[start:end]`."""

    name: str
    start: int
    end: int
    before: int  # where the word before it ends


def edited_script(text: str, changes: Mapping[str, Any]) -> str | None:
    """The script with these changes in its first command that starts a tool, as flags of it.

    Args:
        text: The whole script. A secret in a flag of it comes back masked.
        changes: Key -> its new value; None takes the flag away.

    Returns:
        None where a change cannot be said as a flag (a map, a key of the file that the command is
        given), or where what is written would not be read as it is meant.
    """
    found = command_lines(text)
    if not found or any("." in key for key in changes):
        return None
    one = found[0]
    new = _ASSIGNED.sub(
        lambda match: f"{match[1]}={MASK}" if is_secret_key(match[1]) else match[0], text
    )
    for name in one.values:
        if is_secret_key(name):
            new = _changed(new, one.tool, name, name, MASK) or new
    entries = list(changes.items())
    wanted: dict[str, Any] = {}
    while entries:
        old, value = entries.pop(0)
        key = old
        if value is None and old in one.values and _is_new(entries[:1], one.values):
            # A flag taken away with a new one behind it is that flag under its new name.
            key, value = entries.pop(0)
            wanted[old] = None
        wanted[key] = value
        written = _changed(new, one.tool, old, key, value)
        if written is None:
            return None
        new = written
    return new if _reads_as(new, one.values, wanted) else None


def _is_new(entry: Sequence[tuple[str, Any]], values: Mapping[str, Any]) -> bool:
    return any(key not in values and value is not None for key, value in entry)


def _changed(text: str, tool: str, old: str, key: str, value: Any) -> str | None:
    """The text with one flag changed, renamed, added or (value None) taken away."""
    flags, end = _flags(text)
    same = [flag for flag in flags if flag.name == old]
    if value is None:
        for flag in reversed(same):
            text = text[: flag.before] + text[flag.end :]
        return text if same else None
    dashes = tool == "axolotl"
    written = _written(key, value, dashes=dashes)
    if written is None:
        return None
    # Beside a file, LLaMA-Factory takes key=value alone.
    place = same[-1] if same else flags[-1] if flags else None
    pairs = tool == "llamafactory" and (place is None or text[place.start] != "-")
    if pairs and not isinstance(value, list):
        written = f"{key}={shlex.quote(_word(value))}"
    if same:  # the last one counts
        return text[: same[-1].start] + written + text[same[-1].end :]
    last = flags[-1].end if flags else end
    line = text[text.rfind("\n", 0, flags[-1].start) + 1 :] if flags else ""
    indent = line[: len(line) - len(line.lstrip())]
    own_line = bool(flags) and line.lstrip().startswith("-") and bool(indent)
    return text[:last] + (f" \\\n{indent}" if own_line else " ") + written + text[last:]


def _flags(text: str) -> tuple[list[_Flag], int]:
    """The flags of the first command that starts a tool, and where the command's words end."""
    line = command_lines(text)[0].line
    begin = sum(len(one) for one in text.splitlines(keepends=True)[:line])
    words = list(_words(text, begin))
    plain = [text[start:end] for start, end in words]
    found = started([_bare(one) for one in plain])
    if found is None:
        return [], len(text)
    rest = len(words) - len(found[2])
    flags: list[_Flag] = []
    end = words[rest - 1][1]
    for place in range(rest, len(words)):
        start, stop = words[place]
        if plain[place] in _ENDS or plain[place].startswith("#"):
            break
        name = flag_of(found[0], _bare(plain[place]))
        if name:
            flags.append(_Flag(name=name, start=start, end=stop, before=end))
        elif flags and "=" not in plain[place]:
            last = flags[-1]
            flags[-1] = _Flag(name=last.name, start=last.start, end=stop, before=last.before)
        end = stop
    return flags, end


def _words(text: str, begin: int) -> Iterator[tuple[int, int]]:
    """The places of the words of the command that begins there."""
    end = len(text)
    for match in re.finditer(r"(\\)?[ \t]*(?:\r?\n|$)", text[begin:]):
        if match[1] is None:
            end = begin + match.start()
            break
    for word in _SHELL_WORD.finditer(text, begin, end):
        yield word.start(), word.end()


def _bare(word: str) -> str:
    """A word without its quotes."""
    try:
        parts = shlex.split(word)
    except ValueError:
        return word
    return parts[0] if len(parts) == 1 else word


def _written(key: str, value: Any, *, dashes: bool) -> str | None:
    """A flag with its value; None where there is no such flag."""
    name = key.replace("_", "-") if dashes else key
    if isinstance(value, bool) and dashes:
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(one, Mapping | list) for one in values):
        return None
    return " ".join([f"--{name}", *(shlex.quote(_word(one)) for one in values)])


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reads_as(text: str, before: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Whether the command of the text has these values, and nothing else is changed."""
    expected = {key: MASK if is_secret_key(key) else value for key, value in before.items()}
    for key, value in changes.items():
        expected.pop(key, None)
        if value is not None:
            expected[key] = value
    read = command_lines(text)[0].values
    return set(_known(read)) == set(_known(expected)) and all(
        _same(read.get(key, True), expected[key]) for key in expected if expected[key] is not False
    )


def _known(values: Mapping[str, Any]) -> Iterator[str]:
    """The names, `no_packing` as packing."""
    return (name.removeprefix("no_") for name in values)


def _same(read: Any, wanted: Any) -> bool:
    texts: Sequence[Any] = wanted if isinstance(wanted, list) else [wanted]
    said = read if isinstance(read, list) else [read]
    if wanted is True:
        return read in (True, "true", "True")
    return [_word(one) for one in said] == [_word(one) for one in texts]
