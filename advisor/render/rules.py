"""Rules, facts and methods for people: lists, and one rule or one method explained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.ground.errors import InputError, unknown_name
from advisor.methods import methods, schemes
from advisor.methods.model import Method, Objective, Scheme, Update
from advisor.methods.remedies import Remedy, remedies, remedy
from advisor.plan.keys import setting_keys
from advisor.ruleset.facts import load_facts
from advisor.ruleset.model import Rule, Ruleset
from advisor.ruleset.phrases import joined, method_words, says, value_words, wants

REFERENCES = {
    "never": "none",
    "always": "a frozen copy of the model, with full fine-tuning; a module needs none",
    "with_beta": "a frozen copy of the model, with full fine-tuning and a beta above 0",
}
SOURCES_OF_REWARD = (
    "a reward: a verifier, a reward model or a function of your own, or several of them, each with"
    " a weight (key `rewards`)"
)
# The kinds of rules that speak of a method, in the order shown.
RULES_OF_METHOD = {"recommend": "recommended by", "forbid": "ruled out by", "set": "set by"}

Labelled = Iterable[tuple[str, str]]  # what stands at the left, and what beside it


SHOWN_SOURCES = 6  # of a method; each of its rules names its own


def _put(console: Console, text: str, indent: int = 0) -> None:
    console.print(Padding(Text(text), (0, 0, 0, indent)))


def _page(lines: Labelled, console: Console) -> None:
    """Labels at the left, and beside each its text, folded to the width of the terminal."""
    page = Table.grid("", "", padding=(0, 2, 0, 0))
    page.columns[0].justify, page.columns[0].no_wrap = "right", True
    page.columns[1].overflow = "fold"
    for label, text in lines:
        page.add_row(Text(label), Text(text))
    console.print(page)


def print_rules(ruleset: Ruleset, console: Console) -> None:
    """Every active rule with its conditions and reason, table by table in the order of decision."""
    for table_id, table in ruleset.tables.items():
        console.print(Text.assemble("\n", (table_id, "bold"), f": {table.about}"))
        for rule in sorted(ruleset.rules[table_id], key=lambda rule: (rule.layer, rule.id)):
            _put(console, f"{rule.id}  [{rule.kind}]", 2)
            _put(console, f"{conditions(rule, ruleset)} -> {outcome(rule, ruleset)}", 4)
    if ruleset.disabled:
        console.print(Text.assemble("\n", ("disabled", "bold")))
        for rule_id, because in ruleset.disabled.items():
            _put(console, f"{rule_id}: {because}", 2)
    layers = " < ".join(("base", *ruleset.layers))
    last = [rule.id for table in ruleset.rules.values() for rule in table][-1]
    _put(console, f"\nlayers: {layers}; digest {ruleset.digest}")
    _put(console, f"one rule in full, such as this one: advise rules {last}")


def print_rule(ruleset: Ruleset, rule_id: str, console: Console) -> None:
    """One rule in full. Raises InputError with the nearest id if there is none of that name."""
    rule = ruleset.rule(rule_id)
    if rule is None:
        ids = [rule.id for rules in ruleset.rules.values() for rule in rules]
        near = unknown_name("rule", rule_id, [*names_of_methods(), *ids], at="advise rules").hint
        hint = near or "`advise rules` lists them; a method is explained by its name"
        if rule_id in setting_keys():
            hint = (
                "a key of plan.yaml: a written plan says why it has its value, docs/plan.md what"
                " it may be"
            )
        raise InputError(f"unknown rule '{rule_id}'", where="advise rules", hint=hint)
    lines = [
        ("rule", rule.id),
        ("table", f"{rule.table}: {ruleset.tables[rule.table].about}"),
        ("kind", f"{rule.kind}{f', tier {rule.tier}' if rule.tier else ''}, layer {rule.layer}"),
        ("when", conditions(rule, ruleset)),
        ("then", outcome(rule, ruleset)),
        ("because", rule.because),
        ("row", rule.row),
        ("but", rule.unless_note),
        ("confidence", rule.confidence),
        ("review by", rule.review_by),
        ("stands in", rule.at),
    ]
    for source in map(ruleset.sources.__getitem__, rule.sources):
        read = f" (read {source.checked})" if source.checked else ""
        lines.append(("source", f"{', '.join(filter(None, (source.title, source.url)))}{read}"))
    _page([line for line in lines if line[1]], console)


def print_facts(ruleset: Ruleset, console: Console) -> None:
    """Every fact the rules may look at: its values, where it comes from, its flag."""
    for fact in ruleset.facts.values():
        number = f"a number ({fact.unit})" if fact.unit else "a number"
        types = {"number": number, "flag": "stated or not"}
        values = ", ".join(map(str, fact.values)) or types.get(fact.type, fact.type)
        how = f"--signal {fact.id}" if fact.signal else fact.flag or ""
        _put(console, f"{fact.id}  ({fact.origin}{f', {how}' if how else ''})")
        _put(console, f"{values}{f'. {fact.ask}' if fact.ask else ''}", 4)


def conditions(rule: Rule, ruleset: Ruleset) -> str:
    """A rule's `when` as a sentence says it."""
    asked_of = ruleset.tables[rule.table].per
    said = [
        f"the scheme is {joined(map(method_words, sorted(condition.values)), 'or')}"
        if asked_of and condition.fact == asked_of
        else wants(ruleset.facts[condition.fact], condition)
        for condition in rule.when
    ]
    return "; ".join(said) or "always"


def outcome(rule: Rule, ruleset: Ruleset) -> str:
    """A rule's `then` as a sentence says it; settings as a plan writes them."""
    table = ruleset.tables[rule.table]
    if rule.kind == "warn":
        return f"a warning: {rule.then['say']}"
    if rule.kind == "set":
        return ", ".join(
            f"{key}: {str(value).lower() if isinstance(value, bool) else value}"
            for key, value in rule.then.items()
        )
    if table.per:
        return "the scheme is ruled out"
    fact, values = ruleset.facts[table.concludes], rule.then[table.concludes]
    listed = values if isinstance(values, list) else [values]
    if rule.kind == "forbid":
        return f"ruled out: {'; '.join(value_words(fact, value) for value in listed)}"
    return says(fact, listed[0])


# --------------------------------------------------------------------------- a method


def names_of_methods() -> list[str]:
    """What `advise rules METHOD` explains: objectives, schemes, remedies."""
    return [*methods().objectives, *schemes(), *remedies()]


def print_method(name: str, ruleset: Ruleset, console: Console) -> None:
    """One method in full."""
    lines: list[tuple[str, str]] = []
    if name in remedies():
        lines += _remedy(remedy(name))
    elif name in methods().objectives:
        objective = methods().objectives[name]
        lines += [*_objective(objective), *_keys(objective)]
    else:
        update = methods().updates[schemes()[name].update]
        lines += [*_scheme(schemes()[name], update), *_keys(update)]
    about = [rule for rules in ruleset.rules.values() for rule in rules if _concerns(rule, name)]
    for kind, label in RULES_OF_METHOD.items():
        of_kind = [rule for rule in about if rule.kind == kind]
        so = (f"{outcome(rule, ruleset)}; " if kind == "set" else "" for rule in of_kind)
        lines += _under(
            label, (f"{next(so)}{rule.because.rstrip('.')} ({rule.id})" for rule in of_kind)
        )
    _page(lines, console)
    named = dict.fromkeys(source for rule in about for source in rule.sources)
    sources = [ruleset.sources[source] for source in named if ruleset.sources[source].url]
    if sources:
        _put(console, "\nRead more")
    for source in sources[:SHOWN_SOURCES]:
        _put(console, source.title, 2)
        console.print(f"    {source.url}", soft_wrap=True)
    if len(sources) > SHOWN_SOURCES:
        more = len(sources) - SHOWN_SOURCES
        _put(console, f"and {more} more: with each rule, such as `advise rules {about[0].id}`", 2)


def _under(label: str, texts: Iterable[str]) -> Labelled:
    return ((label if place == 0 else "", text) for place, text in enumerate(texts))


def _objective(objective: Objective) -> Iterator[tuple[str, str]]:
    kinds, taken = load_facts()["data_kind"], objective.trains_on or objective.also_reads
    yield objective.id, f"{objective.name}, an objective: {objective.about}"
    yield "learns from", ", ".join(value_words(kinds, kind) for kind in taken)
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
        yield from (("", f"  {command}") for command in way.commands)
    more = {
        "measure": found.measure,
        "helps then": found.helps_then,
        "with training": found.beside_training,
    }
    yield from ((label, text) for label, text in more.items() if text)


def _scheme(scheme: Scheme, update: Update) -> Iterator[tuple[str, str]]:
    base = f" on a base quantised to {scheme.quantization}" if scheme.quantization else ""
    yield scheme.id, f"{scheme.name}, an update{base}: {update.about}"
    yield "trains", "a module beside the frozen model" if update.is_module else "every weight"
    yield "leaves", update.result
    yield "runs in", ", ".join(update.serves)
    if update.is_module:
        yield "merging", "can be merged into its base" if update.merges else update.why_not_merged


def _keys(method: Method) -> Iterator[tuple[str, str]]:
    keys = []
    for key in method.keys.values():
        default = "" if key.default is None else f", default {str(key.default).lower()}"
        keys.append(f"{key.name}: {key.allowed}{default}{f'. {key.help}' if key.help else ''}")
    yield from _under("keys", keys)
    yield from (("ignores", f"{key}: {why}") for key, why in method.unused.items())
    for refusal in method.refuses:
        values = " or ".join(str(value).lower() for value in refusal.values)
        yield "refuses", f"{refusal.key}: {values}, because {refusal.because}"
    yield "stands in", method.at


def _concerns(rule: Rule, name: str) -> bool:
    """Whether a rule concludes a method, forbids it or sets its keys."""
    scheme = schemes().get(name)
    if rule.kind == "set":
        axis, method = ("objective", name) if scheme is None else ("update", scheme.update)
        own = [one for one in rule.when if one.fact == axis and not one.named]
        return bool(own) and own[-1].holds(method)
    if not rule.then:  # asked for each scheme
        return any(one.holds(name) for one in rule.when if one.fact == "scheme")
    if name in str(rule.then.get("train_decision", "")).split("_and_"):  # rag_and_train
        return True
    outcomes = rule.then.get("scheme") or rule.then.get("chain") or ()
    listed = outcomes if isinstance(outcomes, list) else [outcomes]
    return any(name in str(one).removeprefix("encoder:").split(">") for one in listed)
