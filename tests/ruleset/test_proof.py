"""The proof says what enumerating every situation says, and its boxes are true and as general as
they claim.
"""

import itertools

from hypothesis import given
from msgspec.structs import replace

from advisor.ruleset.facts import Fact
from advisor.ruleset.model import Assumption, Condition, Interval, Rule
from advisor.ruleset.proof import indistinguishable_values, prove
from advisor.ruleset.space import Space, cells_of, in_words
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


@examples(1.2)
@given(rulesets())
def test_the_sets_of_firing_rules_are_exactly_those_that_occur(ruleset):
    """All are found, none that cannot, and each witness leads to its set."""
    rules = ruleset.rules["colours"]
    space = Space(ruleset, rules)
    found = space.sets()
    occurring = {
        sum(1 << i for i, rule in enumerate(rules) if rule in fired)
        for fired in (firing(ruleset, facts) for facts in situations(ruleset))
    }
    assert set(found) == occurring
    for state, chain in found.items():
        facts = {
            fact: space.cells[fact][index].value for fact, index in space.witness(chain).items()
        }
        assert (
            sum(1 << i for i, rule in enumerate(rules) if rule in firing(ruleset, facts)) == state
        )


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
    won = {case.winner.id for case in plain if case.winner}
    twice = {
        idle.rule.id for idle in proof.redundant if idle.rule.kind == "recommend"
    } - won  # an equal says the same: told as redundant
    assert {idle.rule.id for idle in proof.never_wins if not idle.key} | twice == {
        rule.id for rule in rules if rule.kind == "recommend" and rule.id in fired
    } - won
    assert set(proof.never_concluded) == set(OUTCOMES) - {
        case.winner.then["colour"] for case in plain if case.winner
    }
    for key in KEYS:
        clashing = {
            frozenset(pair)
            for case in plain
            for pair in itertools.combinations([r.id for r in case.setting_rules.get(key, [])], 2)
        }
        differing = {
            pair
            for pair in clashing
            if len({rule.then[key] for rule in rules if rule.id in pair}) > 1
        }
        found = {
            frozenset((clash.first.id, clash.second.id))
            for clash in proof.contradictions
            if clash.key == key
        }
        assert found <= differing
        assert bool(found) == bool(differing)
        counted = {rule.id for case in plain for rule in case.setting_rules.get(key, [])}
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
        for key, values in before.settings.items():
            assert len(values) > 1 or after.settings.get(key) == values


def test_a_rule_that_settles_two_values_below_it_is_not_redundant():
    """Without it two rules of an earlier layer would set a key to two values."""
    one = rule("document/r0", kind="set")
    settles = replace(one, then={"rate": 2})
    below = replace(one, id="base/r1", layer="base", then={"rate": 2, "rank": 1})
    other = replace(one, id="base/r2", layer="base", then={"rate": 1})
    proof = prove(made((settles, below, other)), "colours")
    assert "document/r0" not in {idle.rule.id for idle in proof.redundant}


@examples(1.2)
@given(rulesets(assume=False))
def test_a_gap_is_told_as_generally_as_it_goes(ruleset):
    """Everywhere inside nothing is recommended, and no fact of the box could be left out."""
    for hole in prove(ruleset, "colours").holes:
        space = Space(
            ruleset,
            [rule for rule in ruleset.rules["colours"] if rule.kind in ("recommend", "forbid")],
        )
        empty = {
            frozenset(facts.items()): Plain(ruleset, facts).winner is None
            for facts in situations(ruleset)
        }

        def inside(facts, skip="", box=hole.box, space=space):
            return all(
                fact == skip or any(_in_cell(space, fact, index, facts.get(fact)) for index in held)
                for fact, held in box.within.items()
            )

        assert all(is_empty for facts, is_empty in empty.items() if inside(dict(facts)))
        for fact in hole.box.within:
            assert any(
                not is_empty for facts, is_empty in empty.items() if inside(dict(facts), skip=fact)
            ), hole.box.text


def _in_cell(space, fact_id, index, value):
    cell = space.cells[fact_id][index]
    if FACTS[fact_id].type != "number" or value is None or cell.value is None:
        return cell.value == value
    if cell.is_point:
        return value == cell.low
    return (cell.low is None or value > cell.low) and (cell.high is None or value < cell.high)


def rule(rule_id, outcome="red", *when, kind="recommend", tier="low", layer="document"):
    return Rule(
        id=rule_id, table="colours", kind=kind, layer=layer, when=when, then={"colour": outcome},
        tier=tier if kind == "recommend" else "", because="x", sources=(),
    )  # fmt: skip


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
    facts = {
        **FACTS,
        "louder": Fact(id="louder", type="flag", origin="asked", signal=True, implies=("stated",)),
    }
    ruleset = replace(
        made((rule("document/a", "red", is_("louder", True), is_("stated", False, unknown=True)),)),
        facts=facts,
    )
    assert [found.id for found in prove(ruleset, "colours").unreachable] == ["document/a"]


def test_a_required_or_concluded_fact_is_never_unknown():
    """A rule for an unknown task, or for a step that concluded nothing, can never fire."""
    rules = (
        rule("document/task", "red", is_("task", unknown=True)),
        rule("document/earlier", "red", is_("earlier", unknown=True)),
        rule("document/kind", "red", is_("kind", unknown=True)),
    )
    assert {found.id for found in prove(made(rules), "colours").unreachable} == {
        "document/task",
        "document/earlier",
    }


def test_no_whole_number_lies_between_two_neighbours():
    """While a size of 1.5 exists; and nothing is below the smallest allowed."""
    between = Condition(fact="rows", intervals=(Interval(low=1, low_included=False, high=2),))
    assert [cell.value for cell in cells_of(FACTS["rows"], [between])] == [0, 1, 2, 3, None]
    below = Condition(fact="rows", intervals=(Interval(high=0),))
    assert [cell.value for cell in cells_of(FACTS["rows"], [below])] == [0, 1, None]
    assert any(
        1 < cell.value < 2
        for cell in cells_of(FACTS["size"], [replace(between, fact="size")])
        if cell.value is not None
    )


def test_cells_read_like_sentences():
    """A stretch of numbers is told by its bounds, a whole domain as known."""
    cells = cells_of(FACTS["rows"], [over("rows", 1000), over("rows", 50)])
    words = [
        in_words(FACTS["rows"], cells, chosen)
        for chosen in ([0], [1, 2], [3, 4], [0, 5], [0, 1, 2, 3, 4], [1])
    ]
    assert words == [
        "rows is under 50",
        "rows is at least 50 and under 1,000",
        "rows is at least 1,000",
        "rows is under 50 or not known",
        "rows is known",
        "rows is 50",
    ]


def test_a_rule_that_wins_only_where_others_are_forbidden_is_alive():
    """The last of a ranking counts as soon as prohibitions can take away what stands above it."""
    above, last = rule("document/a", "red", tier="high"), rule("document/b", "green")
    assert [idle.rule.id for idle in prove(made((above, last)), "colours").never_wins] == [
        "document/b"
    ]
    forbid = rule("acme/no", "red", over("size", 1), kind="forbid", layer="acme")
    assert not prove(made((above, last, forbid)), "colours").never_wins


def test_values_that_no_rule_tells_apart_are_named():
    """Two values with the same rules everywhere are one question too many."""
    one = rule("document/a", "red", is_("task", "a"))
    other = rule("document/b", "red", is_("task", "b", "a"))
    assert indistinguishable_values(made((one,)), "task") == [("b", "c")]
    assert indistinguishable_values(made((one, other)), "task") == []
