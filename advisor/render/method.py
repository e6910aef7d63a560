"""One method for people: what it is, what it needs, its keys, and the rules that speak of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from advisor.ground.errors import InputError
from advisor.methods import methods, schemes
from advisor.methods.keys import Key
from advisor.methods.model import Method, Objective, Scheme, Update
from advisor.methods.remedies import Remedy, remedies, remedy
from advisor.ruleset.facts import load_facts
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.phrases import value_words

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 14  # of the names at the left
REFERENCES = {
    "never": "none",
    "always": "a frozen copy of the model, with full fine-tuning; a module needs none",
    "with_beta": "a frozen copy of the model, with full fine-tuning and a beta above 0",
}
SOURCES_OF_REWARD = (
    "a reward: a verifier, a reward model or a function of your own, or several of them, each with"
    " a weight (key `rewards`)"
)


def names_of_methods() -> list[str]:
    """What `advise rules METHOD` explains: objectives, schemes, those with faults, remedies."""
    return [*methods().objectives, *schemes(), *methods().broken, *remedies()]


def print_method(name: str, ruleset: Ruleset, console: Console) -> None:
    """Raises InputError with the faults of a method's file if it cannot be used."""
    if name in methods().broken:
        raise InputError(faults=methods().broken[name])
    for label, text in _lines(name, ruleset):
        console.print(f"{label:>{WIDTH}}  {text}", markup=False, highlight=False)


def _lines(name: str, ruleset: Ruleset) -> Iterator[tuple[str, str]]:
    objective = methods().objectives.get(name)
    if name in remedies():
        yield from _remedy(remedy(name))
    elif objective is not None:
        yield from _objective(objective)
        yield from _shared(objective)
    else:
        scheme = schemes()[name]
        update = methods().updates[scheme.update]
        yield from _scheme(scheme, update)
        yield from _shared(update)
    for label, rules in _rules(name, ruleset).items():
        for place, rule in enumerate(rules):
            yield (label if place == 0 else ""), f"{rule.id}: {rule.because}"


def _objective(objective: Objective) -> Iterator[tuple[str, str]]:
    yield objective.id, f"{objective.name}, an objective: {objective.about}"
    kinds = load_facts()["data_kind"]
    yield (
        "learns from",
        ", ".join(value_words(kinds, kind) for kind in objective.trains_on or objective.also_reads),
    )
    if objective.generates:
        several = f"{objective.answers} answers to each prompt (key `generations`)"
        yield "generates", several if objective.answers > 1 else "one answer to each prompt"
    if objective.needs_reward:
        yield "needs", SOURCES_OF_REWARD
    if objective.scores:
        yield "gives", "a model that scores answers, a model of its own beside the chain"
    yield "reference", REFERENCES[objective.reference]


def _remedy(found: Remedy) -> Iterator[tuple[str, str]]:
    yield found.id, found.meaning
    if found.first:
        yield "begin", found.first
    for way in found.ways:
        yield way.where, f"{way.text} ({way.cost})"
        for command in way.commands:
            yield "", f"  {command}"
    if found.measure:
        yield "measure", found.measure
    if found.helps_then:
        yield "helps then", found.helps_then
    if found.beside_training:
        yield "with training", found.beside_training


def _scheme(scheme: Scheme, update: Update) -> Iterator[tuple[str, str]]:
    base = f" on a base quantised to {scheme.quantization}" if scheme.quantization else ""
    yield scheme.id, f"{scheme.name}, an update{base}: {update.about}"
    yield "trains", "a module beside the frozen model" if update.is_module else "every weight"
    yield "leaves", update.result
    yield "runs in", ", ".join(update.serves)
    merged = "can be merged into its base" if update.merges else update.why_not_merged
    if update.is_module:
        yield "merging", merged


def _shared(method: Method) -> Iterator[tuple[str, str]]:
    for place, key in enumerate(method.keys.values()):
        yield ("keys" if place == 0 else ""), _key(key)
    for key_name, why in method.unused.items():
        yield "ignores", f"{key_name}: {why}"
    for refusal in method.refuses:
        values = " or ".join(str(value).lower() for value in refusal.values)
        yield "refuses", f"{refusal.key}: {values}, because {refusal.because}"
    yield "stands in", method.at


def _key(key: Key) -> str:
    default = "" if key.default is None else f", default {str(key.default).lower()}"
    return f"{key.name}: {key.allowed}{default}{f'. {key.help}' if key.help else ''}"


def _rules(name: str, ruleset: Ruleset) -> dict[str, list[Rule]]:
    """The rules about a method by what they do: those that conclude it, forbid it or set keys."""
    words = {"recommend": "recommended by", "forbid": "ruled out by", "set": "set by"}
    found: dict[str, list[Rule]] = {}
    for rules in ruleset.rules.values():
        for rule in rules:
            if rule.kind in words and _speaks_of(rule, name):
                found.setdefault(words[rule.kind], []).append(rule)
    return dict(sorted(found.items(), key=lambda item: list(words.values()).index(item[0])))


def _speaks_of(rule: Rule, name: str) -> bool:
    if rule.kind == "set":
        axes = {c.fact: c for c in rule.when if c.fact in ("objective", "update") and not c.named}
        scheme = schemes().get(name)
        own = axes.get("objective") if scheme is None else axes.get("update")
        return own is not None and own.holds(name if scheme is None else scheme.update)
    if not rule.then:  # asked for each scheme
        named = [c for c in rule.when if c.fact == "scheme"]
        return any(c.holds(name) for c in named)
    if name in str(rule.then.get("train_decision", "")).split("_and_"):  # rag_and_train
        return True
    outcomes = rule.then.get("scheme") or rule.then.get("chain") or ()
    listed = outcomes if isinstance(outcomes, list) else [outcomes]
    return any(name in str(one).removeprefix("encoder:").split(">") for one in listed)
