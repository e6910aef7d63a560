"""YAML -> Ruleset. Every fault of every file is reported with file, line and column, and the nearest known name.

Layers, lowest first: `base` (what each update and objective sets by default), `document` (the user's guide), `evidence`,
then each file named with --rules or ADVISE_RULES. Rules never execute code: a condition is a value, a list of values or
a pair of bounds, and a list is the only OR.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from advisor.errors import Fault, InputError, nearest, unknown_name
from advisor.facts import UNKNOWN, Fact, facts_of
from advisor.resources import rules_dir
from advisor.ruleset.model import CONFIDENCES, KINDS, STATUSES, Condition, Interval, Rule, Ruleset, Table
from advisor.types import Source
from advisor.yamlio import Document, read_yaml

SHIPPED_LAYERS = ("document", "evidence")
MAX_INPUTS = 12
BOUNDS = {"gt": "over", "gte": "at least", "lt": "under", "lte": "at most"}
RULE_KEYS = {
    "id", "kind", "tier", "when", "then", "because", "row", "unless_note", "sources", "confidence", "status", "review_by", "refines", "examples",
}  # fmt: skip


class _Loader:
    """Collects tables, rules and faults over all files of one rule set."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        self.facts = facts
        self.faults: list[Fault] = []
        self.tables: dict[str, Table] = {}
        self.tiers: dict[str, int] = {}
        self.rules: dict[str, Rule] = {}
        self.disabled: dict[str, str] = {}
        self.sources: dict[str, Source] = {}
        self.methods: dict[str, Mapping[str, Any]] = {}
        self.axes: dict[str, Mapping[str, Any]] = {}

    def fault(self, document: Document, path: Sequence[str | int], what: str, allowed: str = "", hint: str = "", *, key: bool = False) -> None:
        self.faults.append(Fault(what=f"{document.at(path, key=key)}: {what}", allowed=allowed, hint=hint))

    def add_tables(self, document: Document) -> None:
        self.tiers = dict(document.data["tiers"])
        for table_id, entry in document.data["tables"].items():
            unknown = [name for name in [entry["concludes"], *entry["inputs"]] if name not in self.facts]
            for name in unknown:
                self.fault(document, ("tables", table_id), f"unknown fact '{name}'", hint=nearest(name, self.facts))
            if len(entry["inputs"]) > MAX_INPUTS:
                self.fault(document, ("tables", table_id, "inputs"), f"{len(entry['inputs'])} inputs", f"at most {MAX_INPUTS}, so that the table can be proved")
            self.tables[table_id] = Table(
                id=table_id, concludes=entry["concludes"], inputs=tuple(entry["inputs"]), about=entry["about"], at=document.at(("tables", table_id), key=True)
            )

    def add_sources(self, document: Document) -> None:
        for source_id, entry in (document.data.get("sources") or {}).items():
            self.sources[source_id] = Source(
                title=str(entry.get("title", source_id)), url=str(entry.get("url", "")), checked=str(entry.get("checked", "")), kind=str(entry.get("kind", ""))
            )

    def add_axis(self, document: Document, axis: str) -> None:
        """rules/updates/*.yaml and rules/objectives/*.yaml: what it is, its plan keys, and the rules that set its defaults."""
        data = document.data
        self.axes[f"{axis}/{data['id']}"] = {key: value for key, value in data.items() if key != "settings"}
        self.add_rules(document, ("settings",), "settings", "base", namespace=data["id"])

    def add_layer_file(self, document: Document, layer: str) -> None:
        data = document.data
        if not isinstance(data, dict):
            self.fault(document, (), "a map is expected", "keys: version, overlay, facts, sources, tables, disable")
            return
        allowed = {"version", "overlay", "facts", "sources", "tables", "disable", "methods", "about"}
        for key in data:
            if key not in allowed:
                self.fault(document, (key,), f"unknown key '{key}'", f"known: {', '.join(sorted(allowed))}", nearest(key, allowed), key=True)
        self.add_sources(document)
        if isinstance(data.get("methods"), dict):
            self.methods.update(data["methods"])
        tables = data.get("tables") or {}
        if not isinstance(tables, dict):
            self.fault(document, ("tables",), "`tables` is a map from a table's name to its list of rules", f"tables: {', '.join(self.tables)}")
            tables = {}
        for table_id in tables:
            if table_id not in self.tables:
                self.faults.append(unknown_name("table", table_id, list(self.tables), at=document.at(("tables", table_id), key=True)))
                continue
            self.add_rules(document, ("tables", table_id), table_id, layer, namespace=layer)
        for index, entry in enumerate(data.get("disable") or ()):
            self.disable(document, ("disable", index), entry)

    def disable(self, document: Document, path: Sequence[str | int], entry: Any) -> None:
        if not isinstance(entry, dict) or set(entry) != {"rule", "because"} or not entry["because"]:
            self.fault(document, path, "an entry of `disable` has the keys rule and because, and a reason is required")
        elif entry["rule"] not in self.rules:
            self.faults.append(unknown_name("rule", entry["rule"], list(self.rules), at=document.at((*path, "rule"))))
        else:
            self.disabled[entry["rule"]] = str(entry["because"])

    def add_rules(self, document: Document, path: tuple[str | int, ...], table_id: str, layer: str, *, namespace: str) -> None:
        entries: Any = document.data
        for step in path:
            entries = entries.get(step) if isinstance(entries, dict) else None
        if entries is None:
            return
        if not isinstance(entries, list):
            self.fault(document, path, "a list of rules is expected")
            return
        for index, entry in enumerate(entries):
            rule = self.rule(document, (*path, index), entry, table_id, layer)
            if rule is None:
                continue
            if not rule.id.startswith(f"{namespace}/"):
                self.fault(document, (*path, index, "id"), f"rule id '{rule.id}'", f"ids of this file start with '{namespace}/'")
            if rule.id in self.rules:
                self.fault(
                    document, (*path, index, "id"), f"rule id '{rule.id}' is used twice (first at {self.rules[rule.id].at})", hint="to change a rule: disable it and write your own"
                )
            self.rules[rule.id] = rule

    def rule(self, document: Document, path: tuple[str | int, ...], entry: Any, table_id: str, layer: str) -> Rule | None:
        before = len(self.faults)
        if not isinstance(entry, dict):
            self.fault(document, path, "a rule is a map with id, kind, when, then, because, sources")
            return None
        for key in entry:
            if key not in RULE_KEYS:
                self.fault(document, (*path, key), f"unknown key '{key}'", f"known: {', '.join(sorted(RULE_KEYS))}", nearest(key, RULE_KEYS), key=True)
        kind = entry.get("kind", "set" if table_id == "settings" else "recommend")
        for key, value, known in (("kind", kind, KINDS), ("confidence", entry.get("confidence", "judgement"), CONFIDENCES), ("status", entry.get("status", "active"), STATUSES)):
            if value not in known:
                self.faults.append(unknown_name(key, value, known, at=document.at((*path, key))))
        for key in ("id", "because"):
            if not isinstance(entry.get(key), str) or not entry[key].strip():
                self.fault(document, path, f"the rule has no `{key}`")
        if not isinstance(entry.get("sources"), list) or not entry["sources"]:
            self.fault(document, path, "the rule has no `sources`", "a list of ids from rules/sources.yaml or this file's own `sources`")
        tier = entry.get("tier", "")
        if kind == "recommend" and tier not in self.tiers:
            self.faults.append(unknown_name("tier", tier, list(self.tiers), at=document.at((*path, "tier"))))
        table = self.tables[table_id]
        when = entry.get("when")
        if not isinstance(when, dict):
            self.fault(document, path, "the rule has no `when`", "a map from fact to value; {} holds always")
            when = {}
        conditions = [self.condition(document, (*path, "when", fact), fact, value, table) for fact, value in when.items()]
        then = self.then(document, (*path, "then"), entry.get("then"), kind, table)
        for source in entry.get("sources") or ():
            if source not in self.sources:
                self.faults.append(unknown_name("source", source, list(self.sources), at=document.at((*path, "sources"))))
        if len(self.faults) > before:
            return None
        return Rule(
            id=entry["id"], table=table_id, kind=kind, layer=layer, tier=tier, when=tuple(c for c in conditions if c), then=then, because=" ".join(entry["because"].split()),
            row=entry.get("row", ""), unless_note=entry.get("unless_note", ""), sources=tuple(entry["sources"]), confidence=entry.get("confidence", "judgement"),
            status=entry.get("status", "active"), review_by=str(entry.get("review_by", "")), refines=entry.get("refines", ""), examples=tuple(entry.get("examples") or ()),
            at=document.at((*path, "id")),
        )  # fmt: skip

    def then(self, document: Document, path: Sequence[str | int], then: Any, kind: str, table: Table) -> Mapping[str, Any]:
        if not isinstance(then, dict) or not then:
            self.fault(document, path, "the rule has no `then`")
            return {}
        if kind == "warn":
            if set(then) != {"say"}:
                self.fault(document, path, "a warn rule has `then: {say: text}`")
        elif kind in ("recommend", "forbid"):
            if set(then) != {table.concludes}:
                self.fault(document, path, f"table '{table.id}' concludes '{table.concludes}'", f"write `then: {{{table.concludes}: value}}`")
                return then
            values = then[table.concludes] if kind == "forbid" and isinstance(then[table.concludes], list) else [then[table.concludes]]
            for value in values:
                if value not in self.facts[table.concludes].values:
                    self.faults.append(unknown_name(table.concludes, value, list(self.facts[table.concludes].values), at=document.at((*path, table.concludes))))
        return then

    def condition(self, document: Document, path: Sequence[str | int], name: str, wanted: Any, table: Table) -> Condition | None:
        if name not in self.facts:
            self.faults.append(unknown_name("fact", name, list(self.facts), at=document.at(path, key=True)))
            return None
        if name not in table.inputs:
            self.fault(document, path, f"table '{table.id}' does not look at '{name}'", f"its inputs: {', '.join(table.inputs)}", key=True)
            return None
        fact = self.facts[name]
        values: set[Any] = set()
        intervals: list[Interval] = []
        unknown = False
        words: list[str] = []
        for part in wanted if isinstance(wanted, list) else [wanted]:
            if part == UNKNOWN:
                unknown = True
                words.append("not known")
            elif fact.type == "number" and isinstance(part, dict) and part and set(part) <= set(BOUNDS) and all(isinstance(bound, int | float) for bound in part.values()):
                intervals.append(
                    Interval(
                        low=part.get("gte", part.get("gt")), low_included="gte" in part, high=part.get("lte", part.get("lt")), high_included="lte" in part
                    )
                )  # fmt: skip
                words.append(" and ".join(f"{BOUNDS[bound]} {number:,}" for bound, number in part.items()))
            elif fact.type == "number" and isinstance(part, int | float) and not isinstance(part, bool):
                intervals.append(Interval(low=part, low_included=True, high=part, high_included=True))
                words.append(f"{part:,}")
            elif (fact.type == "flag" and isinstance(part, bool)) or (fact.type == "choice" and part in fact.values):
                values.add(part)
                words.append({True: "stated", False: "denied"}[part] if isinstance(part, bool) else str(part))
            else:
                allowed = {
                    "number": "a number, {gte: N}, {gt: N}, {lte: N}, {lt: N}, unknown, or a list of these",
                    "flag": "true, false or unknown",
                }.get(fact.type, f"{', '.join(map(str, fact.values))}, unknown, or a list of these")
                self.fault(document, path, f"'{name}' cannot be {part!r}", f"allowed: {allowed}", nearest(part, map(str, fact.values)))
        return Condition(fact=name, values=frozenset(values), intervals=tuple(intervals), unknown=unknown, text=f"{name} is {' or '.join(words)}")


def only_layer(ruleset: Ruleset, layer: str) -> Ruleset:
    """The same rule set with one layer alone on top of the base: cheaper than reading the files again."""
    rules = {table: tuple(rule for rule in listed if rule.layer in ("base", layer)) for table, listed in ruleset.rules.items()}
    return replace(ruleset, rules=rules, layers=(layer,))


@cache
def load_rules(layers: tuple[str, ...] = SHIPPED_LAYERS, overlays: tuple[Path, ...] = (), *, root: Path | None = None) -> Ruleset:
    """The merged rule set of the shipped `layers` and the `overlays`, in order.

    Raises InputError with every fault of every file.
    """
    root = root or rules_dir()
    digest = hashlib.sha256()

    def read(path: Path, *, shipped: bool = True) -> Document:
        document = read_yaml(path, name=f"rules/{path.relative_to(root).as_posix()}" if shipped else str(path))
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return document

    extra = [(path, read(path, shipped=False)) for path in overlays]
    facts = facts_of(read(root / "facts.yaml"))
    for _, document in extra:
        if isinstance(document.data, dict) and document.data.get("facts"):
            facts = facts_of(document, facts)
    loader = _Loader(facts)
    loader.add_tables(read(root / "tables.yaml"))
    loader.add_sources(read(root / "sources.yaml"))
    for axis in ("updates", "objectives"):
        for path in sorted((root / axis).glob("*.yaml")):
            loader.add_axis(read(path), axis)
    for layer in ("base", *layers):
        for path in sorted((root / layer).glob("*.yaml")):
            loader.add_layer_file(read(path), layer)
    names = list(layers)
    for path, document in extra:
        name = document.data.get("overlay", path.stem) if isinstance(document.data, dict) else path.stem
        if name in (*SHIPPED_LAYERS, "base") or name in names:
            loader.fault(document, ("overlay",), f"the name '{name}' is taken", hint="give the file a name of its own: `overlay: your-team`")
        names.append(str(name))
        loader.add_layer_file(document, str(name))
    if loader.faults:
        raise InputError(faults=loader.faults)
    active: dict[str, list[Rule]] = {table: [] for table in loader.tables}
    for rule in loader.rules.values():
        if rule.status == "active" and rule.id not in loader.disabled:
            active[rule.table].append(rule)
    return Ruleset(
        facts=facts, tables=loader.tables, tiers=loader.tiers, layers=tuple(names), rules={table: tuple(rules) for table, rules in active.items()},
        disabled=loader.disabled, sources=loader.sources, methods=loader.methods, digest=digest.hexdigest()[:16], axes=loader.axes,
    )  # fmt: skip
