"""Which questions may be left out: never one that could matter, by comparison with every
completion.
"""

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.advice.case import decide
from advisor.advice.questions import FITS, fixed_chain, may_train, still_matters
from advisor.ruleset.load import load_rules
from advisor.ruleset.space import cells_of
from tests.conftest import examples

RULES = load_rules()
LAYERS = {"default": RULES, "guide-alone": load_rules(("document",))}
SUPPORT = {
    "task": "customer_service",
    "data_kind": "paired",
    "data_rows": 5000,
    "data_tokens": 800_000,
}
READ = ("checkpoint_kind", "params_b", "gpus")  # read from the answers to `model` and `gpu`


def domain(ruleset, fact_id):
    """Every value of a fact that some rule tells apart, and None."""
    conditions = [
        condition
        for rules in ruleset.rules.values()
        for rule in rules
        for condition in rule.when
        if condition.fact == fact_id
    ]
    return [cell.value for cell in cells_of(ruleset.facts[fact_id], conditions)]


def closed(ruleset, facts):
    """The facts without what is not known, with what the stated signals imply."""
    known = {name: value for name, value in facts.items() if value is not None}
    for name in list(known):
        if known[name] is True:
            known |= dict.fromkeys(ruleset.facts[name].implies, True)
    return known


def composition(ruleset, facts):
    return str(decide(ruleset, closed(ruleset, facts)).composition)


def possible(ruleset, facts):
    """Whether the facts do not contradict what estimates can say: nothing is over a limit that
    nobody set.
    """
    return not ruleset.contradictions(facts) and "over_budget" not in facts.values()


ASKED = [
    fact.id
    for fact in RULES.facts.values()
    if fact.origin == "asked"
    and fact.order is not None
    and fact.type in ("choice", "number", "flag")
]


@pytest.mark.parametrize("layers", list(LAYERS))
@examples(1.2, derandomize=True)
@given(seed=st.integers(0, 10**9), share=st.floats(0.2, 0.95))
def test_no_question_is_left_out_that_could_matter(layers, seed, share):
    """Where some completion of the answers makes a question change the composition, it still
    matters.
    """
    ruleset, rng = LAYERS[layers], random.Random(seed)
    names = [*ASKED, *READ]
    known = closed(
        ruleset,
        {
            name: rng.choice(domain(ruleset, name))
            for name in names
            if name == "task" or rng.random() < share
        },
    )
    opened = [name for name in names if name not in known and rng.random() < 0.9]
    askable = [name for name in opened if name not in READ] + [
        question
        for question, read in {"model": ("checkpoint_kind", "params_b"), "gpu": ("gpus",)}.items()
        if {*read} & {*opened}
    ]
    for question in [name for name in askable if name in ASKED]:
        if still_matters(ruleset, known, question, askable):
            continue
        free = [*(name for name in opened if name != question), *FITS]
        for _ in range(25):
            facts = {**known, **{name: rng.choice(domain(ruleset, name)) for name in free}}
            if possible(ruleset, facts):
                ends = {
                    composition(ruleset, {**facts, question: value})
                    for value in domain(ruleset, question)
                }
                assert len(ends) == 1, (question, facts, ends)


@pytest.mark.parametrize(
    "question",
    [
        "prompt_meets_quality_bar",
        "serve_with",
        "facts_change_often",
        "budget",
        "teacher",
        "latency_critical",
    ],
)
def test_a_question_matters_exactly_where_some_completion_says_so(question):
    """With two further questions open, the answer is that of going through every completion."""
    opened = [
        name
        for name in ("facts_change_often", "prompt_meets_quality_bar", "long_prompt_cost")
        if name != question
    ][:2]
    known = {
        **SUPPORT,
        "depth": "style",
        "params_b": 8.0,
        "checkpoint_kind": "instruct",
        "device": "unknown",
    }
    known |= {} if question == "budget" else {"budget": "medium"}
    ends = [
        {
            composition(RULES, {**known, **dict(zip(opened, values, strict=True)), question: value})
            for value in domain(RULES, question)
        }
        for values in product(*(domain(RULES, name) for name in opened))
    ]
    assert still_matters(RULES, known, question, [*opened, question]) == any(
        len(end) > 1 for end in ends
    )


def test_nothing_about_training_matters_where_only_a_remedy_is_left():
    """Facts that change, and no examples: neither money, model, card nor server is asked for."""
    facts = {
        "task": "qa",
        "data_kind": "none",
        "facts_change_often": True,
        "teacher": "none",
        "prompting_tried": False,
        "depth": "style",
    }
    askable = ["budget", "model", "gpu", "serve_with", "priority"]
    assert not may_train(RULES, facts, askable)
    assert not [question for question in askable if still_matters(RULES, facts, question, askable)]


def test_model_and_card_are_asked_wherever_something_may_be_trained():
    """Where no rule looks at them any more, the plan still needs them."""
    facts = {
        **SUPPORT,
        "depth": "style",
        "budget": "low",
        "facts_change_often": False,
        "prompting_tried": False,
    }
    assert may_train(RULES, facts, ["model", "gpu"])
    assert all(
        still_matters(RULES, facts, question, ["model", "gpu"])
        for question in ("model", "gpu", "data_path")
    )


def test_the_budget_has_a_say_in_the_model_that_is_suggested():
    """Without a named model the budget matters also where no rule looks at it."""
    ruleset = LAYERS["guide-alone"]
    facts = {"task": "multi_department", "data_kind": "paired", "data_rows": 500, "n_tasks": 3}
    assert not still_matters(ruleset, {**facts, "params_b": 8.0, "device": "unknown"}, "budget", [])
    assert still_matters(ruleset, {**facts, "device": "unknown"}, "budget", [])


def test_what_a_model_will_be_read_for_is_open_as_long_as_it_is():
    """A stronger model matters where the model may turn out too small to reason; a model of 8B is
    not.
    """
    facts = {
        "task": "reasoning",
        "data_kind": "prompts_with_verifier",
        "data_rows": 5000,
        "base_model_never_succeeds": True,
        "depth": "task",
        "budget": "medium",
    }
    assert still_matters(RULES, facts, "teacher", ["model"])
    assert not still_matters(
        RULES, {**facts, "params_b": 8.0, "checkpoint_kind": "instruct"}, "teacher", []
    )


def test_the_probed_machine_is_not_the_last_word():
    """As long as another card may be named, what was probed is open: how many cards there are, and
    what fits.
    """
    facts = {
        **SUPPORT,
        "depth": "style",
        "budget": "low",
        "params_b": 8.0,
        "checkpoint_kind": "instruct",
        "device": "unknown",
        "priority": "cost",
    }
    assert still_matters(RULES, facts, "serve_with", ["gpu"]) == still_matters(
        RULES, {**facts, "device": "gpu", "gpus": 1}, "serve_with", ["gpu"]
    )
    assert still_matters(RULES, facts, "serve_with", ["gpu"])
    assert not still_matters(RULES, facts, "serve_with", [])


def test_a_signal_that_is_implied_counts_as_open():
    """A prompt that is good enough states that one was tried: the earlier no is not the last
    word.
    """
    from advisor.advice.questions import _open_facts

    facts = {"task": "qa", "data_kind": "none", "prompting_tried": False}
    assert "prompting_tried" in _open_facts(RULES, facts, ["prompt_meets_quality_bar"])
    assert "prompting_tried" not in _open_facts(RULES, facts, [])


def test_nothing_is_over_a_limit_that_nobody_set():
    """`over_budget` is possible only where money or hours are limited."""
    facts = {
        **SUPPORT,
        "depth": "style",
        "budget": "medium",
        "params_b": 8.0,
        "checkpoint_kind": "instruct",
        "device": "gpu",
        "gpus": 1,
        "priority": "quality",
    }
    facts |= {
        "fits_qlora": "fits",
        "fits_full": "too_big",
        "fits_adapter": "fits",
        "fits_prefix": "fits",
    }
    matters = {
        limit: still_matters(RULES, {**facts, **limit_facts}, "serve_with", ["serve_with"])
        for limit, limit_facts in {"none": {}, "set": {"budget_usd": 1}}.items()
    }
    brute = {
        len(
            {
                composition(RULES, {**facts, "fits_lora": fit, "serve_with": server})
                for server in domain(RULES, "serve_with")
            }
        )
        > 1
        for fit in ("fits", "tight", "too_big")
    }
    assert matters["none"] == (True in brute)


def test_what_is_settled_is_the_chain_and_the_modules():
    """Pairs of request and answer for support lead to one chain whatever is still open; with
    nothing known they do not.
    """
    facts = {
        **SUPPORT,
        "depth": "style",
        "n_tasks": 1,
        "budget": "low",
        "facts_change_often": False,
        "prompting_tried": False,
    }
    assert fixed_chain(RULES, facts, ["serve_with", "priority"]) == ("sft", False)
    assert fixed_chain(RULES, {"task": "chat_assistant"}, ["data_kind", "depth"]) is None
