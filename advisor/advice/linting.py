"""`advise rules lint`, and the check of every file that --rules names: rules in, report out.

Joins rules, plan keys and today's date.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from pathlib import Path

from advisor.advice import scenarios
from advisor.advice.scenarios import Scenario
from advisor.advice.search.settings import RATE, judge_stage
from advisor.ground.errors import Fault, InputError
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import read_shipped
from advisor.methods import is_own, methods
from advisor.plan.keys import setting_fault, setting_keys
from advisor.ruleset.lint import (
    REFRESH_FILE,
    SIDE_EFFECTS,
    LintFinding,
    LintReport,
    caused_by_user,
    lint,
    past_their_date,
)
from advisor.ruleset.load import SHIPPED_LAYERS, load_rules, only_layer
from advisor.ruleset.model import Rule, Ruleset


@dataclass(frozen=True, kw_only=True)
class LintedRules:
    """A report, and how it was come by."""

    report: LintReport
    layers: tuple[str, ...]
    duration_s: float
    scenarios: int | None = None  # None: there are none in this rule set

    @property
    def exit_code(self) -> int:
        """2 if there is an error."""
        return InputError.exit_code if self.report.of("error") else 0

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The errors among the findings."""
        return tuple(map(fault_of, self.report.of("error")))


def lint_rules(
    layers: tuple[str, ...] = SHIPPED_LAYERS,
    overlays: tuple[Path, ...] = (),
    *,
    root: Path | None = None,
    faults: Iterable[Fault] = (),
) -> LintedRules:
    """The check of the shipped layers, or of what the user's files change, with more `faults`."""
    start, loaded = time.perf_counter(), tuple[str, ...]()
    try:
        ruleset = load_rules(layers, overlays, root=root)
    except InputError as error:
        count = None
        report = LintReport(findings=tuple(map(_unreadable, error.faults)), proofs=(), examples=0)
    else:
        loaded, report = ruleset.layers, _report(ruleset)
        try:
            count, failing = run_scenarios(ruleset, overlays)
        except InputError as error:
            count, failing = 0, tuple(map(_unreadable, error.faults))
        due = () if overlays else _past_their_date(root)
        report = replace(report, findings=(*failing, *report.findings, *due))
        if overlays:
            report = caused_by_user(report, _report(load_rules(layers, root=root)), ruleset)
    known = {(finding.at, finding.text) for finding in report.findings}
    more = (_unreadable(one) for one in faults if (one.where, one.what) not in known)
    return LintedRules(
        report=replace(report, findings=(*more, *report.findings)),
        layers=loaded,
        duration_s=time.perf_counter() - start,
        scenarios=count,
    )


def _today() -> datetime.date:
    return datetime.date.today()


def _past_their_date(root: Path | None) -> tuple[LintFinding, ...]:
    """What has to be read again, in the catalogues beside the rules."""
    folder = root or rules_dir()
    refresh = folder / "refresh.yaml"
    if not refresh.is_file():
        return ()
    try:
        catalogues = read_shipped(refresh, shape=REFRESH_FILE, root=folder).data["catalogues"]
        patterns = [pattern for entry in catalogues.values() for pattern in entry["files"]]
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        files = [
            (path.relative_to(folder).as_posix(), read_shipped(path, root=folder)) for path in paths
        ]
    except InputError as error:
        return tuple(map(_unreadable, error.faults))
    return tuple(past_their_date(catalogues, files, _today()))


def _report(ruleset: Ruleset) -> LintReport:
    report = lint(ruleset, today=_today(), setting_fault=setting_fault, keys=setting_keys())
    return replace(report, findings=(*_without_rate(ruleset), *report.findings))


SIZES_B = (None, 0.3, 2, 7, 12, 30, 70, 400)  # billions of parameters; None: not known


def _without_rate(ruleset: Ruleset) -> Iterator[LintFinding]:
    """Objectives for which no rule names a learning rate, with modules or with every weight."""
    settings = ruleset.tables.get("settings")
    if settings is None or not {"objective", "update", "params_b"} <= set(settings.inputs):
        return
    without = [one for one in methods().objectives.values() if RATE not in one.defaults]
    kinds = {"module": "a module", "all": "every weight"}
    for objective, trains in product(without, kinds):
        updates = [one.id for one in methods().updates.values() if one.trains == trains]
        sizes = (size for size in SIZES_B if not _has_rate(ruleset, objective.id, updates, size))
        for size in islice(sizes, 1):
            of_size = f" of {size:g} billion parameters" if size else ""
            yield LintFinding(
                id="no-learning-rate",
                severity="error",
                text=f"no rule sets a learning_rate for {objective.id} where {kinds[trains]} of a"
                f" model{of_size} is trained",
                at=objective.at,
                hint=f"add one to the `settings` of its file: when: {{objective: {objective.id},"
                f" update_trains: {trains}}}, then: {{learning_rate: ...}}",
                about=(objective.id, trains),
            )


def _has_rate(ruleset: Ruleset, objective: str, updates: Sequence[str], size: float | None) -> bool:
    judged = (judge_stage(ruleset, {"params_b": size}, objective, one, None) for one in updates)
    return any(RATE in judgement.settings for judgement in judged)


def run_scenarios(
    ruleset: Ruleset, overlays: tuple[Path, ...]
) -> tuple[int, tuple[LintFinding, ...]]:
    """How many scenario rows there are and what is wrong with them: those of the user's own files,
    or else the shipped ones, which such a file may break on purpose.
    """
    if overlays:
        own = tuple(row for path in overlays for row in scenarios.read_scenarios(path, ruleset))
        runs, ours = [(ruleset, own)], set(ruleset.layers) - set(SHIPPED_LAYERS)
    else:
        alone = [only_layer(ruleset, "document")] if "evidence" in ruleset.layers else []
        runs = [(rules, scenarios.shipped_scenarios(rules)) for rules in (ruleset, *alone)]
        # The settings are tried with the evidence.
        ours = {"base", *ruleset.layers} if alone else set(ruleset.layers)
    findings = [
        LintFinding(
            id="scenario-broken",
            severity="error",
            text=broken.text,
            rule=broken.scenario,
            at=broken.at,
            about=("scenario", broken.scenario, broken.text),
        )
        for rules, rows in runs
        for broken in scenarios.run_scenarios(rules, rows)
    ]
    if count := sum(len(rows) for _, rows in runs):
        usual = "warning" if overlays else "error"
        findings += [
            LintFinding(
                id="decides-no-scenario",
                severity="note" if is_own(rule.id.partition("/")[0]) else usual,
                text="decides no scenario: nothing would notice if it were wrong",
                rule=rule.id,
                at=rule.at,
                hint="add `scenarios:` to it: facts, and what must follow from them",
                about=("undecided", rule.id),
            )
            for rule in _idle_in_all(runs)
            if rule.layer in ours
        ]
    return count, tuple(findings)


def _idle_in_all(runs: Sequence[tuple[Ruleset, tuple[Scenario, ...]]]) -> Iterator[Rule]:
    """The rules of the first rule set that decide no scenario in any that has them."""
    idle = [
        {rule.id for rule in scenarios.rules_without_scenario(rules, rows)} for rules, rows in runs
    ]
    known = [{rule.id for listed in rules.rules.values() for rule in listed} for rules, _ in runs]
    for rule in (rule for listed in runs[0][0].rules.values() for rule in listed):
        places = zip(known, idle, strict=True)
        if all(rule.id in unused for there, unused in places if rule.id in there):
            yield rule


def refuse_or_warn(ruleset: Ruleset, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The warnings that the user's own files cause, once; () later on. Raises InputError if they
    break the rules. Without such a file nothing is proved, so that starting stays quick.
    """
    if not ruleset.overlays:
        return ()
    report = _overlay_report(ruleset, layers)
    if errors := report.of("error"):
        raise InputError(faults=[fault_of(finding) for finding in errors])
    if ruleset.digest in _already_warned:
        return ()
    _already_warned.add(ruleset.digest)
    return tuple(
        " ".join(filter(None, (f"{finding.at}:", finding.rule, finding.text)))
        for finding in report.of("warning")
    )


_already_warned: set[str] = set()


@cache
def _overlay_report(ruleset: Ruleset, layers: tuple[str, ...]) -> LintReport:
    """What the files cause; the shipped rules are proved too if it is not plain who did."""
    report = _report(ruleset)
    own = tuple(finding for finding in report.findings if _is_own(finding, ruleset))
    others = (finding for finding in report.of("error") if finding not in own)
    if any(finding.id not in SIDE_EFFECTS for finding in others):
        return caused_by_user(report, _report(load_rules(layers)), ruleset)
    return replace(report, findings=own)


def _is_own(finding: LintFinding, ruleset: Ruleset) -> bool:
    """Whether a finding stands in a file of one's own."""
    inactive = (rule for rule in ruleset.inactive if rule.id == finding.rule)
    found = (ruleset.rule(finding.rule) if finding.rule else None) or next(inactive, None)
    if found is None:
        return finding.at in ruleset.disabled_at.values()
    return found.layer in ruleset.overlays


def fault_of(finding: LintFinding) -> Fault:
    """A finding as the fault of an input."""
    what = " ".join(filter(None, (finding.rule, finding.text)))
    return Fault(where=finding.at, what=what, hint=finding.hint)


def _unreadable(fault: Fault) -> LintFinding:
    """A fault of reading, as a finding."""
    at, hint = fault.where, "; ".join(filter(None, (fault.allowed, fault.hint)))
    return LintFinding(id="unreadable", severity="error", text=fault.what, at=at, hint=hint)
