"""Part of docs/programs.md: what each exit code means, from advisor/ground/errors.py."""

from collections.abc import Iterator

from advisor.ground import errors
from advisor.ground.errors import AdviseError
from tools.generate.markdown import grid


def kinds() -> Iterator[type[AdviseError]]:
    """Each kind of understood failure, by its code."""
    found = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, AdviseError) and kind is not AdviseError
    ]
    yield from sorted(found, key=lambda kind: kind.exit_code)


def part() -> str:
    """The table of codes."""
    rows = [["0", "", "done"]]
    rows += [[str(kind.exit_code), f"`{kind.__name__}`", summary(kind)] for kind in kinds()]
    bug = [str(AdviseError.exit_code), "", "a bug in advise; the message names a file with details"]
    rows = sorted([*rows, bug], key=lambda row: int(row[0]))
    return "\n".join(grid(["code", "raised as", "means"], rows))


def summary(kind: type[AdviseError]) -> str:
    """The first line of a docstring as a part of a table."""
    line = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]
