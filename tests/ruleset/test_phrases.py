"""Facts inside sentences: every fact has its words, and they make sentences."""

import re

import pytest

from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import Condition, Interval
from advisor.ruleset.phrases import (
    clauses,
    inside_sentence,
    joined,
    name_of,
    named_with_flag,
    not_known,
    says,
    value_words,
    wants,
)

RULES = load_rules()
SAMPLES = {
    "number": (1, 50, 0.59604992, 125_000_000),
    "text": ("X",),
    "path": ("x",),
    "map": ("x",),
}


def values(fact):
    return (True, False) if fact.type == "flag" else fact.values or SAMPLES.get(fact.type, ())


@pytest.mark.parametrize("fact", load_facts().values(), ids=lambda fact: fact.id)
def test_every_fact_has_its_words(fact):
    """A phrase for what it says, the same denied for a flag, and a name for what is not known."""
    assert fact.phrase
    if fact.type == "flag":
        assert fact.denied
        assert fact.phrase != fact.denied
    elif fact.type != "map":
        assert fact.name
        assert "{value}" in fact.phrase
    for text in (fact.phrase, fact.denied, *(value.short for value in fact.values.values())):
        assert len(re.findall(r"[\[\]]", text)) == 2 * text.count("|")
        assert not text.endswith(".")


@pytest.mark.parametrize("fact", RULES.facts.values(), ids=lambda fact: fact.id)
def test_what_a_fact_says_holds_no_id_and_no_mark(fact, approved):
    """The facts of each scheme too: no underscore, bracket or brace is left in a sentence."""
    for value in values(fact):
        for would in (False, True):
            text = says(fact, value, would=would)
            assert text
            assert not re.search(r"[_\[\]{}|]", text), text
            assert text[0].islower() or text.split()[0] in ("LoRA", "QLoRA", "IA3")
    approved([name_of(fact), *(says(fact, value, would=True) for value in list(values(fact))[:4])])
    assert not re.search(r"[_\[\]{}|]", name_of(fact))


@pytest.mark.parametrize(
    ("fact_id", "value", "would", "said"),
    [
        # As it is, and as it would have to be.
        ("memory_bound", True, False, "the GPU's memory is the tightest limit"),
        ("memory_bound", True, True, "the GPU's memory were the tightest limit"),
        ("facts_change_often", False, False, "the facts do not change every few weeks"),
        ("fits_lora", "too_big", True, "LoRA did not fit"),
        # Thousands by commas, three figures of a fraction, and no plural of one.
        ("data_rows", 1500, False, "you have 1,500 examples"),
        ("n_tasks", 1, False, "one model serves 1 task"),
        ("params_b", 0.59604992, False, "the model has 0.596 billion parameters"),
    ],
)
def test_a_value_is_said_as_people_say_it(fact_id, value, would, said):
    """A clause of a sentence, as it is or as it would have to be; numbers as people write them."""
    assert says(RULES.facts[fact_id], value, would=would) == said


@pytest.mark.parametrize(
    ("fact_id", "condition", "said"),
    [
        (
            "data_rows",
            {"intervals": (Interval(low=50, high=500),)},
            "you have at least 50 and under 500 examples",
        ),
        (
            "budget",
            {"values": frozenset({"low"}), "unknown": True},
            "you chose a low budget (or not known)",
        ),
        ("budget", {"unknown": True}, "how much it may cost is not known"),
        ("facts_change_often", {"values": frozenset({True})}, "the facts change every few weeks"),
        (
            "data_kind",
            {"values": frozenset({"raw_text", "preference", "unpaired_feedback", "none"})},
            "you do not have requests with the right answer or problems whose answer can be checked",
        ),
    ],
)
def test_what_a_rule_wants_is_one_clause(fact_id, condition, said):
    """A bound, a value that may be unknown, and of most values the few that are left out."""
    assert wants(RULES.facts[fact_id], Condition(fact=fact_id, **condition)) == said


@pytest.mark.parametrize(
    ("facts", "alone", "said"),
    [
        (["memory_bound"], True, "you have not said so"),
        (["memory_bound", "facts_change_often"], True, "you have said neither"),
        (
            ["memory_bound"],
            False,
            "you have not said whether the GPU's memory is the tightest limit",
        ),
        (
            ["depth", "budget"],
            True,
            "you have not said what should change in the model or how much it may cost",
        ),
    ],
)
def test_what_is_not_known_is_named(facts, alone, said):
    """A flag that was just named needs no second name; others are named."""
    assert not_known([RULES.facts[name] for name in facts], alone=alone) == said


def test_a_label_becomes_part_of_a_sentence():
    """Its first letter is small, unless the first word is a name; methods go by their names."""
    assert inside_sentence("Requests with the right answer") == "requests with the right answer"
    assert inside_sentence("LoRA on a 4-bit base") == "LoRA on a 4-bit base"
    assert value_words(RULES.facts["chain"], "sft>rm>ppo") == (
        "supervised fine-tuning, then a reward model, then reinforcement learning with PPO"
    )
    assert value_words(RULES.facts["scheme"], "qlora") == "QLoRA"
    assert named_with_flag(RULES.facts["depth"]) == "what should change in the model (`--depth`)"
    assert joined(["a", "b", "c"]) == "a, b and c"
    assert clauses(["a", "b"]) == "a, and b"


def test_a_fact_of_a_users_file_needs_no_phrase(tmp_path):
    """Its question stands in for one, and a phrase of its own is taken."""
    for extra, said in (
        ("", "you answered yes to “Do the examples hold customers' data?”"),
        (', phrase: "the examples hold data of customers"', "the examples hold data of customers"),
    ):
        path = tmp_path / f"own{len(extra)}.yaml"
        path.write_text(
            "version: 1\noverlay: own\nfacts: {holds_customer_data: {type: flag, origin: asked,"
            f' signal: true, ask: "Do the examples hold customers\' data? (names)"{extra}}}}}\n'
        )
        assert says(load_rules(overlays=(path,)).facts["holds_customer_data"], True) == said
