"""Facts of the catalogues that are past their date: rules/refresh.yaml says how old they may get.

Pure: the files and today's date come in as arguments.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from advisor.ground.shape import Choice, Keys, ListOf, MapOf, Number, Path_, Text
from advisor.ground.yaml_files import SOURCE_KINDS, Document
from advisor.ruleset.lint import LintFinding

READ = ("date", "checked", "compiled")  # keys of the day on which somebody read something
REVIEW_BY = "review_by"
REFRESH_FILE = Keys(
    help="How old the facts of the catalogues may get",
    keys={
        "version": Choice(values=(1,)),
        "catalogues": MapOf(
            of=Keys(
                keys={
                    "files": ListOf(of=Text(), least=1, help="patterns below rules/"),
                    "days": Number(whole=True, min=1),
                    "how": Text(help="what to do, as a hint"),
                    "but_not": ListOf(
                        of=Choice(values=SOURCE_KINDS), help="kinds of source that do not age"
                    ),
                },
                required=("files", "days", "how"),
            )
        ),
    },
    required=("version", "catalogues"),
)


def past_their_date(
    catalogues: Mapping[str, Mapping[str, Any]],
    files: Iterable[tuple[str, Document]],
    today: datetime.date,
) -> Iterator[LintFinding]:
    """One warning for each file that holds dates too old, and one for each review that is due.

    Args:
        catalogues: What rules/refresh.yaml says.
        files: Path below rules/ -> the file.
        today: The day to judge by.
    """
    for path, document in files:
        for name, catalogue in catalogues.items():
            if any(fnmatchcase(path, pattern) for pattern in catalogue["files"]):
                yield from _of_file(name, catalogue, document, today)


def _of_file(
    name: str, catalogue: Mapping[str, Any], document: Document, today: datetime.date
) -> Iterator[LintFinding]:
    found = list(_dates(document.data, catalogue.get("but_not", ())))
    for where, day in found:
        if where[-1] == REVIEW_BY and day < today.isoformat():
            yield LintFinding(
                id="review-due",
                severity="warning",
                text=f"was to be reviewed by {day}",
                at=document.at(where),
                hint=catalogue["how"],
                about=(name, document.name),
            )
    read = sorted((day, where) for where, day in found if where[-1] != REVIEW_BY)
    oldest_allowed = (today - datetime.timedelta(days=catalogue["days"])).isoformat()
    old = [(day, where) for day, where in read if day < oldest_allowed]
    if old:
        day, where = old[0]
        holds = "the date is" if len(read) == 1 else f"{len(old)} of {len(read)} dates are"
        yield LintFinding(
            id="past-its-date",
            severity="warning",
            text=f"{holds} more than {catalogue['days']} days old, since {day} at the earliest",
            at=document.at(where),
            hint=catalogue["how"],
            about=(name, document.name),
        )


def _dates(data: Any, but_not: Collection[str], path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    """Place and day of everything that is dated."""
    if isinstance(data, list):
        for i, part in enumerate(data):
            yield from _dates(part, but_not, (*path, i))
    if not isinstance(data, dict) or str(data.get("kind")) in but_not:
        return
    for key, part in data.items():
        if key == "dates" and isinstance(part, dict):
            yield from (((*path, key, name), str(day)) for name, day in part.items())
        elif key in (*READ, REVIEW_BY) and isinstance(part, str):
            yield (*path, key), part
        else:
            yield from _dates(part, but_not, (*path, key))
