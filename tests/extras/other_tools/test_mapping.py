"""Keys of another tool to ours and back: each ends somewhere, in both directions."""

import pytest

from advisor.extras.other_tools.mapping import read
from advisor.extras.other_tools.tool import (
    TOOLS,
    TURNS,
    CannotCarry,
    Context,
    deepspeed_offloads,
    known_names,
    meant_key,
    tool_named,
)
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import read_yaml

DEFAULTS = {
    "use_peft": False, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "load_in_4bit": False,
    "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "dtype": "float32", "bf16": None,
    "fp16": False, "learning_rate": 2e-5, "num_train_epochs": 3.0, "max_steps": -1,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_length": 1024,
    "warmup_steps": 0.0, "assistant_only_loss": False, "padding_free": False,
}  # fmt: skip


def trl(values, **context):
    return read(
        tool_named("trl"), {"command": "sft", "data_kind": "rows", **values}, defaults=DEFAULTS,
        context=Context(**context),
    )  # fmt: skip


def test_every_key_of_the_file_ends_in_one_list():
    """Carried, lost or without effect; a default of the tool is marked as one."""
    values = {
        "model_name_or_path": "m", "lora_r": 8, "padding_free": True, "report_to": "wandb",
        "learning_rate": 1e-4, "dataset_name": "d",
    }  # fmt: skip
    found = trl(values)
    told = {key for one in found.carried.values() for key in one.theirs}
    told |= {one.key for one in found.lost} | set(found.no_effect)
    assert told | {"dataset_name", "lora_r"} >= set(values)
    assert [one.key for one in found.lost] == ["padding_free"]
    assert found.ours["seq_len"] == 1024
    assert found.carried["seq_len"].is_default
    rate = found.carried["learning_rate"]
    assert (rate.is_default, rate.theirs) == (False, ("learning_rate",))


BITS, BOTH = {"use_peft": True, "load_in_4bit": True}, ["wandb", "tensorboard"]
CARRIED = [  # keys of TRL, ours (None: not there), and why some are lost
    # Trackers that a plan knows, also as a list; of others, and of an upload, the way out.
    ({"report_to": BOTH}, {"trackers": BOTH}, {}),
    ({"report_to": "none"}, {"trackers": []}, {}),
    ({"report_to": "neptune", "push_to_hub": True, "hub_model_id": "a/b"}, {},
     {"report_to": "trl: {report_to", "push_to_hub": "push_to: owner/name",
      "hub_model_id": "push_to: owner/name"}),
    # An unknown key with the near miss; an optimizer with the names that a plan may give.
    ({"ddp_backend": "gloo", "lora_alphas": 4}, {},
     {"ddp_backend": "not a key that is known here", "lora_alphas": "did you mean lora_alpha?"}),
    *[({"optim": name}, {"optimizer": None}, {"optim": "adamw_8bit"})
      for name in ("galore_adamw", "lion_8bit", "ademamix")],
    # 4 bits are two keys there and one here.
    (BITS, {"quantization": "nf4"}, {}),
    (BITS | {"bnb_4bit_quant_type": "fp4"}, {"quantization": None},
     {"load_in_4bit": "bnb_4bit_quant_type: fp4"}),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours", "lost"), CARRIED)
def test_what_a_plan_has_no_word_for_is_told_and_not_carried(theirs, ours, lost):
    """Each key ends in a value of ours, or in a reason with the way out."""
    found = trl({"model_name_or_path": "m", **theirs})
    assert {key: found.ours.get(key) for key in ours} == ours
    why = {one.key: one.why for one in found.lost}
    for key, part in lost.items():
        assert part in why[key], why


def test_held_out_rows_are_a_share_or_a_number():
    """Below one a share, above of all rows; steps of an unknown total cannot be turned."""
    for rows, value, expected in ((None, 0.1, 0.1), (200, 20, 0.1), (None, 0, 0)):
        assert TURNS["share_or_rows"].read(value, Context(rows=rows)) == expected
    with pytest.raises(CannotCarry, match="is not known"):
        TURNS["share_of_steps"].read(20, Context())


def test_deepspeed_is_read_from_its_file_or_its_name(tmp_path):
    """Its JSON says stage and host memory; of a file that is not there, its name."""
    read_stage, here = TURNS["deepspeed"].read, Context(folder=tmp_path)
    (tmp_path / "offload.json").write_text('{"zero_optimization": {"stage": 3}, "fp16": {}}')
    folder = "examples/deepspeed"
    assert read_stage("offload.json", here) == "zero3"
    assert read_stage(f"{folder}/ds_z2_config.json", here) == "zero2"
    assert read_stage({"zero_optimization": {"stage": 2}}, here) == "zero2"
    with pytest.raises(CannotCarry):
        read_stage("my.json", here)
    stored = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    for there in (stored, f"{folder}/ds_z3_offload_config.json"):
        assert deepspeed_offloads(there, here)
    for absent in ("offload.json", f"{folder}/ds_z3_config.json", "offload_of_ours.json"):
        assert not deepspeed_offloads(absent, here)


@pytest.mark.parametrize("name", TOOLS)
def test_no_key_is_both_lost_and_without_effect(name):
    """Each key that a tool's file speaks of has one place."""
    tool = tool_named(name)
    assert not set(tool.no_effect) & set(tool.not_carried)
    assert not set(tool.renamed) & known_names(name)
    assert set(tool.renamed.values()) <= known_names(name) | {"use_cpu"}
    assert 60 < len(known_names(name)) < 250


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("trl", "gradient_acumulation_steps", "gradient_accumulation_steps"),
        ("trl", "learning-rate", "learning_rate"), ("trl", "max_seq_length", "max_length"),
        ("trl", "eval_packing", None), ("axolotl", "lora_rnak", None), ("axolotl", "lora_R", "lora_r"),
        ("llamafactory", "lora_rnk", "lora_rank"), ("llamafactory", "use_asft_loss", None),
        ("axolotl", "sequence_length", None), ("axolotl", "micro_batchsize", "micro_batch_size"),
    ],
)  # fmt: skip
def test_a_near_miss_is_one_letter_off(name, key, meant):
    """What is further away may well be a key of the tool's that nothing here speaks of."""
    assert meant_key(name, key) == meant


def test_hints_for_misspelt_plan_keys_say_the_same():
    """rules/tools/other_keys.yaml and the tables of the tools do not contradict each other."""
    ids = {"llama-factory": "llamafactory", "axolotl": "axolotl", "trl": "trl"}
    same = read_yaml(rules_dir() / "tools" / "other_keys.yaml").data["same"]
    compared = 0
    for ours, tools in same.items():
        for name in ids.keys() & tools.keys():
            meant: dict[str, set[str]] = {}
            for entry in tool_named(ids[name]).mapping:
                if "either" not in entry:
                    meant.setdefault(entry["theirs"], set()).add(entry["ours"])
                    continue
                for pair in entry["either"]:
                    for theirs in pair["theirs"]:
                        meant.setdefault(theirs, set()).update(pair["ours"])
            for theirs in tools[name]:
                if theirs in meant:
                    assert ours in meant[theirs], (name, theirs)
                    compared += 1
    assert compared > 40
