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


def wanted(fact_id, *values, **more):
    """What a rule wants of a fact, in one clause."""
    return wants(RULES.facts[fact_id], Condition(fact=fact_id, values=frozenset(values), **more))


def open_(*facts, alone=True):
    return not_known([RULES.facts[name] for name in facts], alone=alone)


SAID = {
    # As it is, and as it would have to be.
    "is": lambda: says(RULES.facts["memory_bound"], True),
    "were": lambda: says(RULES.facts["memory_bound"], True, would=True),
    "denied": lambda: says(RULES.facts["facts_change_often"], False),
    "did not": lambda: says(RULES.facts["fits_lora"], "too_big", would=True),
    # Thousands by commas, three figures of a fraction, and no plural of one.
    "thousands": lambda: says(RULES.facts["data_rows"], 1500),
    "one": lambda: says(RULES.facts["n_tasks"], 1),
    "a fraction": lambda: says(RULES.facts["params_b"], 0.59604992),
    # A bound, a value that may be unknown, and of most values the few that are left out.
    "a bound": lambda: wanted("data_rows", intervals=(Interval(low=50, high=500),)),
    "a value or unknown": lambda: wanted("budget", "low", unknown=True),
    "unknown": lambda: wanted("budget", unknown=True),
    "a yes": lambda: wanted("facts_change_often", True),
    "most values": lambda: wanted(
        "data_kind", "raw_text", "preference", "unpaired_feedback", "none"
    ),
    # A flag that was just named needs no second name; others are named.
    "not said": lambda: open_("memory_bound"),
    "neither": lambda: open_("memory_bound", "facts_change_often"),
    "not said whether": lambda: open_("memory_bound", alone=False),
    "not said what or how": lambda: open_("depth", "budget"),
    # Inside a sentence the first letter is small, unless the first word is a name.
    "a label": lambda: inside_sentence("Requests with the right answer"),
    "a name": lambda: inside_sentence("LoRA on a 4-bit base"),
    "a chain": lambda: value_words(RULES.facts["chain"], "sft>rm>ppo"),
    "a scheme": lambda: value_words(RULES.facts["scheme"], "qlora"),
    "a flag": lambda: named_with_flag(RULES.facts["depth"]),
    "a list": lambda: joined(["a", "b", "c"]),
    "clauses": lambda: clauses(["a", "b"]),
}


@pytest.mark.parametrize("what", SAID)
def test_it_is_said_as_people_say_it(approved, what):
    """Clauses of a sentence, numbers as people write them, methods by their names."""
    approved(SAID[what]())


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
