"""What the linter says of catalogues that are past their date."""

from __future__ import annotations

import datetime
import random

import pytest

from advisor.advice import linting
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import parse_yaml, read_shipped
from advisor.ruleset.lint import REFRESH_FILE, past_their_date

CATALOGUES = read_shipped(rules_dir() / "refresh.yaml", shape=REFRESH_FILE).data["catalogues"]
SMALL = {"prices": {"files": ["prices/*.yaml"], "days": 100, "how": "read it again"}}


def found(text: str, today: str, catalogues: object = None) -> list[tuple[str, str, str]]:
    files = [("prices/a.yaml", parse_yaml(text.encode(), name="rules/prices/a.yaml"))]
    day = datetime.date.fromisoformat(today)
    return [
        (finding.id, finding.at, finding.text)
        for finding in past_their_date(catalogues or SMALL, files, day)  # type: ignore[arg-type]
    ]


TEXT = """\
compiled: "2026-11-01"
providers:
  a: {date: "2026-08-01", dates: {x: "2026-10-01"}}
  b: {date: "2026-09-01"}
"""


def test_a_date_too_old_is_told_once_a_file_with_the_oldest_place() -> None:
    """From the day after the span on, with how many dates of the file are too old."""
    assert found(TEXT, "2026-11-09") == []
    assert found(TEXT, "2026-11-10") == [
        (
            "past-its-date",
            "rules/prices/a.yaml:3:13",
            "1 of 4 dates are more than 100 days old, since 2026-08-01 at the earliest",
        )
    ]
    assert "4 of 4 dates" in found(TEXT, "2027-11-10")[0][2]


def test_a_review_is_due_after_its_day() -> None:
    """`review_by` is watched in catalogues as it is in rules."""
    text = 'review_by: "2026-11-01"\n'
    assert found(text, "2026-11-01") == []
    assert found(text, "2026-11-02") == [
        ("review-due", "rules/prices/a.yaml:1:12", "was to be reviewed by 2026-11-01")
    ]


def test_kinds_of_source_that_do_not_age_are_left_alone() -> None:
    """A paper stays as it was read."""
    text = 'a: {checked: "2020-01-01", kind: paper}\nb: {checked: "2020-01-01", kind: vendor}\n'
    catalogues = {"s": {**SMALL["prices"], "but_not": ["paper"]}}
    ((_, at, text_found),) = found(text, "2026-11-02", catalogues)
    assert at == "rules/prices/a.yaml:2:14"
    assert text_found.startswith("the date is")


def test_a_later_day_never_finds_less() -> None:
    """Whatever is due stays due until somebody sets a new date."""
    rng = random.Random(7)
    start = datetime.date(2026, 1, 1)
    for _ in range(200):
        days = [start + datetime.timedelta(days=rng.randrange(600)) for _ in range(5)]
        text = "".join(f'p{i}: {{date: "{day}"}}\n' for i, day in enumerate(days))
        first = start + datetime.timedelta(days=rng.randrange(900))
        later = first + datetime.timedelta(days=rng.randrange(1, 300))
        before, after = found(text, first.isoformat()), found(text, later.isoformat())
        due = sum((first - day).days > SMALL["prices"]["days"] for day in days)  # type: ignore[operator]
        assert (due > 0) == bool(before)
        assert len(after) >= len(before)


@pytest.mark.parametrize("name", list(CATALOGUES))
def test_every_catalogue_is_dated(name: str) -> None:
    """Each pattern names files, and in some of them is a date: ten years on all are warned of."""
    files = {
        path.relative_to(rules_dir()).as_posix(): read_shipped(path)
        for pattern in CATALOGUES[name]["files"]
        for path in rules_dir().glob(pattern)
    }
    assert all(list(rules_dir().glob(pattern)) for pattern in CATALOGUES[name]["files"])
    day = datetime.date(2036, 1, 1)
    assert list(past_their_date({name: CATALOGUES[name]}, files.items(), day))


def test_the_linter_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`advise rules lint` says so for the shipped files, as a warning that fails nothing."""

    monkeypatch.setattr(linting, "_today", lambda: datetime.date(2036, 1, 1))
    report = linting.lint_rules().report
    told = [finding for finding in report.findings if finding.id == "past-its-date"]
    assert {finding.about[0] for finding in told} == set(CATALOGUES)
    assert {finding.severity for finding in told} == {"warning"}
    assert all(finding.at.startswith("rules/") and finding.hint for finding in told)
