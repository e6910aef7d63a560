"""`advise estimate` as a person meets it: of a plan, of one spec beside a card."""

import json
import re
import shlex

import pytest

from advisor.ground.types import Hardware
from tests.conftest import PAIRS

ON_A_4090 = ("--json", "--gpu", "RTX 4090")


def small_model(folder):
    """A folder with the configuration of a small model, and a file of examples."""
    folder.mkdir()
    config = {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152,
        "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
        "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    data = folder.parent / "train.jsonl"
    data.write_text(PAIRS)
    return folder, data


@pytest.fixture
def planned(call, tmp_path):
    """A plan for a card with the folder of its model and its data, and what advised it."""
    model, data = small_model(tmp_path / "model")
    plan = tmp_path / "plan.yaml"
    code, out, _ = call(
        *ON_A_4090, "--task", "qa", "--model", model, "--data", data, "--plan", plan
    )
    assert code == 0
    return plan, model, data, json.loads(out)["recommendation"]["estimate"]


def test_a_plan_is_estimated_as_it_was_advised(call, planned):
    """Memory, limit, verdict and time are those of the advice; another card may be named."""
    plan, _, _, advised = planned
    (found,) = json.loads(call("estimate", plan, "--json")[1])
    said = [found[key] for key in ("name", "counter", "fits")]
    assert said == ["sft", "nvidia-smi", advised["fits"]]
    for key in ("peak_gib", "low_gib", "high_gib", "limit_gib"):
        assert found[key] == pytest.approx(advised[key], rel=0.01)
    assert found["hours"] == pytest.approx(advised["hours"], abs=0.001)
    (smaller,) = json.loads(call("estimate", plan, "--gpu", "GTX 650 1GB", "--json")[1])
    assert smaller["limit_gib"] == pytest.approx(1, rel=0.05)
    assert (advised["fits"], smaller["fits"] != "fits") == ("fits", True)


def test_a_plan_made_for_a_card_is_held_against_that_card(call, planned, monkeypatch):
    """The plan's own line tells which; without it, memory alone is told."""
    plan = planned[0]
    monkeypatch.setattr(
        "advisor.situation.of_plan.probe", lambda: Hardware(kind="cpu", origin="probed")
    )
    plan.write_text(
        plan.read_text().replace('    gpu: "RTX 4090"\n', "").replace("(stated)", "(probed)")
    )
    (found,) = json.loads(call("estimate", plan, "--json")[1])
    assert found["limit_gib"] == pytest.approx(24, rel=0.01)
    assert any("estimated on the GPU it was made for" in text for text in found["warnings"])
    plan.write_text(plan.read_text().replace('  hardware: "1 x RTX 4090 (probed)"\n', ""))
    (found,) = json.loads(call("estimate", plan, "--json")[1])
    assert found["peak_gib"] is not None
    assert "limit_gib" not in found


def test_a_plan_of_several_stages_is_a_list_of_named_answers(call, tmp_path):
    """One stage or several: a list, each answer under its stage's name."""
    model, data = small_model(tmp_path / "model")
    plan = tmp_path / "plan.yaml"
    data.write_text(
        "".join(
            json.dumps({"prompt": f"Is {n} odd?", "chosen": "I count.", "rejected": "No."}) + "\n"
            for n in range(600)
        )
    )
    asked = shlex.split("--task chat_assistant --choose 'rm>ppo+lora' --force")
    call(*ON_A_4090, *asked, "--model", model, "--data", data, "--plan", plan)
    found = json.loads(call("estimate", plan, "--json")[1])
    assert [answer["name"] for answer in found] == ["rm", "ppo"]


def test_a_plan_without_its_model_is_no_estimate(call, planned):
    """Where nothing can be estimated the reason is said and the exit code is 2."""
    plan, model, data, _ = planned
    (model / "config.json").unlink()
    model.rmdir()
    code, out, err = call("estimate", plan)
    assert (code, out) == (2, "")
    assert "model" in err
    data.unlink()
    small_model(model)[1].unlink()
    (found,) = json.loads(call("estimate", plan, "--json")[1])
    assert "hours" not in found
    assert any("the data cannot be read" in text for text in found["warnings"])


def test_one_spec_beside_a_card_counts_what_the_card_shows(call):
    """What the whole process occupies; without a card what the trainer allocates."""
    flags = shlex.split("estimate --json --model Qwen/Qwen3-8B --micro-batch-size 8 --seq-len 4096")
    beside, alone = json.loads(call(*flags, "--gpu", "RTX 4090")[1]), json.loads(call(*flags)[1])
    assert (beside["counter"], beside["fits"]) == ("nvidia-smi", "too_big")
    assert beside["need_gib"] > beside["limit_gib"]
    assert beside["need_gib"] > alone["peak_gib"]
    assert beside["peak_gib"] < beside["limit_gib"]  # a counter never shows more than there is
    assert "counter" not in alone


def test_estimates_of_a_plan_refuse_what_specs_refuse(call, planned):
    """Whichever way settings come in."""
    plan = planned[0]
    plan.write_text(re.sub(r"rank: \d+", "rank: 1000", plan.read_text()))
    code, _, err = call("estimate", plan)
    assert code == 2
    assert "rank 1000 is above the hidden size 576" in err


def test_a_count_before_the_name_of_a_card_counts(call):
    one, two = (
        json.loads(call("estimate", "--json", "--model", "Qwen/Qwen3-8B", "--gpu", gpu)[1])
        for gpu in ("RTX 4090", "2 x RTX 4090")
    )
    assert one["counter"] == two["counter"] == "nvidia-smi"
    assert two["fits"] == one["fits"]
    assert two["peak_gib"] > one["peak_gib"]  # NCCL


def test_a_batch_that_does_not_fit_names_the_one_that_does(call):
    """The verdict says which batch fits instead, or by how much even the smallest is too much."""
    flags = ("estimate", "--model", "Qwen/Qwen3-8B", "--update", "qlora", "--seq-len", "4096")
    wide = (*flags, "--micro-batch-size", "16", "--gpu", "T4")
    found = json.loads(call(*wide, "--json")[1])
    assert found["fits"] == "too_big"
    instead = found["fits_with"]
    assert instead["fits"] in ("fits", "tight")
    assert instead["need_gib"] < found["limit_gib"] < found["need_low_gib"]
    assert instead["micro_batch_size"] * instead["grad_accum"] == 16
    text = " ".join(call(*wide)[1].split()).replace("grad- accum", "grad-accum")
    assert "it does not fit; --micro-batch-size" in text
    small = ("estimate", "--model", "Qwen/Qwen3-8B", "--update", "full", "--gpu", "T4")
    found, text = json.loads(call(*small, "--json")[1]), " ".join(call(*small)[1].split())
    assert (found["fits"], found["fits_with"]) == ("too_big", None)
    over = found["least_gib"] - found["limit_gib"]
    assert f"even the smallest batch needs {over:.1f} GiB more than it has" in text


def test_what_is_assumed_and_what_is_not_known_are_said(call):
    """Settings that decide the memory are named; an unknown GPU has no verdict."""
    flags = ("estimate", "--model", "Qwen/Qwen3-8B", "--seq-len", "2048", "--gpu", "no such GPU")
    found, text = json.loads(call(*flags, "--json")[1]), " ".join(call(*flags)[1].split())
    assert found["fits"] == "unknown"
    assert "the device's memory is not known, nor whether it fits" in text
    (assumed,) = [one for one in found["warnings"] if one.startswith("not stated")]
    assert "--micro-batch-size 1" in assumed
    assert "--seq-len" not in assumed
