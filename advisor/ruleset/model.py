"""Rules, tables and rule sets as values. The format is described in rules/README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from advisor.ground.types import Source
from advisor.ground.yaml_files import Document, Spot
from advisor.ruleset.facts import UNKNOWN, Fact

KINDS = ("forbid", "recommend", "set", "warn")
CONFIDENCES = ("document", "study", "vendor-doc", "practice", "judgement")
STATUSES = ("draft", "active", "expired")
SHIPPED_LAYERS = ("document", "evidence")


class Interval(Struct, frozen=True):
    """Numbers from `low` to `high`; None is open."""

    low: int | float | None = None  # as the file has it: 2 is not 2.0 to a reader
    low_included: bool = True
    high: int | float | None = None
    high_included: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or value > self.low or (self.low_included and value == self.low)
        return above and (
            self.high is None or value < self.high or (self.high_included and value == self.high)
        )


class Condition(Struct, frozen=True, kw_only=True):
    """One line of a `when`: the fact has one of these values or lies in an interval."""

    fact: str
    values: frozenset[Any] = frozenset()
    intervals: tuple[Interval, ...] = ()
    unknown: bool = False  # also holds where the fact is not known
    text: str = ""  # as a person reads it: "budget is low", "rows at least 2"
    named: str = ""  # the fact as the rule names it, where that is another one (judge.py)

    def holds(self, value: Any) -> bool:
        """Whether a fact's value satisfies the condition; None and 'unknown' mean not known."""
        if value is None or value == UNKNOWN:
            return self.unknown
        if self.intervals and isinstance(value, int | float) and not isinstance(value, bool):
            return any(value in interval for interval in self.intervals)
        return value in self.values


class Rule(Struct, frozen=True, kw_only=True):
    """One rule: conditions joined by AND, what follows, and the reason with its sources."""

    id: str
    table: str
    kind: str  # forbid | recommend | set | warn
    layer: str
    when: tuple[Condition, ...]
    then: Mapping[str, Any]
    because: str
    sources: tuple[str, ...]
    tier: str = ""
    row: str = ""  # the guide's row, word for word, for rules of the document layer
    confidence: str = "judgement"
    status: str = "active"
    review_by: str = ""
    refines: str = ""  # the document row a rule of the evidence layer refines
    unless_note: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()
    scenarios: tuple[Mapping[str, Any], ...] = ()  # as the file has them (advice/linting.py)
    candidate: str = ""  # the scheme that a rule of the table `allowed` was spread to
    # Where it stands: text is made of it only where somebody asks, since finding it takes time.
    spot: Spot | None = None

    @property
    def at(self) -> str:
        """file:line:column of its id."""
        return "" if self.spot is None else (self.spot / "id").at()

    def at_key(self, key: str) -> str:
        """The same of another of its keys."""
        return "" if self.spot is None else (self.spot / key).at(key=True)

    def first_failing(self, facts: Mapping[str, Any]) -> Condition | None:
        """The first condition that does not hold, or None where the rule fires."""
        return next((one for one in self.when if not one.holds(facts.get(one.fact))), None)


class Conflict(Struct, frozen=True, kw_only=True):
    """What experts say against some rules. Told with an answer that any of them decided."""

    id: str
    rules: tuple[str, ...]
    says: str
    sources: tuple[str, ...]


class Assumption(Struct, frozen=True, kw_only=True):
    """A combination of facts that cannot occur: an axiom of the proof."""

    id: str
    never: tuple[Condition, ...]  # joined by AND
    because: str = ""

    def is_broken_by(self, facts: Mapping[str, Any]) -> bool:
        """Whether these facts hold together what cannot."""
        return all(condition.holds(facts.get(condition.fact)) for condition in self.never)


class DecisionTable(Struct, frozen=True, kw_only=True):
    """One decision step: the facts it may look at and the fact it concludes."""

    id: str
    concludes: str
    inputs: tuple[str, ...]  # as rules name them
    about: str
    spot: Spot | None = None
    per: str = ""  # "scheme": asked for each scheme; its rules forbid that scheme
    seen: tuple[str, ...] = ()  # the inputs as the judge sees them (judge.py)
    asks: str = ""  # the table that is asked for each scheme before this one ranks them

    @property
    def at(self) -> str:
        """File, line and column."""
        return "" if self.spot is None else self.spot.at(key=True)


class Ruleset(Struct, frozen=True, kw_only=True, eq=False):
    """Every table with its rules, merged over the layers and ready to judge."""

    facts: Mapping[str, Fact]
    tables: Mapping[str, DecisionTable]
    tiers: Mapping[str, int]
    layers: tuple[str, ...]  # in order; a later one wins
    rules: Mapping[str, tuple[Rule, ...]]  # table id -> active rules
    disabled: Mapping[str, str]  # rule id -> the reason its overlay gave
    sources: Mapping[str, Source]
    methods: Mapping[str, Mapping[str, Any]]  # the guide's comparison table
    digest: str
    # "updates/lora" -> what it is, its keys
    axes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assume: tuple[Assumption, ...] = ()
    refuse: tuple[Assumption, ...] = ()  # the same of what a person states, no axiom of the proof
    inactive: tuple[Rule, ...] = ()  # drafts, expired and disabled: read, listed, never judged
    # Rule id -> where an overlay switches it off.
    disabled_at: Mapping[str, str] = field(default_factory=dict)
    overlays: tuple[str, ...] = ()  # the layers that came from files of the user
    conflicts: tuple[Conflict, ...] = ()
    facts_document: Document | None = None  # rules/facts.yaml

    def fact_at(self, fact_id: str) -> str:
        """Where a fact is declared; empty for one of a file of the user's own."""
        document = self.facts_document
        if document is None or fact_id not in document.data["facts"]:
            return ""
        return document.at(("facts", fact_id), key=True)

    def contradictions(self, facts: Mapping[str, Any]) -> list[Assumption]:
        """The assumptions that these facts break."""
        return [found for found in self.assume if found.is_broken_by(facts)]

    def rule(self, rule_id: str) -> Rule | None:
        """The active rule of that id."""
        return next(
            (rule for rules in self.rules.values() for rule in rules if rule.id == rule_id), None
        )
