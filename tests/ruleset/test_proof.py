"""A proof says what enumerating every situation says, and its boxes and assumptions are true."""

import itertools
from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.advice.case import Case
from advisor.advice.facts import situation_facts
from advisor.ground.types import Answer, AnswerSet, Gpu, Hardware
from advisor.ruleset.facts import Fact
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import Assumption, Condition, Interval
from advisor.ruleset.proof import indistinguishable_values, prove
from advisor.ruleset.space import Space, cells_of, in_words
from advisor.situation.models import model_shape, shape_from_size
from advisor.situation.types import Situation
from tests.conftest import examples
from tests.ruleset.random_rules import (
    FACTS,
    KEYS,
    OUTCOMES,
    Plain,
    firing,
    made,
    rulesets,
    situations,
    with_rules,
)
from tests.ruleset.random_rules import coloured as rule

RULES = load_rules()
GIB = 2**30


@examples(1.2)
@given(rulesets())
def test_the_sets_of_firing_rules_are_exactly_those_that_occur(ruleset):
    """All are found, none that cannot, and each witness leads to its set."""
    rules = ruleset.rules["colours"]
    space = Space(ruleset, rules)
    found = space.sets()

    def fired(facts):
        firing_now = firing(ruleset, facts)
        return sum(1 << i for i, rule in enumerate(rules) if rule in firing_now)

    assert set(found) == set(map(fired, situations(ruleset)))
    for state, chain in found.items():
        witness = space.witness(chain).items()
        assert fired({fact: space.cells[fact][index].value for fact, index in witness}) == state


@examples(1.6)
@given(rulesets())
def test_gaps_conflicts_winners_and_contradictions_are_those_of_an_enumeration(ruleset):
    """And rules that cannot fire or never win, and outcomes never reached."""
    proof = prove(ruleset, "colours")
    plain = [Plain(ruleset, facts) for facts in situations(ruleset)]
    rules = ruleset.rules["colours"]
    assert bool(proof.holes) == any(case.winner is None for case in plain)
    assert {(clash.first.id, clash.second.id) for clash in proof.conflicts} == {
        (case.winner.id, other.id) for case in plain for other in case.ties
    }
    fired = {rule.id for case in plain for rule in case.fired}
    assert {rule.id for rule in proof.unreachable} == {rule.id for rule in rules} - fired
    winners = {case.winner.id: case.winner.then["colour"] for case in plain if case.winner}
    twice = {idle.rule.id for idle in proof.redundant if idle.rule.kind == "recommend"}
    # An equal says the same: told as redundant.
    assert {idle.rule.id for idle in proof.never_wins if not idle.key} | (twice - set(winners)) == {
        rule.id for rule in rules if rule.kind == "recommend" and rule.id in fired
    } - set(winners)
    assert set(proof.never_concluded) == set(OUTCOMES) - set(winners.values())
    for key in KEYS:
        setting = [case.setting_rules.get(key, []) for case in plain]
        differing = {
            frozenset((one.id, other.id))
            for several in setting
            for one, other in itertools.combinations(several, 2)
            if one.then[key] != other.then[key]
        }
        found = {
            frozenset((clash.first.id, clash.second.id))
            for clash in proof.contradictions
            if clash.key == key
        }
        assert found <= differing
        assert bool(found) == bool(differing)
        counted = {rule.id for several in setting for rule in several}
        assert {idle.rule.id for idle in proof.never_wins if idle.key == key} == {
            rule.id
            for rule in rules
            if rule.kind == "set" and key in rule.then and rule.id in fired
        } - counted


@examples(1.6)
@given(rulesets())
def test_without_redundant_rules_everything_stays(ruleset):
    """No ranking, no prohibition and no setting changes anywhere."""
    gone = {idle.rule.id for idle in prove(ruleset, "colours").redundant}
    rest = with_rules(
        ruleset, tuple(rule for rule in ruleset.rules["colours"] if rule.id not in gone)
    )
    for facts in situations(ruleset):
        before, after = Plain(ruleset, facts), Plain(rest, facts)
        for name in ("ranking", "wanted", "forbidden"):
            assert getattr(before, name) == getattr(after, name)
        decided = {key: values for key, values in before.settings.items() if len(values) == 1}
        assert decided == {key: after.settings.get(key) for key in decided}


def test_a_rule_that_settles_two_values_below_it_is_not_redundant():
    """Without it two rules of an earlier layer would set a key to two values."""
    settles = rule("document/r0", kind="set", then={"rate": 2})
    below = rule("base/r1", kind="set", layer="base", then={"rate": 2, "rank": 1})
    other = rule("base/r2", kind="set", layer="base", then={"rate": 1})
    redundant = prove(made((settles, below, other)), "colours").redundant
    assert settles not in [idle.rule for idle in redundant]


@examples(1.2)
@given(rulesets(assume=False))
def test_a_gap_is_told_as_generally_as_it_goes(ruleset):
    """Everywhere inside nothing is recommended, and no fact of the box could be left out."""
    deciding = [one for one in ruleset.rules["colours"] if one.kind in ("recommend", "forbid")]
    space = Space(ruleset, deciding)
    cases = [(facts, Plain(ruleset, facts).winner) for facts in situations(ruleset)]
    for hole in prove(ruleset, "colours").holes:

        def winners(left_out="", within=hole.box.within):
            boxed = {fact: held for fact, held in within.items() if fact != left_out}
            return [
                winner
                for facts, winner in cases
                if all(_is_in(space, *one, facts.get(one[0])) for one in boxed.items())
            ]

        assert not any(winners())
        assert all(any(winners(left_out=fact)) for fact in hole.box.within), hole.box.text


def _is_in(space, fact_id, held, value):
    """Whether a value lies in one of these cells of a fact."""
    cells = [space.cells[fact_id][index] for index in held]
    if FACTS[fact_id].type != "number" or value is None:
        return value in [cell.value for cell in cells]
    return any(
        value == cell.low
        if cell.is_point
        else (cell.low is None or value > cell.low) and (cell.high is None or value < cell.high)
        for cell in cells
        if cell.value is not None
    )


def is_(fact, *values, unknown=False):
    return Condition(
        fact=fact, values=frozenset(values), unknown=unknown, text=f"{fact} is {values}"
    )


def over(fact, low):
    return Condition(fact=fact, intervals=(Interval(low=low),), text=f"{fact} at least {low}")


def test_a_gap_in_words_names_only_what_matters():
    """Of six facts the one gap is told by the two that make it."""
    rules = (
        rule("document/a", "red", is_("task", "a", "b")),
        rule("document/many", "green", over("rows", 3)),
        rule("document/x", "red", is_("task", "a"), is_("kind", "x")),
    )
    holes = prove(made(rules), "colours").holes
    assert [hole.box.text for hole in holes] == ["task is c and rows is under 3 or not known"]


def test_what_cannot_occur_is_no_gap():
    """Also where an assumption is tied through a fact that no rule looks at."""
    rules = (rule("document/a", "red", is_("task", "a", "b")),)
    assert prove(made(rules), "colours").holes
    never_c = (
        Assumption(id="c-means-x", never=(is_("task", "c"), is_("kind", "y", unknown=True))),
        Assumption(id="c-means-not-x", never=(is_("task", "c"), is_("kind", "x"))),
    )
    assert not prove(made(rules, never_c), "colours").holes


def test_a_signal_brings_what_it_implies():
    """Where one signal implies another, the first without the second does not occur."""
    louder = Fact(id="louder", type="flag", origin="asked", signal=True, implies=("stated",))
    alone = rule("document/a", "red", is_("louder", True), is_("stated", False, unknown=True))
    ruleset = replace(made((alone,)), facts={**FACTS, "louder": louder})
    assert prove(ruleset, "colours").unreachable == [alone]


def test_a_required_or_concluded_fact_is_never_unknown():
    """A rule for an unknown task, or for a step that concluded nothing, can never fire."""
    names = ("task", "earlier", "kind")
    rules = tuple(rule(f"document/{one}", "red", is_(one, unknown=True)) for one in names)
    found = prove(made(rules), "colours").unreachable
    assert {one.id for one in found} == {"document/task", "document/earlier"}


def test_no_whole_number_lies_between_two_neighbours():
    """While a size of 1.5 exists; and nothing is below the smallest allowed."""
    between = Condition(fact="rows", intervals=(Interval(low=1, low_included=False, high=2),))
    assert [cell.value for cell in cells_of(FACTS["rows"], [between])] == [0, 1, 2, 3, None]
    below = Condition(fact="rows", intervals=(Interval(high=0),))
    assert [cell.value for cell in cells_of(FACTS["rows"], [below])] == [0, 1, None]
    sizes = cells_of(FACTS["size"], [replace(between, fact="size")])
    assert any(cell.value is not None and 1 < cell.value < 2 for cell in sizes)


def test_cells_read_like_sentences():
    """A stretch of numbers is told by its bounds, a whole domain as known."""
    cells = cells_of(FACTS["rows"], [over("rows", 1000), over("rows", 50)])
    words = {
        (0,): "rows is under 50",
        (1, 2): "rows is at least 50 and under 1,000",
        (3, 4): "rows is at least 1,000",
        (0, 5): "rows is under 50 or not known",
        (0, 1, 2, 3, 4): "rows is known",
        (1,): "rows is 50",
    }
    assert {chosen: in_words(FACTS["rows"], cells, list(chosen)) for chosen in words} == words


def test_a_rule_that_wins_only_where_others_are_forbidden_is_alive():
    """The last of a ranking counts as soon as prohibitions can take away what stands above it."""
    above, last = rule("document/a", "red", tier="high"), rule("document/b", "green")
    assert [idle.rule for idle in prove(made((above, last)), "colours").never_wins] == [last]
    forbid = rule("acme/no", "red", over("size", 1), kind="forbid", layer="acme")
    assert not prove(made((above, last, forbid)), "colours").never_wins


def test_values_that_no_rule_tells_apart_are_named():
    """Two values with the same rules everywhere are one question too many."""
    one = rule("document/a", "red", is_("task", "a"))
    other = rule("document/b", "red", is_("task", "b", "a"))
    assert indistinguishable_values(made((one,)), "task") == [("b", "c")]
    assert indistinguishable_values(made((one, other)), "task") == []


CHAINS = ("sft", "cpt>sft", "sft>rm>ppo", "dpo", "sft>dpo", "kto", "orpo", "grpo")
REAL = (
    "Qwen/Qwen3-8B", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b", "google/gemma-3-4b-it",
)  # fmt: skip


@cache
def shape(name):
    return model_shape(name)[0]


def cards(count, memory, capability, **more):
    gpu = Gpu(name="card", memory_total_bytes=memory, compute_capability=capability, **more)
    return Hardware(kind="cuda", origin="stated", gpus=(gpu,) * count)


STATED = {
    "data_rows": [10, 500, 5000, 50_000, 1_000_000],
    "data_tokens": [10_000, 1_000_000, 100_000_000],
    "budget_usd": [1, 20, 500],
    "budget_hours": [0.5, 5, 100],
}


@st.composite
def estimated(draw):
    """A situation whose model, machine, data and budget are drawn."""
    size = draw(st.one_of(st.floats(0.05, 200), st.sampled_from(REAL)))
    model = (
        shape(size) if isinstance(size, str) else shape_from_size(int(size * 1e9), f"{size:.3g}B")
    )
    optional = {fact: st.sampled_from(values) for fact, values in STATED.items()}
    known = draw(st.fixed_dictionaries({}, optional=optional))
    kind = draw(st.sampled_from(["cuda", "cuda", "cuda", "cpu", "unknown"]))
    memory = int(2 ** draw(st.floats(-1, 8)) * GIB)
    hardware = Hardware(
        kind=kind, origin="stated", ram_total_bytes=memory if kind == "cpu" else None
    )
    if kind == "cuda":
        capability = draw(st.sampled_from([(7, 0), (7, 5), (8, 0), (9, 0), None]))
        bf16 = None if capability is None else capability >= (8, 0)
        hardware = cards(draw(st.sampled_from([1, 1, 2, 4, 8])), memory, capability, bf16=bf16)
    answers = {fact: Answer(value=value, origin="flag") for fact, value in known.items()}
    return Situation(answers=AnswerSet(known=answers), hardware=hardware, model=model)


@examples(5)
@given(estimated(), st.sampled_from(CHAINS))
def test_a_base_in_4_bit_never_needs_more(situation, chain):
    """QLoRA fits where LoRA or full does, unless the base cannot be quantised or is divided."""
    facts = situation_facts(situation)
    fits = Case.build(situation, RULES).coarse_fits(chain)
    again = situation.model.stored is None
    assert again == (situation.model.id != "openai/gpt-oss-20b")
    possible = ("fits", "tight")
    assert not again or fits["qlora"] != "too_big" or not {fits["lora"], fits["full"]} & {*possible}
    facts |= {f"fits_{scheme}": fit for scheme, fit in fits.items()}
    assert not RULES.contradictions(facts), fits


def test_an_assumption_would_be_noticed():
    """The sampled machines include those on which one scheme fits and another does not."""
    hardware, model = cards(1, 12 * GIB, (8, 0)), shape("Qwen/Qwen3-8B")
    small = Situation(answers=AnswerSet(known={}), hardware=hardware, model=model)
    fits = Case.build(small, RULES).coarse_fits("sft")
    assert (fits["lora"], fits["qlora"]) == ("too_big", "fits")
