"""The JSON document: its schema, its units, and nothing in it that JSON cannot hold."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import jsonschema
import pytest
from msgspec import structs

from advisor.advice.advise import advise
from advisor.advice.types import Flip
from advisor.ground.types import Answer, AnswerSet
from advisor.render.advice_json import advice_document, plain, rounded
from advisor.ruleset.load import load_rules
from advisor.schema.build import schemas
from advisor.situation.build import situation_of
from tests.advice.situations import random_advice
from tests.conftest import scaled
from tests.render.example_advice import (
    EXAMPLES,
    GIB,
    injected,
    nothing_fits,
    remedy_alone,
    scenario_3,
    scenario_4,
    scenario_5,
    training,
)

SCHEMA = schemas(load_rules())["advice"]
GUIDE = load_rules(("document",))


@pytest.mark.parametrize("name", [*EXAMPLES, "injected"])
def test_every_document_keeps_to_the_published_schema(name):
    """The document of each kind of answer validates, and survives strict JSON unchanged."""
    advice = {**EXAMPLES, "injected": injected}[name]()
    document = advice_document(advice, plan=None, missing=["data.path"])
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


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
    assert found["composition"]
    assert found["because"]
    assert found["decided_by"]
    assert found["evidence"] in ("high", "medium", "low")
    assert found["strength"] in ("strong", "weak")
    assert bool(outside) == ("other_tool" in found["remedies"])
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
    advice = advise(situation_of(AnswerSet(known=known)), load_rules(), GUIDE)
    check_contract(advice_document(advice, plan=None, missing=[]))


def test_the_schema_notices_a_missing_key():
    """A document without one of its keys is refused: the schema is not empty words."""
    document = advice_document(scenario_5(), plan=None, missing=[])
    for key in document:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {name: value for name, value in document.items() if name != key}, SCHEMA
            )


def test_the_recommendation_is_written_in_parts():
    """Composition, stages with quantization apart, reasons and estimate stand where scripts look
    for them.
    """
    recommendation = advice_document(scenario_5(), plan=None)["recommendation"]
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


def test_a_limit_carries_both_numbers():
    """What rules a candidate out says what it needs, what there is, and in which unit."""
    full = next(
        item
        for item in advice_document(scenario_5(), plan=None)["alternatives"]
        if item["composition"] == "sft+full"
    )
    assert full["verdict"] == "too_big"
    assert {key: full["because"][0][key] for key in ("needs", "has", "unit")} == {
        "needs": 78.1,
        "has": 24,
        "unit": "GiB",
    }


def test_compositions_are_spelled_as_people_spell_them():
    """A module for each task, a chain of three stages and a remedy alone keep their spelling."""
    assert (
        advice_document(scenario_3(), plan=None)["recommendation"]["composition"]
        == "sft+adapter@per_task"
    )
    assert (
        advice_document(scenario_4(), plan=None)["recommendation"]["composition"]
        == "sft>rm>ppo+lora"
    )
    remedy = advice_document(remedy_alone(), plan=None)
    assert remedy["recommendation"]["composition"] == "rag"
    assert (
        remedy["recommendation"]["remedies"],
        remedy["recommendation"]["stages"],
        remedy["plan"],
    ) == (["rag"], [], None)


def test_nothing_fits_still_names_a_composition_and_what_would():
    """At exit 3 the composition is not null and the flips say what would fit."""
    document = advice_document(nothing_fits(), plan=None)
    assert document["recommendation"]["composition"] == "smaller_model"
    assert document["recommendation"]["estimate"]["fits"] == "too_big"
    assert document["nothing_fits"]["nearest"] == "sft+qlora"
    assert document["nothing_fits"]["ways_out"][0]["command"].startswith("advise run ")
    assert {"gpu": "RTX 6000 Ada 48GB"} in [flip["change"] for flip in document["flips"]]


def test_the_whole_time_stands_beside_the_hours_of_training():
    """`hours` stays what limits and costs are compared with; `times` adds the other parts."""
    estimate = advice_document(scenario_5(), plan=None)["recommendation"]["estimate"]
    assert estimate["hours"] == estimate["times"]["train_hours"] == 1.4
    assert estimate["times"] == {
        "total_hours": 1.47,
        "low_hours": 1.47,
        "high_hours": 1.47,
        "load_hours": 0.0111,
        "prepare_hours": 0.0,
        "before_hours": 0.0208,
        "train_hours": 1.4,
        "evaluate_hours": 0.0,
        "save_hours": 0.0,
        "after_hours": 0.0389,
        "download_hours": 0.0,
    }


def test_not_a_number_becomes_null():
    """Infinities and NaN, which JSON does not know, are null wherever they turn up."""
    advice = scenario_5()
    estimate = structs.replace(
        advice.recommendation.estimate, cost_usd=math.inf, duration_s=math.nan
    )
    advice = structs.replace(
        advice,
        recommendation=structs.replace(advice.recommendation, estimate=estimate),
        facts={"rows": math.nan, "limits": (1.0, -math.inf)},
        flips=(
            Flip(
                change={"budget.usd": math.inf},
                to=training("sft", "lora"),
                effort="money",
                text="if",
            ),
        ),
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
        (math.inf, None),
    ],
)
def test_estimates_carry_three_significant_digits(value, expected):
    """Floats are rounded to three significant digits, counts stay as they are."""
    assert rounded(value) == expected


def test_a_data_row_never_travels_in_the_document():
    """The sample row of the data stays at home."""
    text = json.dumps(advice_document(scenario_5(), plan=None))
    assert "support/train.jsonl" in text
    assert "secret question" not in text


def test_stated_data_and_unknown_data_look_alike():
    """What was only said stands in the same keys as what was measured."""
    stated, measured = (
        advice_document(scenario_4(), plan=None)["data"],
        advice_document(scenario_5(), plan=None)["data"],
    )
    assert set(stated) == set(measured)
    assert (stated["origin"], stated["kind"], stated["rows"]) == ("stated", "preference", 40_000)
    assert (measured["origin"], measured["rows"], measured["tokens"]["longest"]) == (
        "measured",
        5000,
        1800,
    )
    assert advice_document(remedy_alone(), plan=None)["data"]["origin"] == "unknown"


def test_hardware_speaks_gib():
    """Sizes of the machine are in GiB."""
    card = advice_document(scenario_3(), plan=None)["hardware"]["gpus"][0]
    assert (card["memory_total_gib"], card["memory_free_gib"]) == (24, 22.5)
    assert 24 * GIB == 25_769_803_776


def test_answers_keep_their_origin():
    """Each answer says whether a flag, a file or a person gave it."""
    advice = scenario_5()
    situation = structs.replace(
        advice.situation, answers=AnswerSet(known={"task": Answer(value="qa", origin="flag")})
    )
    assert advice_document(structs.replace(advice, situation=situation), plan=None)["situation"][
        "answers"
    ] == {"task": {"value": "qa", "origin": "flag"}}


def test_what_is_no_plain_value_is_refused():
    """An object that JSON cannot hold is a bug that speaks, not a string by accident."""
    with pytest.raises(TypeError, match="has no place in a JSON document"):
        plain(object())


def test_the_json_way_loads_neither_rich_nor_questionary():
    """`advise --json` stays fast: rendering JSON imports no library beyond the standard one and the
    YAML reader.
    """
    code = (
        "import sys, advisor.render.advice_json; print([name for name in ('rich', 'questionary',"
        " 'prompt_toolkit', 'pydantic', 'numpy', 'torch') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
