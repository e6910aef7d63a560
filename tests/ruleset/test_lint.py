"""Each kind of finding, by a small file: words, place, caret and hint; catalogues past a date."""

import datetime
import json
import random
import time
from itertools import product
from pathlib import Path

import pytest

from advisor.advice import linting
from advisor.advice.linting import LintedRules, lint_rules, refuse_or_warn
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import parse_yaml, read_shipped
from advisor.plan.keys import setting_fault, setting_keys
from advisor.render.lint import finding_text, lint_text
from advisor.ruleset.lint import REFRESH_FILE, caused_by_user, lint, past_their_date
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS
from tests.ruleset.small_rules import small_rules

TODAY = datetime.date(2026, 11, 25)


def report(tmp_path, overlay=None, **changed):
    """The report on the small product, or on what an overlay causes there."""
    root = small_rules(tmp_path, **changed)
    given = {"today": TODAY, "setting_fault": setting_fault, "keys": setting_keys()}
    shipped = lint(load_rules(root=root), **given)
    if overlay is None:
        return shipped
    path = Path("acme.yaml")
    path.write_text(overlay)
    merged = load_rules(overlays=(path,), root=root)
    return caused_by_user(lint(merged, **given), shipped, merged)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def acme(table, *rules, more=""):
    listed = "".join(f"    - {rule}\n" for rule in rules)
    return f"overlay: acme\ntables:\n  {table}:\n{listed}{more}"


def rule(name, when, then, more="tier: strong, "):
    return f"{{id: acme/{name}, {more}when: {when}, then: {then}, because: x, sources: [us]}}"


def example(text):
    return rule("a", "{task: write}", "{way: long}").removesuffix("}") + f", examples: [{text}]}}"


def test_the_small_product_is_proved(tmp_path):
    """No error and no warning; every situation is counted."""
    found = report(tmp_path)
    assert found.findings == ()
    # task 3 x budget 3 x rows (under, at, over 1000, unknown) 4; way 2 x fits 3 x fits 3; update 2
    # x rows 4
    assert [proof.cells for proof in found.proofs] == [36, 18, 8]


FINDINGS = {
    "gap": acme("way", rule("no", "{task: write}", "{way: [long, short]}", "kind: forbid, ")),
    "gap by disabling": "overlay: acme\ndisable:\n  - {rule: base/long, because: we never go far}\n",
    "no way out": acme("size", rule("no", "{way: short}", "{size: [big, small]}", "kind: forbid, ")),
    "conflict": acme(
            "way",
            rule("a", "{task: write}", "{way: long}"),
            rule("b", "{rows: {gte: 5, lt: 9}}", "{way: short}"),
        ),
    "contradictory setting": acme(
            "settings",
            rule("a", "{update: lora}", "{rank: 8}", ""),
            rule("b", "{rows: {gte: 5}}", "{rank: 9}", ""),
        ),
    "unreachable": acme("way", rule("a", "{rows: {gt: 5, lt: 6}}", "{way: long}")),
    "unreachable by an assumption": acme("size", rule("a", "{fits_big: fits, fits_small: too_big}", "{size: big}")),
    "unknown and never so": acme("way", rule("a", "{task: unknown}", "{way: long}")),
    "never wins": acme(
            "way",
            rule("a", "{task: [write, sort]}", "{way: long}"),
            rule("b", "{task: write}", "{way: short}", "tier: usual, "),
        ),
    "redundant": acme(
            "way",
            rule("a", "{task: [write, sort]}", "{way: long}"),
            rule("b", "{task: sort}", "{way: long}"),
        ),
    "an example that fails": acme("way", example("{given: {task: sort}, fires: true}")),
    "an example that fires": acme("way", example("{given: {task: write}, fires: false}")),
    "an example beside the table": acme("way", example("{given: {task: write, update: lora}, fires: true}")),
    "a review that is due": acme(
            "way",
            rule("a", "{task: write}", "{way: long}", "tier: strong, review_by: 2026-11-24, "),
        ),
    "an expired rule": acme("way", rule("a", "{task: write}", "{way: long}", "tier: strong, status: expired, ")),
    "a draft": acme("way", rule("a", "{task: write}", "{way: long}", "tier: strong, status: draft, ")),
    "a long reason": acme(
            "way",
            rule("a", "{task: write}", "{way: long}").replace(
                "because: x", f"because: {'long ' * 40}"
            ),
        ),
    "a setting nobody knows": acme("settings", rule("a", "{update: lora}", "{rnak: 8}", "")),
    "a setting of the wrong type": acme("settings", rule("a", "{update: lora}", "{learning_rate: fast}", "")),
    "a switched-off check": "overlay: acme\ndisable:\n  - {rule: base/big-too-big, because: we know better}\n",
    "a shipped rule without effect": acme("way", rule("a", "{budget: low}", "{way: long}")),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_has_its_words_and_its_place(tmp_path, name, approved):
    """What is wrong, where to the column, the line with a caret, and the next step."""
    found = report(tmp_path, FINDINGS[name]).findings
    approved([finding_text(finding).splitlines() for finding in found])


SHIPPED = {
    "masked": {"evidence_rows": "version: 1\ntables:\n  way:\n    - {id: evidence/all, tier: usual, when: {}, then: {way: long}, because: x, sources: [us]}\n    - {id: evidence/b, tier: rare, when: {task: sort}, then: {way: short}, because: x, sources: [us]}\n"},
    "an input that nobody reads": {"evidence_rows": "version: 1\ntables: {}\n"},
    "a setting without effect": {
        "document_guide": "version: 1\ntables:\n  settings:\n    - {id: document/rank, when: {update: lora, rows: {gte: 5}}, then: {rank: 4}, because: x, sources: [us]}\n",
        "evidence_rows": "version: 1\ntables:\n  settings:\n    - {id: evidence/rank, when: {}, then: {rank: 2}, because: x, sources: [us]}\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rules_are_held_to_more(tmp_path, name, approved):
    """A rule that never wins, or an outcome that nothing leads to, is an error there."""
    found = report(tmp_path, **SHIPPED[name]).findings
    approved([(finding.id, finding.rule, finding_text(finding)) for finding in found])


def test_too_many_cases_are_refused_at_the_files_own_rule(tmp_path):
    """A file whose thresholds multiply is told so instead of being proved for minutes."""
    names = [f"s{i}" for i in range(12)]
    fact = "{type: flag, origin: asked, signal: true, ask: Is it so?}"
    facts = "".join(f"  {name}: {fact}\n" for name in names)
    inputs = f"inputs: {{size: [{', '.join(names)}]}}\n"
    rules = [
        rule(f"{name}{size}{number}", f"{{{name}: {value}}}", then, more)
        for name, (value, size) in product(names, (("true", "small"), ("false", "big")))
        for number, (then, more) in enumerate(
            (("{say: x}", "kind: warn, "), (f"{{size: {size}}}", "tier: usual, "))
        )
    ]
    found = report(tmp_path, acme("size", *rules, more=f"facts:\n{facts}{inputs}")).findings
    assert [finding.at for finding in found if finding.id == "too-many-cases"] == ["acme.yaml:4:12"]


def test_the_last_line_counts_what_was_proved(approved, tmp_path):
    """Tables, rules, situations, sets, examples, time, and the spread over tiers."""
    linted = LintedRules(
        report=report(tmp_path), layers=SHIPPED_LAYERS, duration_s=0.0123, scenarios=2
    )
    approved(lint_text(linted))


NO_WAY_OUT = (
    "{id: acme/no, kind: forbid, when: {}, then: {scheme: [full, lora, qlora, adapter, prefix]},"
    " because: x, sources: [guide]}"
)


@pytest.mark.parametrize("layers", [SHIPPED_LAYERS, ("document",)])
def test_the_shipped_rules_have_no_error_and_are_proved_quickly(layers):
    """`advise rules lint`: exit 0, a second or two of computing; so is the guide alone."""
    began_s, found = time.process_time(), lint_rules(layers)
    assert found.exit_code == 0, lint_text(found)
    if "evidence" in layers:
        assert time.process_time() - began_s < 5
        assert found.report.rules > 150
        assert found.report.examples > 100


def test_a_file_with_errors_is_reported_as_json_and_decides_nothing(approved, tmp_path, call):
    """Every finding has its place, beside what was proved; advice is refused with that place."""
    path = tmp_path / "acme.yaml"
    path.write_text(acme("rank", NO_WAY_OUT))
    code, out, _ = call("rules", "lint", "--json", "--rules", path)
    document = json.loads(out)
    errors = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert {table["id"] for table in document["tables"]} == set(load_rules().tables)
    refused, _, said = call("--json", "--task", "qa", "--gpu", "unknown", "--rules", path)
    approved([code, errors, document["counts"]["error"], refused, said])


def test_warnings_about_a_file_are_said_once(tmp_path):
    """An unused rule is told the first time only; shipped rules are not proved at every start."""
    path = tmp_path / "acme.yaml"
    say = "{id: acme/x, kind: warn, when: {}, then: {say: hello}, because: x, sources: [guide]"
    path.write_text(acme("rank", f"{say}, status: expired}}"))
    ruleset = load_rules(overlays=(path,))
    (warning,) = refuse_or_warn(ruleset, SHIPPED_LAYERS)
    assert warning.partition(": ")[2] == "acme/x is expired, so it is not used"
    assert refuse_or_warn(ruleset, SHIPPED_LAYERS) == ()
    assert refuse_or_warn(load_rules(), SHIPPED_LAYERS) == ()


CATALOGUES = read_shipped(rules_dir() / "refresh.yaml", shape=REFRESH_FILE).data["catalogues"]
PRICES = {"files": ["prices/*.yaml"], "days": 100, "how": "read it again"}
DATED = """\
compiled: "2026-11-01"
providers:
  a: {date: "2026-08-01", dates: {x: "2026-10-01"}}
  b: {date: "2026-09-01"}
"""
REVIEW = 'review_by: "2026-11-01"\n'
SOURCES = 'a: {checked: "2020-01-01", kind: paper}\nb: {checked: "2020-01-01", kind: vendor}\n'


def past(text, day, **more):
    """What is found in a file of prices on a day."""
    files = [("prices/a.yaml", parse_yaml(text.encode(), name="a.yaml"))]
    return list(past_their_date({"prices": {**PRICES, **more}}, files, day))


DATES = {  # a file of prices, a day, and what else holds of the catalogue
    # From the day after the span on, once a file with the oldest place.
    "in time": (DATED, "2026-11-09"),
    "a day late": (DATED, "2026-11-10"),
    "a year late": (DATED, "2027-11-10"),
    # `review_by` is watched in catalogues as it is in rules.
    "on the day": (REVIEW, "2026-11-01"),
    "after the day": (REVIEW, "2026-11-02"),
    # A paper stays as it was read.
    "no paper": (SOURCES, "2026-11-02", {"but_not": ["paper"]}),
}


@pytest.mark.parametrize("case", DATES)
def test_a_date_is_told_from_the_day_on_that_it_is_too_old(approved, case):
    """With the place of the oldest, and how many dates of the file are too old."""
    text, day, *more = DATES[case]
    found = past(text, datetime.date.fromisoformat(day), **dict(*more))
    approved([f"{finding.at}: {finding.id}: {finding.text}" for finding in found])


def test_a_later_day_never_finds_less():
    """Whatever is due stays due until somebody sets a new date."""
    rng, start = random.Random(7), datetime.date(2026, 1, 1)
    for _ in range(200):
        days = [start + datetime.timedelta(days=rng.randrange(600)) for _ in range(5)]
        text = "".join(f'p{i}: {{date: "{day}"}}\n' for i, day in enumerate(days))
        first = start + datetime.timedelta(days=rng.randrange(900))
        before = past(text, first)
        assert bool(before) == any((first - day).days > PRICES["days"] for day in days)
        later = first + datetime.timedelta(days=rng.randrange(1, 300))
        assert len(past(text, later)) >= len(before)


@pytest.mark.parametrize("name", CATALOGUES)
def test_every_catalogue_is_dated(name):
    """Each pattern names files, and in some of them is a date: ten years on all are warned of."""
    found = [list(rules_dir().glob(pattern)) for pattern in CATALOGUES[name]["files"]]
    assert all(found)
    files = {
        path.relative_to(rules_dir()).as_posix(): read_shipped(path)
        for paths in found
        for path in paths
    }
    assert list(past_their_date({name: CATALOGUES[name]}, files.items(), datetime.date(2036, 1, 1)))


def test_the_linter_tells_what_is_past_its_date(monkeypatch):
    """`advise rules lint` says so for the shipped files, as a warning that fails nothing."""
    monkeypatch.setattr(linting, "_today", lambda: datetime.date(2036, 1, 1))
    told = [one for one in linting.lint_rules().report.findings if one.id == "past-its-date"]
    assert {finding.about[0] for finding in told} == set(CATALOGUES)
    assert {finding.severity for finding in told} == {"warning"}
    assert all(finding.at.startswith("rules/") and finding.hint for finding in told)
