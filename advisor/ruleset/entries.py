"""One rule, condition or assumption out of a YAML document.

Every fault is located, and none stops the reading of the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from msgspec.structs import replace

from advisor.ground.errors import Fault, InputError, did_you_mean, unknown_name
from advisor.ground.shape import (
    Choice,
    Date,
    Flag,
    Keys,
    ListOf,
    MapOf,
    Shape,
    Text,
    check_shape,
    value_words,
)
from advisor.ground.types import Source
from advisor.ground.yaml_files import Document, Spot
from advisor.methods import schemes
from advisor.ruleset.facts import UNKNOWN, Fact
from advisor.ruleset.judge import instance, spread_given, with_methods
from advisor.ruleset.model import (
    CONFIDENCES,
    KINDS,
    STATUSES,
    Assumption,
    Condition,
    DecisionTable,
    Interval,
    Rule,
)

MAX_FAULTS = 100  # of one rule set: nobody reads more, and looking for the nearest names takes time
BOUNDS = {"gt": "over", "gte": "at least", "lt": "under", "lte": "at most"}
ANY = Shape()  # names of facts and their values: what they may be depends on the facts
EXAMPLE = Keys(
    keys={"given": MapOf(of=ANY, named=ANY, help="fact -> value"), "fires": Flag()},
    required=("given", "fires"),
)
_CHANGED = MapOf(of=Shape(), help="fact -> value; null or unknown takes a fact away")
OWN_SCENARIO = Keys(
    keys={
        "id": Text(help="of a rule's own: left out, it is the rule's"),
        "given": MapOf(of=Shape(), help="fact -> value; with `objective`, those of one stage"),
        "composition": Text(help="what is to be recommended: rag & sft+lora"),
        "fired": ListOf(of=Text(), help="rules that have to decide"),
        "why_not": MapOf(of=Text(), help="scheme or chain -> the rule that the answer names"),
        "whatif": ListOf(
            of=Keys(
                keys={"change": _CHANGED, "composition": Text()}, required=("change", "composition")
            )
        ),
        "settings": MapOf(of=Shape(), help="all settings of the stage"),
        "warned": ListOf(of=Text(), help="rules that have to warn"),
        "why": Text(help="whose experience, or which text it comes from; default: the rules'"),
    },
    required=("given",),
)
SCENARIO = replace(OWN_SCENARIO, required=("id", *OWN_SCENARIO.required))
RULE = Keys(
    keys={
        "id": Text(
            pattern=r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+",
            such_as="your-team/no-full, of letters, digits, '-', '_' and '.'",
            help="namespace/name; the namespace is the file's own, and an id is never used again",
        ),
        "kind": Choice(values=KINDS),
        "tier": Text(help="a higher tier wins inside a layer"),
        "when": MapOf(of=ANY, named=ANY, help="a map from fact to value; {} holds always"),
        "then": MapOf(of=ANY, named=ANY, least=1, help="what it concludes, sets or says"),
        "because": Text(help="one sentence, printed to whoever asks why"),
        "row": Text(help="the guide's row, word for word"),
        "unless_note": Text(help="the honest other side"),
        "sources": ListOf(
            of=Text(), least=1, help="ids of rules/sources.yaml, or of this file's own `sources`"
        ),
        "confidence": Choice(values=CONFIDENCES),
        "status": Choice(values=STATUSES),
        "review_by": Date(),
        "refines": Text(help="the row of the guide that this rule refines"),
        "examples": ListOf(of=EXAMPLE, help="where it fires, and where it does not"),
        "scenarios": ListOf(of=OWN_SCENARIO, help="situations that it decides"),
    },
    required=("id", "when", "because", "sources"),
)
PLAIN = (str, int, float, bool)
ANY_TABLE = DecisionTable(id="", concludes="", inputs=(), about="")  # every fact counts


class Reader:
    """Reads entries against the facts, tables, tiers and sources known so far."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        self.facts = dict(facts)
        self.tables: dict[str, DecisionTable] = {}
        self.tiers: dict[str, int] = {}
        self.sources: dict[str, Source] = {}
        self.faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)
        if len(self.faults) >= MAX_FAULTS:
            raise InputError(
                faults=[*self.faults, Fault(what=f"reading stopped after {MAX_FAULTS} faults")]
            )

    def fault(
        self, spot: Spot, what: str, allowed: str = "", hint: str = "", *, key: bool = False
    ) -> None:
        self.add(Fault(where=spot.at(key=key), what=what, allowed=allowed, hint=hint))

    def known(
        self, spot: Spot, kind: str, name: Any, names: Collection[str], *, key: bool = False
    ) -> bool:
        """Whether a name is one of a closed list; if not, a fault with the nearest one is added."""
        if isinstance(name, str) and name in names:
            return True
        if isinstance(name, str):
            self.add(unknown_name(kind, name, list(names), at=spot.at(key=key)))
        else:
            what, allowed = f"a {kind} is a text, not {value_words(name)}", ", ".join(sorted(names))
            self.fault(spot, what, f"known: {allowed}", key=key)
        return False

    def check(self, spot: Spot, shape: Shape) -> None:
        """Add every fault of the shape that a file, or a part of it, should have."""
        for fault in check_shape(spot.document, shape, spot.path):
            self.add(fault)

    # ----------------------------------------------------------------------- rules

    def rule(self, spot: Spot, entry: Any, table: DecisionTable, layer: str) -> Rule | None:
        """The rule of one entry, or None with faults."""
        before = len(self.faults)
        # Settings are a method's own (methods/).
        if not spot.document.checked or spot.path[0] != "tables":
            self.check(spot, RULE)
        if not isinstance(entry, dict):
            return None
        usual = "set" if table.id == "settings" else "forbid" if table.per else "recommend"
        kind = entry.get("kind", usual)
        if table.per and kind != "forbid" and kind in KINDS:
            self.fault(
                spot / "kind",
                f"table '{table.id}' rules schemes out",
                "kind: forbid (or left out)",
                f"a {kind} rule belongs to a table that is not asked for each scheme",
            )
        if kind == "recommend" and isinstance(entry.get("tier", ""), str):
            self.known(spot / "tier", "tier", entry.get("tier", ""), self.tiers)
        elif "tier" in entry and kind in KINDS:
            what, allowed = f"a {kind} rule has no tier", "tiers order what is recommended"
            self.fault(spot / "tier", what, allowed, key=True)
        when = as_map(entry.get("when"))
        then = self.then(spot / "then", entry.get("then"), kind, table)
        named = then.get(table.concludes)
        own = named if isinstance(named, str) else ""
        conditions = [
            condition
            for fact, value in when.items()
            for condition in self.conditions(spot / "when" / fact, fact, value, table, own)
        ]
        for i, source in enumerate(as_list(entry.get("sources"))):
            if isinstance(source, str):
                self.known(spot / "sources" / i, "source", source, self.sources)
        examples = self.examples(spot / "examples", entry.get("examples"), own)
        if len(self.faults) > before:
            return None
        texts = ("id", "because", "row", "unless_note", "refines")
        return Rule(
            **{name: " ".join(entry.get(name, "").split()) for name in texts},
            **{
                name: entry[name] for name in ("confidence", "status", "review_by") if name in entry
            },
            table=table.id,
            kind=kind,
            layer=layer,
            tier=entry.get("tier", ""),
            when=tuple(conditions if table.per else with_methods(conditions, self.facts)),
            then=then,
            sources=tuple(entry["sources"]),
            examples=examples,
            scenarios=tuple(entry.get("scenarios", ())),
            spot=spot,
        )

    def examples(self, spot: Spot, listed: Any, own: str = "") -> tuple[Mapping[str, Any], ...]:
        """The rule's own tests: [{given: {fact: value}, fires: true}]."""
        given = [as_map(as_map(example).get("given")) for example in as_list(listed)]
        for i, stated in enumerate(given):
            for name, value in stated.items():
                place = spot / i / "given" / name
                per_scheme = name in self.facts and self.facts[name].per and isinstance(value, dict)
                for one in value.values() if per_scheme else (value,):
                    if isinstance(one, list | dict):
                        what = f"'{name}' has one value in an example, not {value_words(one)}"
                        self.fault(place, what)
                    else:  # whether the table looks at it: the linter says
                        self.condition(place, name, one, None)
        return tuple(
            {**as_map(example), "given": self.given(stated, own)}
            for example, stated in zip(as_list(listed), given, strict=True)
        )

    def given(self, given: Mapping[str, Any], own: str) -> Mapping[str, Any]:
        """The facts of an example as the judge sees them; a bare `fits` is the rule's own."""
        of_own = {
            name: {own: value}
            for name, value in given.items()
            if own and name in self.facts and self.facts[name].per and not isinstance(value, dict)
        }
        return spread_given({**given, **of_own}, self.facts)

    def conditions(
        self, spot: Spot, name: str, wanted: Any, table: DecisionTable, own: str
    ) -> list[Condition]:
        """One line of a `when`: several conditions if it is about several schemes."""
        fact = self.facts.get(name)
        if fact is None or not fact.per or table.per:
            found = self.condition(spot, name, wanted, table)
            return [found] if found else []
        if not isinstance(wanted, dict):
            if not own:
                such_as = wanted if isinstance(wanted, str) else "..."
                self.fault(spot, f"'{name}' of which scheme?", f"{name}: {{lora: {such_as}}}")
                return []
            wanted = {own: wanted}
        conditions = []
        for scheme, value in wanted.items():
            if self.known(spot / scheme, "scheme", scheme, list(schemes()), key=True):
                of_scheme = self.condition(spot / scheme, name, value, table)
                if of_scheme is not None:
                    text = of_scheme.text.replace(name, f"{name}_{scheme}", 1)
                    one = replace(of_scheme, fact=instance(fact, scheme), text=text)
                    conditions.append(one)
        return conditions

    def then(self, spot: Spot, then: Any, kind: Any, table: DecisionTable) -> Mapping[str, Any]:
        """What follows, checked for the rule's kind."""
        if table.per and kind == "forbid":
            if then is not None:
                self.fault(spot, "a rule of this table has no `then`: it rules its scheme out")
            return {}
        if then is None:
            self.fault(spot, "`then` is missing", "a map: what the rule concludes, sets or says")
        if not isinstance(then, dict) or not then:
            return {}
        if kind == "warn":
            texts = set(then) - {"done_by"} == {"say"} and all(
                isinstance(one, str) for one in then.values()
            )
            if not texts:
                self.fault(spot, "a warn rule has `then: {say: text}`")
        elif kind == "set":
            if table.id != "settings":
                what = f"a set rule belongs to the table 'settings', not to '{table.id}'"
                self.fault(spot, what)
            for name, value in then.items():
                inside = value.values() if isinstance(value, dict) else value
                parts = [value] if inside is value and not isinstance(value, list) else inside
                if value is not None and not all(isinstance(part, PLAIN) for part in parts):
                    allowed = "a number, a text, true, false, or a list or map of these"
                    self.fault(spot / name, f"'{name}' cannot be {value_words(value)}", allowed)
        elif kind in ("recommend", "forbid"):
            if set(then) != {table.concludes}:
                what = f"table '{table.id}' concludes '{table.concludes}'"
                self.fault(spot, what, f"write `then: {{{table.concludes}: value}}`")
                return then
            concludes, spot = table.concludes, spot / table.concludes
            named = then[concludes]
            several = kind == "forbid" and isinstance(named, list)
            if several and not named:
                self.fault(spot, "nothing is forbidden", "a value or a list of values")
            for value in named if several else [named]:
                self.known(spot, concludes, value, self.facts[concludes].values)
        return then

    # ----------------------------------------------------------------------- conditions

    def condition(
        self, spot: Spot, name: str, wanted: Any, table: DecisionTable | None
    ) -> Condition | None:
        """One line of a `when`. Without a table any fact may be named (assumptions)."""
        if not self.known(spot, "fact", name, self.facts, key=True):
            return None
        if (
            table is not None
            and table is not ANY_TABLE
            and not {name, self.facts[name].instance_of} & set(table.inputs)
        ):
            hint = (
                f"a file of your own may add it: `inputs: {{{table.id}: [{name}]}}`"
                if self.facts[name].origin != "concluded"
                else ""
            )
            what = f"table '{table.id}' does not look at '{name}'"
            self.fault(spot, what, f"its inputs: {', '.join(table.inputs)}", hint, key=True)
            return None
        fact = self.facts[name]
        values: set[Any] = set()
        intervals: list[Interval] = []
        unknown = False
        words: list[str] = []
        parts = wanted if isinstance(wanted, list) else [wanted]
        parts = [one for part in parts for one in self._all_but(spot, fact, part)]
        if not parts:
            what = f"the list of '{name}' is empty, so the rule never fires"
            self.fault(spot, what, "a value or a list of values; left out: any")
        for part in parts:
            if part == UNKNOWN:
                unknown = True
                words.append("not known")
            elif fact.type == "number" and _is_bounds(part):
                intervals.append(
                    Interval(
                        low=part.get("gte", part.get("gt")),
                        low_included="gte" in part,
                        high=part.get("lte", part.get("lt")),
                        high_included="lte" in part,
                    )
                )
                words.append(
                    " and ".join(f"{BOUNDS[bound]} {number:,}" for bound, number in part.items())
                )
            elif fact.type == "number" and _is_number(part):
                intervals.append(
                    Interval(low=part, low_included=True, high=part, high_included=True)
                )
                words.append(f"{part:,}")
            elif (fact.type == "flag" and isinstance(part, bool)) or (
                fact.type == "choice" and isinstance(part, str) and part in fact.values
            ):
                values.add(part)
                words.append(
                    {True: "stated", False: "denied"}[part] if isinstance(part, bool) else str(part)
                )
            else:
                allowed = {
                    "number": (
                        "a number, {gte: N}, {gt: N}, {lte: N}, {lt: N}, unknown, or a list of"
                        " these"
                    ),
                    "flag": "true, false or unknown",
                    "choice": f"{', '.join(map(str, fact.values))}, unknown, or a list of these",
                }.get(fact.type, "rules look at choices, numbers and signals only")
                what = f"'{name}' cannot be {value_words(part)}"
                near = did_you_mean(part, map(str, fact.values)) if isinstance(part, str) else ""
                self.fault(spot, what, f"allowed: {allowed}", near)
        return Condition(
            fact=name,
            values=frozenset(values),
            intervals=tuple(intervals),
            unknown=unknown,
            text=f"{name} is {' or '.join(words)}",
        )

    def _all_but(self, spot: Spot, fact: Fact, part: Any) -> list[Any]:
        """The values that `{not: [...]}` stands for; any other part of a condition as it is."""
        if fact.type != "choice" or not isinstance(part, dict) or set(part) != {"not"}:
            return [part]
        named = part["not"] if isinstance(part["not"], list) else [part["not"]]
        for value in named:
            self.known(spot / "not", f"value of '{fact.id}'", value, fact.values)
        return [value for value in fact.values if value not in (*named, UNKNOWN)]

    def assumptions(self, document: Document, key: str) -> tuple[Assumption, ...]:
        """The list `assume` or `refuse` of rules/facts.yaml: combinations that cannot occur."""
        found = []
        for i, entry in enumerate(document.data.get(key, ())):
            spot = Spot(document, (key, i))
            never = [
                condition
                for name, value in entry["never"].items()
                for condition in self.conditions(spot / "never" / name, name, value, ANY_TABLE, "")
            ]
            found.append(
                Assumption(id=entry["id"], never=tuple(never), because=entry.get("because", ""))
            )
        return tuple(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_bounds(part: Any) -> bool:
    """{gte: 1, lt: 5}: known bounds with numbers, one a side."""
    return (
        isinstance(part, dict)
        and len(part) > 0
        and set(part) <= set(BOUNDS)
        and all(map(_is_number, part.values()))
        and not {"gt", "gte"} <= set(part)
        and not {"lt", "lte"} <= set(part)
    )


def as_map(value: Any) -> Mapping[str, Any]:
    """A map of a file, or an empty one: what is none has been told by its shape."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """A list of a file, or an empty one: what is none has been told by its shape."""
    return value if isinstance(value, list) else []
