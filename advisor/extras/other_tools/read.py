"""Whatever file of another tool is given: a configuration, a command line, Python code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from advisor.extras.other_tools.file import (
    CODE,
    CONFIGURATIONS,
    ToolFile,
    command_line,
    found_near,
    read_file,
    read_text,
    script_line,
)
from advisor.ground.memory_errors import MemoryRanOut


def read_any(
    path: str | os.PathLike[str],
    text: str | None = None,
    *,
    bfloat16: Callable[[MemoryRanOut | None], bool | None] = lambda _: None,
    model: str | None = None,
) -> ToolFile:
    """The file, as it would be with another `text`. Raises InputError for what is none of them, or
    trains nothing.

    Args:
        bfloat16: Of code: whether the GPU has it, by what its outputs say of memory.
        model: Of code that names none.
    """
    where, name = Path(path), os.fspath(path)
    ending = where.suffix.lower()
    if ending in CODE:
        from advisor.extras.other_tools.script import Asked, read_script

        text = read_text(where, name=name, most_bytes=CODE[ending]) if text is None else text
        found = read_script(where, name, text, Asked(bfloat16, None, model))
        if isinstance(found, ToolFile):
            return found
        text = found  # its lines for a shell
    elif ending in CONFIGURATIONS:
        from advisor.extras.other_tools.unsloth_yaml import read_unsloth

        text = read_text(where, name=name) if text is None else text
        if (of_unsloth := read_unsloth(where, name, text)) is not None:
            return of_unsloth
    elif text is None and ending not in CONFIGURATIONS:
        text = read_text(where, name=name)
        started = None if command_line(text) is not None else script_line(text)
        if started is not None and (beside := found_near(where, started[0])) is not None:
            from advisor.extras.other_tools.script import Asked, read_script

            code, flags = read_text(beside, name=str(beside), most_bytes=CODE[".py"]), started[1]
            of_script = read_script(beside, str(beside), code, Asked(bfloat16, flags, model))
            if isinstance(of_script, ToolFile):
                of_script.notes.append(f"with the flags that {name} gives it")
                return of_script
    return read_file(path, text)
