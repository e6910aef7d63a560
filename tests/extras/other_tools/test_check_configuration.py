"""`advise check` of another tool's configuration, as a person runs it.

UPDATE_GOLDEN=1 python -m pytest tests/extras/other_tools/test_check_configuration.py
"""

import json
from pathlib import Path

import pytest
import yaml

from advisor.plan.read import read_plan
from tests.conftest import golden
from tests.data.conftest import BOT, USER, jsonl
from tests.extras.other_tools.finding_cases import BASES

TRL = """\
# Qwen on our tickets
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
dataset_name: acme/tickets
learning_rate: 2.0e-3  # as in the tutorial
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
use_peft: true
lora_r: 32
neftune_noise_alpha: 5
logging_steps: 10
"""


@pytest.fixture
def run(call):
    """Writes a file, and runs `advise check FILE ...` -> exit code and what was printed."""

    def check(text, *arguments):
        Path("trl.yaml").write_text(text)
        code, out, err = call("check", "trl.yaml", *arguments)
        return code, out + err

    return check


@pytest.fixture
def document(run):
    """The same as one JSON document, on a GPU that most files fit."""

    def check(text, gpu="H100", *arguments):
        code, said = run(text, "--gpu", gpu, "--json", *arguments)
        return code, json.loads(said)

    return check


def ids(found):
    """The ids of the findings."""
    return [one["id"] for one in found["findings"]]


def test_the_page_says_first_whether_it_fits_and_what_would(run, monkeypatch):
    """Exit code 3 and the smallest change in the tool's words; 0 where it fits or nobody knows. The
    rest of the page stands in the file, line by line.
    """
    monkeypatch.setenv("COLUMNS", "80")
    code, output = run(TRL, "--gpu", "RTX 3090")
    assert code == 3
    assert output.startswith("Does not fit: it needs about ")
    assert "dtype: bfloat16" in " ".join(output.splitlines()[:3])
    assert "+dtype: bfloat16" in output
    assert output == golden("check_configuration_80.txt", output)
    assert max(map(len, output.splitlines())) <= 80
    assert [run(TRL, "--gpu", gpu)[0] for gpu in ("H100", "RTX 3060", "unknown")] == [0, 3, 0]


def test_a_change_that_fits_does_fit(document):
    """The file with the diff applied is checked again: it fits, and what was wrong is gone."""
    _, before = document(TRL, "RTX 3090")
    code, after = document(yaml.safe_dump(yaml.safe_load(TRL) | before["changes"]), "RTX 3090")
    assert code == 0
    assert after["verdict"] in ("fits", "tight", "may_fit")
    gone = {one["id"] for one in before["findings"] if one["instead"] and one["where"]}
    assert gone
    assert gone.isdisjoint(ids(after))


def test_a_file_that_the_tool_refuses_is_said_first(run, document):
    """The key at its place, beside whether it would fit: the exit code is about the memory."""
    text = TRL + "load_in_4bit: true\nload_in_8bit: true\n"
    code, output = run(text, "--gpu", "H100")
    assert code == 0
    assert output.startswith("Fits: ")
    said = " ".join(output.split())
    assert "TRL refuses this file: load_in_4bit and load_in_8bit exclude" in said
    assert "(line 12)" in output
    (refused,) = [one for one in document(text)[1]["findings"] if one["refused"]]
    assert refused["where"] == "trl.yaml:12:1"


def test_a_misspelt_key_and_a_rate_far_from_the_evidence_are_found_where_they_stand(document):
    """Both where they stand: the key is estimated as meant, the rate has its sources."""
    code, found = document(TRL.replace("gradient_accumulation_", "gradient_acumulation_"))
    assert (code, found["plan"]["grad_accum"]) == (0, 4)
    assert "+gradient_accumulation_steps: 4" in found["diff"]
    misspelt = next(one for one in found["findings"] if one["id"].startswith("key/"))
    rate = next(one for one in found["findings"] if one["id"] == "rate/far-above")
    assert (misspelt["where"], rate["where"]) == ("trl.yaml:6:1", "trl.yaml:4:1")
    assert rate["instead"] == {"plan.learning_rate": 0.0002}
    assert rate["sources"]


LLAMA_FACTORY = """\
model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
dataset: shop
template: TEMPLATE
output_dir: out
"""
TEMPLATE, SAVED = "template/of-another-family", "lora_modules_to_save"


@pytest.mark.parametrize(
    ("text", "values", "finding"),
    [  # a file, places in its document with their values, and an id that is found or (not) is not
        # TRL makes a list of one name of a text: `all-linear` alone means the same.
        (TRL + "lora_target_modules: all-linear\n", {"plan.target_modules": "all-linear"},
         "not key/lora_target_modules"),
        # A file for pairs is one of dpo or of reward: its own comment tells which.
        (f"# Start:  trl reward --config trl.yaml\n{TRL}", {"command": "reward"}, ""),
        (TRL, {"command": "sft"}, ""),
        # A variant of the right template is none of another family.
        (LLAMA_FACTORY.replace("TEMPLATE", "qwen"), {"changes.template": "llama3"}, TEMPLATE),
        (LLAMA_FACTORY.replace("TEMPLATE", "llama3"), {"changes.template": None}, f"not {TEMPLATE}"),
        (LLAMA_FACTORY.replace("TEMPLATE", "llama3_nothink"), {"changes.template": None},
         f"not {TEMPLATE}"),
        # Copies of the embeddings and of the output matrix: 2 x 152,064 x 3,584 weights of Qwen2.5-7B,
        # by its config.json.
        (TRL + f"{SAVED}: [embed_tokens, lm_head]\n", {"copies": "1,089,994,752 x"},
         "lora/whole-embeddings"),
        (TRL + f"{SAVED}: [lm_head]\n", {"copies": "544,997,376 x"}, "lora/whole-embeddings"),
    ],
)  # fmt: skip
def test_a_file_is_understood_as_its_tool_does(document, text, values, finding):
    """What is meant, what it takes, and what is said of it."""
    _, found = document(text)
    terms = {one["name"]: one["because"] for one in found["memory"]["terms"]}
    copies = [why for name, why in terms.items() if name.startswith("trained embed")]
    for place, value in values.items():
        group, _, key = place.rpartition(".")
        if place == "copies":
            assert value in copies[0]
        else:
            assert (found[group] if group else found).get(key) == value
    assert (finding.removeprefix("not ") in ["", *ids(found)]) != finding.startswith("not ")


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        # A configuration names its own data and lengths.
        (TRL, ["--seq-len", 512], "--seq-len has no effect on a configuration"),
        # A model that nobody knows, and what would tell its size.
        (TRL.replace("Qwen/Qwen2.5-7B-Instruct", "acme/unheard-of"), ["--gpu", "RTX 4090"],
         "'acme/unheard-of': unknown model"),
        # Rules of SimPO cite a paper that stands in its own file.
        (yaml.safe_dump(BASES["axolotl"] | {"rl": "simpo", "learning_rate": 0.01}), [],
         "SimPO: Simple Preference Optimization"),
    ],
    ids=["options of data", "no estimate", "a source of a method"],
)  # fmt: skip
def test_what_cannot_be_done_and_what_it_rests_on_is_said(run, text, flags, said):
    """On the page or in the refusal."""
    code, output = run(text, *flags)
    assert said in " ".join(output.split())
    assert (code == 2) == ("--seq-len" in flags)


def test_it_is_carried_over_to_a_plan(run, document):
    """The plan reads back, says where each value is from, and names what is not in it."""
    code, output = run(TRL + "label_names: [x]\n", "--gpu", "RTX 3090", "--plan", "plan.yaml")
    assert code == 3
    plan, text = read_plan("plan.yaml"), Path("plan.yaml").read_text()
    stage = plan.stages[0]
    assert (plan.model, stage.update) == ("Qwen/Qwen2.5-7B-Instruct", "lora")
    assert (stage.learning_rate, stage.micro_batch_size, stage.grad_accum) == (0.002, 4, 4)
    assert stage.options["rank"] == 32
    assert stage.trl["neftune_noise_alpha"] == 5
    for said in ("# lora_r", "# TRL's default", "label_names"):
        assert said in text
    assert "Written: ./plan.yaml" in output or "Written: plan.yaml" in output
    assert "label_names" in output
    _, found = document(TRL + "label_names: [x]\n")
    assert [one["key"] for one in found["not_carried"]] == ["label_names"]


def test_room_for_answers_comes_on_top_of_the_request(document):
    """TRL's files for GRPO limit the answer alone. With a smaller batch of answers the prompts of a
    step stay: half the answers at a time, and twice the steps between.
    """
    text = TRL + "max_completion_length: 256\nnum_generations: 8\n"
    _, found = document(text, "H100", "--plan", "plan.yaml")
    assert found["command"] == "grpo"
    assert read_plan("plan.yaml").stages[0].seq_len == 512 + 256
    text = text.replace("accumulation_steps: 4", "accumulation_steps: 16")
    change = document(text, "RTX 4090")[1]["change"]
    assert change["per_device_train_batch_size"] < 4
    assert change["gradient_accumulation_steps"] > 16


def test_dataset_info_beside_the_file_is_found(document):
    """LLaMA-Factory looks in ./data: the folder is proposed, and the rows are measured."""
    Path("dataset_info.json").write_text('{"shop": {"file_name": "shop.json"}}')
    rows = [{"instruction": f"Order {n}?", "output": f"It is sent on day {n}."} for n in range(60)]
    Path("shop.json").write_text(json.dumps(rows))
    _, said = document(LLAMA_FACTORY.replace("TEMPLATE", "llama3"))
    assert said["changes"]["dataset_dir"] == "."
    assert said["memory"]["hours"]


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("Qwen/Qwen3-8B-Base", "chat_template", {"model/base-with-chat"}),
        ("Qwen/Qwen2.5-7B-Instruct", "alpaca", {"axolotl/format-of-its-own"}),
        ("Qwen/Qwen2.5-7B-Instruct", "chat_template", set()),
    ],
)
def test_what_a_models_name_says_of_it_counts(document, model, kind, expected):
    """A base model may have no chat template; an instruct model has turns of its own."""
    rows = [{"messages": [USER, {**BOT, "content": f"b {n}"}]} for n in range(20)]
    jsonl(Path(), rows, "rows.jsonl")
    data = f"datasets: [{{path: rows.jsonl, type: {kind}}}]"
    _, found = document(f"base_model: {model}\n{data}\nadapter: lora\n")
    assert {"model/base-with-chat", "axolotl/format-of-its-own"} & set(ids(found)) == expected


def test_what_should_fit_is_not_changed_again(document):
    """The smallest change, applied, is not answered with another one."""
    values = {
        "base_model": "NousResearch/Meta-Llama-3.1-8B", "datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca"}],
        "sequence_len": 8192, "sample_packing": True, "micro_batch_size": 1,
        "gradient_accumulation_steps": 8, "optimizer": "paged_adamw_8bit", "learning_rate": 2e-5,
        "bf16": "auto", "gradient_checkpointing": True, "attn_implementation": "flash_attention_2",
        "output_dir": "out", "num_epochs": 1,
    }  # fmt: skip
    code, said = document(yaml.safe_dump(values), "RTX 4090")
    assert (code, said["memory_with_change"]["fits"]) == (3, "may_fit")
    assert "should fit" in said["summary"]
    code, again = document(yaml.safe_dump(values | said["changes"]), "RTX 4090")
    assert code == 0
    assert again["summary"].startswith("Should fit: ")
    assert set(again["changes"]).isdisjoint({*said["change"], "sequence_len"})
