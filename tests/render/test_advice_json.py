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
from tests.render.example_advice import (
    EXAMPLES,
    flip,
    injected,
    nothing_fits,
    remedy_alone,
    scenario_3,
    scenario_4,
    scenario_5,
)

SCHEMA = schemas(load_rules())["advice"]


@pytest.mark.parametrize("name", [*EXAMPLES, "injected"])
def test_every_document_keeps_to_the_published_schema(approved, name):
    """The document of each kind of answer validates, and survives strict JSON unchanged."""
    advice = {**EXAMPLES, "injected": injected}[name]()
    document = advice_document(advice, plan=None, missing=["data.path"])
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
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


def test_an_answer_is_written_in_parts():
    """Scripts find stages, reasons and estimate, and what each candidate ruled out would need."""
    document = document_of(scenario_5())
    recommendation = document["recommendation"]
    assert recommendation["composition"] == "sft+qlora"
    assert recommendation["stages"] == [
        {"objective": "sft", "update": "lora", "quantization": "nf4"}
    ]
    assert recommendation["decided_by"] == ["document/scenario-5", "document/scenario-1"]
    assert recommendation["because"][0]["rule"] == "document/scenario-5"
    estimate = recommendation["estimate"]
    # 9.1 GiB was put in, with a band of ten percent; 1.4 hours, 60 cents.
    assert (estimate["peak_gib"], estimate["low_gib"], estimate["high_gib"]) == (9.1, 8.19, 10.0)
    assert (estimate["hours"], estimate["usd"], estimate["fits"]) == (1.4, 0.6, "fits")
    # `hours` stays what limits and costs are compared with; `times` adds the other parts.
    known = {"load": 0.0111, "before": 0.0208, "train": 1.4, "after": 0.0389}
    others = dict.fromkeys(("prepare", "evaluate", "save", "download"), 0.0)
    parts = {**known, **others, **dict.fromkeys(("total", "low", "high"), 1.47)}
    assert estimate["times"] == {f"{name}_hours": value for name, value in parts.items()}
    (full,) = (one for one in document["alternatives"] if one["composition"] == "sft+full")
    assert full["verdict"] == "too_big"
    (why,) = full["because"]
    assert (why["needs"], why["has"], why["unit"]) == (78.1, 24, "GiB")


def document_of(advice):
    return advice_document(advice, plan=None)


@pytest.mark.parametrize(
    ("make", "spelled"),
    [
        (scenario_3, "sft+adapter@per_task"),  # a module for each task
        (scenario_4, "sft>rm>ppo+lora"),
        (remedy_alone, "rag"),
    ],
)
def test_compositions_are_spelled_as_people_spell_them(make, spelled):
    """A remedy alone has no stages and no plan."""
    document = document_of(make())
    found = document["recommendation"]
    assert found["composition"] == spelled
    assert bool(found["stages"]) is (make is not remedy_alone)
    assert (found["remedies"], document["plan"]) == (["rag"] * (make is remedy_alone), None)


def test_nothing_fits_still_names_a_composition_and_what_would():
    """At exit 3 the composition is not null and the flips say what would fit."""
    document = document_of(nothing_fits())
    assert document["recommendation"]["composition"] == "smaller_model"
    assert document["recommendation"]["estimate"]["fits"] == "too_big"
    assert document["nothing_fits"]["nearest"] == "sft+qlora"
    assert document["nothing_fits"]["ways_out"][0]["command"].startswith("advise run ")
    assert {"gpu": "RTX 6000 Ada 48GB"} in [flip["change"] for flip in document["flips"]]


def test_not_a_number_becomes_null():
    """Infinities and NaN, which JSON does not know, are null wherever they turn up."""
    advice = scenario_5()
    found = advice.recommendation
    numbers = structs.replace(found.estimate, cost_usd=math.inf, duration_s=math.nan)
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


def test_stated_data_and_unknown_data_look_alike():
    """Stated and measured data have the same keys, sizes are GiB; the sample row stays at home."""
    stated, measured = document_of(scenario_4())["data"], document_of(scenario_5())["data"]
    assert set(stated) == set(measured)
    assert (stated["origin"], stated["kind"], stated["rows"]) == ("stated", "preference", 40_000)
    assert (measured["origin"], measured["rows"]) == ("measured", 5000)
    assert measured["tokens"]["longest"] == 1800
    assert document_of(remedy_alone())["data"]["origin"] == "unknown"
    assert "support/train.jsonl" in json.dumps(measured)
    assert "secret question" not in json.dumps(document_of(scenario_5()))
    card = document_of(scenario_3())["hardware"]["gpus"][0]
    assert (card["memory_total_gib"], card["memory_free_gib"]) == (24, 22.5)


def test_answers_keep_their_origin():
    """Each answer says whether a flag, a file or a person gave it."""
    told = AnswerSet(known={"task": Answer(value="qa", origin="flag")})
    situation = structs.replace(scenario_5().situation, answers=told)
    document = document_of(structs.replace(scenario_5(), situation=situation))
    assert document["situation"]["answers"] == {"task": {"value": "qa", "origin": "flag"}}


def test_what_is_no_plain_value_is_refused():
    """An object that JSON cannot hold is a bug that speaks, not a string by accident."""
    with pytest.raises(TypeError, match="has no place in a JSON document"):
        plain(object())
