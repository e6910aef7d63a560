"""The linter's report as text, with the line of the file and a caret, and as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.resources import rules_dir
from advisor.ruleset.lint import SEVERITIES, LintFinding

if TYPE_CHECKING:
    from advisor.advice.linting import LintedRules

SHOWN_LINE = 160  # characters of a source line


def lint_text(checked: LintedRules) -> str:
    """Every finding at its place, then what was proved in one line."""
    report = checked.report
    blocks = [finding_text(finding) for finding in report.findings]
    return "\n\n".join([*blocks, closing(checked)]) if blocks else closing(checked)


def finding_text(finding: LintFinding) -> str:
    """`file:line:col  rule-id  message`, the line itself, a caret, and the next step."""
    said = f"{finding.severity}: {finding.text} [{finding.id}]"
    head = "  ".join(filter(None, (finding.at, finding.rule, said)))
    lines = [head, *_source_lines(finding.at)]
    if finding.hint:
        lines.append(f"    hint: {finding.hint}")
    return "\n".join(lines)


def _source_lines(at: str) -> list[str]:
    file, line, column = place(at)
    if line is None:
        return []
    lines = _lines(file)
    if line > len(lines):
        return []
    text = lines[line - 1].replace("\t", " ")
    start = max(0, (column or 1) - 1 - SHOWN_LINE // 2) if len(text) > SHOWN_LINE else 0
    shown = text[start : start + SHOWN_LINE]
    number = f"{line:>5} | "
    found = [f"{number}{shown.rstrip()}"]
    if column is not None:
        found.append(f"{' ' * (len(number) - 2)}| {' ' * (column - 1 - start)}^")
    return found


def place(at: str) -> tuple[str, int | None, int | None]:
    """File, line and column of 'file:line:column'; None where there is none."""
    parts = at.rsplit(":", 2)
    numbers = [int(part) for part in parts[1:] if part.isdecimal()]
    if len(parts) == 3 and len(numbers) == 2:
        return parts[0], numbers[0], numbers[1]
    if len(parts) > 1 and parts[-1].isdecimal():
        return ":".join(parts[:-1]), int(parts[-1]), None
    return at, None, None


def _lines(file: str) -> list[str]:
    path = Path(file)
    if file.startswith("rules/") and not path.exists():
        path = rules_dir().parent / file
    try:
        with path.open("rb") as source:
            return source.read(1_000_000).decode("utf-8", "replace").split("\n")
    except OSError:
        return []


def closing(checked: LintedRules) -> str:
    """What was proved, how the rules are spread over the tiers, and how many findings there are."""
    report = checked.report
    counted = ", ".join(
        f"{len(report.of(severity))} {severity}{'' if len(report.of(severity)) == 1 else 's'}"
        for severity in SEVERITIES
    )
    if not report.proofs:
        return f"nothing was proved: {counted}"
    sets = sum(proof.sets for proof in report.proofs)
    cells = sum(proof.cells for proof in report.proofs)
    all_of = sum(report.tiers.values())
    tiers = [f"{tier} {count / all_of:.0%}" for tier, count in report.tiers.items() if count]
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
        "findings": [_finding(finding) for finding in report.findings],
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


def _finding(finding: LintFinding) -> Mapping[str, Any]:
    file, line, column = place(finding.at)
    return {
        "id": finding.id, "severity": finding.severity, "rule": finding.rule or None,
        "file": file or None, "line": line, "column": column,
        "text": finding.text, "hint": finding.hint or None,
    }  # fmt: skip
