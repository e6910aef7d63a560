"""The files of one rule set -> Ruleset: tables, rules, sources and what files of one's own add.

Every fault of every file is reported with file, line and column, and the nearest known name. Rules
never execute code: a condition is a value, a list of values or a pair of bounds, and a list is the
only OR.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.ground.errors import Fault, InputError, refuse
from advisor.ground.files import bytes_of
from advisor.ground.resources import method_roots, rules_dir
from advisor.ground.shape import (
    VERSION,
    Choice,
    Integer,
    Keys,
    ListOf,
    MapOf,
    NamedValue,
    Shape,
    Text,
    check_shape,
)
from advisor.ground.yaml_files import (
    SOURCE,
    SOURCES_FILE,
    Document,
    Spot,
    read_shipped,
    read_yaml,
    source_from,
)
from advisor.methods.load import SHARED_KEYS_FILE
from advisor.ruleset.entries import RULE, Reader, as_list, as_map
from advisor.ruleset.facts import FACT, FACT_NAME, FACTS_FILE, Fact, Value, facts_of
from advisor.ruleset.judge import instances, seen_inputs
from advisor.ruleset.model import SHIPPED_LAYERS, Conflict, DecisionTable, Rule, Ruleset

MAX_INPUTS = 16  # of a table, with those that files of one's own add: so that it can be proved
MAX_OWN_RULES = 300  # of one user's file, so that it is read and proved in a second or so
LAYER_NAME = Text(
    pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    such_as="your-team: letters, digits, '-', '_' and '.'",
    help="the name of the layer, and the namespace of its rules",
)


# --------------------------------------------------------------------------- the files' shapes

_TABLE = Keys(
    keys={
        "concludes": Text(help="the fact it concludes, which later steps may look at"),
        "inputs": ListOf(of=Text(), least=1, help="the facts it may look at"),
        "about": Text(help="what the step decides"),
        "per": Choice(values=("scheme",), help="asked for each scheme"),
    },
    required=("concludes", "inputs", "about"),
)
TABLES_FILE = Keys(
    help="Decision steps",
    keys={"version": VERSION, "tiers": MapOf(of=Integer()), "tables": MapOf(of=_TABLE)},
    required=("version", "tiers", "tables"),
)
_STARS = Integer(min=1, max=5)
_TEXTS = ListOf(of=Text(), least=1)
COMPARED = Keys(
    keys={
        **dict.fromkeys(("name", "plain", "data", "ideal", "concept"), Text()),
        **dict.fromkeys(("cost", "performance"), _STARS),
        **dict.fromkeys(("pros", "cons", "best_for"), _TEXTS),
    },
    required=("name",),
)
CONFLICT = Keys(
    keys={
        "id": Text(),
        "rules": ListOf(of=Text(), least=1, help="the rules it speaks against"),
        "says": Text(help="one sentence, with who says it"),
        "sources": ListOf(of=Text(), least=1),
    },
    required=("id", "rules", "says", "sources"),
)
_COMMON: Mapping[str, Shape] = {
    "version": VERSION,
    "about": Text(),
    "sources": MapOf(of=SOURCE, help="sources beside those of rules/sources.yaml"),
    "conflicts": ListOf(of=CONFLICT, help="what experts say against some rules"),
    # Rules of one's own are checked one by one, so that a fault in one hides no other.
    "tables": MapOf(of=ListOf(of=Shape()), help="decision step -> its rules"),
}
LAYER_FILE = Keys(
    help="A layer of rules",
    keys={
        **_COMMON,
        "tables": MapOf(of=ListOf(of=RULE), help="decision step -> its rules"),
        "methods": MapOf(of=COMPARED, help="the guide's comparison table"),
    },
)
SIGNAL = Keys(
    help="a signal: something a person states with --signal, or under `signals:`",
    keys={
        **{
            key: FACT.keys[key]
            for key in ("ask", "order", "ask_when", "unknown", "phrase", "denied")
        },
        "type": Choice(values=("flag",)),
        "origin": Choice(values=("asked",)),
        "signal": Choice(values=(True,)),
    },
    required=("type", "origin", "signal", "ask"),
)
NEW_VALUE = Keys(
    keys={"label": Text(), "help": Text(), "short": Text(), "such_as": Text()}, required=("label",)
)
DISABLED = Keys(
    keys={"rule": Text(), "because": Text(help="a reason is required")},
    required=("rule", "because"),
)
OWN_FILE = Keys(
    help="A file of rules of one's own",
    keys={
        **_COMMON,
        "overlay": LAYER_NAME,
        "facts": MapOf(of=SIGNAL, named=FACT_NAME, help="signals of one's own"),
        "values": MapOf(
            of=MapOf(of=NEW_VALUE, named=FACT_NAME), help="more values of a question that is asked"
        ),
        "inputs": MapOf(of=ListOf(of=Text()), help="step -> further facts it is to look at"),
        "scenarios": Shape(),  # the linter reads them (advisor/advice/linting.py)
        "disable": ListOf(of=DISABLED, help="rules that no longer count, each with the reason"),
    },
    nulls=True,
)


class _Loader(Reader):
    """Collects tables, rules and faults over all files of one rule set."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        super().__init__(facts)
        self.rules: dict[str, Rule] = {}
        self.disabled: dict[str, str] = {}
        self.disabled_at: dict[str, str] = {}
        self.methods: dict[str, Mapping[str, Any]] = {}
        self.axes: dict[str, Mapping[str, Any]] = {}
        self.conflicts: list[tuple[Spot, Conflict]] = []

    # ----------------------------------------------------------------------- shipped files

    def add_tables(self, document: Document) -> None:
        self.tiers = dict(document.data["tiers"])
        for table_id, entry in document.data["tables"].items():
            spot = Spot(document) / "tables" / table_id
            for name in [entry["concludes"], *entry["inputs"]]:
                self.known(spot, "fact", name, self.facts)
            inputs = tuple(entry["inputs"])
            table = DecisionTable(**{**entry, "id": table_id, "inputs": inputs, "spot": spot})
            self.tables[table_id] = table
            self._count_inputs(spot / "inputs", table)

    def add_axis(self, document: Document, axis: str) -> None:
        data = document.data
        self.add_sources(document)
        self.axes[f"{axis}/{data['id']}"] = {
            key: value for key, value in data.items() if key != "settings"
        }
        spot = Spot(document) / "settings"
        self.add_rules(spot, data.get("settings"), "settings", "base", namespace=data["id"])

    # ----------------------------------------------------------------------- layers

    def add_layer_file(self, document: Document, layer: str, *, own: bool = False) -> None:
        data, spot = as_map(document.data), Spot(document)
        tables = as_map(data.get("tables"))
        count = sum(len(as_list(entries)) for entries in tables.values())
        if own and count > MAX_OWN_RULES:
            what, hint = f"{count:,} rules in one file", "a rule may list values and bounds"
            self.fault(spot / "tables", what, f"at most {MAX_OWN_RULES}", hint, key=True)
            return
        if not own:
            self.methods.update(as_map(data.get("methods")))
        self.add_sources(document)
        if own:
            self.add_inputs(document)
        for table_id, entries in tables.items():
            of_table = spot / "tables" / table_id
            if self.known(of_table, "table", table_id, self.tables, key=True):
                self.add_rules(of_table, entries, table_id, layer, namespace=layer)
        for index, entry in enumerate(as_list(data.get("conflicts"))):
            place = spot / "conflicts" / index
            if own:
                self.check(place, CONFLICT)
            self.conflicts.append((place, _conflict(as_map(entry))))
        if own:
            self.add_disabled(document)

    def known_conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts of all files; a fault for each rule or source that nobody has."""
        for spot, conflict in self.conflicts:
            for i, rule in enumerate(conflict.rules):
                self.known(spot / "rules" / i, "rule", rule, self.rules)
            for i, source in enumerate(conflict.sources):
                self.known(spot / "sources" / i, "source", source, self.sources)
        return tuple(conflict for _, conflict in self.conflicts)

    def add_sources(self, document: Document) -> None:
        for source_id, entry in as_map(as_map(document.data).get("sources")).items():
            spot = Spot(document) / "sources" / source_id
            if source_id in self.sources:
                what = f"source '{source_id}' exists already"
                self.fault(spot, what, hint="give yours another name", key=True)
            elif not check_shape(document, SOURCE, spot.path):
                self.sources[source_id] = source_from(entry)

    def add_rules(
        self, spot: Spot, entries: Any, table_id: str, layer: str, *, namespace: str
    ) -> None:
        for index, entry in enumerate(as_list(entries)):
            rule = self.rule(spot / index, entry, self.tables[table_id], layer)
            if rule is None:
                continue
            place = spot / index / "id"
            if not rule.id.startswith(f"{namespace}/"):
                allowed = f"ids of this file start with '{namespace}/'"
                self.fault(place, f"rule id '{rule.id}'", allowed)
            if rule.id in self.rules:
                what = f"rule id '{rule.id}' is used twice (first at {self.rules[rule.id].at})"
                self.fault(place, what, hint="to change a rule: disable it and write your own")
            self.rules[rule.id] = rule

    # ----------------------------------------------------------------------- files of one's own

    def overlay_name(self, document: Document, path: Path, taken: tuple[str, ...]) -> str:
        name = as_map(document.data).get("overlay") or path.stem
        if "overlay" not in as_map(document.data):
            named = NamedValue(f"{document.at()}: the file's name", name)
            for fault in check_shape(named, LAYER_NAME):
                self.add(replace(fault, hint="add a line such as `overlay: your-team`"))
        if name in taken or any(name == axis.partition("/")[2] for axis in self.axes):
            hint = "give the file a name of its own: `overlay: your-team`"
            self.fault(Spot(document) / "overlay", f"the name '{name}' is taken", hint=hint)
        return str(name)

    def add_inputs(self, document: Document) -> None:
        """`inputs`: facts that a table is to look at too, so that the file's own rules can."""
        for table_id, listed in as_map(as_map(document.data).get("inputs")).items():
            spot = Spot(document) / "inputs" / table_id
            if not self.known(spot, "table", table_id, self.tables, key=True):
                continue
            for i, name in enumerate(as_list(listed)):
                if not isinstance(name, str) or not self.known(spot / i, "fact", name, self.facts):
                    continue
                fact, table = self.facts[name], self.tables[table_id]
                made = fact.origin in ("concluded", "estimated", "method")
                if made or fact.type not in ("choice", "number", "flag"):
                    allowed = "choices, numbers and signals that are asked, probed or read"
                    self.fault(spot / i, f"'{name}' cannot be added to a table", allowed)
                elif name not in table.inputs:
                    self.tables[table_id] = replace(table, inputs=(*table.inputs, name))
            self._count_inputs(spot, self.tables[table_id])

    def _count_inputs(self, spot: Spot, table: DecisionTable) -> None:
        if len(table.inputs) > MAX_INPUTS:
            what = f"table '{table.id}' has {len(table.inputs)} inputs"
            self.fault(spot, what, f"at most {MAX_INPUTS}, so that it can be proved")

    def add_disabled(self, document: Document) -> None:
        for index, entry in enumerate(as_list(as_map(document.data).get("disable"))):
            spot = Spot(document) / "disable" / index / "rule"
            rule, because = as_map(entry).get("rule"), as_map(entry).get("because")
            if isinstance(rule, str) and self.known(spot, "rule", rule, self.rules):
                self.disabled[rule] = " ".join(str(because).split())
                self.disabled_at[rule] = spot.at()

    def add_facts(self, document: Document) -> None:
        """Add a file's own signals and values of questions; checks the shape of the file."""
        before = len(self.faults)
        self.check(Spot(document), OWN_FILE)
        added = as_map(as_map(document.data).get("facts"))
        for fact_id, entry in added.items():
            spot = Spot(document) / "facts" / fact_id
            if fact_id in self.facts:
                allowed = "a file may add facts, never change one"
                self.fault(spot, f"fact '{fact_id}' exists already", allowed, key=True)
            for name, values in as_map(as_map(entry).get("ask_when")).items():
                self.condition(spot / "ask_when" / name, name, values, None)
        if len(self.faults) == before and added:
            self.facts = dict(facts_of(document, self.facts))
        for fact_id, values in as_map(as_map(document.data).get("values")).items():
            self._add_values(Spot(document) / "values" / fact_id, fact_id, as_map(values))

    def _add_values(self, spot: Spot, fact_id: str, values: Mapping[str, Any]) -> None:
        if not self.known(spot, "fact", fact_id, self.facts, key=True):
            return
        fact = self.facts[fact_id]
        if fact.type != "choice" or fact.origin != "asked":
            allowed = "questions with a list of answers do: task, serve_with, priority, ..."
            self.fault(spot, f"'{fact_id}' takes no further values", allowed, key=True)
            return
        for value, entry in values.items():
            if value in fact.values:
                what = f"'{fact_id}' has the value '{value}' already"
                self.fault(spot / value, what, "a name that is not taken", key=True)
            said = as_map(entry)
            texts = {key: str(said.get(key, "")) for key in ("help", "short", "such_as")}
            made = Value(label=str(said.get("label")), **texts)
            fact = replace(fact, values={**fact.values, value: made})
        self.facts[fact_id] = fact


def _see_inputs(tables: dict[str, DecisionTable], facts: Mapping[str, Fact]) -> None:
    """Say what the judge looks at; a table that ranks schemes sees what the one that is asked for
    each of them looks at.
    """
    for table in list(tables.values()):
        tables[table.id] = replace(table, seen=seen_inputs(table, facts))
    for asked in [table for table in tables.values() if table.per]:
        for table in list(tables.values()):
            if table.concludes == asked.concludes and not table.per:
                seen = dict.fromkeys((*table.seen, *asked.seen))
                seen.pop(asked.concludes, None)
                tables[table.id] = replace(table, seen=tuple(seen), asks=asked.id)


def _conflict(entry: Mapping[str, Any]) -> Conflict:
    return Conflict(
        id=str(entry.get("id", "")),
        rules=tuple(as_list(entry.get("rules"))),
        says=" ".join(str(entry.get("says", "")).split()),
        sources=tuple(as_list(entry.get("sources"))),
    )


def method_files(root: Path, axis: str) -> list[Path]:
    """The files of the methods, the project's own first."""
    folders = [root / axis]
    if root == rules_dir():
        folders += [other / "rules" / axis for other in method_roots()[1:]]
    return [path for folder in folders for path in sorted(folder.glob("*.yaml"))]


def read_rules(layers: tuple[str, ...], overlays: tuple[Path, ...], root: Path) -> Ruleset:
    """The merged rule set of these layers and overlays. Raises InputError with every fault."""
    digest = hashlib.sha256()

    def read(path: Path, *, shipped: bool = True, shape: Shape | None = None) -> Document:
        document = read_shipped(path, root=root, shape=shape) if shipped else read_yaml(path)
        digest.update(path.name.encode() + b"\0" + bytes_of(path))
        return document

    extra: list[tuple[Path, Document]] = []
    unreadable: list[Fault] = []
    for path in overlays:
        try:
            extra.append((path, read(path, shipped=False)))
        except InputError as error:
            unreadable += error.faults
    refuse(unreadable)
    facts_document = read(root / "facts.yaml", shape=FACTS_FILE)
    facts = facts_of(facts_document)
    for fact in [fact for fact in facts.values() if fact.per]:
        facts = {**facts, **instances(fact)}
    loader = _Loader(facts)
    for _, document in extra:
        loader.add_facts(document)
    assume, refused = (loader.assumptions(facts_document, key) for key in ("assume", "refuse"))
    loader.add_tables(read(root / "tables.yaml", shape=TABLES_FILE))
    loader.add_sources(read(root / "sources.yaml", shape=SOURCES_FILE))
    for path in sorted((root / "keys").glob("*.yaml")):
        read(path, shape=SHARED_KEYS_FILE)  # the methods have read them; the digest names them, too
    for axis in ("updates", "objectives"):
        for path in method_files(root, axis):
            loader.add_axis(read(path, shipped=path.is_relative_to(root)), axis)
    for layer in ("base", *layers):
        for path in sorted((root / layer).glob("*.yaml")):
            loader.add_layer_file(read(path, shape=LAYER_FILE), layer)
    names: list[str] = []
    for path, document in extra:
        name = loader.overlay_name(document, path, ("base", *SHIPPED_LAYERS, *names))
        names.append(name)
        loader.add_layer_file(document, name, own=True)
    conflicts = loader.known_conflicts()
    refuse(loader.faults)
    active: dict[str, list[Rule]] = {table: [] for table in loader.tables}
    inactive = []
    for rule in loader.rules.values():
        if rule.status == "active" and rule.id not in loader.disabled:
            active[rule.table].append(rule)
        else:
            inactive.append(rule)
    _see_inputs(loader.tables, loader.facts)
    return Ruleset(
        facts=loader.facts, tables=loader.tables, tiers=loader.tiers, layers=(*layers, *names),
        rules={table: tuple(rules) for table, rules in active.items()},
        disabled=loader.disabled, sources=loader.sources, methods=loader.methods,
        digest=digest.hexdigest()[:16], axes=loader.axes, assume=assume,
        refuse=refused,
        inactive=tuple(inactive), disabled_at=loader.disabled_at, overlays=tuple(names),
        facts_document=facts_document, conflicts=conflicts,
    )  # fmt: skip
