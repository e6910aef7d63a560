"""`advise estimate` as a person meets it: of a plan, of one spec beside a card."""

import json
import re
import shlex

import pytest

from advisor.ground.types import Hardware
from advisor.render.estimate import estimates_text
from tests.conftest import PAIRS


@pytest.fixture
def folder(tmp_path):
    """A folder with the configuration of a small model, and a file of examples."""
    config = {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "train.jsonl").write_text(PAIRS)
    return tmp_path


@pytest.fixture
def estimate(call):
    """The answer that a line behind `advise estimate --json` prints."""
    return lambda line: json.loads(call("estimate", "--json", *shlex.split(line))[1])


def printed(call, line):
    return " ".join(call("estimate", *shlex.split(line))[1].split())


ADVISE = "--json --gpu 'RTX 4090' --model model --data train.jsonl --plan plan.yaml --task"


@pytest.fixture
def planned(call, folder):
    """A plan for a card with the folder of its model and its data, and what advised it."""
    code, out, _ = call(*shlex.split(ADVISE), "qa")
    assert code == 0
    return folder / "plan.yaml", json.loads(out)["recommendation"]["estimate"]


def test_a_plan_is_estimated_as_it_was_advised(estimate, planned):
    """Memory, limit, verdict and time are those of the advice; another card may be named."""
    _, advised = planned
    (found,) = estimate("plan.yaml")
    told = [found[key] for key in ("name", "counter", "fits")]
    assert told == ["sft", "nvidia-smi", advised["fits"]]
    for key in ("peak_gib", "low_gib", "high_gib", "limit_gib"):
        assert found[key] == pytest.approx(advised[key], rel=0.01)
    assert found["hours"] == pytest.approx(advised["times"]["train_hours"], abs=0.001)
    (smaller,) = estimate("plan.yaml --gpu 'GTX 650 1GB'")
    assert smaller["limit_gib"] == pytest.approx(1, rel=0.05)
    assert (advised["fits"], smaller["fits"] != "fits") == ("fits", True)


def test_a_plan_made_for_a_card_is_held_against_that_card(estimate, planned, monkeypatch):
    """The plan's own line tells which; without it, memory alone is told."""
    plan, _ = planned
    here = Hardware(kind="cpu", origin="probed")
    monkeypatch.setattr("advisor.situation.of_plan.probe", lambda: here)
    text = plan.read_text().replace('    gpu: "RTX 4090"\n', "").replace("(stated)", "(probed)")
    plan.write_text(text)
    (found,) = estimate("plan.yaml")
    assert found["limit_gib"] == pytest.approx(24, rel=0.01)
    assert any("estimated on the GPU it was made for" in text for text in found["warnings"])
    plan.write_text(text.replace('  hardware: "1 x RTX 4090 (probed)"\n', ""))
    (found,) = estimate("plan.yaml")
    assert found["peak_gib"] is not None
    assert "limit_gib" not in found


def test_a_plan_of_several_stages_is_a_list_of_named_answers(call, estimate, folder):
    """One stage or several: a list, each answer under its stage's name."""
    row = '{{"prompt": "Is {} odd?", "chosen": "I count.", "rejected": "No."}}\n'
    (folder / "train.jsonl").write_text("".join(row.format(n) for n in range(600)))
    call(*shlex.split(f"{ADVISE} chat_assistant --choose 'rm>ppo+lora' --force"))
    assert [answer["name"] for answer in estimate("plan.yaml")] == ["rm", "ppo"]


def test_a_plan_without_its_model_is_no_estimate(call, estimate, folder, planned):
    """Where nothing can be estimated the reason is said and the exit code is 2."""
    (folder / "train.jsonl").unlink()
    (found,) = estimate("plan.yaml")
    assert "hours" not in found
    assert any("the data cannot be read" in text for text in found["warnings"])
    (folder / "model" / "config.json").unlink()
    code, out, err = call("estimate", "plan.yaml")
    assert (code, out, "model" in err) == (2, "", True)


def test_one_spec_beside_a_card_counts_what_the_card_shows(estimate):
    """What the whole process occupies; without a card what the trainer allocates."""
    flags = "--model Qwen/Qwen3-8B --micro-batch-size 8 --seq-len 4096"
    beside, alone = estimate(f"{flags} --gpu 'RTX 4090'"), estimate(flags)
    assert (beside["counter"], beside["fits"]) == ("nvidia-smi", "too_big")
    assert beside["need_gib"] > beside["limit_gib"]
    assert beside["need_gib"] > alone["peak_gib"]
    assert beside["peak_gib"] < beside["limit_gib"]  # a counter never shows more than there is
    assert "counter" not in alone


def test_estimates_of_a_plan_refuse_what_specs_refuse(call, planned):
    """Whichever way settings come in."""
    plan, _ = planned
    plan.write_text(re.sub(r"rank: \d+", "rank: 1000", plan.read_text()))
    code, _, err = call("estimate", "plan.yaml")
    assert (code, "rank 1000 is above the hidden size 576" in err) == (2, True), err


def test_a_count_before_the_name_of_a_card_counts(estimate):
    one, two = (
        estimate(f"--model Qwen/Qwen3-8B --gpu '{gpu}'") for gpu in ("RTX 4090", "2 x RTX 4090")
    )
    assert one["counter"] == two["counter"] == "nvidia-smi"
    assert two["fits"] == one["fits"]
    assert two["peak_gib"] > one["peak_gib"]  # NCCL


def test_a_batch_that_does_not_fit_names_the_one_that_does(approved, call, estimate):
    """The verdict says which batch fits instead, or by how much even the smallest is too much."""
    card = "--model Qwen/Qwen3-8B --gpu T4"
    asked = f"{card} --update qlora --seq-len 4096 --micro-batch-size 16", f"{card} --update full"
    approved([[estimate(line)["fits_with"], printed(call, line)] for line in asked])


def test_what_is_assumed_and_what_is_not_known_are_said(approved, call, estimate):
    """Settings that decide the memory are named; an unknown GPU has no verdict."""
    flags = "--model Qwen/Qwen3-8B --seq-len 2048 --gpu 'RTX 9999'"
    found = estimate(flags)
    approved([found["fits"], found["warnings"], printed(call, flags)])


SPEC = {
    "need_gib": 9.5, "least_gib": 9.0, "need_low_gib": 8.0, "need_high_gib": 12.25, "peak_gib": 9.5,
    "moment": "the loss", "terms": [{"name": "weights", "gib": 9.25}, {"name": "rest", "gib": 0.003}],
}  # fmt: skip
INSTEAD = {
    "micro_batch_size": 2, "grad_accum": 8, "gradient_checkpointing": False, "fits": "fits", "need_gib": 7.5,
}  # fmt: skip
SPEED = {"tokens_per_s_per_gpu": 1234.5, "step_s": 2.345, "step_low_s": 1.25, "step_high_s": 12.5}
SAID = (
    {}, {"fits": "unknown", "least_gib": 5.0, "counter": "nvidia-smi", "peak_gib": 11.0},
    {"limit_gib": 24.0, "fits": "fits", **SPEED, "time_because": "as measured", "hours": 1.5},
    {"limit_gib": 10.0, "fits": "tight", **SPEED, "step_low_s": None, "warnings": ["old --grad-accum " * 9]},
    {"limit_gib": 9.25, "fits": "may_fit"},
    {"limit_gib": 9.25, "fits": "may_fit", "find_out": "advise run 'my plan.yaml' --dry-run", "name": "sft",
     "fits_with": {**INSTEAD, "fits": "may_fit", "gradient_checkpointing": True}},
    {"limit_gib": 8.0, "fits": "too_big", "fits_with": {**INSTEAD, "gradient_checkpointing": True}},
    {"limit_gib": 8.0, "fits": "too_big", "learned": {"text": "3 runs"}, "peak_gib": 12.0,
     "terms": [{"name": "driver and kernels", "gib": 9.5}]},
    {"peak_gib": None, "reason": "no model"},
)  # fmt: skip


@pytest.mark.parametrize("width", [40, 80])
def test_each_verdict_is_printed_with_its_bars(approved, width):
    """What is needed, shown and free, and what to do where it does not fit."""
    approved(estimates_text([SPEC | changes for changes in SAID], width=width))
