"""Tests as data: situations with the answer that people who know expect, run against a rule set.

A scenario states facts and what must follow: the composition, rules that have to decide, rules that
rule an outcome out, what a change leads to; or, for the facts of one stage, all of its settings.
They stand in rules/scenarios/*.yaml and in the `scenarios:` list of a file of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError, nearest, unknown_name
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_reader import Document, read_yaml
from advisor.methods import schemes
from advisor.ruleset.candidates import spread_given
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import judge
from advisor.ruleset.load import method_files
from advisor.ruleset.model import Rule, Ruleset

from .decide import LAST, SETTINGS, Decision, Undecided, decide
from .why_not import why_not_outcome

KEYS = {"id", "given", "composition", "fired", "why_not", "whatif", "settings", "warned", "why"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One row: the facts, and what must follow from them."""

    id: str
    at: str  # file:line:column
    given: Mapping[str, Any]
    why: str  # whose experience or which text it comes from
    composition: str = ""
    fired: tuple[str, ...] = ()  # rules that have to decide
    why_not: Mapping[str, str] = field(
        default_factory=dict
    )  # scheme or chain -> the rule that the answer "why not" has to name
    whatif: tuple[
        tuple[Mapping[str, Any], str], ...
    ] = ()  # changed facts -> the composition they lead to
    settings: Mapping[str, Any] | None = (
        None  # of the stage whose objective, update and quantization are given
    )
    warned: tuple[str, ...] = ()  # rules that have to warn


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """A scenario whose expectation does not hold."""

    scenario: str
    at: str
    text: str


def shipped_scenarios(ruleset: Ruleset) -> tuple[Scenario, ...]:
    """The scenarios that concern the layers of this rule set: those of rules/scenarios/ and, with
    the evidence, those in the files of methods.

    Without the evidence layer only the document's own are expected to hold; they hold for that
    layer alone.
    """
    names = ("base", "evidence") if "evidence" in ruleset.layers else ("document",)
    root = rules_dir()
    files = [
        (root / "scenarios" / f"{name}.yaml", f"rules/scenarios/{name}.yaml") for name in names
    ]
    if "evidence" in ruleset.layers:
        for axis in ("objectives", "updates"):
            files += [(path, f"rules/{axis}/{path.name}") for path in method_files(root, axis)]
    return tuple(
        scenario for path, name in files for scenario in read_scenarios(path, ruleset, name=name)
    )


def read_scenarios(path: Path, ruleset: Ruleset, *, name: str = "") -> tuple[Scenario, ...]:
    """The scenarios of a file, [] where it has none.

    Raises InputError with every fault, located.
    """
    document = read_yaml(path, name=name or str(path))
    entries = document.data.get("scenarios") or () if isinstance(document.data, dict) else ()
    faults: list[Fault] = []
    if not isinstance(entries, list | tuple):
        raise InputError(f"{document.at(('scenarios',))}: a list of scenarios is expected")
    found = [
        _scenario(document, index, entry, ruleset, faults) for index, entry in enumerate(entries)
    ]
    if faults:
        raise InputError(faults=faults)
    return tuple(scenario for scenario in found if scenario is not None)


def _scenario(
    document: Document, index: int, entry: Any, ruleset: Ruleset, faults: list[Fault]
) -> Scenario | None:
    path: tuple[str | int, ...] = ("scenarios", index)
    before = len(faults)
    if not isinstance(entry, dict):
        faults.append(
            Fault(
                what=f"{document.at(path)}: a scenario is a map",
                allowed=f"keys: {', '.join(sorted(KEYS))}",
            )
        )
        return None
    for key in entry:
        if key not in KEYS:
            faults.append(
                Fault(
                    what=f"{document.at((*path, key), key=True)}: unknown key '{key}'",
                    allowed=f"known: {', '.join(sorted(KEYS))}",
                    hint=nearest(key, KEYS),
                )
            )
    for key, words in (
        ("id", "a name"),
        ("given", "a map from fact to value"),
        ("why", "whose experience it comes from"),
    ):
        if not isinstance(entry.get(key), dict if key == "given" else str):
            faults.append(
                Fault(what=f"{document.at(path)}: the scenario has no `{key}`", allowed=words)
            )
    for key, listed in (
        ("fired", True),
        ("warned", True),
        ("why_not", False),
        ("whatif", True),
        ("settings", False),
    ):
        if key in entry and not isinstance(entry[key], list if listed else dict):
            faults.append(
                Fault(
                    what=(
                        f"{document.at((*path, key))}: `{key}` has to be a"
                        f" {'list' if listed else 'map'}"
                    )
                )
            )
    if len(faults) > before:
        return None
    if not {"composition", "settings", "warned"} & set(entry):
        faults.append(
            Fault(
                what=f"{document.at(path)}: nothing is expected",
                allowed="`composition`, `settings` or `warned`",
            )
        )
    changes = [
        change
        for change in entry.get("whatif", ())
        if isinstance(change, dict)
        and set(change) == {"change", "composition"}
        and isinstance(change["change"], dict)
    ]
    if len(changes) != len(entry.get("whatif", ())):
        faults.append(
            Fault(
                what=(
                    f"{document.at((*path, 'whatif'))}: an entry of `whatif` has the keys change"
                    " and composition"
                )
            )
        )
    given = spread_given(entry["given"], ruleset.facts)
    whatif = [
        (spread_given(change["change"], ruleset.facts), str(change["composition"]))
        for change in changes
    ]
    for where, facts in (("given", given), *(("whatif", change) for change, _ in whatif)):
        faults.extend(
            unknown_name("fact", fact, list(ruleset.facts), at=document.at((*path, where)))
            for fact in facts
            if fact not in ruleset.facts
        )
        for fact, value in facts.items():
            if fact in ruleset.facts and not _possible(ruleset.facts[fact], value):
                faults.append(
                    Fault(
                        what=f"{document.at((*path, where))}: '{fact}' cannot be {value!r}",
                        allowed=", ".join(map(str, ruleset.facts[fact].values)),
                    )
                )
    ids = {rule.id for rules in ruleset.rules.values() for rule in rules} | set(ruleset.disabled)
    named = (*entry.get("fired", ()), *entry.get("warned", ()), *entry.get("why_not", {}).values())
    faults.extend(
        unknown_name("rule", str(rule), sorted(ids), at=document.at(path))
        for rule in named
        if not isinstance(rule, str) or rule not in ids
    )
    if len(faults) > before:
        return None
    return Scenario(
        id=entry["id"], at=document.at((*path, "id")), given=given, why=entry["why"],
        composition=str(entry.get("composition", "")), fired=tuple(entry.get("fired", ())),
        why_not=entry.get("why_not", {}), whatif=tuple(whatif), settings=entry.get("settings"),
        warned=tuple(entry.get("warned", ())),
    )  # fmt: skip


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
    found = []
    for scenario in scenarios:
        try:
            texts = list(_differences(ruleset, scenario))
        except Undecided as error:
            texts = [str(error)]
        found += [Broken(scenario=scenario.id, at=scenario.at, text=text) for text in texts]
    return tuple(found)


def _differences(ruleset: Ruleset, scenario: Scenario) -> Iterator[str]:
    if "objective" in scenario.given:
        yield from _settings_differences(ruleset, scenario)
        return
    decision = decide(ruleset, scenario.given)
    if scenario.composition and str(decision.composition) != scenario.composition:
        yield (
            f"expected {scenario.composition}, got {decision.composition} (decided by"
            f" {', '.join(rule.id for rule in decision.rules)})"
        )
    deciding = _deciding(decision)
    yield from (
        f"{rule} does not decide; deciding are {', '.join(sorted(deciding))}"
        for rule in scenario.fired
        if rule not in deciding
    )
    yield from (f"{rule} does not warn" for rule in scenario.warned if rule not in deciding)
    for outcome, rule in scenario.why_not.items():
        named = _why_not(ruleset, decision, outcome)
        if rule not in named:
            yield f"why not {outcome} names {', '.join(named) or 'no rule'}, expected {rule}"
    for change, expected in scenario.whatif:
        got = str(decide(ruleset, {**scenario.given, **change}).composition)
        if got != expected:
            yield (
                f"with {', '.join(f'{fact} = {value}' for fact, value in change.items())}: expected"
                f" {expected}, got {got}"
            )


def _settings_differences(ruleset: Ruleset, scenario: Scenario) -> Iterator[str]:
    judgement = judge(ruleset, SETTINGS, scenario.given)
    got = {key: value for key, (value, _) in judgement.settings.items()}
    expected = dict(scenario.settings or {})
    for key in dict.fromkeys([*expected, *got]):
        if got.get(key) != expected.get(key):
            yield (
                f"setting {key}: expected {expected.get(key)}, got"
                f" {got.get(key)}{f' by {judgement.settings[key][1].id}' if key in judgement.settings else ''}"
            )


def _why_not(ruleset: Ruleset, decision: Decision, outcome: str) -> tuple[str, ...]:
    judgement = decision.steps[LAST if outcome in schemes() else "chain"]
    if outcome in judgement.forbidden:
        return tuple(rule.id for rule in judgement.forbidden[outcome])
    return tuple(
        reason.rule
        for reason in why_not_outcome(judgement, outcome, decision.facts, ruleset)
        if reason.rule
    )


def _deciding(decision: Decision) -> set[str]:
    """Ids of the rules that had an effect: the winner of each step, what forbids, what warns."""
    found: set[str] = set()
    for judgement in decision.steps.values():
        found.update(rule.id for rules in judgement.forbidden.values() for rule in rules)
        found.update(rule.id for rule in judgement.warnings)
        if judgement.winner is not None:
            found.add(judgement.winner[1].id)
    return found


def rules_without_scenario(ruleset: Ruleset, scenarios: Sequence[Scenario]) -> tuple[Rule, ...]:
    """Active rules that decide no scenario: nothing would notice if they were wrong."""
    seen: set[str] = set()
    for scenario in scenarios:
        if "objective" in scenario.given:
            judgement = judge(ruleset, SETTINGS, scenario.given)
            seen.update(rule.id for _, rule in judgement.settings.values())
        else:
            seen |= _deciding(decide(ruleset, scenario.given))
            for change, _ in scenario.whatif:
                seen |= _deciding(decide(ruleset, {**scenario.given, **change}))
    return tuple(rule for rules in ruleset.rules.values() for rule in rules if rule.id not in seen)


def unnoticed_rules(ruleset: Ruleset, scenarios: Sequence[Scenario]) -> tuple[Rule, ...]:
    """Active rules that can be dropped without breaking a scenario (the mutation check)."""
    return tuple(
        rule
        for rules in ruleset.rules.values()
        for rule in rules
        if not run_scenarios(without(ruleset, rule), scenarios)
    )


def without(ruleset: Ruleset, dropped: Rule) -> Ruleset:
    """The rule set less one rule."""
    return replace(
        ruleset,
        rules={
            **ruleset.rules,
            dropped.table: tuple(
                rule for rule in ruleset.rules[dropped.table] if rule is not dropped
            ),
        },
    )
