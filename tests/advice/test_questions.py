"""Questions that cannot matter may be left out, by comparison with every completion."""

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
    "task": "customer_service", "data_kind": "paired", "data_rows": 5000, "data_tokens": 800_000,
}  # fmt: skip
MODEL = {"params_b": 8.0, "checkpoint_kind": "instruct"}
READ = ("checkpoint_kind", "params_b", "gpus")  # read from the answers to `model` and `gpu`


def domain(ruleset, fact_id):
    """Every value of a fact that some rule tells apart, and None."""
    conditions = (
        condition for rules in ruleset.rules.values() for rule in rules for condition in rule.when
    )
    asked = [condition for condition in conditions if condition.fact == fact_id]
    return [cell.value for cell in cells_of(ruleset.facts[fact_id], asked)]


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
    """Nothing contradicts what estimates can say, or is over a limit that nobody set."""
    return not ruleset.contradictions(facts) and "over_budget" not in facts.values()


ASKED = [
    fact.id
    for fact in RULES.facts.values()
    if (fact.origin, fact.order is None) == ("asked", False)
    and fact.type in ("choice", "number", "flag")
]


@pytest.mark.parametrize("layers", list(LAYERS))
@examples(1.2, derandomize=True)
@given(seed=st.integers(0, 10**9), share=st.floats(0.2, 0.95))
def test_no_question_is_left_out_that_could_matter(layers, seed, share):
    """Where some completion makes a question change the composition, it still matters."""
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
    ["prompt_meets_quality_bar", "serve_with", "facts_change_often", "budget", "teacher",
     "latency_critical"],
)  # fmt: skip
def test_a_question_matters_exactly_where_some_completion_says_so(question):
    """With two further questions open, the answer is that of going through every completion."""
    opened = [
        name
        for name in ("facts_change_often", "prompt_meets_quality_bar", "long_prompt_cost")
        if name != question
    ][:2]
    known = {**SUPPORT, **MODEL, "depth": "style", "device": "unknown"}
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


STYLE = {**SUPPORT, "depth": "style", "budget": "low"}
NO_DATA = {
    "task": "qa", "data_kind": "none", "facts_change_often": True, "teacher": "none",
    "prompting_tried": False, "depth": "style",
}  # fmt: skip
REASONING = {
    "task": "reasoning", "data_kind": "prompts_with_verifier", "data_rows": 5000,
    "base_model_never_succeeds": True, "depth": "task", "budget": "medium",
}  # fmt: skip
TEAMS = {"task": "multi_department", "data_kind": "paired", "data_rows": 500, "n_tasks": 3}
ANY = ["budget", "model", "gpu", "serve_with", "priority"]
HERE = {**STYLE, **MODEL, "device": "unknown", "priority": "cost"}


@pytest.mark.parametrize(
    ("layers", "facts", "question", "opened", "matters"),
    [
        # Facts that change and no examples: nothing about training is asked for.
        *(("default", NO_DATA, question, ANY, False) for question in ANY),
        # Where no rule looks at model and card any more, the plan still needs them.
        *(("default", {**STYLE, "facts_change_often": False, "prompting_tried": False}, question,
           ["model", "gpu"], True) for question in ("model", "gpu", "data_path")),
        # Without a named model the budget has a say in the one that is suggested.
        ("guide-alone", {**TEAMS, "params_b": 8.0, "device": "unknown"}, "budget", [], False),
        ("guide-alone", {**TEAMS, "device": "unknown"}, "budget", [], True),
        # A stronger model matters where the model may turn out too small to reason.
        ("default", REASONING, "teacher", ["model"], True),
        ("default", {**REASONING, **MODEL}, "teacher", [], False),
        # As long as another card may be named, what was probed is not the last word.
        ("default", HERE, "serve_with", ["gpu"], True),
        ("default", {**HERE, "device": "gpu", "gpus": 1}, "serve_with", ["gpu"], True),
        ("default", HERE, "serve_with", [], False),
    ],
)  # fmt: skip
def test_a_question_is_asked_where_it_may_matter(layers, facts, question, opened, matters):
    assert still_matters(LAYERS[layers], facts, question, opened) is matters


def test_what_is_settled_is_the_chain_and_the_modules():
    """Pairs for support lead to one chain whatever is open; without data only a remedy is left."""
    facts = {**STYLE, "n_tasks": 1, "facts_change_often": False, "prompting_tried": False}
    assert fixed_chain(RULES, facts, ["serve_with", "priority"]) == ("sft", False)
    assert fixed_chain(RULES, {"task": "chat_assistant"}, ["data_kind", "depth"]) is None
    assert not may_train(RULES, NO_DATA, ANY)
    assert may_train(RULES, {**STYLE, "prompting_tried": False}, ["model", "gpu"])


def test_nothing_is_over_a_limit_that_nobody_set():
    """`over_budget` is possible only where money or hours are limited."""
    facts = {
        **SUPPORT, **MODEL, "depth": "style", "budget": "medium", "device": "gpu", "gpus": 1,
        "priority": "quality", "fits_qlora": "fits", "fits_full": "too_big",
        "fits_adapter": "fits", "fits_prefix": "fits",
    }  # fmt: skip
    brute = any(
        len({composition(RULES, {**facts, "fits_lora": fit, "serve_with": server})
             for server in domain(RULES, "serve_with")}) > 1
        for fit in ("fits", "tight", "too_big")
    )  # fmt: skip
    assert still_matters(RULES, facts, "serve_with", ["serve_with"]) == brute
