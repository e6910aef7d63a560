"""YAML -> Ruleset. Every fault of every file is reported with file, line and column, and the
nearest known name.

Layers, lowest first: `base` (what each update and objective sets by default), `document` (the
user's guide), `evidence`, then each file named with --rules or ADVISE_RULES. Rules never execute
code: a condition is a value, a list of values or a pair of bounds, and a list is the only OR.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from advisor.ground.errors import Fault, InputError
from advisor.ground.resources import method_roots, rules_dir
from advisor.ground.types import Source
from advisor.ground.yaml_cache import read_shipped
from advisor.ground.yaml_reader import Document, read_yaml
from advisor.methods import methods
from advisor.ruleset.candidates import instances, seen_inputs
from advisor.ruleset.entries import BOUNDS, RULE_KEYS, Path_, Reader, value_words
from advisor.ruleset.facts import Fact, facts_of
from advisor.ruleset.facts import Value as FactValue
from advisor.ruleset.model import Assumption, Rule, Ruleset, Table

__all__ = ["BOUNDS", "RULE_KEYS", "SHIPPED_LAYERS", "load_rules", "only_layer"]

SHIPPED_LAYERS = ("document", "evidence")
MAX_INPUTS = 12  # of a shipped table: what a person can still take in
MAX_OWN_INPUTS = 16  # with those that files of one's own add
MAX_OWN_RULES = 300  # of one user's file, so that it is read and proved in a second or so
LAYER_KEYS = {"version", "about", "sources", "tables"}
OWN_KEYS = LAYER_KEYS | {
    "overlay",
    "facts",
    "values",
    "inputs",
    "disable",
    "scenarios",
}  # of a user's file
FACT_KEYS = (
    "type",
    "origin",
    "signal",
    "ask",
    "order",
    "ask_when",
    "unknown",
    "phrase",
    "denied",
)  # of a fact that a user's file adds
LAYER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
FACT_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class _Loader(Reader):
    """Collects tables, rules and faults over all files of one rule set."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        super().__init__(facts)
        self.rules: dict[str, Rule] = {}
        self.disabled: dict[str, str] = {}
        self.disabled_at: dict[str, str] = {}
        self.methods: dict[str, Mapping[str, Any]] = {}
        self.axes: dict[str, Mapping[str, Any]] = {}
        self.assume: tuple[Assumption, ...] = ()

    # ----------------------------------------------------------------------- shipped files

    def add_tables(self, document: Document) -> None:
        self.tiers = dict(document.data["tiers"])
        for table_id, entry in document.data["tables"].items():
            for name in [entry["concludes"], *entry["inputs"]]:
                self.known(document, ("tables", table_id), "fact", name, self.facts)
            table = Table(
                id=table_id,
                concludes=entry["concludes"],
                inputs=tuple(entry["inputs"]),
                about=entry["about"],
                at=document.at(("tables", table_id), key=True),
                per=entry.get("per", ""),
            )
            table = replace(table, seen=seen_inputs(table, self.facts))
            self.tables[table_id] = table
            self._count_inputs(document, ("tables", table_id, "inputs"), table, MAX_INPUTS)

    def add_axis(self, document: Document, axis: str) -> None:
        """rules/updates/*.yaml and rules/objectives/*.yaml: what it is, its plan keys, and the
        rules that set its defaults.
        """
        data = document.data
        self.add_sources(document)
        self.axes[f"{axis}/{data['id']}"] = {
            key: value for key, value in data.items() if key != "settings"
        }
        self.add_rules(
            document, ("settings",), data.get("settings"), "settings", "base", namespace=data["id"]
        )

    # ----------------------------------------------------------------------- layers

    def add_layer_file(self, document: Document, layer: str, *, own: bool = False) -> None:
        data = document.data
        allowed = OWN_KEYS if own else LAYER_KEYS | {"methods"}
        if not isinstance(data, dict):
            self.fault(
                document,
                (),
                "a map is expected",
                f"keys: {', '.join(sorted(allowed))}",
                "rules/README.md shows one",
            )
            return
        self.keys(document, (), data, allowed)
        if data.get("version", 1) != 1:
            self.fault(
                document,
                ("version",),
                f"version {value_words(data['version'])} is not known",
                "version: 1",
            )
        self.add_sources(document)
        if own:
            self.add_inputs(document)
        elif isinstance(data.get("methods"), dict):
            self.methods.update(data["methods"])
        tables = self.entries(document, "tables")
        count = sum(len(entries) for entries in tables.values() if isinstance(entries, list))
        if own and count > MAX_OWN_RULES:
            self.fault(
                document,
                ("tables",),
                f"{count:,} rules in one file",
                f"at most {MAX_OWN_RULES}",
                "a rule may list values and bounds",
                key=True,
            )
            return
        for table_id, entries in tables.items():
            if self.known(document, ("tables", table_id), "table", table_id, self.tables, key=True):
                self.add_rules(
                    document, ("tables", table_id), entries, table_id, layer, namespace=layer
                )
        if own:
            self.add_disabled(document)

    def entries(self, document: Document, key: str) -> Mapping[str, Any]:
        """A map of the file, empty where the key is missing or is no map (a fault)."""
        found = document.data.get(key) if isinstance(document.data, dict) else None
        if found is None or isinstance(found, dict):
            return found or {}
        examples = {
            "tables": "tables: {scheme: [...]}",
            "sources": "sources: {handbook: {title: ...}}",
            "inputs": "inputs: {scheme: [fact]}",
        }
        self.fault(
            document, (key,), f"`{key}` is a map, not {value_words(found)}", examples.get(key, "")
        )
        return {}

    def add_sources(self, document: Document) -> None:
        for source_id, entry in self.entries(document, "sources").items():
            path: Path_ = ("sources", source_id)
            if not isinstance(entry, dict):
                self.fault(
                    document,
                    path,
                    f"a source is a map, not {value_words(entry)}",
                    "{title: ..., url: ..., checked: 2026-11-25}",
                )
                continue
            self.keys(document, path, entry, ("title", "url", "checked", "kind"))
            if source_id in self.sources:
                self.fault(
                    document,
                    path,
                    f"source '{source_id}' exists already",
                    hint="give yours another name",
                    key=True,
                )
            self.sources[source_id] = Source(
                title=self.text(document, path, entry, "title", required=True),
                url=self.text(document, path, entry, "url"),
                checked=self.text(document, path, entry, "checked"), kind=self.text(document, path,
                entry, "kind"),
            )  # fmt: skip

    def add_rules(
        self,
        document: Document,
        path: Path_,
        entries: Any,
        table_id: str,
        layer: str,
        *,
        namespace: str,
    ) -> None:
        if entries is None:
            return
        if not isinstance(entries, list):
            self.fault(document, path, f"a list of rules is expected, not {value_words(entries)}")
            return
        for index, entry in enumerate(entries):
            rule = self.rule(document, (*path, index), entry, self.tables[table_id], layer)
            if rule is None:
                continue
            if not rule.id.startswith(f"{namespace}/"):
                self.fault(
                    document,
                    (*path, index, "id"),
                    f"rule id '{rule.id}'",
                    f"ids of this file start with '{namespace}/'",
                )
            if rule.id in self.rules:
                first = self.rules[rule.id].at
                self.fault(
                    document,
                    (*path, index, "id"),
                    f"rule id '{rule.id}' is used twice (first at {first})",
                    hint="to change a rule: disable it and write your own",
                )
            self.rules[rule.id] = rule

    # ----------------------------------------------------------------------- what only a user's fil

    def overlay_name(self, document: Document, path: Path, taken: tuple[str, ...]) -> str:
        """The layer's name: `overlay`, or the file's stem."""
        name = (
            document.data.get("overlay", path.stem)
            if isinstance(document.data, dict)
            else path.stem
        )
        if not isinstance(name, str) or not LAYER_NAME.match(name):
            self.fault(
                document,
                ("overlay",),
                f"{value_words(name)} is no name for a layer",
                "letters, digits, '-', '_' and '.': `overlay: your-team`",
            )
        elif name in taken or any(name == axis.partition("/")[2] for axis in self.axes):
            self.fault(
                document,
                ("overlay",),
                f"the name '{name}' is taken",
                hint="give the file a name of its own: `overlay: your-team`",
            )
        return str(name)

    def add_inputs(self, document: Document) -> None:
        """`inputs`: facts that a table is to look at too, so that the file's own rules can."""
        for table_id, listed in self.entries(document, "inputs").items():
            path: Path_ = ("inputs", table_id)
            if not self.known(document, path, "table", table_id, self.tables, key=True):
                continue
            if not isinstance(listed, list):
                self.fault(
                    document, path, f"a list of facts is expected, not {value_words(listed)}"
                )
                continue
            for i, name in enumerate(listed):
                if not self.known(document, (*path, i), "fact", name, self.facts):
                    continue
                fact = self.facts[name]
                if fact.origin in ("concluded", "estimated", "method") or fact.type not in (
                    "choice",
                    "number",
                    "flag",
                ):
                    self.fault(
                        document,
                        (*path, i),
                        f"'{name}' cannot be added to a table",
                        "choices, numbers and signals that are asked, probed or read",
                    )
                elif name not in self.tables[table_id].inputs:
                    table = self.tables[table_id]
                    table = replace(table, inputs=(*table.inputs, name))
                    self.tables[table_id] = replace(table, seen=seen_inputs(table, self.facts))
            self._count_inputs(document, path, self.tables[table_id], MAX_OWN_INPUTS)

    def _count_inputs(self, document: Document, path: Path_, table: Table, most: int) -> None:
        if len(table.inputs) > most:
            self.fault(
                document,
                path,
                f"table '{table.id}' has {len(table.inputs)} inputs",
                f"at most {most}, so that it can be proved",
            )

    def add_disabled(self, document: Document) -> None:
        listed = document.data.get("disable")
        if listed is not None and not isinstance(listed, list):
            self.fault(
                document,
                ("disable",),
                f"`disable` is a list, not {value_words(listed)}",
                "[{rule: ID, because: reason}]",
            )
            return
        for index, entry in enumerate(listed or ()):
            path: Path_ = ("disable", index)
            if (
                not isinstance(entry, dict)
                or set(entry) != {"rule", "because"}
                or not isinstance(entry["because"], str)
                or not entry["because"].strip()
            ):
                self.fault(
                    document,
                    path,
                    "an entry of `disable` has the keys rule and because, and a reason is required",
                )
            elif self.known(document, (*path, "rule"), "rule", entry["rule"], self.rules):
                self.disabled[entry["rule"]] = " ".join(entry["because"].split())
                self.disabled_at[entry["rule"]] = document.at((*path, "rule"))

    def add_facts(self, document: Document) -> None:
        """`facts` (signals of the file's own) and `values` (more values of a question that is
        asked).
        """
        if not isinstance(document.data, dict):
            return
        before = len(self.faults)
        added = self.entries(document, "facts")
        for fact_id, entry in added.items():
            self._check_fact(document, ("facts", fact_id), fact_id, entry)
        if len(self.faults) == before and added:
            self.facts = dict(facts_of(document, self.facts))
        for fact_id, values in self.entries(document, "values").items():
            path: Path_ = ("values", fact_id)
            if not self.known(document, path, "fact", fact_id, self.facts, key=True):
                continue
            fact = self.facts[fact_id]
            if fact.type != "choice" or fact.origin != "asked":
                self.fault(
                    document,
                    path,
                    f"'{fact_id}' takes no further values",
                    "questions with a list of answers do: task, serve_with, priority, ...",
                    key=True,
                )
            elif not isinstance(values, dict) or not all(
                isinstance(value, dict) for value in values.values()
            ):
                self.fault(
                    document,
                    path,
                    "a map from value to {label, help} is expected",
                    "{in_house: {label: ..., help: ...}}",
                )
            else:
                for value, entry in values.items():
                    self.keys(document, (*path, value), entry, ("label", "help"))
                    if value in fact.values or not FACT_NAME.match(value):
                        self.fault(
                            document,
                            (*path, value),
                            f"'{value}' cannot be a new value of '{fact_id}'",
                            "a name that is not taken, of a-z, 0-9 and '_'",
                            key=True,
                        )
                    label, help_ = (
                        self.text(document, (*path, value), entry, "label", required=True),
                        self.text(document, (*path, value), entry, "help"),
                    )
                    fact = replace(
                        fact, values={**fact.values, value: FactValue(label=label, help=help_)}
                    )
                self.facts[fact_id] = fact

    def _check_fact(self, document: Document, path: Path_, fact_id: str, entry: Any) -> None:
        """A fact of a user's file is a signal: something a person states, with --signal or in an
        answers file.
        """
        if not isinstance(entry, dict):
            self.fault(document, path, f"fact '{fact_id}' must be a map, not {value_words(entry)}")
            return
        self.keys(document, path, entry, FACT_KEYS)
        if fact_id in self.facts:
            self.fault(
                document,
                path,
                f"fact '{fact_id}' exists already",
                "a file may add facts, never change one",
                key=True,
            )
        if not FACT_NAME.match(fact_id):
            self.fault(document, path, f"fact '{fact_id}'", "a name of a-z, 0-9 and '_'", key=True)
        if (
            entry.get("type") != "flag"
            or entry.get("origin") != "asked"
            or entry.get("signal") is not True
        ):
            self.fault(
                document,
                path,
                f"fact '{fact_id}' must be a signal",
                "type: flag, origin: asked, signal: true",
                "state it with --signal or `signals:`",
                key=True,
            )
        self.text(document, path, entry, "ask", required=True)
        for name in ("unknown", "phrase", "denied"):
            self.text(document, path, entry, name)
        order, ask_when = entry.get("order"), entry.get("ask_when")
        if order is not None and (isinstance(order, bool) or not isinstance(order, int)):
            self.fault(
                document, (*path, "order"), f"`order` is a whole number, not {value_words(order)}"
            )
        if ask_when is not None and not (
            isinstance(ask_when, dict)
            and all(isinstance(values, list) for values in ask_when.values())
        ):
            self.fault(
                document,
                (*path, "ask_when"),
                "`ask_when` is a map from a fact to a list of its values",
                "{task: [qa, code]}",
            )
        elif ask_when is not None:
            for name, values in ask_when.items():
                self.condition(document, (*path, "ask_when", name), name, values, None)


def only_layer(ruleset: Ruleset, layer: str) -> Ruleset:
    """The same rule set with one layer alone on top of the base: cheaper than reading the files
    again.
    """
    rules = {
        table: tuple(rule for rule in listed if rule.layer in ("base", layer))
        for table, listed in ruleset.rules.items()
    }
    return replace(ruleset, rules=rules, layers=(layer,), overlays=())


def _join_asked(tables: dict[str, Table]) -> None:
    """A table that ranks schemes sees what the table that is asked for each of them looks at."""
    for asked in [table for table in tables.values() if table.per]:
        for table in list(tables.values()):
            if table.concludes == asked.concludes and not table.per:
                seen = [name for name in asked.seen if name != asked.concludes]
                seen = list(dict.fromkeys((*table.seen, *seen)))
                tables[table.id] = replace(table, seen=tuple(seen), asks=asked.id)


def method_files(root: Path, axis: str) -> list[Path]:
    """The files of the methods that can be used, the project's own first; broken ones stay out."""
    usable = methods().updates if axis == "updates" else methods().objectives
    folders = [root / axis]
    if root == rules_dir():
        folders += [other / "rules" / axis for other in method_roots()[1:]]
    return [
        path
        for folder in folders
        for path in sorted(folder.glob("*.yaml"))
        if path.stem in usable or root != rules_dir()
    ]


@cache
def load_rules(
    layers: tuple[str, ...] = SHIPPED_LAYERS,
    overlays: tuple[Path, ...] = (),
    *,
    root: Path | None = None,
) -> Ruleset:
    """The merged rule set of the shipped `layers` and the `overlays`, in order.

    Raises InputError with every fault of every file.
    """
    root = root or rules_dir()
    digest = hashlib.sha256()

    def read(path: Path, *, shipped: bool = True) -> Document:
        document = read_shipped(path, root=root) if shipped else read_yaml(path, name=str(path))
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return document

    extra: list[tuple[Path, Document]] = []
    unreadable: list[Fault] = []
    for path in overlays:
        try:
            extra.append((path, read(path, shipped=False)))
        except InputError as error:
            unreadable += error.faults
    if unreadable:
        raise InputError(faults=unreadable)
    facts_document = read(root / "facts.yaml")
    facts = facts_of(facts_document)
    for fact in [fact for fact in facts.values() if fact.per]:
        facts = {**facts, **instances(fact)}
    loader = _Loader(facts)
    for _, document in extra:
        loader.add_facts(document)
    loader.assume = loader.assumptions(facts_document)
    loader.add_tables(read(root / "tables.yaml"))
    loader.add_sources(read(root / "sources.yaml"))
    for axis in ("updates", "objectives"):
        for path in method_files(root, axis):
            loader.add_axis(read(path, shipped=path.is_relative_to(root)), axis)
    for layer in ("base", *layers):
        for path in sorted((root / layer).glob("*.yaml")):
            loader.add_layer_file(read(path), layer)
    names: list[str] = []
    for path, document in extra:
        name = loader.overlay_name(document, path, ("base", *SHIPPED_LAYERS, *names))
        names.append(name)
        loader.add_layer_file(document, name, own=True)
    if loader.faults:
        raise InputError(faults=loader.faults)
    active: dict[str, list[Rule]] = {table: [] for table in loader.tables}
    inactive = []
    for rule in loader.rules.values():
        if rule.status == "active" and rule.id not in loader.disabled:
            active[rule.table].append(rule)
        else:
            inactive.append(rule)
    _join_asked(loader.tables)
    return Ruleset(
        facts=loader.facts, tables=loader.tables, tiers=loader.tiers, layers=(*layers, *names),
        rules={table: tuple(rules) for table, rules in active.items()},
        disabled=loader.disabled, sources=loader.sources, methods=loader.methods,
        digest=digest.hexdigest()[:16], axes=loader.axes, assume=loader.assume,
        inactive=tuple(inactive), disabled_at=loader.disabled_at, overlays=tuple(names),
        facts_at={fact_id: facts_document.at(("facts", fact_id),
        key=True) for fact_id in facts_document.data["facts"]},
    )  # fmt: skip
