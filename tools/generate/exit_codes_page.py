"""Part of docs/programs.md: what each exit code means, from advisor/ground/errors.py."""

from collections.abc import Iterator

from advisor.ground import errors
from advisor.ground.errors import AdviseError
from tools.generate.markdown import grid

DOCUMENTS = {
    "0": "the answer",
    "2": (
        "`error`; beside it the answer if there is one all the same: advice whose plan lacks data,"
        " data that can train nothing, rules with faults"
    ),
    "3": (
        "the answer, complete: nothing fits (`nothing_fits` names the ways out), or `missing` says"
        " why there is no plan"
    ),
    "6": "run.json, complete; `error` beside it names each benchmark that lost too much",
}


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
    rows = [["0", "", "done", DOCUMENTS["0"]]]
    rows += [
        [code, f"`{kind.__name__}`", summary(kind), DOCUMENTS.get(code, "`error`")]
        for kind in kinds()
        for code in [str(kind.exit_code)]
    ]
    said = "a bug in advise; the message names a file with details"
    bug = [str(AdviseError.exit_code), "", said, "`error`"]
    rows = sorted([*rows, bug], key=lambda row: int(row[0]))
    return "\n".join(grid(["code", "raised as", "means", "with `--json`"], rows))


def summary(kind: type[AdviseError]) -> str:
    """The first line of a docstring as a part of a table."""
    line = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return line[:1].lower() + line[1:]
