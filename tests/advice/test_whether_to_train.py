"""Whether to train at all, and on how much: properties over random facts and laws of sanity.py."""

import random
import re
from itertools import islice, product

import pytest

from advisor.advice.case import Case, decide
from advisor.advice.facts import can_be_stated
from advisor.advice.flips import amount_cuts
from advisor.data.amounts import data_requirements
from advisor.ruleset.facts import load_facts, signals
from tests.advice.public_situations import recommended
from tests.advice.sanity import random_known, situation_for, violations
from tests.advice.situations import RULES, advised, drawn
from tests.conftest import scaled

SIGNALS = signals(RULES.facts)
ROWS = (1, 3, 12, 20, 49, 50, 99, 100, 300, 499, 500, 999, 1000, 5000, 50_000, 400_000)
TOKENS = (600, 20_000, 60_000, 2_400_000, 2_600_000, 200_000_000, 2_000_000_000)
LOOKED_UP = ("facts_change_often", "needs_citations", "access_control", "factual_accuracy_required")
# The floor below which nothing is trained on data of a kind: that of the objective for it.
FLOORS = {
    "paired": "sft", "preference": "dpo", "unpaired_feedback": "kto", "prompts_with_verifier": "grpo",
}  # fmt: skip


def random_facts(rng, **fixed):
    """What somebody states of whom nothing is read; the signals with what they imply."""
    facts = {"task": rng.choice([*RULES.facts["task"].values])} | drawn(
        rng, (0.4, "depth"), (0.5, "budget"), (0.4, "priority"), (0.8, "data_kind"),
        (0.7, "data_rows", ROWS), (0.35, "data_tokens", TOKENS), (0.3, "serve_with"),
        (0.25, "teacher"), (0.5, "checkpoint_kind", ("base", "instruct")),
        (0.5, "params_b", (0.5, 1.7, 8, 32)), (0.15, "n_tasks", (2, 12)),
    )  # fmt: skip
    facts |= {name: rng.random() < 0.75 for name in rng.sample(SIGNALS, rng.choice((0, 1, 2, 3)))}
    return closed(facts | fixed)


def closed(facts):
    """With what the signals imply, and the teacher that one of them tells of."""
    facts = dict(facts)
    for name in list(facts):
        for implied in RULES.facts[name].implied_by(facts[name]):
            facts.setdefault(implied, True)
    if "teacher" not in facts and "teacher_available" in facts:
        facts["teacher"] = "texts" if facts["teacher_available"] else "none"
    return facts


def possible(facts):
    return not RULES.contradictions(facts) and not any(
        found.is_broken_by(facts) for found in RULES.refuse
    )


def answer(facts):
    return decide(RULES, facts).composition


def situations(count, **fixed):
    """Random facts that do not contradict each other, with what is answered to them."""
    facts = (random_facts(random.Random(seed), **fixed) for seed in range(10 * scaled(count)))
    return ((one, answer(one)) for one in islice(filter(possible, facts), scaled(count)))


def test_denying_a_signal_is_not_stating_another():
    """A no leads where silence leads, except that a prompt that was not enough was tried."""
    asked_for = {
        condition.fact
        for rules in RULES.rules.values()
        for rule in rules
        for condition in rule.when
        if condition.values == frozenset([False]) and not condition.unknown
    } & {*SIGNALS}
    assert asked_for == {"prompting_tried"}  # a warning alone
    tried = 0
    for facts, _ in situations(1500):
        for name in SIGNALS:
            if name in facts or name == "teacher_available":  # who has none has said so
                continue
            denied = closed({**facts, name: False})
            silent = {fact: value for fact, value in denied.items() if fact != name}
            assert str(answer(denied)) == str(answer(silent)), (name, facts)
            tried += 1
    assert tried > 10 * scaled(1000)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_denial_implies_only_what_either_answer_does(name):
    """`implies` speaks of a yes."""
    fact = RULES.facts[name]
    assert {*fact.implied_by(False)} == {*fact.implies_either_way}
    assert {*fact.implied_by(True)} == {*fact.implies, *fact.implies_either_way}
    assert fact.implied_by(None) == ()


def no_text_is_read_below_ten_megabytes(facts, composition):
    """Whatever the task and depth: by tokens, or by documents of a thousand tokens."""
    if "cpt" not in composition.chain:
        return None
    tokens = facts.get("data_tokens")
    if tokens is None and facts.get("data_kind") == "raw_text" and "data_rows" in facts:
        tokens = 1000 * facts["data_rows"]
    enough = tokens is None or tokens >= data_requirements()["cpt"].too_few
    return enough and facts.get("data_kind", "raw_text") == "raw_text"


def nothing_is_trained_below_the_floor_of_its_kind(facts, composition):
    """Nor because a prompt is long; a teacher writes examples, and no judgements of people."""
    kind, rows = facts["data_kind"], facts.get("data_rows")
    taught = facts["task"] == "classification" or facts.get("teacher") in ("texts", "model")
    if rows is None or (kind == "paired" and taught):
        return None
    return None if rows >= data_requirements()[FLOORS[kind]].floor else not composition.chain


def judgements_and_checks_are_kept_where_facts_are_looked_up(facts, composition):
    """Beside a search, likes and checks still train the manner; checked code is not looked up."""
    kind = facts.get("data_kind")
    looked_up = any(facts.get(name) for name in LOOKED_UP)
    if kind not in ("preference", "unpaired_feedback", "prompts_with_verifier") or not looked_up:
        return None
    checked = kind == "prompts_with_verifier" and facts["task"] in ("code", "reasoning")
    if checked and "rag" in composition.remedies:
        return False
    if facts.get("data_rows", 1000) < 1000 or facts["task"] == "structured_output":
        return None  # too few, or a form that is enforced
    kept = composition.chain or "prompting" in composition.remedies
    if not facts.get("base_model_never_succeeds") and not kept:
        return False
    return True if composition.chain and not checked else None


def a_model_that_scores_answers_is_used_as_it_learns(facts, composition):
    """Also beside pairs or thumbs; where memory is the limit there is no room for it."""
    limited = facts.get("memory_bound") or facts.get("verifiable_rewards_available")
    judged = facts.get("data_kind") in ("preference", "unpaired_feedback")
    if not judged or not composition.chain or limited:
        return None
    return bool({"rloo", "grpo", "ppo"} & {*composition.chain})


def a_long_prompt_that_works_is_kept_until_there_is_something_to_distil(facts, composition):
    """It is trained on examples or stored answers alone; a prefix is for one task in Python."""
    if not composition.chain:
        return None
    stored = facts.get("teacher_logs_available") or facts.get("data_kind", "paired") == "paired"
    alone = facts.get("serve_with") == "transformers" and "n_tasks" not in facts
    return bool(stored) and (composition.scheme != "prefix" or alone)


def rewards_train_every_weight_only_where_money_is_no_matter(facts, composition):
    """A reward carries little information a step."""
    if not {"grpo", "rloo"} & {*composition.chain} or facts.get("budget") == "high":
        return None
    return composition.scheme != "full"


LONG_PROMPT = {"prompt_meets_quality_bar": True, "long_prompt_cost": True}


@pytest.mark.parametrize(
    ("law", "count", "fixed", "least"),
    [
        (no_text_is_read_below_ten_megabytes, 4000, {}, 20),
        *((nothing_is_trained_below_the_floor_of_its_kind, 1500, {"data_kind": kind}, 50)
          for kind in FLOORS),
        (judgements_and_checks_are_kept_where_facts_are_looked_up, 6000, {}, 20),
        (a_model_that_scores_answers_is_used_as_it_learns, 1500, {"reward_model_available": True}, 20),
        (a_long_prompt_that_works_is_kept_until_there_is_something_to_distil, 3000, LONG_PROMPT, 20),
        (rewards_train_every_weight_only_where_money_is_no_matter, 3000,
         {"data_kind": "prompts_with_verifier"}, 100),
    ],
)  # fmt: skip
def test_a_law_holds_of_whatever_is_stated(law, count, fixed, least):
    """Each says whether it holds, or None of facts that it is not about; it is about enough of them."""
    said = [(facts, law(facts, composition)) for facts, composition in situations(count, **fixed)]
    assert [facts for facts, holds in said if holds is False] == []
    assert sum(holds is not None for _, holds in said) > scaled(least)


@pytest.mark.parametrize("kind", FLOORS)
def test_the_floors_of_the_rules_are_those_of_the_methods(kind):
    """One number stands in the rules and in the file of the objective."""
    floor = data_requirements()[FLOORS[kind]].floor
    given = {"task": "generation", "data_kind": kind}
    few, enough = (decide(RULES, {**given, "data_rows": rows}) for rows in (floor - 1, floor))
    assert few.facts["data_amount"] == "too_few" != enough.facts["data_amount"]


def test_without_documents_functions_are_called_and_nothing_is_searched():
    """What changes comes from a function, whatever is stated of depth, money and size."""
    stated = {
        "depth": (None, "style", "task", "domain_knowledge"), "budget": (None, "low", "high"),
        "priority": (None, "quality", "cost", "privacy"), "model_params_b": (None, 0.5, 8, 70),
    }  # fmt: skip
    for values in list(product(*stated.values()))[::7]:
        given = {name: one for name, one in zip(stated, values, strict=True) if one is not None}
        answers = {"task": "tool_use", "data": {"kind": "none"}, "signals": ["facts_change_often"]}
        assert recommended({"gpu": "unknown", **answers, **given}) == "tool_use", given


@pytest.mark.parametrize(
    ("kind", "signals"),
    [
        *(
            ("raw_text", [wish])
            for wish in ("facts_change_often", "needs_citations", "access_control")
        ),
        # A source can be named only for what was found.
        *(("none", ["facts_change_often", wish]) for wish in ("needs_citations", "access_control")),
    ],
)
def test_documents_are_searched_where_facts_come_from_them(kind, signals):
    answers = {"task": "tool_use", "data": {"kind": kind}, "signals": signals}
    assert recommended({"gpu": "unknown", **answers}) == "rag"


def broken_laws(seeds):
    return [(seed, *broken) for seed in seeds for broken in violations(seed)]


@pytest.mark.parametrize("block", range(4))  # so that several workers share them
def test_no_situation_breaks_a_law(block):
    """More is never worse, what is assumed may be said, flips come true, limits are kept."""
    number = scaled(500) // 4
    assert broken_laws(range(block * number, (block + 1) * number)) == []


@pytest.mark.long
@pytest.mark.parametrize("block", range(40))
def test_no_situation_of_twenty_thousand_breaks_a_law(block):
    """The same over situations that no shorter test draws."""
    first = 100_000 + block * 500
    assert broken_laws(range(first, first + 500)) == []


@pytest.mark.parametrize("change", [{}, {"depth": "domain_knowledge"}, {"data_rows": 50}])
def test_a_what_if_ends_where_the_whole_decision_does(change):
    """It asks for fewer estimates, and comes to the same composition."""
    for seed in range(scaled(150)):
        case = Case.build(situation_for(random_known(random.Random(seed))), RULES).with_suggestion()
        asked, decided = (case.with_answers(change) for _ in range(2))
        assert str(asked.composition) == str(decided.decision.composition), seed


@pytest.mark.parametrize("task", sorted(load_facts()["task"].values))
def test_no_number_of_rows_turns_a_firm_answer(task):
    """Between n and n + 1 examples no strong answer becomes another one: both sides are weak."""
    fact, ruleset = load_facts()["data_rows"], RULES
    rng = random.Random(task)
    stated_facts = {"budget": "medium", "depth": "task", "priority": "quality", "teacher": "none"}
    for cut in map(int, amount_cuts(ruleset, fact)):
        kind = rng.choice(["paired", "paired", "preference", "unpaired_feedback", "raw_text"])
        below, above = (
            advised(task=task, data_kind=kind, data_rows=rows, **stated_facts)
            for rows in (cut - 1, cut)
        )
        if below.recommendation.composition != above.recommendation.composition:
            assert {below.certainty.strength, above.certainty.strength} == {"weak"}, (cut, kind)
            assert any(f"{cut:,}" in doubt for doubt in below.certainty.doubts), (cut, kind)


WRITERS = re.compile(r"(?i)stronger model|you, or|write|label")


@pytest.mark.parametrize("tokens", [500_000_000, 30_000_000, 1_000_000])
def test_raw_text_never_starts_with_examples_that_nobody_wrote(tokens):
    """So much text that reading it pays is read first; with less the answer says who writes."""
    rng = random.Random(tokens)
    for _ in range(scaled(150)):
        facts = random_facts(rng, data_kind="raw_text", data_tokens=tokens, data_rows=None)
        facts = {name: value for name, value in facts.items() if value is not None}
        if not can_be_stated(RULES, facts):
            continue
        decision = decide(RULES, facts)
        chain = decision.composition.chain
        if not decision.trains or chain[0] != "sft":
            continue
        said = " ".join(rule.because for rule in decision.rules)
        assert WRITERS.search(said), (facts, said)
        assert tokens < 500_000_000 or decision.facts["architecture"] != "decoder", facts
