"""The advice where a larger model is there to learn from."""

import json
import re

import pytest

from advisor import Answers, advise, advise_document
from advisor.advice.facts import situation_facts
from advisor.situation.build import situation_of

SUPPORT = {"task": "customer_service", "data": {"kind": "paired", "rows": 5000}, "gpu": "unknown"}
SMALL, LARGE = "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"
QWEN2_5 = "Qwen/Qwen2.5-{}-Instruct"
OTHER = "meta-llama/Llama-3.1-8B-Instruct"


def situation(**keys):
    return situation_of(Answers.from_dict({**SUPPORT, **keys}))


@pytest.mark.parametrize(
    ("keys", "teacher"),
    [
        ({}, None),
        ({"signals": ["teacher_available"]}, "texts"),
        ({"signals": ["teacher_logs_available"]}, "texts"),
        ({"signals": {"teacher_available": False}}, "none"),
        ({"teacher": "none"}, "none"),
        ({"teacher": "model"}, "model"),
        ({"teacher_model": LARGE, "model": SMALL}, "model"),
        ({"teacher_model": OTHER, "model": SMALL}, "texts"),
        ({"teacher_model": "Qwen/Qwen3-32B", "model": SMALL, "gpu": "T4"}, "texts"),
        ({"teacher_model": SMALL, "model": SMALL}, "none"),
        # 7B has 128 more rows in its output matrix than 0.5B, for the same tokens.
        ({"teacher_model": QWEN2_5.format("7B"), "model": QWEN2_5.format("0.5B")}, "model"),
    ],
)
def test_what_is_said_of_a_teacher_is_one_fact(keys, teacher):
    """A choice, older signals or a model's name tell it; a misfit can only write texts."""
    assert situation_facts(situation(**keys)).get("teacher") == teacher


@pytest.mark.parametrize(
    "keys",
    [
        {"teacher_model": SMALL},
        {"teacher_model": "Qwen/Qwen3-32B", "gpu": "T4"},
        {"teacher_model": SMALL, "model": LARGE},
        {"teacher_model": "some/thing"},
        # Another vocabulary, with both sizes and what such a model is good for.
        {"teacher_model": OTHER},
    ],
    ids=["itself", "too large", "smaller", "unknown", "another vocabulary"],
)
def test_a_teacher_that_will_not_do_is_warned_of(approved, keys):
    """The model itself, one too large for the GPU even in 4 bits, a smaller one, an unknown one."""
    warnings = situation(**{"model": SMALL, **keys}).warnings
    approved([text for text in warnings if "may mean" not in text])  # that lists near names


def test_a_teacher_is_stored_in_4_bits_where_memory_is_short():
    """Qwen3-8B stands beside a student on a T4 with it, and nothing would fit without."""
    found = advise({**SUPPORT, "gpu": "T4", "model": SMALL, "teacher_model": LARGE}).recommendation
    assert str(found.composition) == "distill+lora"
    chosen = found.stages[0].reasons["teacher_quantization"]
    assert (chosen.value, chosen.rule) == ("nf4", "distill/teacher-in-4-bit")
    assert "without this it would need" in chosen.because


def test_a_teacher_to_run_leads_to_a_plan_with_it(tmp_path):
    """The estimate counts its weights, and its terms are warned of; the plan needs its name."""
    data = tmp_path / "train.jsonl"
    rows = [{"prompt": f"Where is order {number}?", "completion": f"On its way, {number}."} for
            number in range(200)]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {**SUPPORT, "model": SMALL, "data": {"path": str(data)}, "gpu": "H100 80GB"}
    assert advise_document({**keys, "teacher": "model"})["missing"] == ["teacher_model"]
    found = advise_document({**keys, "teacher_model": LARGE})
    recommended, stage = found["recommendation"], found["plan"]["stages"][0]
    assert recommended["composition"] == "distill+lora"
    assert (stage["teacher"], stage["on_policy"], stage["beta"]) == (LARGE, 1.0, 1.0)
    (held,) = [one["gib"] for one in recommended["estimate"]["terms"] if one["name"] == "teacher"]
    assert held == pytest.approx(8_190_735_360 * 2 / 2**30, rel=0.01)
    assert any("forbid training other models on its answers" in text for text in found["warnings"])


def test_requests_alone_are_enough_for_a_teacher_to_run(tmp_path):
    """Requests without answers count as no examples: only with a teacher are they learned from."""
    data = tmp_path / "requests.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"Where is {n}?"}) + "\n" for n in range(60)))
    mapping = {"question": "prompt"}
    keys = {**SUPPORT, "model": SMALL, "data": {"path": str(data), "mapping": mapping}}
    found = advise_document({**keys, "teacher_model": LARGE})
    assert found["recommendation"]["composition"] == "distill+lora"
    assert (found["plan"]["data"]["mapping"], found["data"]["format"]) == (mapping, "requests")
    without = str(advise(keys).recommendation.composition)
    assert not {"distill", "grpo"} & set(re.findall(r"\w+", without))
