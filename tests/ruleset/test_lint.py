"""Each kind of finding, provoked by a small file: its words, its place to the column, its caret and
its hint.
"""

import datetime
import json
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner

from advisor.advice.linting import LintedRules, lint_rules, refuse_or_warn
from advisor.cli import advise
from advisor.ground.errors import InputError
from advisor.plan.keys import setting_fault, setting_keys
from advisor.render.lint import finding_text, lint_text
from advisor.ruleset.lint import caused_by_user, lint
from advisor.ruleset.load import load_rules
from tests.ruleset.small_rules import small_rules

TODAY = datetime.date(2026, 11, 25)


def report(tmp_path, overlay=None, **changed):
    """The report on the small product, or on what an overlay causes there."""
    root = small_rules(tmp_path, **changed)
    shipped = lint(
        load_rules(root=root), today=TODAY, setting_fault=setting_fault, keys=setting_keys()
    )
    if overlay is None:
        return shipped
    path = Path("acme.yaml")
    path.write_text(overlay)
    merged = load_rules(overlays=(path,), root=root)
    return caused_by_user(
        lint(merged, today=TODAY, setting_fault=setting_fault, keys=setting_keys()), shipped, merged
    )


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def acme(table, *rules, more=""):
    return (
        f"overlay: acme\ntables:\n  {table}:\n"
        + "".join(f"    - {rule}\n" for rule in rules)
        + more
    )


def rule(name, when, then, more="tier: strong, "):
    return f"{{id: acme/{name}, {more}when: {when}, then: {then}, because: x, sources: [us]}}"


def test_the_small_product_is_proved(tmp_path):
    """No error and no warning; every situation is counted."""
    found = report(tmp_path)
    assert [(finding.severity, finding.id) for finding in found.findings] == []
    # task 3 x budget 3 x rows (under, at, over 1000, unknown) 4; way 2 x fits 3 x fits 3; update 2
    # x rows 4
    assert [proof.cells for proof in found.proofs] == [36, 18, 8]


FINDINGS = {  # an overlay, where the finding is, what it says, and the hint
    "gap": (
        acme("way", rule("no", "{task: write}", "{way: [long, short]}", "kind: forbid, ")),
        "acme.yaml:4:12",
        (
            "acme/no  error: leaves a gap: where task is write, nothing is recommended for "
            "'way' [gap]"
        ),
        "leave one way allowed",
    ),
    "gap by disabling": (
        "overlay: acme\ndisable:\n  - {rule: base/long, because: we never go far}\n",
        "acme.yaml:3:12",
        (
            "error: disabling base/long leaves a gap: where task is write and budget is high "
            "or not known and rows is under 1,000 or not known, nothing is recommended for "
            "'way' [gap]"
        ),
        "recommend something in its place",
    ),
    "no way out": (
        acme("size", rule("no", "{way: short}", "{size: [big, small]}", "kind: forbid, ")),
        "acme.yaml:4:12",
        (
            "acme/no  error: leaves no way out: where way is short, every size is forbidden, "
            "whatever the hardware holds [no-way-out]"
        ),
        "leave one size allowed",
    ),
    "conflict": (
        acme(
            "way",
            rule("a", "{task: write}", "{way: long}"),
            rule("b", "{rows: {gte: 5, lt: 9}}", "{way: short}"),
        ),
        "acme.yaml:5:12",
        (
            "acme/b  error: two rules of tier 'strong' disagree where task is write and rows "
            "is at least 5 and under 9: short here, long by acme/a [conflict]"
        ),
        "give one of them another tier, or narrow its `when` (acme/a stands at acme.yaml:4:12)",
    ),
    "contradictory setting": (
        acme(
            "settings",
            rule("a", "{update: lora}", "{rank: 8}", ""),
            rule("b", "{rows: {gte: 5}}", "{rank: 9}", ""),
        ),
        "acme.yaml:5:12",
        (
            "acme/b  error: 'rank' gets two values where rows is at least 5 and update is "
            "lora: 9 here, 8 by acme/a [contradictory-setting]"
        ),
        "narrow one of them (acme/a stands at acme.yaml:4:12)",
    ),
    "unreachable": (
        acme("way", rule("a", "{rows: {gt: 5, lt: 6}}", "{way: long}")),
        "acme.yaml:4:12",
        (
            "acme/a  error: can never fire: no situation satisfies rows is over 5 and under 6 "
            "[unreachable]"
        ),
        "correct its `when`, or remove it",
    ),
    "unreachable by an assumption": (
        acme("size", rule("a", "{fits_big: fits, fits_small: too_big}", "{size: big}")),
        "acme.yaml:4:12",
        (
            "acme/a  error: can never fire: no situation satisfies fits_big is fits and "
            "fits_small is too_big [unreachable]"
        ),
        None,
    ),
    "unknown and never so": (
        acme("way", rule("a", "{task: unknown}", "{way: long}")),
        "acme.yaml:4:12",
        "acme/a  error: can never fire: 'task' is always known [unreachable]",
        None,
    ),
    "never wins": (
        acme(
            "way",
            rule("a", "{task: [write, sort]}", "{way: long}"),
            rule("b", "{task: write}", "{way: short}", "tier: usual, "),
        ),
        "acme.yaml:5:12",
        "acme/b  warning: never wins: acme/a takes all its cases [never-wins]",
        "raise its tier, widen its `when`, or remove it",
    ),
    "redundant": (
        acme(
            "way",
            rule("a", "{task: [write, sort]}", "{way: long}"),
            rule("b", "{task: sort}", "{way: long}"),
        ),
        "acme.yaml:5:12",
        (
            "acme/b  warning: changes nothing: acme/a already says the same wherever it fires "
            "[redundant]"
        ),
        None,
    ),
    "an example that fails": (
        acme(
            "way",
            "{id: acme/a, tier: strong, when: {task: write}, then: {way: long}, because: x,"
            " sources: [us], examples: [{given: {task: sort}, fires: true}]}",
        ),
        "acme.yaml:4:112",
        (
            "acme/a  error: its example should fire, but needs 'task is write', and task is "
            "'sort' [example-fails]"
        ),
        None,
    ),
    "an example that fires": (
        acme(
            "way",
            "{id: acme/a, tier: strong, when: {task: write}, then: {way: long}, because: x,"
            " sources: [us], examples: [{given: {task: write}, fires: false}]}",
        ),
        "acme.yaml:4:112",
        "acme/a  error: its example should not fire, but every condition holds [example-fails]",
        None,
    ),
    "an example beside the table": (
        acme(
            "way",
            "{id: acme/a, tier: strong, when: {task: write}, then: {way: long}, because: x,"
            " sources: [us], examples: [{given: {task: write, update: lora}, fires: true}]}",
        ),
        "acme.yaml:4:112",
        (
            "acme/a  warning: its example gives 'update', which table 'way' does not look at "
            "[example-beside-the-table]"
        ),
        None,
    ),
    "a review that is due": (
        acme(
            "way",
            rule("a", "{task: write}", "{way: long}", "tier: strong, review_by: 2026-11-24, "),
        ),
        "acme.yaml:4:34",
        "acme/a  warning: was to be reviewed by 2026-11-24 [review-due]",
        None,
    ),
    "an expired rule": (
        acme("way", rule("a", "{task: write}", "{way: long}", "tier: strong, status: expired, ")),
        "acme.yaml:4:34",
        "acme/a  warning: is expired, so it is not used [expired-rule]",
        None,
    ),
    "a draft": (
        acme("way", rule("a", "{task: write}", "{way: long}", "tier: strong, status: draft, ")),
        "acme.yaml:4:34",
        "acme/a  note: is a draft, so it is not used yet [draft-rule]",
        None,
    ),
    "a long reason": (
        acme(
            "way",
            rule("a", "{task: write}", "{way: long}").replace(
                "because: x", f"because: {'long ' * 40}"
            ),
        ),
        "acme.yaml:4:74",
        "acme/a  warning: its reason has 199 characters [long-reason]",
        None,
    ),
    "a setting nobody knows": (
        acme("settings", rule("a", "{update: lora}", "{rnak: 8}", "")),
        "acme.yaml:4:12",
        "acme/a  error: no stage has the key 'rnak' [unknown-setting]",
        "did you mean 'rank'?",
    ),
    "a setting of the wrong type": (
        acme("settings", rule("a", "{update: lora}", "{learning_rate: fast}", "")),
        "acme.yaml:4:12",
        "acme/a  error: 'learning_rate' cannot be 'fast' [wrong-setting]",
        "allowed: a number above 0 and at most 1",
    ),
    "a switched-off check": (
        "overlay: acme\ndisable:\n  - {rule: base/big-too-big, because: we know better}\n",
        "acme.yaml:3:12",
        (
            "warning: switches off base/big-too-big: what it rules out may then be "
            "recommended, and will not run [fit-check-disabled]"
        ),
        None,
    ),
    "a shipped rule without effect": (
        acme("way", rule("a", "{budget: low}", "{way: long}")),
        "rules/document/guide.yaml:5:12",
        (
            "document/cheap  note: never wins here, only under `--rules document`: acme/a "
            "takes all its cases [only-under-document]"
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_has_its_words_and_its_place(tmp_path, name):
    """What is wrong, where to the column, the line with a caret, and the next step."""
    overlay, at, said, hint = FINDINGS[name]
    texts = [finding_text(finding) for finding in report(tmp_path, overlay).findings]
    (text,) = (text for text in texts if text.startswith(f"{at}  {said}\n"))
    path, line, column = at.split(":")
    source = Path("rules" if path.startswith("rules/") else "", path.removeprefix("rules/"))
    shown = source.read_text().splitlines()[int(line) - 1]
    caret = " " * (len(line) + 4) + " | " + " " * (int(column) - 1) + "^"
    whole = [f"{at}  {said}", f"    {line} | {shown}", caret, f"    hint: {hint}"]
    assert hint is None or text.splitlines() == whole


SHIPPED = {
    "masked": (
        {"evidence_rows": "version: 1\ntables:\n  way:\n    - {id: evidence/all, tier: usual, when: {}, then: {way: long}, because: x, sources: [us]}\n    - {id: evidence/b, tier: rare, when: {task: sort}, then: {way: short}, because: x, sources: [us]}\n"},
        {("error", "never-wins", "evidence/b"), ("note", "only-under-document", "document/sort"),
        ("note", "only-under-document", "document/cheap"), ("error", "outcome-never-recommended",
        "")},
    ),
    "an input that nobody reads": ({"evidence_rows": "version: 1\ntables: {}\n"}, {("warning",
    "input-without-a-rule", ""), ("warning", "values-alike", "")}),
    "a setting without effect": (
        {"document_guide": "version: 1\ntables:\n  settings:\n    - {id: document/rank, when: {update: lora, rows: {gte: 5}}, then: {rank: 4}, because: x, sources: [us]}\n",
         "evidence_rows": "version: 1\ntables:\n  settings:\n    - {id: evidence/rank, when: {}, then: {rank: 2}, because: x, sources: [us]}\n"},
        {("note", "only-under-document", "document/rank"), ("note", "only-under-document",
        "lora/rank")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rules_are_held_to_more(tmp_path, name):
    """A rule that never wins, or an outcome that nothing leads to, is an error there."""
    changed, expected = SHIPPED[name]
    found = {
        (finding.severity, finding.id, finding.rule)
        for finding in report(tmp_path, **changed).findings
    }
    assert expected <= found, found


def test_too_many_cases_are_refused_at_the_files_own_rule(tmp_path):
    """A file whose thresholds multiply is told so instead of being proved for minutes."""
    usual = "tier: usual, "
    rules = [
        rule(f"r{i}", f"{{way: {way}, fits_big: fits}}", "{size: big}", usual)
        for i, way in enumerate(("short", "long", "short"))
    ]
    facts = "".join(
        f"  s{i}: {{type: flag, origin: asked, signal: true, ask: Is it so?}}\n" for i in range(12)
    )
    inputs = f"inputs: {{size: [{', '.join(f's{i}' for i in range(12))}]}}\n"
    for i, (value, size) in product(range(12), (("true", "small"), ("false", "big"))):
        when = f"{{s{i}: {value}}}"
        rules.append(rule(f"f{i}{size}", when, "{say: x}", "kind: warn, "))
        rules.append(rule(f"t{i}{size}", when, f"{{size: {size}}}", usual))
    found = report(tmp_path, acme("size", *rules, more=f"facts:\n{facts}{inputs}")).findings
    assert [(finding.id, finding.at) for finding in found if finding.id == "too-many-cases"] == [
        ("too-many-cases", "acme.yaml:4:12")
    ]


def test_the_last_line_counts_what_was_proved(tmp_path):
    """Tables, rules, situations, sets, examples, time, and the spread over tiers."""
    text = lint_text(
        LintedRules(
            report=report(tmp_path), layers=("document", "evidence"), duration_s=0.0123, scenarios=2
        )
    )
    assert text.splitlines()[0] == "layers: base < document < evidence"
    assert text.splitlines()[1] == "tiers: rare 33%, usual 44%, strong 22%; must: 2 rules"
    assert "3 tables, 13 rules: 62 different situations proved by" in text
    assert "0 examples and 2 scenarios run; 12 ms" in text
    assert text.splitlines()[-1] == "0 errors, 0 warnings, 0 notes"


# --------------------------------------------------------------------------- the command

NO_WAY_OUT = (
    "{id: acme/no, kind: forbid, when: {}, then: {scheme: [full, lora, qlora, adapter, prefix]},"
    " because: x, sources: [guide]}"
)


@pytest.mark.parametrize("layers", [("document", "evidence"), ("document",)])
def test_the_shipped_rules_have_no_error_and_are_proved_quickly(layers):
    """`advise rules lint`: exit 0, under two seconds; so is the guide alone."""
    found = lint_rules(layers)
    assert found.exit_code == 0, lint_text(found)
    if "evidence" in layers:
        assert found.duration_s < 2
        assert found.report.rules > 150
        assert found.report.examples > 100


def test_the_report_as_json(tmp_path):
    """For scripts: every finding with file, line and column, and what was proved."""
    path = tmp_path / "acme.yaml"
    path.write_text(acme("rank", NO_WAY_OUT))
    done = CliRunner().invoke(advise, ["rules", "lint", "--json", "--rules", str(path)])
    assert done.exit_code == 2
    document = json.loads(done.stdout)
    finding = next(finding for finding in document["findings"] if finding["severity"] == "error")
    expected = {
        "id": "no-way-out", "rule": "acme/no", "file": str(path), "line": 4, "column": 12,
        "text": "leaves no way out: where always, every scheme is forbidden, whatever the hardware"
        " holds",
    }  # fmt: skip
    assert {key: finding[key] for key in expected} == expected
    assert document["counts"]["error"] == 1
    assert {table["id"] for table in document["tables"]} == set(load_rules().tables)


def test_a_file_with_errors_decides_nothing(tmp_path):
    """What leaves no way out is refused with its place before any advice."""
    path = tmp_path / "acme.yaml"
    path.write_text(acme("rank", NO_WAY_OUT))
    with pytest.raises(InputError, match=rf"{path}:4:12: acme/no leaves no way out"):
        CliRunner().invoke(
            advise,
            ["--json", "--task", "qa", "--gpu", "unknown", "--rules", str(path)],
            catch_exceptions=False,
        )


def test_warnings_about_a_file_are_said_once(tmp_path):
    """A rule that never wins is told on standard error, the first time only; advice goes on."""
    path = tmp_path / "acme.yaml"
    path.write_text(
        acme(
            "rank",
            "{id: acme/a, tier: strong, when: {}, then: {scheme: qlora}, because: x, sources:"
            " [guide]}",
            "{id: acme/x, kind: warn, when: {}, then: {say: hello}, because: x, sources: [guide],"
            " status: expired}",
        )
    )
    ruleset = load_rules(overlays=(path,))
    first = refuse_or_warn(ruleset, ("document", "evidence"))
    assert [warning.partition(": ")[2] for warning in first] == [
        "acme/x is expired, so it is not used"
    ]
    assert refuse_or_warn(ruleset, ("document", "evidence")) == ()


def test_without_a_file_nothing_is_proved():
    """Shipped rules are proved by the linter and the tests, not at every start."""
    assert refuse_or_warn(load_rules(), ("document", "evidence")) == ()
