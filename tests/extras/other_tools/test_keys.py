"""Keys of another tool: each becomes ours and back or has a reason why not, and rules judge it."""

import re
from collections import defaultdict

import pytest

from advisor.extras.other_tools.findings import (
    PLACE,
    Known,
    ToolFinding,
    by_rules,
    fill_values,
    general_rules,
    generation_facts,
    holds,
    worst_first,
)
from advisor.extras.other_tools.mapping import COMMAND, DATA_KIND, read
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
from advisor.ground.yaml_files import LINK, read_yaml, shipped_sources
from tests.extras.other_tools.finding_cases import CASES, FACTS, values_of

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
    assert ([one.key for one in found.lost], found.ours["seq_len"]) == (["padding_free"], 1024)
    assert found.carried["seq_len"].is_default
    rate = found.carried["learning_rate"]
    assert (rate.is_default, rate.theirs) == (False, ("learning_rate",))


BITS, BOTH = {"use_peft": True, "load_in_4bit": True}, ["wandb", "tensorboard"]


@pytest.mark.parametrize(
    ("theirs", "ours", "lost"),
    [  # keys of TRL, ours (None: not there), and why some are lost
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
        # The newer of two names of one key wins.
        ({"activation_checkpointing": False, "gradient_checkpointing": True},
         {"gradient_checkpointing": False}, {}),
        # 4 bits are two keys there and one here.
        (BITS, {"quantization": "nf4"}, {}),
        (BITS | {"bnb_4bit_quant_type": "fp4"}, {"quantization": None},
         {"load_in_4bit": "bnb_4bit_quant_type: fp4"}),
    ],
)  # fmt: skip
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
    stored = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    for there, stage, offloads in (
        ("offload.json", "zero3", False),
        ("examples/deepspeed/ds_z2_config.json", "zero2", False),
        ("examples/deepspeed/ds_z3_config.json", "zero3", False),
        ("examples/deepspeed/ds_z3_offload_config.json", "zero3", True),
        ({"zero_optimization": {"stage": 2}}, "zero2", False),
        (stored, "zero3", True),
    ):
        assert read_stage(there, here) == stage
        assert deepspeed_offloads(there, here) is offloads, there
    with pytest.raises(CannotCarry):
        read_stage("my.json", here)
    assert not deepspeed_offloads("offload_of_ours.json", here)


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
    meant = defaultdict(set)  # (tool, their key) -> ours
    for name in ids:
        for entry in tool_named(ids[name]).mapping:
            one = {"theirs": [entry.get("theirs")], "ours": [entry.get("ours")]}
            for pair in entry.get("either", [one]):
                for theirs in pair["theirs"]:
                    meant[name, theirs].update(pair["ours"])
    stated = [
        (ours, name, theirs)
        for ours, tools in same.items()
        for name in ids.keys() & tools.keys()
        for theirs in tools[name]
        if (name, theirs) in meant
    ]
    assert len(stated) > 40
    assert [one for one in stated if one[0] not in meant[one[1:]]] == []


KNOWN = Known(
    values={"a": 1, "m": {"b": None}, "l": [{"t": "sharegpt"}, {"r": ["user"]}]},
    defaults={"c": 3, "a": 2},
    facts={"plan.x": 5, "f": False},
)


@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("a", 1, True), ("a", 2, False), ("c", 3, True), ("c", "unset", True), ("a", "set", True),
        ("m.b", None, True), ("m.b", "set", True), ("nowhere", None, True), ("nowhere", 1, False),
        ("plan.x", {"gte": 5}, True), ("plan.x", {"gt": 5}, False), ("plan.x", [1, 5], True),
        ("nowhere", {"gt": 0}, False), ("f", False, True), ("f", 0, False),
        ("a | c", 3, True), ("a | c", {"not": 1}, True), ("a", "given", True), ("f", "given", False),
        ("m.b", "given", False), ("c", {"written": 3}, False), ("a", {"written": 1}, True),
        ("l.*.t", {"like": "shar*"}, True), ("l.*.t", {"like": ["x", "y*"]}, False),
        ("l.*.r.*", "user", True), ("l.*.r.*", {"not": "user"}, False), ("l.*.r.*", "tool", False),
        ("a", {"not": 1}, False), ("a", {"not": 7}, True), ("a", {"gt": 0, "lt": 2}, True),
    ],
)  # fmt: skip
def test_conditions(name, wanted, expected):
    """A value, one of several, bounds, not, set or unset; what is not known is null."""
    assert holds(KNOWN, name, wanted) is expected


def test_every_rule_has_an_id_of_its_own_and_sources_that_exist():
    """Sources are known ids or links, places are filled in, and errors come first, each once."""
    rules = [*general_rules(), *(rule for name in TOOLS for rule in tool_named(name).findings)]
    assert len(rules) == len({rule["id"] for rule in rules}) > 100
    sources = {
        source for rule in rules for source in rule["sources"] if not PLACE.fullmatch(source)
    }
    assert [one for one in sources - set(shipped_sources()) if not re.fullmatch(LINK, one)] == []
    assert fill_values("{a}, {f} and {nowhere}", KNOWN) == "1, false and not set"
    some = [
        ToolFinding(id=name, severity=severity, text="t")
        for name, severity in (("b", "note"), ("a", "error"), ("b", "note"))
    ]
    assert [one.id for one in worst_first(some)] == ["a", "b"]


RULES = {rule["id"]: rule for name in TOOLS for rule in tool_named(name).findings}
USUAL = {DATA_KIND: "rows", "evaluates": True}  # facts, unless a case says another thing


def said(tool, case):
    """Id -> text of what the rules of the tool say of these keys and facts."""
    command = case.get(COMMAND, "train" if tool != "trl" else "sft")
    about, values = tool_named(tool), values_of(tool, case)
    defaults = about.defaults_of(command)
    facts = USUAL | {COMMAND: command} | {key: case[key] for key in FACTS if key in case}
    facts |= generation_facts(tool, {**defaults, **values}, 1)
    found = by_rules(
        (*about.findings, *general_rules()), Known(values=values, defaults=defaults, facts=facts)
    )
    general = {rule["id"] for rule in general_rules()}
    return {one.id: one for one in found if one.id not in general}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_of_what_is_wrong_alone(name, approved):
    """It is said of the one file, not of the other, nor of the first once it is mended."""
    tool = name.split("/")[0]
    fires, silent = CASES[name]
    approved(said(tool, fires)[name])
    assert name not in said(tool, silent)
    mended = {key: value for key, value in RULES[name].get("instead", {}).items() if "." not in key}
    evaluates = {"evaluates": True} if "evaluates" in fires else {}  # a fact that follows from it
    assert not mended or name not in said(tool, fires | mended | evaluates)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_small_file_that_is_right_has_no_errors(tool):
    """The base of the cases is refused by no rule; a new rule comes with keys that it is about."""
    assert set(RULES) == set(CASES)
    assert len(CASES) > 100
    assert not [name for name in said(tool, {}) if RULES[name]["severity"] == "error"]
