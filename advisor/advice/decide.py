"""Facts -> Decision: the rule tables in their order, each concluding a fact that later ones see.

No estimates here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.advice.search.concessions import NO_CONCESSIONS, Concessions
from advisor.methods.composition import Composition, compose
from advisor.ruleset.judge import Judgement, judge
from advisor.ruleset.model import Rule, Ruleset

# The table that needs to know what fits, and the one asked stage by stage.
LAST, SETTINGS = "rank", "settings"
SMALLER_MODEL = "smaller_model"  # the scheme table's way out where no scheme fits
# what a gate's conclusion means in a composition: remedies, and whether training goes with them
REMEDIES_OF_GATE = {
    "train": ((), True),
    "rag": (("rag",), False),
    "rag_and_train": (("rag",), True),
    "prompting": (("prompting",), False),
    "prompting_and_rag": (("prompting", "rag"), False),
    "tool_use": (("tool_use",), False),
    "bigger_model": (("bigger_model",), False),
    "constrained_decoding": (("constrained_decoding",), False),
    "other_tool": (("other_tool",), False),
}
# Steps whose default says nothing a person has to hear, some of them in no layer.
UNSAID = {
    "knowledge_source": ("finetune",),
    "readiness": ("train",),
    "train_decision": ("train",),
    "adapters_per": ("model",),
    "particulars": ("none", "some"),
    "architecture": ("decoder",),
    "required_capacity": ("any",),
    "data_amount": ("uncounted", "too_few", "little", "enough", "plenty"),
}
NEVER_SAID = ("train_decision", "adapters_per", "data_amount")
GATE = "train_decision"  # joins what two others concluded
TO_REMEDY = ("knowledge_source", "readiness", GATE)


class Undecided(Exception):
    """A table that recommends nothing here: the linter refuses such rule sets."""

    def __init__(self, table: str) -> None:
        super().__init__(f"no rule of table '{table}' recommends anything")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the tables conclude, each with its judgement; `facts` grows from table to table."""

    facts: Mapping[str, Any]
    steps: Mapping[str, Judgement]
    composition: Composition
    # The winning rules that a person has to hear of, in the order of the steps.
    rules: tuple[Rule, ...]
    concessions: Concessions = NO_CONCESSIONS

    @property
    def trains(self) -> bool:
        return bool(self.composition.chain)

    @property
    def chain(self) -> str:
        """The concluded chain: 'sft>rm>ppo', 'encoder:sft'."""
        return str(self.facts["chain"])

    @property
    def per_task(self) -> bool:
        """Whether each task gets a module of its own."""
        return bool(self.facts["adapters_per"] == "task")

    @property
    def nothing_fits(self) -> bool:
        """Whether no scheme fits the hardware and the budget."""
        return SMALLER_MODEL in self.composition.remedies

    @property
    def fits(self) -> tuple[str, ...]:
        """What the rules saw of every scheme: fits, tight, too_big, ..."""
        return tuple(str(value) for fact, value in self.facts.items() if fact.startswith("fits_"))

    def candidate(self, scheme: str, remedies: tuple[str, ...] = ()) -> Composition:
        """The concluded chain with some scheme."""
        return compose(self.chain, scheme, per_task=self.per_task, remedies=remedies)


def conclude_early(ruleset: Ruleset, base: Mapping[str, Any]) -> Decision:
    """The steps that need no estimate: everything before the scheme."""
    facts, steps = dict(base), dict[str, Judgement]()
    for table in ruleset.tables.values():
        if table.id not in (LAST, SETTINGS) and not table.per:
            _conclude(ruleset, table.id, facts, steps)
    return Decision(facts=facts, steps=steps, composition=Composition(), rules=())


def conclude(ruleset: Ruleset, early: Decision, fits: Mapping[str, str]) -> Decision:
    """The scheme, and with it the composition, by what fits (scheme -> `fits_<scheme>`)."""
    facts = {**early.facts, **{f"fits_{scheme}": fit for scheme, fit in fits.items()}}
    steps = dict(early.steps)
    _conclude(ruleset, LAST, facts, steps)
    remedies, trains = REMEDIES_OF_GATE[str(facts["train_decision"])]
    rules = _rules_to_tell(steps, trains=trains)
    found = Decision(
        facts=facts, steps=steps, composition=Composition(remedies=remedies), rules=rules
    )
    if not trains:
        return found
    scheme = str(facts["scheme"])
    if scheme == SMALLER_MODEL:
        return replace(found, composition=Composition(remedies=(*remedies, SMALLER_MODEL)))
    return replace(found, composition=found.candidate(scheme, remedies))


def _conclude(
    ruleset: Ruleset, table: str, facts: dict[str, Any], steps: dict[str, Judgement]
) -> None:
    """Adds what a table concludes. Raises Undecided if it recommends nothing."""
    steps[table] = judge(ruleset, table, facts)
    if (winner := steps[table].winner) is None:
        raise Undecided(table)
    facts[ruleset.tables[table].concludes] = winner[0]


def decide(ruleset: Ruleset, facts: Mapping[str, Any]) -> Decision:
    """The whole decision on facts alone, `fits_*` among them."""
    fits = {
        fact_id.removeprefix("fits_"): str(value)
        for fact_id, value in facts.items()
        if fact_id.startswith("fits_")
    }
    return conclude(ruleset, conclude_early(ruleset, facts), fits)


def _rules_to_tell(steps: Mapping[str, Judgement], *, trains: bool) -> tuple[Rule, ...]:
    """The winning rules without those that go without saying; for a remedy what led to it."""
    found: list[Rule] = []
    for table, judgement in steps.items():
        if judgement.winner is None or not (trains or table in TO_REMEDY):
            continue
        outcome, rule = judgement.winner
        if table == GATE and not trains and steps.keys().isdisjoint(one.fact for one in rule.when):
            return (rule,)  # it joins nothing that other steps concluded
        usual = outcome in UNSAID.get(table, ())
        if not (usual and (rule.layer == "base" or table in NEVER_SAID)) and not (
            table == GATE and found
        ):
            found.append(rule)
    return tuple(found)
