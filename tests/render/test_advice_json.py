"""The JSON document: its schema, its units, and nothing in it that JSON cannot hold."""

import json
import math

import jsonschema
import pytest
from msgspec import structs

from advisor.advice.advise import advise
from advisor.ground.types import Answer, AnswerSet
from advisor.render.advice_json import advice_document, plain, rounded
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from advisor.situation.build import situation_of
from tests.advice.situations import random_advice
from tests.conftest import scaled
from tests.render.example_advice import EXAMPLES, flip, injected, scenario_5

SCHEMA = schemas(load_rules())["advice"]


@pytest.mark.parametrize("name", [*EXAMPLES, "injected"])
def test_every_document_keeps_to_the_published_schema(approved, name):
    """The document of each kind of answer validates, and survives strict JSON unchanged."""
    advice = {**EXAMPLES, "injected": injected}[name]()
    document = advice_document(advice, plan=None, missing=["data.path"])
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text) == document
    assert "secret question" not in text  # the sample row stays at home
    approved(document)


# Situations that random answers do not hold.
ODD = (
    {"task": "qa", "model": "BAAI/bge-m3", "gpu": "L4"},
    {"task": "code", "model": "gpt-4.1-mini"},
    {"task": "qa", "gpu": "TPU v5e"},
    {"task": "generation", "model": "google-t5/t5-base", "gpu": "M4 Max 64GB"},
    {"task": "qa", "model": "Qwen/Qwen3-8B / t5-base", "gpu": "MI300X"},
    {"task": "multi_department", "model": "FacebookAI/roberta-base", "n_tasks": 5, "gpu": "L4"},
    {"task": "qa", "model": "deepseek-ai/DeepSeek-V3", "gpu": "RTX 4090", "data_kind": "paired"},
    {"task": "code", "model": "Mistral-Nemmo", "gpu": "unknown", "gpus": 2},
    {"task": "qa", "model": "openai/gpt-oss-20b", "gpu": "RTX 3060 12GB"},
    {"task": "qa", "gpu": "L4", "budget_usd": 0.0, "data_kind": "paired", "data_rows": 3000},
)


def check_contract(document):
    """The schema, strict JSON, and a value wherever the contract has one."""
    jsonschema.validate(document, SCHEMA)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    found, outside = document["recommendation"], document["out_of_scope"]
    assert [key for key in ("composition", "because", "decided_by") if not found[key]] == []
    assert found["evidence"] in ("high", "medium", "low")
    assert found["strength"] in ("strong", "weak")
    # A closed model may be prompted, and another tool trains the same method on other devices.
    assert bool(outside) >= ("other_tool" in found["remedies"])
    assert not (outside and found["engine"]["runs_here"])
    assert outside is None or all(outside[key] for key in ("what", "where"))
    # The ways out of "nothing fits" stand in a part of their own.
    named = [remedy for remedy in found["remedies"] if remedy != "smaller_model"]
    assert [step["remedy"] for step in found["next_steps"]] == named
    assert bool(document["nothing_fits"]) == ("smaller_model" in found["remedies"])
    estimate = found["estimate"]
    if estimate["fits"] not in ("unknown", "too_big"):
        assert 0 < estimate["least_gib"] <= estimate["need_gib"]
        assert estimate["need_low_gib"] <= estimate["limit_gib"]
        assert estimate["need_low_gib"] <= estimate["need_gib"] <= estimate["need_high_gib"]
        assert 0 < estimate["low_gib"] <= estimate["peak_gib"] <= estimate["high_gib"]
    if estimate["fits"] in ("fits", "tight"):
        assert estimate["need_high_gib"] <= estimate["limit_gib"]
    if estimate["peak_gib"] is not None and estimate["limit_gib"] is not None:
        assert estimate["peak_gib"] <= estimate["limit_gib"]
    assert (found["find_out"] is not None) <= (estimate["fits"] == "may_fit")


@pytest.mark.parametrize("seed", range(scaled(25)))
def test_documents_of_random_situations_keep_to_the_contract(seed, situation_files):
    """Also those of answers that train nothing, that fit nothing and that are out of scope."""
    advice = random_advice(seed, situation_files)
    if advice is None:
        pytest.skip("these answers contradict each other")
    check_contract(advice_document(advice, plan=None, missing=[]))


@pytest.mark.parametrize("stated", ODD, ids=[" ".join(map(str, each.values())) for each in ODD])
def test_documents_of_odd_situations_keep_to_the_contract(stated):
    """Models and devices out of scope, encoders, giants, several models, a budget of nothing."""
    known = {name: Answer(value=value, origin="flag") for name, value in stated.items()}
    advice = advise(situation_of(AnswerSet(known=known)), load_rules(), load_rules(("document",)))
    check_contract(advice_document(advice, plan=None, missing=[]))


def test_the_schema_notices_a_missing_key():
    """A document without one of its keys is refused: the schema is not empty words."""
    document = advice_document(scenario_5(), plan=None, missing=[])
    validator = jsonschema.Draft7Validator(SCHEMA)
    without = [{name: document[name] for name in document if name != key} for key in document]
    assert [one for one in without if validator.is_valid(one)] == []


def test_not_a_number_becomes_null():
    """Infinities and NaN, which JSON does not know, are null wherever they turn up."""
    advice = scenario_5()
    found = advice.recommendation
    unreal = {"cost_usd": math.inf, "duration_s": math.nan, "times": None}
    numbers = structs.replace(found.estimate, **unreal)
    advice = structs.replace(
        advice,
        recommendation=structs.replace(found, estimate=numbers),
        facts={"rows": math.nan, "limits": (1.0, -math.inf)},
        flips=(flip("sft+lora", "money", "if", **{"budget.usd": math.inf}),),
    )
    document = advice_document(advice, plan={"stages": [math.nan]})
    assert document["recommendation"]["estimate"]["usd"] is None
    assert document["recommendation"]["estimate"]["hours"] is None
    assert document["situation"]["facts"] == {"rows": None, "limits": [1.0, None]}
    assert document["plan"] == {"stages": [None]}
    json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (78.1234, 78.1),
        (1234.5, 1230.0),
        (0.004567, 0.00457),
        (5000, 5000),
        (0.0, 0.0),
        (None, None),
    ],
)
def test_estimates_carry_three_significant_digits(value, expected):
    """Floats are rounded to three significant digits, counts stay as they are."""
    assert rounded(value) == expected


def test_what_is_no_plain_value_is_refused():
    """An object that JSON cannot hold is a bug that speaks, not a string by accident."""
    with pytest.raises(TypeError, match="has no place in a JSON document"):
        plain(object())
