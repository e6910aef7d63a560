"""The published cases in other calculators' words (benchmarks/estimators.py)."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import yaml

from advisor.ground.types import ModelShape
from benchmarks import estimators
from benchmarks.calculators import Calculator, calculators
from benchmarks.calculators.accelerate import arguments as accelerate
from benchmarks.calculators.fitcheck import arguments as fitcheck
from benchmarks.calculators.ftuneai import arguments as ftuneai
from benchmarks.calculators.job import job_of, shared
from benchmarks.calculators.soup import arguments as soup
from benchmarks.estimators import VARIABLE, Side, asked, record, shared_names
from tools.generate.accuracy import Case, published

# config.json of Llama-2-7B.
SHAPE = ModelShape(
    id="m", origin="catalogue", params=6738415616, hidden_size=4096, layers=32, heads=32,
    kv_heads=32, head_dim=128, intermediate_size=11008, vocab_size=32000, tied_embeddings=False
)  # fmt: skip


FULL: dict[str, Any] = {"update": "full", "rank": None, "target_modules": None}


def case(**given: Any) -> dict[str, Any]:
    plain = {
        "id": "x", "update": "qlora", "rank": 8, "micro_batch_size": 2, "seq_len": 512,
        "gradient_checkpointing": True, "counter": "reserved", "gpu": "NVIDIA Tesla T4",
    }  # fmt: skip
    return {**published()["defaults"], **plain, "target_modules": ["q_proj", "v_proj"], **given}


def job(**given: Any) -> Any:
    return job_of(case(**given), SHAPE)


def test_a_qlora_case_reaches_each_calculator_in_its_own_words():
    """Under the names that each calculator documents."""
    one = job(optimizer="adamw_8bit")
    told = fitcheck(one)
    layers = told.pop("config")["num_hidden_layers"]
    assert (told.pop("gpu"), told.pop("params"), layers) == ("t4", 6738415616, 32)
    assert told["training"] == {
        "precision": "bf16", "quantization": "nf4", "double_quant": False, "optimizer": "adam8bit",
        "optimizer_dtype": "bf16", "batch_size": 2, "seq_len": 512, "lora_rank": 8,
        "grad_checkpoint": True, "flash_attn": True, "lora_targets": ["q_proj", "v_proj"],
    }  # fmt: skip
    assert ftuneai(one)["words"] == {
        "method": "qlora", "quantization": "4bit", "optimizer": "adam_8bit",
        "lora_target": "attention", "sharding": "none",
    }  # fmt: skip
    expected = {
        "quantization": "4bit", "optimizer": "adamw_bnb_8bit", "peft": "qlora",
        "model_params_b": pytest.approx(6.738, abs=1e-3),
    }  # fmt: skip
    assert soup(one).items() >= expected.items()
    assert isinstance(accelerate(one), str)


SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("targets", "names", "nearest"),
    [
        (["c_attn"], ("q_proj", "k_proj", "v_proj"), "attention_all"),
        (["c_attn", "c_proj", "w1", "w2"], SEVEN, "all_linear"),
        ("all-linear", SEVEN, "all_linear"),
        (["q_proj", "v_proj", "lm_head"], ("q_proj", "v_proj"), "attention"),
    ],
)
def test_fused_projections_become_the_seven_usual_names(
    targets: Any, names: tuple[str, ...], nearest: str
):
    """Qwen's c_attn is queries, keys and values; what a calculator has no name for is left out."""
    one = job(target_modules=targets)
    assert (one.targets, ftuneai(one)["words"]["lora_target"]) == (names, nearest)


def test_full_training_in_float32_keeps_its_bytes():
    """Adam's moments have the dtype of the weights, and accelerate is told 4 bytes a parameter."""
    pure, single = job(**FULL), job(**FULL, weights_dtype="float32")
    assert fitcheck(pure)["training"]["optimizer_dtype"] == "bf16"
    assert fitcheck(pure)["training"]["lora_rank"] is None
    assert accelerate(pure) == {"size_bytes": 26953662464, "precision": "bfloat16"}
    assert fitcheck(single)["training"]["precision"] == "fp32"
    assert accelerate(single)["precision"] == "float32"


def test_several_gpus_are_told_only_where_there_are_words_for_them():
    """A sharded run goes to the one calculator that knows sharding; the others are not asked."""
    several = job(gpus=4, sharding="fsdp")
    assert ftuneai(several)["words"]["sharding"] == "fsdp"
    assert ftuneai(several)["config"]["num_gpus"] == 4
    assert fitcheck(several) == soup(several) == "one GPU only"


@pytest.mark.parametrize(
    "given",
    [
        {"offload_weights": True},
        {"optimizer": "adamw_cpu"},
        {"train_embeddings": True},
        {"gradient_checkpointing": "selective"},
    ],
)
def test_what_no_calculator_has_words_for_is_not_asked(given: dict[str, Any]):
    """Such a case has a reason instead of a job, and no calculator is scored on it."""
    assert isinstance(job_of(case(**given), SHAPE), str)


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "fused"},
        {"optimizer": "paged_adamw"},
        {"gpus": 2},
        {"weights_dtype": "float16"},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_the_shared_subset_keeps_to_plain_runs(given: dict[str, Any]):
    """One GPU, bf16, AdamW and a plain loss."""
    assert (shared(case()), shared(case(**given))) == (True, False)


def test_a_child_that_refuses_one_case_still_answers_the_others():
    """Answers stay with their cases, and a refusal keeps its reason."""
    body = (
        '    if item["batch"] == 2:\n        raise ValueError("too many")\n'
        '    return item["batch"] * 1.5, 0.5'
    )
    stand_in = Calculator(
        name="stand_in", package="pytest", imports="import math", body=body,
        arguments=lambda one: (
            "not asked" if one.micro_batch_size == 3 else {"batch": one.micro_batch_size}
        ),
    )  # fmt: skip
    told = [({"id": str(size)}, replace(job(), micro_batch_size=size)) for size in (1, 2, 3, 4)]
    version, answers = asked(stand_in, sys.executable, [*told, ({"id": "5"}, "no words")])
    assert version == pytest.__version__
    refused = {"2": "ValueError: too many", "3": "not asked", "5": "no words"}
    assert answers == {"1": (1.5, 0.5), "4": (6.0, 0.5), **refused}


@pytest.mark.parametrize("calculator", calculators(), ids=lambda one: one.name)
def test_every_calculator_answers_or_says_why_not(calculator: Calculator):
    """Arguments that JSON can carry, or a reason."""
    for one in (job(), job(**FULL), job(gpus=4), replace(job(), experts=8, active_experts=2)):
        told = calculator.arguments(one)
        assert json.dumps(told) if isinstance(told, dict) else told
    assert calculator.has_adapters == isinstance(calculator.arguments(job()), dict)
    assert calculator.note
    compile(calculator.script, calculator.package, "exec")  # a text until another Python reads it


def test_without_other_environments_each_calculator_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """No variable, no calculator: the output says which were left out and how to install them."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert estimators.measure() == []
    out = capsys.readouterr().out
    for one in calculators():
        assert f"{one.package}: left out" in out
        assert f"FOLDER/{one.name}/bin/pip install {one.package}" in out


def test_a_calculator_without_full_fine_tuning_does_not_narrow_the_shared_runs():
    """Shared are the runs that all answer which know both; the record holds each on its part."""
    facts = [
        {**case(), "id": "a", "source": "s", "measured_gib": 10.0},
        {**case(**FULL), "id": "b", "source": "s",
         "measured_gib": 20.0},
    ]  # fmt: skip
    told = [(one, "no job") for one in facts]

    def side(name: str, *ids: str, context: bool = True) -> Side:
        found = {one["id"]: Case(one, {"peak_gib": 10.0}) for one in facts if one["id"] in ids}
        calculator = Calculator(
            name=name, package=name, arguments=str, imports="", body="", note="one GPU",
            has_context=context,
        )  # fmt: skip
        return Side(calculator, "1.0", found, found)

    sides = [side("both", "a", "b"), side("adapters", "a", context=False)]
    assert shared_names(sides, told) == ["a", "b"]
    lines = record(sides, told, sides[0].printed, measured="2026-01-01")
    rows = yaml.safe_load("\n".join(lines))["other_calculators"]
    assert [(row["name"], row["cases"], row["answered"]) for row in rows["rows"]] == [
        ("both 1.0", "answered", 2),
        ("adapters 1.0", "answered", 1),
        ("both 1.0", "shared", 2),
        ("adapters 1.0", "shared", 1),
    ]
    assert rows["rows"][0]["printed"]["median_error"] == 0.25
    assert "tensors" not in rows["rows"][1]
    assert rows["notes"] == {"both": "one GPU", "adapters": "one GPU"}
