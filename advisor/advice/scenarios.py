"""Tests as data: situations with the answer that people who know expect, run against a rule set.

A scenario states facts and what must follow: the composition, rules that have to decide, rules that
rule an outcome out, what a change leads to; or, for the facts of one stage, all of its settings.
They stand under `scenarios:` of the rule that decides them; those that no single rule decides, in
rules/scenarios/*.yaml and in the `scenarios:` list of a file of one's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.advice.decide import LAST, SETTINGS, Decision, Undecided, decide
from advisor.advice.why_not import LosingOutcome
from advisor.ground.errors import Fault, InputError, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, Shape, check_shape
from advisor.ground.yaml_files import Document, Spot, read_shipped, read_yaml
from advisor.methods import schemes
from advisor.ruleset.entries import OWN_SCENARIO, SCENARIO, as_map
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import judge, spread_given
from advisor.ruleset.load import method_files
from advisor.ruleset.model import Rule, Ruleset

SCENARIOS_FILE = Keys(
    help="Scenarios: tests of the rules as data",
    keys={"version": Choice(values=(1,)), "scenarios": ListOf(of=SCENARIO)},
    required=("version", "scenarios"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """A scenario whose expectation does not hold."""

    scenario: str
    at: str
    text: str


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
    if faults := check_shape(document, ListOf(of=Shape()), ("scenarios",)):
        raise InputError(faults=faults)
    return _read(Spot(document) / "scenarios", document.data["scenarios"], ruleset)


def _of_rules(ruleset: Ruleset, layers: Collection[str]) -> Iterator[Scenario]:
    """The scenarios that stand in the rules of some layers."""
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
    if faults:
        raise InputError(faults=faults)
    return tuple(found)


def _unknown_facts(spot: Spot, facts: Mapping[str, Any], ruleset: Ruleset) -> Iterator[Fault]:
    for name, value in facts.items():
        fact = ruleset.facts.get(name)
        if fact is None:
            at = (spot / name).at(key=True)
            yield unknown_name("fact", name, list(ruleset.facts), at=at)
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
    """Whether a fact can have this value; `unknown` takes a fact away."""
    if value is None or (isinstance(value, str) and value == UNKNOWN):
        return True
    if fact.type == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if fact.type == "flag":
        return isinstance(value, bool)
    return isinstance(value, str) and (fact.type != "choice" or value in fact.values)


# --------------------------------------------------------------------------- running them


def run_scenarios(ruleset: Ruleset, scenarios: Sequence[Scenario]) -> tuple[Broken, ...]:
    """Every expectation that does not hold."""
    return tuple(
        Broken(scenario=scenario.id, at=scenario.at, text=text)
        for scenario in scenarios
        for text in _texts(ruleset, scenario)
    )


def _texts(ruleset: Ruleset, scenario: Scenario) -> list[str]:
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


def rules_without_scenario(ruleset: Ruleset, scenarios: Sequence[Scenario]) -> tuple[Rule, ...]:
    """Active rules that decide no scenario: nothing would notice if they were wrong."""
    seen: set[str] = set()
    for scenario in scenarios:
        if "objective" in scenario.given:
            seen.update(*_acting(ruleset, scenario))
            continue
        for change in ({}, *(change for change, _ in scenario.whatif)):
            seen |= _deciding(decide(ruleset, {**scenario.given, **change}))
    return tuple(rule for rules in ruleset.rules.values() for rule in rules if rule.id not in seen)
