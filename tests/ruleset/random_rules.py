"""Random small rule sets, read plainly by enumerating every situation, and files mistyped."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import hypothesis
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.ground.yaml_files import Document, Spot
from advisor.methods import schemes, update
from advisor.methods.model import SERVERS
from advisor.ruleset.facts import Fact, Value
from advisor.ruleset.model import Assumption, Condition, DecisionTable, Interval, Rule, Ruleset

OUTCOMES = ("red", "green", "blue")
LAYERS = ("base", "document", "acme")
TIERS = {"low": 0, "high": 10}
KEYS = ("rank", "rate")


def choice(fact_id: str, *values: str, origin: str = "asked", required: bool = False) -> Fact:
    listed = {value: Value(label=value, help="") for value in values}
    return Fact(id=fact_id, type="choice", origin=origin, values=listed, required=required)


FACTS = {
    fact.id: fact
    for fact in (
        choice("task", "a", "b", "c", required=True),
        choice("kind", "x", "y"),
        Fact(id="stated", type="flag", origin="asked", signal=True),
        Fact(id="rows", type="number", origin="asked", integer=True, min=0),
        Fact(id="size", type="number", origin="model"),
        choice("earlier", "p", "q", origin="concluded"),
        choice("colour", *OUTCOMES, origin="concluded"),
    )
}
INPUTS = ("task", "kind", "stated", "rows", "size", "earlier")
TABLE = DecisionTable(
    id="colours", concludes="colour", inputs=INPUTS, seen=INPUTS, about="a colour"
)


@st.composite
def conditions(draw: Any, fact_id: str) -> Condition:
    fact, unknown = FACTS[fact_id], draw(st.booleans())
    if fact.type == "number":
        numbers = st.integers(-1, 4) if fact.integer else st.sampled_from([0, 0.5, 1])
        intervals = []
        for _ in range(draw(st.integers(0 if unknown else 1, 2))):
            low, high = draw(st.one_of(st.none(), numbers)), draw(st.one_of(st.none(), numbers))
            included = [draw(st.booleans()) for _ in range(2)]
            intervals.append(
                Interval(low=low, low_included=included[0], high=high, high_included=included[1])
            )
        held: dict[str, Any] = {"intervals": tuple(intervals)}
    else:
        values = (True, False) if fact.type == "flag" else tuple(fact.values)
        held = {"values": draw(st.frozensets(st.sampled_from(values), min_size=not unknown))}
    return Condition(fact=fact_id, unknown=unknown, text=f"{fact_id} ...", **held)


@st.composite
def whens(draw: Any, most: int = 3) -> tuple[Condition, ...]:
    names = draw(st.lists(st.sampled_from(INPUTS), unique=True, max_size=most))
    return tuple(draw(conditions(name)) for name in names)


@st.composite
def rules(draw: Any, number: int) -> Rule:
    kind = draw(st.sampled_from(["recommend", "recommend", "recommend", "forbid", "set", "warn"]))
    outcome = draw(st.sampled_from(OUTCOMES))
    several = st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=2, unique=True)
    keys = st.lists(st.sampled_from(KEYS), min_size=1, unique=True)
    then: Mapping[str, Any] = {
        "recommend": {"colour": outcome},
        "forbid": {"colour": draw(st.one_of(st.just(outcome), several))},
        "set": {key: draw(st.integers(1, 2)) for key in draw(keys)},
        "warn": {"say": "mind the paint"},
    }[kind]
    layer, tier = draw(st.sampled_from(LAYERS)), draw(st.sampled_from(list(TIERS)))
    rule_id = f"{layer}/r{number}"
    return coloured(rule_id, "", *draw(whens()), kind=kind, tier=tier, layer=layer, then=then)


@st.composite
def rulesets(draw: Any, assume: bool = True) -> Ruleset:
    several = tuple(draw(rules(number)) for number in range(draw(st.integers(1, 6))))
    assumed = draw(st.lists(whens(most=2).filter(bool), max_size=1)) if assume else []
    ruleset = made(
        several, tuple(Assumption(id=f"a{i}", never=never) for i, never in enumerate(assumed))
    )
    hypothesis.assume(
        any(True for _ in situations(ruleset))
    )  # assumptions that rule out everything say nothing
    return ruleset


def made(several: tuple[Rule, ...], assume: tuple[Assumption, ...] = ()) -> Ruleset:
    return Ruleset(
        facts=FACTS, tables={"colours": TABLE}, tiers=TIERS, layers=LAYERS[1:],
        rules={"colours": several}, disabled={}, sources={}, methods={}, digest="", assume=assume
    )  # fmt: skip


def coloured(
    rule_id: str, outcome: str = "red", *when: Condition, kind: str = "recommend",
    tier: str = "low", layer: str = "document", then: Mapping[str, Any] | None = None,
) -> Rule:  # fmt: skip
    return Rule(
        id=rule_id, table="colours", kind=kind, layer=layer, when=when,
        then=then or {"colour": outcome}, tier=tier if kind == "recommend" else "",
        because=f"reason of {rule_id}", sources=(), spot=Spot(Document(rule_id, lambda: None)),
    )  # fmt: skip


def with_rules(ruleset: Ruleset, several: tuple[Rule, ...]) -> Ruleset:
    return replace(ruleset, rules={"colours": several})


# --------------------------------------------------------------------------- the plain reading


def situations(ruleset: Ruleset) -> Iterator[dict[str, Any]]:
    """Every situation that can occur, numbers on a grid finer than any threshold."""
    values = {
        "task": ("a", "b", "c"), "kind": (None, "x", "y"), "stated": (None, True, False),
        "rows": (None, 0, 1, 2, 3, 4, 5),
        "size": (None, -9.0, 0, 0.2, 0.5, 0.7, 1, 9.0), "earlier": ("p", "q"),
    }  # fmt: skip
    named = {condition.fact for rule in ruleset.rules["colours"] for condition in rule.when} | {
        c.fact for a in ruleset.assume for c in a.never
    }
    order = [fact for fact in INPUTS if fact in named]
    for combination in itertools.product(*(values[fact] for fact in order)):
        facts = {
            fact: value for fact, value in zip(order, combination, strict=True) if value is not None
        }
        if not any(
            all(condition.holds(facts.get(condition.fact)) for condition in assumption.never)
            for assumption in ruleset.assume
        ):
            yield facts


def firing(ruleset: Ruleset, facts: Mapping[str, Any], table: str = "colours") -> list[Rule]:
    return [
        rule
        for rule in ruleset.rules[table]
        if all(condition.holds(facts.get(condition.fact)) for condition in rule.when)
    ]


class Plain:
    """One situation, read plainly: latest layer, highest tier, smallest id, less what is forbidden."""

    def __init__(self, ruleset: Ruleset, facts: Mapping[str, Any], table: str = "colours") -> None:
        concluded, layers = ruleset.tables[table].concludes, ["base", *ruleset.layers]
        self.fired = firing(ruleset, facts, table)
        forbidden = [rule.then[concluded] for rule in self.fired if rule.kind == "forbid"]
        self.forbidden = {
            outcome for one in forbidden for outcome in (one if isinstance(one, list) else [one])
        }
        recommending = sorted(
            (rule for rule in self.fired if rule.kind == "recommend"),
            key=lambda rule: (-layers.index(rule.layer), -ruleset.tiers[rule.tier], rule.id),
        )
        self.alive = [rule for rule in recommending if rule.then[concluded] not in self.forbidden]
        self.ranking = list(dict.fromkeys(rule.then[concluded] for rule in self.alive))
        self.wanted = list(dict.fromkeys(rule.then[concluded] for rule in recommending))
        self.winner = self.alive[0] if self.alive else None
        self.ties = [
            r
            for r in self.alive
            if self.winner
            and (r.layer, r.tier) == (self.winner.layer, self.winner.tier)
            and r.then != self.winner.then
        ]
        self.setting_rules: dict[str, list[Rule]] = {}
        for key in KEYS:
            setting = [rule for rule in self.fired if rule.kind == "set" and key in rule.then]
            latest = max((layers.index(rule.layer) for rule in setting), default=None)
            if latest is not None:
                self.setting_rules[key] = [
                    rule for rule in setting if layers.index(rule.layer) == latest
                ]
        self.settings = {
            key: {rule.then[key] for rule in rules} for key, rules in self.setting_rules.items()
        }


def ruled_out(rules: Iterable[Rule], scheme: str, facts: Mapping[str, Any]) -> bool:
    """Whether one of these rules of `allowed` holds for the scheme, with what is known of it there."""
    method, server = update(schemes()[scheme].update), facts.get("serve_with")
    told = {
        **facts,
        "scheme": scheme,
        "fits": facts.get(f"fits_{scheme}"),
        "update_trains": method.trains,
        "loads_there": server in method.serves if server in SERVERS else None,
    }
    return any(rule.first_failing(told) is None for rule in rules)


# --------------------------------------------------------------------------- files

ODD = ["[]", "{}", "null", "true", "no", "on", "-1", "1e999", "0x" + "f" * 30, "'x'", "[[1]]",
       "{a: {b: 1}}", "!!set {a}", "&a b", "*a", "2026-11-25", '"\\0"', "{gte: x}", "{gte: true}",
       "{gt: 1, gte: 2}", "~", "|", "unknown", "[unknown, {}]", "{1: 2}", "? a", "'", "\t",
       "\u2028", "😀", "<<", "9" * 400]  # fmt: skip
TOKEN = re.compile(r"[\w./+-]+|\"[^\"]*\"|\[[^\[\]]*\]|\{[^{}]*\}")
LOST = ["token", "token", "token", "characters", "line", "double", "cut"]


@st.composite
def mangled(draw: Any, text: str) -> str:
    """The text with something replaced, lost or doubled in up to three places."""
    for kind in draw(st.lists(st.sampled_from(LOST), min_size=1, max_size=3)):
        at, lines, tokens = (
            draw(st.integers(0, len(text))),
            text.split("\n"),
            [*TOKEN.finditer(text)],
        )
        if kind == "token" and tokens:
            token = draw(st.sampled_from(tokens))
            text = text[: token.start()] + draw(st.sampled_from(ODD)) + text[token.end() :]
        elif kind == "characters":
            text = text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
        elif kind == "cut":
            text = text[:at]
        else:
            number = draw(st.integers(0, len(lines) - 1))
            lines[number : number + 1] = [lines[number]] * (2 * (kind == "double"))
            text = "\n".join(lines)
    return text
