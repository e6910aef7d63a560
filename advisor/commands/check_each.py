"""Several files in one `advise check`, as pre-commit gives them: one after another, and the worst
exit code of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advisor.commands.output import put, say
from advisor.ground.errors import AdviseError, InputError

# Options that are about one file, and what the user typed.
ONE_FILE = {
    "as_json": "--json",
    "show_row": "--show-row",
    "evaluation": "--eval",
    "plan_file": "--plan",
}
UNREADABLE = InputError.exit_code


def check_each(
    files: Sequence[str], check: Callable[[str], int], options: Mapping[str, Any]
) -> int:
    """Check each file and return the exit code: 2 if one could not be read, else the highest.

    A file that cannot be read keeps nobody from seeing the others. Raises InputError for an option
    that is about one file where there are several.
    """
    if len(files) == 1:
        return check(files[0])
    # Not by its truth: row 0 was asked for too.
    alone = [
        flag
        for name, flag in ONE_FILE.items()
        if options.get(name) is not None and options[name] is not False
    ]
    if alone:
        raise InputError(
            f"{alone[0]} is about one file, and there are {len(files)}",
            where=alone[0],
            hint=f"check one file at a time with {alone[0]}",
        )
    codes = [_checked(path, check) for path in files]
    # One that could not be read is worse than one that does not fit: nothing is known about it.
    return UNREADABLE if UNREADABLE in codes else max(codes)


def _checked(path: str, check: Callable[[str], int]) -> int:
    """The exit code of one of several files, under its name."""
    put(f"== {path}")
    try:
        code = check(path)
    except AdviseError as error:
        say(error.text())
        code = error.exit_code
    put("")
    return code
