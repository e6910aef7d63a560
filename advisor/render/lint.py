"""What the linter and a comparison of rule sets find, as text and as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from advisor.advice.linting import Answered, ComparedRules, LintedRules
from advisor.ground.files import open_regular
from advisor.ground.resources import rules_dir
from advisor.ruleset.compare import Difference, TableDifference
from advisor.ruleset.lint import SEVERITIES, LintFinding, place_of
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import number_words

SHOWN_LINE = 160  # characters of a source line
LISTED_RULES = 8
MOST_CHARACTERS = 1_000_000  # read of a file
SIDES = ("first", "second")


def lint_text(checked: LintedRules) -> str:
    """Every finding at its place, then what was proved in one line."""
    return "\n\n".join([*map(finding_text, checked.report.findings), _closing(checked)])


def lint_line(checked: LintedRules) -> str:
    """That sound rules are sound, after what is past its date: what those want to know who only use
    them.
    """
    report = checked.report
    late = [finding_text(one) for one in report.findings if one.id == "past-its-date"]
    others = len(report.findings) - len(late)
    remarks = "1 remark" if others == 1 else f"{others} remarks"
    more = f"; --json lists {remarks} for who changes them" if others else ""
    proved = f"{report.rules} rules in {len(report.proofs)} tables"
    return "\n\n".join([*late, f"The shipped rules are sound: {proved}, all proved{more}."])


def finding_text(finding: LintFinding) -> str:
    """`file:line:col  rule-id  message`, the line itself, a caret, and the next step."""
    said = f"{finding.severity}: {finding.text} [{finding.id}]"
    lines = ["  ".join(filter(None, (finding.at, finding.rule, said)))]
    file, line, column = place_of(finding.at)
    source = _lines(file) if line is not None else []
    if line is not None and line <= len(source):
        text = source[line - 1].replace("\t", " ")
        # Of a long line the part around the column.
        start = max(0, (column or 1) - 1 - SHOWN_LINE // 2) if len(text) > SHOWN_LINE else 0
        lines.append(f"{line:>5} | {text[start : start + SHOWN_LINE].rstrip()}")
        if column is not None:
            lines.append(f"      | {' ' * (column - 1 - start)}^")
    return "\n".join([*lines, *([f"    hint: {finding.hint}"] if finding.hint else [])])


def _lines(file: str) -> list[str]:
    path = Path(file)
    if file.startswith("rules/") and not path.exists():
        path = rules_dir().parent / file
    try:
        with open_regular(path) as source:
            return source.read(MOST_CHARACTERS).decode("utf-8", "replace").split("\n")
    except OSError:
        return []


def _closing(checked: LintedRules) -> str:
    report = checked.report
    counts = {severity: len(report.of(severity)) for severity in SEVERITIES}
    counted = ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items())
    if not report.proofs:
        return f"nothing was proved: {counted}"
    sets = sum(proof.sets for proof in report.proofs)
    cells = sum(proof.cells for proof in report.proofs)
    total = sum(report.tiers.values())
    tiers = [f"{tier} {count / total:.0%}" for tier, count in report.tiers.items() if count]
    must = f"; must: {len(report.must)} rules" if report.must else ""
    scenarios = "" if checked.scenarios is None else f" and {checked.scenarios} scenarios"
    lines = [
        f"layers: {' < '.join(('base', *checked.layers))}",
        f"tiers: {', '.join(tiers) or 'no recommendations'}{must}",
        f"{len(report.proofs)} tables, {report.rules} rules: {cells:,} different situations proved"
        f" by {sets:,} sets of firing rules; {report.examples} examples{scenarios} run;"
        f" {checked.duration_s * 1000:.0f} ms",
        counted,
    ]
    return "\n".join(lines)


def lint_json(checked: LintedRules) -> dict[str, Any]:
    """The report as one JSON document."""
    report = checked.report
    return {
        "schema_version": 1,
        "findings": [_finding_json(finding) for finding in report.findings],
        "counts": {severity: len(report.of(severity)) for severity in SEVERITIES},
        "layers": list(checked.layers),
        "tables": [
            {
                "id": proof.table.id,
                "rules": proof.rules,
                "situations": proof.cells,
                "firing_sets": proof.sets,
            }
            for proof in report.proofs
        ],
        "tiers": dict(report.tiers),
        "must": list(report.must),
        "examples": report.examples,
        "scenarios": checked.scenarios,
        "duration_ms": round(checked.duration_s * 1000, 1),
    }


def _finding_json(finding: LintFinding) -> Mapping[str, Any]:
    file, line, column = place_of(finding.at)
    return {
        "id": finding.id, "severity": finding.severity, "rule": finding.rule or None,
        "file": file or None, "line": line, "column": column,
        "text": finding.text, "hint": finding.hint or None,
    }  # fmt: skip


# --------------------------------------------------------------------------- two rule sets


def diff_text(compared: ComparedRules, names: tuple[str, str], sides: tuple[Ruleset, ...]) -> str:
    """Which rules differ, then step by step what is concluded otherwise, each with an example."""
    found = compared.comparison
    lines = [
        f"{name}: {one.digest}, {sum(map(len, one.rules.values()))} rules"
        for name, one in zip(names, sides, strict=True)
    ]
    differing = {
        "only in the second": found.added,
        "only in the first": found.removed,
        "changed": found.changed,
    }
    for word, rules in differing.items():
        more = f" and {len(rules) - LISTED_RULES} more" if len(rules) > LISTED_RULES else ""
        lines += [f"{word}: {', '.join(rules[:LISTED_RULES])}{more}"] if rules else []
    if found.is_equal:
        return "\n".join([*lines, "every situation has the same answer"])
    for table in found.tables:
        about = next(one.tables[table.table].about for one in sides if table.table in one.tables)
        lines += ["", f"{table.table}: {about}", *_table_lines(table, compared)]
    return "\n".join(lines)


def _table_lines(table: TableDifference, compared: ComparedRules) -> Iterable[str]:
    if table.only_in is not None:
        yield f"  only the {SIDES[table.only_in]} rule set has this step"
    if table.too_many:
        yield "  too many cases to compare"
    changes: dict[tuple[str, ...], list[Difference]] = {}
    for one in table.differences:
        sides = ("nothing" if side is None else str(side) for side in (one.first, one.second))
        changes.setdefault((one.key, *sides), []).append(one)
    for (key, first, second), differences in changes.items():
        yield f"  {f'{key}: ' if key else ''}{first} -> {second}"
        shown: set[str] = set()
        for number, difference in enumerate(differences):
            yield f"    {'or ' if number else ''}if {difference.region.text}"
            rules = ("no rule" if rule is None else str(rule.id) for rule in difference.rules)
            yield f"      {' -> '.join(rules)}"
            example = compared.example(difference)
            if example is not None and (text := _example(example)) not in shown:
                shown.add(text)
                yield f"      {text}"
    if table.cut:
        yield "  some of these changes have further conditions, which are not shown"


def _example(example: Answered) -> str:
    def words(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return number_words(value) if isinstance(value, int | float) else str(value)

    stated = ", ".join(f"{name}: {words(value)}" for name, value in example.facts.items())
    is_same = example.first == example.second
    becomes = "the answer stays" if is_same else f"{example.first} ->"
    return f"for example {stated}: {becomes} {example.second}"


def diff_json(
    compared: ComparedRules, names: tuple[str, str], sides: tuple[Ruleset, ...]
) -> dict[str, Any]:
    """The same as one JSON document."""
    found = compared.comparison
    named = zip(SIDES, names, sides, strict=True)
    return {
        "schema_version": 1,
        **{side: {"name": name, "digest": one.digest} for side, name, one in named},
        "rules": {
            "only_in_first": list(found.removed),
            "only_in_second": list(found.added),
            "changed": list(found.changed),
        },
        "steps": [
            {
                "step": table.table,
                "only_in": None if table.only_in is None else SIDES[table.only_in],
                "compared": not table.too_many,
                "all_shown": not table.cut,
                "differences": [_difference_json(one, compared) for one in table.differences],
            }
            for table in found.tables
        ],
    }


def _difference_json(difference: Difference, compared: ComparedRules) -> Mapping[str, Any]:
    example = compared.example(difference)
    return {
        "key": difference.key or None,
        "first": difference.first,
        "second": difference.second,
        "rules": [None if rule is None else rule.id for rule in difference.rules],
        "if": difference.region.text,
        "example": None
        if example is None
        else {"facts": dict(example.facts), "first": example.first, "second": example.second},
    }
