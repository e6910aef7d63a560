"""Which questions are still worth asking: those of which some answer can still change what is
recommended.

Exact in every table, and never wrong in the direction that counts: a question left out cannot
change the composition, whatever is answered later and whatever the estimate will say. The tables
are gone through in their order. For each one the sets of rules that the open facts still let fire
are kept (equal sets once, as in ruleset/space.py), and with them what the table concludes under
each answer to the question side by side. What is concluded alike under every answer is not followed
further. Two tables that look at the same open fact are taken as independent, so that now and then a
question is asked that turns out to change nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce
from itertools import product
from operator import or_
from typing import Any

from advisor.advice.case import LAST, REMEDIES_OF_GATE, SMALLER_MODEL
from advisor.advice.search.settings import SETTINGS
from advisor.methods import schemes
from advisor.ruleset.decisions import Precedence, deciding
from advisor.ruleset.facts import UNKNOWN, read_from
from advisor.ruleset.judge import conditions_on, judged_rules
from advisor.ruleset.model import Ruleset
from advisor.ruleset.space import cells_of, letting_through

# Known only once something can be estimated.
FITS = tuple(f"fits_{scheme}" for scheme in schemes())
OVER_BUDGET = "over_budget"
# What the plan and its estimate need beside the composition: asked if training is still possible.
NEEDED_TO_TRAIN = ("data_path", "data_rows", "tasks", "n_tasks", "model", "gpu")
# Read by the plan if an answer that mattered by itself opened the question.
ASKED_BESIDE = ("reward_model", "teacher_model")
MADE_OF = ("train_decision", "chain", "adapters_per", "scheme")  # what a composition is made of
ALIKE = ("alike",)

Vector = tuple[Any, ...]  # what is concluded under each answer to the question, side by side
State = tuple[tuple[str, Vector], ...]  # the conclusions that still matter


def still_matters(
    ruleset: Ruleset, facts: Mapping[str, Any], fact_id: str, askable: Collection[str]
) -> bool:
    """Whether some answer to a question can still change the outcome.

    Args:
        facts: Fact id -> value, as far as it is known; what is neither here nor open stays unknown.
        fact_id: The question.
        askable: The questions that may still be answered, this one or not: their facts can take
            every value.
    """
    # Without a named model the budget has a say in which one is suggested, and so in what fits.
    needed = fact_id in (*NEEDED_TO_TRAIN, *ASKED_BESIDE) or (
        fact_id == "budget" and facts.get("params_b") is None
    )
    if needed and may_train(ruleset, facts, {*askable, fact_id}):
        return True
    opened = _open_facts(ruleset, facts, askable)
    # What a signal states besides may be so already, whatever is answered to the signal.
    tied = [name for name in ruleset.facts[fact_id].implied_by(True) if name in opened]
    return any(
        _differs(ruleset, {**facts, **dict(zip(tied, values, strict=True))}, fact_id, opened)
        for values in product((None, True, False), repeat=len(tied))
    )


def _differs(ruleset: Ruleset, facts: Mapping[str, Any], fact_id: str, opened: set[str]) -> bool:
    steps = _steps(ruleset)
    answers = _distinct(steps, facts, _answers(ruleset, facts, fact_id))
    # Most questions show that they matter with everything open left unknown.
    if _Paths(steps, facts, answers, set()).differ():
        return True
    # Two at a time: if each leads to the same as the first, all do.
    return any(_Paths(steps, facts, (answers[0], other), opened).differ() for other in answers[1:])


def may_train(ruleset: Ruleset, facts: Mapping[str, Any], askable: Collection[str]) -> bool:
    """Whether some answers lead to training; False if only a remedy is left."""
    return _Paths(_steps(ruleset), facts, [{}], _open_facts(ruleset, facts, askable)).may_train()


def fixed_chain(
    ruleset: Ruleset, facts: Mapping[str, Any], askable: Collection[str]
) -> tuple[str, bool] | None:
    """(chain, whether each task has a module) if no open fact changes them; else None."""
    paths = _Paths(_steps(ruleset), facts, [{}], _open_facts(ruleset, facts, askable))
    found = {
        (state["chain"][0], state["adapters_per"][0])
        for state in paths.paths()
        if _trains(state["train_decision"][0])
    }
    if len(found) != 1:
        return None
    chain, modules = found.pop()
    return str(chain), modules == "task"


# --------------------------------------------------------------------------- what is open


def _open_facts(ruleset: Ruleset, facts: Mapping[str, Any], askable: Collection[str]) -> set[str]:
    """The facts that may still take any value, by what is read and what fits, too."""
    # Open even if known: another GPU than this machine's may be named.
    read = {fact for name in askable for fact in read_from(name)}
    # A signal that is stated states others with it, also against an earlier no.
    implied = {
        other
        for name in askable
        if name in ruleset.facts
        for other in ruleset.facts[name].implied_by(True)
        if facts.get(other) is not True
    }
    opened = {*askable, *implied}
    if "gpu" in askable or facts.get("device") != UNKNOWN:  # without hardware nothing is estimated
        opened |= set(FITS)
    unsettled = {name for name in opened if facts.get(name) is None or facts[name] is False}
    return read | (unsettled & ruleset.facts.keys())


def _answers(ruleset: Ruleset, facts: Mapping[str, Any], fact_id: str) -> list[dict[str, Any]]:
    """Each answer to a question as the facts it sets; None is "I don't know"."""
    fact, read = ruleset.facts[fact_id], read_from(fact_id)
    answers: list[dict[str, Any]] = []
    for cell in cells_of(fact, conditions_on(ruleset, fact_id)):
        stated = {**dict.fromkeys(fact.implied_by(cell.value), True), fact_id: cell.value}
        # What is read from an answer cannot be foreseen, and it may be nothing.
        answers += [
            dict(zip((*stated, *read), (*stated.values(), *values), strict=True))
            for values in product(*(_values(ruleset, facts, name) for name in read))
        ]
    return answers


def _values(ruleset: Ruleset, facts: Mapping[str, Any], fact_id: str) -> list[Any]:
    cells = cells_of(ruleset.facts[fact_id], conditions_on(ruleset, fact_id))
    return list(dict.fromkeys([facts.get(fact_id), *(cell.value for cell in cells)]))


def _distinct(
    steps: Sequence[_Step], facts: Mapping[str, Any], answers: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """One answer of each kind that some rule tells apart."""
    found: dict[tuple[int, ...], Mapping[str, Any]] = {}
    for answer in answers:
        key = tuple(
            step.mask(name, answer.get(name, facts.get(name)))
            for step in steps
            for name in answer
            if name in step.inputs
        )
        found.setdefault(key, answer)
    return list(found.values())


# --------------------------------------------------------------------------- one table


class _Step:
    """A table's deciding rules as bits; the lowest one that is not forbidden wins."""

    def __init__(self, ruleset: Ruleset, table_id: str, later: frozenset[str]) -> None:
        table, rules = ruleset.tables[table_id], deciding(ruleset, judged_rules(ruleset, table_id))
        self.id, self.concludes, self.inputs = table_id, table.concludes, frozenset(table.seen)
        self.later = later  # what the tables after it read
        self.precedence = Precedence(rules, table.concludes, [])
        # What cannot be estimated together is one more bit each: a set in which all of it holds
        # cannot occur.
        estimated = self.inputs & set(FITS)
        impossible = [
            one.never for one in ruleset.assume if {each.fact for each in one.never} <= estimated
        ]
        whens = [*(rule.when for rule in rules), *impossible]
        self.every = (1 << len(whens)) - 1
        self.impossible = self.every & ~((1 << len(rules)) - 1)
        self.conditions = {
            name: [(bit, one) for bit, when in enumerate(whens) for one in when if one.fact == name]
            for name in table.seen
        }
        self.sets = cache(self._sets)
        self.mask = cache(
            lambda name, value: letting_through(self.every, self.conditions[name], value)
        )
        self.winner = cache(self._winner)
        self.effects = {
            name: {
                cell.value: self.mask(name, cell.value)
                for cell in cells_of(ruleset.facts[name], (one for _, one in tested))
            }
            for name, tested in self.conditions.items()
        }

    def _sets(self, known: int, opened: frozenset[str], limits: bool) -> tuple[int, ...]:
        """Every set of rules that can fire when the known facts let `known` through and the open
        ones are anything.

        Args:
            limits: Whether money or hours are limited: without a limit nothing is over it.
        """
        states = {known}
        effects = {
            name: {
                mask for value, mask in self.effects[name].items() if limits or value != OVER_BUDGET
            }
            for name in opened
        }
        for name in sorted(opened, key=lambda name: (len(effects[name]), name)):
            states = {state & mask for state in states for mask in effects[name]}
        return tuple(state for state in states if not state & self.impossible)

    def _winner(self, firing: int) -> Any:
        forbidden = self.precedence.shadowed_by_forbid(firing & self.precedence.forbid)
        return self.precedence.outcome.get(self.precedence.winner(firing & ~forbidden))


@cache
def _steps(ruleset: Ruleset) -> tuple[_Step, ...]:
    """The tables that make up a composition, in their order."""
    deciding_tables = [
        name for name, table in ruleset.tables.items() if name != SETTINGS and not table.per
    ]
    later: frozenset[str] = frozenset()
    steps = []
    for name in reversed(deciding_tables):
        steps.append(_Step(ruleset, name, later))
        later |= steps[-1].inputs
    return tuple(reversed(steps))


# --------------------------------------------------------------------------- from table to table


class _Paths:
    """What the tables can conclude under each answer, for every value of the open facts."""

    def __init__(
        self,
        steps: Sequence[_Step],
        facts: Mapping[str, Any],
        answers: Sequence[Mapping[str, Any]],
        opened: set[str],
    ) -> None:
        self.steps, self.facts, self.answers = steps, facts, answers
        self.own = {name for answer in answers for name in answer}
        self.opened = opened - self.own
        self.limits = any(facts.get(limit) is not None for limit in ("budget_usd", "budget_hours"))
        self.conclusions = cache(self._conclusions)  # many paths lead a table to the same

    def differ(self) -> bool:
        """Whether two answers can lead to two compositions."""
        return any(_two_compositions(state) for state in self.paths(prune=True))

    def may_train(self) -> bool:
        return any(_trains(state["train_decision"][0]) for state in self.paths("train_decision"))

    def paths(self, last: str = LAST, *, prune: bool = False) -> Iterator[dict[str, Vector]]:
        """Each way through the tables; pruned, only those on which answers may still differ."""
        states: set[State] = {()}
        for step in self.steps:
            kept = step.later.union(MADE_OF)
            after = (
                (*state, (step.concludes, conclusion))
                for state in states
                for conclusion in self.conclusions(
                    step, tuple(pair for pair in state if pair[0] in step.inputs)
                )
            )
            states = {tuple(pair for pair in state if pair[0] in kept) for state in after}
            if prune:
                alive = (state for state in states if self._is_alive(state, step.later))
                states = {_joined(state, step.later) for state in alive}
            if step.id == last:
                break
        return map(dict, states)

    def _is_alive(self, state: State, later: frozenset[str]) -> bool:
        """Whether the answers may still lead apart."""
        gates = dict(state).get("train_decision")
        if gates is not None and len(set(gates)) == 1 and not _trains(gates[0]):
            return False
        is_apart = any(len(set(vector)) > 1 for _, vector in state)
        return is_apart or not later.isdisjoint(self.own)

    def _conclusions(self, step: _Step, concluded: State) -> set[Vector]:
        """What the table can conclude, given the conclusions before it."""
        known = step.every
        for name in step.inputs - self.opened - self.own - dict(concluded).keys():
            known &= step.mask(name, self.facts.get(name))
        masks = []
        for i, answer in enumerate(self.answers):
            mask = step.every
            for name in step.inputs & self.own:
                mask &= step.mask(name, answer.get(name, self.facts.get(name)))
            for name, vector in concluded:
                mask &= step.mask(name, vector[i])
            masks.append(mask)
        sets = step.sets(known, frozenset(step.inputs & self.opened), self.limits)
        some, unlike = reduce(or_, masks), list(dict.fromkeys(masks))
        firing = {fired & some for fired in sets}
        winners = ([step.winner(fired & mask) for fired in firing] for mask in unlike)
        places = [unlike.index(mask) for mask in masks]
        return {tuple(vector[i] for i in places) for vector in set(zip(*winners, strict=True))}


def _joined(state: State, later: frozenset[str]) -> State:
    """The state without which chain it is, or whether there are modules, if that is alike under
    every answer: it no longer matters. Without this a question takes up to 2.5 s, with it 0.3 s.
    """
    over = {"chain", "adapters_per"} - later
    return tuple(
        (name, ALIKE * len(vector) if name in over and len(set(vector)) == 1 else vector)
        for name, vector in state
    )


def _trains(gate: Any) -> bool:
    return REMEDIES_OF_GATE[str(gate)][1]


def _two_compositions(state: Mapping[str, Vector]) -> bool:
    made: set[tuple[Any, ...]] = set()
    for gate, chain, modules, scheme in zip(*(state[name] for name in MADE_OF), strict=True):
        if not _trains(gate):
            made.add((gate,))
        else:
            made.add((gate, scheme) if scheme == SMALLER_MODEL else (gate, chain, modules, scheme))
    return len(made) > 1
