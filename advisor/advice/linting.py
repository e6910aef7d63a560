"""`advise rules lint`, the check of every file that --rules names, and what two rule sets answer
differently: rules in, report out.

Its tests are data, in scenarios. Each states facts and what must follow: the composition, rules
that have to decide, rules that rule an outcome out, what a change leads to; or, for the facts of
one stage, all of its settings. They stand under `scenarios:` of the rule that decides them; those
that no single rule decides, in rules/scenarios/*.yaml and in the `scenarios:` list of own files.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.advice.case import LAST, Decision, Undecided, decide
from advisor.advice.search.settings import RATE, SETTINGS, axes_of
from advisor.advice.why_not import LosingOutcome
from advisor.ground.errors import Fault, InputError, refuse, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Keys, ListOf, Shape, check_shape
from advisor.ground.yaml_files import Document, Spot, read_shipped, read_yaml
from advisor.methods import is_own, methods, schemes
from advisor.plan.keys import setting_fault, setting_keys
from advisor.ruleset.compare import Difference, RulesComparison, compare_rules
from advisor.ruleset.entries import OWN_SCENARIO, SCENARIO, as_map
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import judge, spread_given
from advisor.ruleset.layers import method_files
from advisor.ruleset.lint import (
    REFRESH_FILE,
    SIDE_EFFECTS,
    LintFinding,
    LintReport,
    caused_by_user,
    lint,
    past_their_date,
)
from advisor.ruleset.load import load_rules, only_layer
from advisor.ruleset.model import SHIPPED_LAYERS, Rule, Ruleset

SCENARIOS_FILE = Keys(
    help="Scenarios: tests of the rules as data",
    keys={"version": VERSION, "scenarios": ListOf(of=SCENARIO)},
    required=("version", "scenarios"),
)


class Scenario(Struct, frozen=True, kw_only=True):
    """One row: the facts, and what must follow from them."""

    id: str
    at: str  # file:line:column
    given: Mapping[str, Any]
    composition: str = ""
    fired: tuple[str, ...] = ()  # rules that have to decide
    # Scheme or chain -> the rule that the answer "why not" has to name.
    why_not: Mapping[str, str] = field(default_factory=dict)
    # Changed facts -> the composition they lead to.
    whatif: tuple[tuple[Mapping[str, Any], str], ...] = ()
    # Of the stage whose objective, update and quantization are given.
    settings: Mapping[str, Any] | None = None
    warned: tuple[str, ...] = ()  # rules that have to warn


def shipped_scenarios(ruleset: Ruleset) -> tuple[Scenario, ...]:
    """The scenarios of this rule set's layers: of its rules, of rules/scenarios/ and, with the
    evidence, of the files of methods. Those of the document hold for that layer alone.
    """
    with_evidence = "evidence" in ruleset.layers
    root = rules_dir()
    of_document = root / "scenarios" / "document.yaml"
    paths = [of_document]
    if with_evidence:
        paths = [path for path in sorted(of_document.parent.glob("*.yaml")) if path != of_document]
    documents = [read_shipped(path, shape=SCENARIOS_FILE) for path in paths]
    if with_evidence:
        for axis in ("objectives", "updates"):
            documents += [read_shipped(path) for path in method_files(root, axis)]
    return (
        *(scenario for document in documents for scenario in scenarios_of(document, ruleset)),
        *_of_rules(ruleset, {"base", "evidence"} if with_evidence else {"document"}),
    )


def read_scenarios(path: Path, ruleset: Ruleset) -> tuple[Scenario, ...]:
    """The scenarios in a user's own file. Raises InputError with every fault, located."""
    document = read_yaml(path)
    name = as_map(document.data).get("overlay") or path.stem
    return (*scenarios_of(document, ruleset), *_of_rules(ruleset, {name}))


def scenarios_of(document: Document, ruleset: Ruleset) -> tuple[Scenario, ...]:
    """The scenarios of a document that belong to no rule. Raises InputError with every fault."""
    if as_map(document.data).get("scenarios") is None:
        return ()
    refuse(check_shape(document, ListOf(of=Shape()), ("scenarios",)))
    return _read(Spot(document) / "scenarios", document.data["scenarios"], ruleset)


def _of_rules(ruleset: Ruleset, layers: Collection[str]) -> Iterator[Scenario]:
    for rules in ruleset.rules.values():
        for rule in rules:
            if rule.spot is not None and rule.layer in layers:
                yield from _read(rule.spot / "scenarios", rule.scenarios, ruleset, rule)


def _read(
    listed: Spot, entries: Sequence[Any], ruleset: Ruleset, rule: Rule | None = None
) -> tuple[Scenario, ...]:
    """The scenarios of one list; those of a rule expect that it decides, or warns."""
    faults, found = list[Fault](), list[Scenario]()
    own = (rule.id,) if rule else ()
    warns = rule is not None and rule.kind == "warn"
    for index, entry in enumerate(entries):
        spot = listed / index
        if wrong := check_shape(spot.document, OWN_SCENARIO if rule else SCENARIO, spot.path):
            faults += wrong
            continue
        one = Scenario(
            id=entry.get("id", "".join(own)),
            at=(spot / "id" if "id" in entry else spot).at(),
            given=spread_given(entry["given"], ruleset.facts),
            composition=entry.get("composition", ""),
            fired=(*(() if warns else own), *entry.get("fired", ())),
            why_not=entry.get("why_not", {}),
            whatif=tuple(
                (spread_given(row["change"], ruleset.facts), row["composition"])
                for row in entry.get("whatif", ())
            ),
            settings=entry.get("settings"),
            warned=(*(own if warns else ()), *entry.get("warned", ())),
        )
        found.append(one)
        faults += _unknown_facts(spot / "given", one.given, ruleset)
        for number, (change, _) in enumerate(one.whatif):
            faults += _unknown_facts(spot / "whatif" / number / "change", change, ruleset)
        faults += _unknown_rules(spot, entry, ruleset)
        if not rule and entry.keys().isdisjoint(("composition", "settings", "warned")):
            what = "nothing is expected of this scenario"
            allowed = "`composition`, `settings` or `warned`"
            faults.append(Fault(where=spot.at(), what=what, allowed=allowed))
    refuse(faults)
    return tuple(found)


def _unknown_facts(spot: Spot, facts: Mapping[str, Any], ruleset: Ruleset) -> Iterator[Fault]:
    for name, value in facts.items():
        fact = ruleset.facts.get(name)
        if fact is None:
            yield unknown_name("fact", name, list(ruleset.facts), at=(spot / name).at(key=True))
        elif not _possible(fact, value):
            what, allowed = f"'{name}' cannot be {value!r}", ", ".join(map(str, fact.values))
            yield Fault(where=(spot / name).at(), what=what, allowed=allowed)


def _unknown_rules(spot: Spot, entry: Mapping[str, Any], ruleset: Ruleset) -> Iterator[Fault]:
    ids = {rule.id for rules in ruleset.rules.values() for rule in rules} | set(ruleset.disabled)
    for key in ("fired", "warned", "why_not"):
        named = entry.get(key, ())
        places = named if isinstance(named, dict) else range(len(named))
        for place in places:
            if named[place] not in ids:
                at = (spot / key / place).at()
                yield unknown_name("rule", named[place], sorted(ids), at=at)


def _possible(fact: Fact, value: Any) -> bool:
    if value is None or (isinstance(value, str) and value == UNKNOWN):
        return True
    if fact.type == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if fact.type == "flag":
        return isinstance(value, bool)
    return isinstance(value, str) and (fact.type != "choice" or value in fact.values)


# --------------------------------------------------------------------------- running them


def run_scenarios(ruleset: Ruleset, scenarios: Sequence[Scenario]) -> tuple[LintFinding, ...]:
    """Every expectation that does not hold."""
    return tuple(
        LintFinding(
            id="scenario-broken",
            severity="error",
            text=text,
            rule=scenario.id,
            at=scenario.at,
            about=("scenario", scenario.id, text),
        )
        for scenario in scenarios
        for text in _broken_texts(ruleset, scenario)
    )


def _broken_texts(ruleset: Ruleset, scenario: Scenario) -> list[str]:
    is_stage = "objective" in scenario.given
    try:
        return list((_settings_differences if is_stage else _differences)(ruleset, scenario))
    except Undecided as error:
        return [str(error)]


def _differences(ruleset: Ruleset, scenario: Scenario) -> Iterator[str]:
    decision = decide(ruleset, scenario.given)
    got, deciding = str(decision.composition), _deciding(decision)
    if scenario.composition and got != scenario.composition:
        rules = ", ".join(rule.id for rule in decision.rules)
        yield f"expected {scenario.composition}, got {got} (decided by {rules})"
    for rule in (one for one in scenario.fired if one not in deciding):
        yield f"{rule} does not decide; deciding are {', '.join(sorted(deciding))}"
    yield from (f"{rule} does not warn" for rule in scenario.warned if rule not in deciding)
    for outcome, rule in scenario.why_not.items():
        named = _why_not(ruleset, decision, outcome)
        if rule not in named:
            yield f"why not {outcome} names {', '.join(named) or 'no rule'}, expected {rule}"
    for change, expected in scenario.whatif:
        got = str(decide(ruleset, {**scenario.given, **change}).composition)
        if got != expected:
            changed = ", ".join(f"{fact} = {value}" for fact, value in change.items())
            yield f"with {changed}: expected {expected}, got {got}"


def _settings_differences(ruleset: Ruleset, scenario: Scenario) -> Iterator[str]:
    judgement = judge(ruleset, SETTINGS, scenario.given)
    expected = dict(scenario.settings or {})
    for key in dict.fromkeys([*expected, *judgement.settings]):
        got, rule = judgement.settings.get(key, (None, None))
        if got != expected.get(key):
            by = f" by {rule.id}" if rule else ""
            yield f"setting {key}: expected {expected.get(key)}, got {got}{by}"
    setting, warning = _acting(ruleset, scenario)
    yield from (f"{rule} sets nothing" for rule in scenario.fired if rule not in setting)
    yield from (f"{rule} does not warn" for rule in scenario.warned if rule not in warning)


def _acting(ruleset: Ruleset, scenario: Scenario) -> tuple[set[str], set[str]]:
    """Ids of the rules that set something for a stage, and of those that warn."""
    judgement = judge(ruleset, SETTINGS, scenario.given)
    setting = {rule.id for _, rule in judgement.settings.values()}
    return setting, {rule.id for rule in judgement.warnings}


def _why_not(ruleset: Ruleset, decision: Decision, outcome: str) -> list[str]:
    judgement = decision.steps[LAST if outcome in schemes() else "chain"]
    reasons = LosingOutcome(judgement, outcome, decision.facts, ruleset).reasons()
    return [reason.rule for reason in reasons if reason.rule]


def _deciding(decision: Decision) -> set[str]:
    """Ids of the rules that had an effect: the winner of each step, what forbids, what warns."""
    steps = decision.steps.values()
    forbidding = (rule for step in steps for rules in step.forbidden.values() for rule in rules)
    warning = (rule for step in steps for rule in step.warnings)
    winning = (step.winner[1] for step in steps if step.winner is not None)
    return {rule.id for rule in (*forbidding, *warning, *winning)}


def deciding_rules(ruleset: Ruleset, scenarios: Sequence[Scenario]) -> set[str]:
    """The ids of the rules that decide a scenario: something would notice if they were wrong."""
    seen: set[str] = set()
    for scenario in scenarios:
        if "objective" in scenario.given:
            seen.update(*_acting(ruleset, scenario))
            continue
        for change in ({}, *(change for change, _ in scenario.whatif)):
            seen |= _deciding(decide(ruleset, {**scenario.given, **change}))
    return seen


class LintedRules(Struct, frozen=True, kw_only=True):
    """A report, and how it was come by."""

    report: LintReport
    layers: tuple[str, ...]
    duration_s: float
    scenarios: int | None = None  # None: there are none in this rule set

    @property
    def exit_code(self) -> int:
        return InputError.exit_code if self.report.of("error") else 0

    @property
    def faults(self) -> tuple[Fault, ...]:
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
            count, failing = _tried_scenarios(ruleset, overlays)
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
    seen = ({"params_b": size, **axes_of(objective, one, None)} for one in updates)
    return any(RATE in judge(ruleset, SETTINGS, facts).settings for facts in seen)


def _tried_scenarios(
    ruleset: Ruleset, overlays: tuple[Path, ...]
) -> tuple[int, tuple[LintFinding, ...]]:
    """How many scenario rows there are and what is wrong with them: those of the user's own files,
    or else the shipped ones, which such a file may break on purpose.
    """
    if overlays:
        own = tuple(row for path in overlays for row in read_scenarios(path, ruleset))
        runs, ours = [(ruleset, own)], set(ruleset.layers) - set(SHIPPED_LAYERS)
    else:
        alone = [only_layer(ruleset, "document")] if "evidence" in ruleset.layers else []
        runs = [(rules, shipped_scenarios(rules)) for rules in (ruleset, *alone)]
        # The settings are tried with the evidence.
        ours = {"base", *ruleset.layers} if alone else set(ruleset.layers)
    findings = [one for rules, rows in runs for one in run_scenarios(rules, rows)]
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


def _idle_in_all(runs: Sequence[tuple[Ruleset, tuple[Scenario, ...]]]) -> list[Rule]:
    """The rules of the first rule set that decide no scenario in any."""
    deciding = {rule_id for rules, rows in runs for rule_id in deciding_rules(rules, rows)}
    listed = (rule for rules in runs[0][0].rules.values() for rule in rules)
    return [rule for rule in listed if rule.id not in deciding]


def refuse_or_warn(ruleset: Ruleset, layers: tuple[str, ...]) -> tuple[str, ...]:
    """The warnings that the user's own files cause, once; () later on. Raises InputError if they
    break the rules. Without such a file nothing is proved, so that starting stays quick.
    """
    if not ruleset.overlays:
        return ()
    report = _overlay_report(ruleset, layers)
    refuse(fault_of(finding) for finding in report.of("error"))
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
    at, hint = fault.where, "; ".join(filter(None, (fault.allowed, fault.hint)))
    return LintFinding(id="unreadable", severity="error", text=fault.what, at=at, hint=hint)


# --------------------------------------------------------------------------- two rule sets

Conclusions = Mapping[str, tuple[Any, Any]]  # table -> what it concludes under each rule set


class Answered(Struct, frozen=True, kw_only=True):
    """One situation, and what each rule set answers."""

    facts: Mapping[str, Any]
    first: str
    second: str


class ComparedRules(Struct, frozen=True, kw_only=True):
    """Two rule sets side by side."""

    comparison: RulesComparison
    tried: tuple[tuple[Answered, Conclusions], ...]

    def example(self, difference: Difference) -> Answered | None:
        """A situation with both conclusions, at best one whose answer changes; None for a setting,
        and if no scenario shows it.
        """
        sides = (difference.first, difference.second)
        shown = [
            answered
            for answered, conclusions in self.tried
            if not difference.key and conclusions.get(difference.table) == sides
        ]
        return min(shown, key=lambda one: one.first == one.second, default=None)


def compare_answers(first: Ruleset, second: Ruleset) -> ComparedRules:
    """Every difference of the tables, and what both rule sets answer to their scenarios."""
    comparison = compare_rules(first, second)
    return ComparedRules(comparison=comparison, tried=tuple(_tried(first, second)))


def _tried(first: Ruleset, second: Ruleset) -> Iterator[tuple[Answered, Conclusions]]:
    sets = (first, second)
    listed = (rule for ruleset in sets for rules in ruleset.rules.values() for rule in rules)
    scenarios = {rule.id: rule.scenarios for rule in listed}
    for entry in (entry for entries in scenarios.values() for entry in entries):
        facts = spread_given(entry["given"], second.facts)
        if "task" not in facts or any(one.contradictions(facts) for one in sets):
            continue
        try:
            one, other = (decide(ruleset, facts) for ruleset in sets)
        except Undecided:
            continue
        conclusions = {
            table: (one.facts.get(concludes), other.facts.get(concludes))
            for table, concludes in ((each.id, each.concludes) for each in second.tables.values())
        }
        answered = Answered(facts=facts, first=str(one.composition), second=str(other.composition))
        yield answered, conclusions
