"""`advise check` of another tool's configuration, as a person runs it.

UPDATE_GOLDEN=1 python -m pytest tests/extras/other_tools/test_check_configuration.py
"""

import json
import os
from pathlib import Path

import pytest
import yaml

from advisor.plan.read import read_plan

GOLDEN = Path(__file__).parents[2] / "golden"
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
    """advise check ... -> exit code and what was printed."""

    def check(*arguments):
        code, out, err = call("check", *arguments)
        return code, out + err

    return check


@pytest.fixture
def document(call):
    """The same as one JSON document."""

    def check(*arguments):
        code, out, _ = call("check", *arguments, "--json")
        return code, json.loads(out)

    return check


@pytest.fixture
def trl_file(tmp_path, monkeypatch):
    """A configuration of TRL that does not fit 24 GiB."""
    monkeypatch.chdir(tmp_path)
    Path("trl.yaml").write_text(TRL)
    return "trl.yaml"


def test_the_first_line_says_whether_it_fits_and_what_would(run, trl_file):
    """Exit code 3, and the smallest change in the tool's own words."""
    code, output = run(trl_file, "--gpu", "RTX 3090")
    assert code == 3
    assert output.startswith("Does not fit: it needs about ")
    assert "dtype: bfloat16" in " ".join(output.splitlines()[:3])
    assert "+dtype: bfloat16" in output


def test_a_change_that_fits_does_fit(document, trl_file):
    """The file with the diff applied is checked again: it fits, and what was wrong is gone."""
    _, before = document(trl_file, "--gpu", "RTX 3090")
    values = yaml.safe_load(TRL) | before["changes"]
    Path("new.yaml").write_text(yaml.safe_dump(values))
    code, after = document("new.yaml", "--gpu", "RTX 3090")
    assert code == 0
    assert after["verdict"] in ("fits", "tight", "may_fit")
    gone = {one["id"] for one in before["findings"] if one["instead"] and one["where"]}
    assert gone
    assert not gone & {one["id"] for one in after["findings"]}


@pytest.mark.parametrize(("gpu", "code"), [("H100", 0), ("RTX 3060", 3), ("unknown", 0)])
def test_exit_codes(run, trl_file, gpu, code):
    """0 fits, 3 does not."""
    assert run(trl_file, "--gpu", gpu)[0] == code


def test_a_file_that_the_tool_refuses_is_said_first(run, document, trl_file):
    """The key at its place, beside whether it would fit: the exit code is about the memory."""
    Path(trl_file).write_text(TRL + "load_in_4bit: true\nload_in_8bit: true\n")
    code, output = run(trl_file, "--gpu", "H100")
    assert code == 0
    assert output.startswith("Fits: ")
    said = " ".join(output.split())
    assert "TRL refuses this file: load_in_4bit and load_in_8bit exclude" in said
    assert "(line 12)" in output
    _, found = document(trl_file, "--gpu", "H100")
    (refused,) = [one for one in found["findings"] if one["refused"]]
    assert refused["where"] == "trl.yaml:12:1"


def test_a_misspelt_key_is_mended_in_the_diff(document, trl_file):
    """What is meant is estimated: no exit code of its own."""
    Path(trl_file).write_text(TRL.replace("gradient_accumulation_", "gradient_acumulation_"))
    code, found = document(trl_file, "--gpu", "H100")
    assert code == 0
    assert found["plan"]["grad_accum"] == 4
    misspelt = next(one for one in found["findings"] if one["id"].startswith("key/"))
    assert misspelt["where"] == "trl.yaml:6:1"
    assert "+gradient_accumulation_steps: 4" in found["diff"]


def test_a_rate_far_from_the_evidence_has_its_sources(document, trl_file):
    """Ten times the documented rate: the number, where it stands, and who says so."""
    _, found = document(trl_file, "--gpu", "H100")
    rate = next(one for one in found["findings"] if one["id"] == "rate/far-above")
    assert rate["where"] == "trl.yaml:4:1"
    assert rate["instead"] == {"plan.learning_rate": 0.0002}
    assert rate["sources"]


def test_why_there_is_no_estimate_is_said(run, tmp_path, monkeypatch):
    """A model that nobody knows, and what would tell its size."""
    monkeypatch.chdir(tmp_path)
    Path("trl.yaml").write_text(TRL.replace("Qwen/Qwen2.5-7B-Instruct", "acme/unheard-of"))
    _, text = run("trl.yaml", "--gpu", "RTX 4090")
    assert "'acme/unheard-of': unknown model" in " ".join(text.split())


def test_a_source_that_only_a_method_names_has_a_title(run, tmp_path, monkeypatch):
    """Rules of SimPO cite a paper that stands in its own file."""
    monkeypatch.chdir(tmp_path)
    Path("simpo.yaml").write_text(
        "base_model: a/b\nrl: simpo\nadapter: lora\nlora_r: 8\nlora_target_linear: true\nmicro_batch_size:"
        " 1\ngradient_accumulation_steps: 1\nnum_epochs: 1\nlearning_rate: 0.01\noutput_dir: out\n"
        "sequence_len: 512\ndatasets: [{path: c/d, type: chat_template}]\n"
    )
    _, text = run("simpo.yaml", "--gpu", "RTX 4090")
    assert "SimPO: Simple Preference Optimization" in " ".join(text.split())


def test_it_is_carried_over_to_a_plan(run, trl_file):
    """The plan reads back, says where each value is from, and names what is not in it."""
    code, output = run(trl_file, "--gpu", "RTX 3090", "--plan", "plan.yaml")
    assert code == 3
    plan = read_plan("plan.yaml")
    stage = plan.stages[0]
    assert (plan.model, stage.update) == ("Qwen/Qwen2.5-7B-Instruct", "lora")
    assert (stage.learning_rate, stage.micro_batch_size, stage.grad_accum) == (0.002, 4, 4)
    assert stage.options["rank"] == 32
    assert stage.trl["neftune_noise_alpha"] == 5
    text = Path("plan.yaml").read_text()
    assert "# lora_r" in text
    assert "# TRL's default" in text
    assert "Written: ./plan.yaml" in output or "Written: plan.yaml" in output


def test_what_a_plan_has_no_word_for_is_named(run, document, trl_file):
    """On the screen, in the file and in the JSON."""
    Path(trl_file).write_text(TRL + "label_names: [x]\n")
    _, output = run(trl_file, "--gpu", "H100", "--plan", "plan.yaml")
    assert "label_names" in output
    assert "label_names" in Path("plan.yaml").read_text()
    _, found = document(trl_file, "--gpu", "H100")
    assert [one["key"] for one in found["not_carried"]] == ["label_names"]


def test_options_of_data_are_refused(run, trl_file):
    """A configuration names its own data and lengths."""
    code, output = run(trl_file, "--seq-len", 512)
    assert code == 2
    assert "--seq-len has no effect on a configuration" in output


@pytest.mark.parametrize("width", [80, 120])
def test_the_page(run, trl_file, width, monkeypatch):
    """What is printed, line by line."""
    monkeypatch.setenv("COLUMNS", str(width))
    _, output = run(trl_file, "--gpu", "RTX 3090")
    path = GOLDEN / f"check_configuration_{width}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(output)
    assert output == path.read_text()
    assert max(map(len, output.splitlines())) <= width


def test_what_we_write_is_not_warned_of(trl_file, document):
    """TRL makes a list of one name of a text: `all-linear` alone means the same."""
    Path(trl_file).write_text(TRL + "lora_target_modules: all-linear\n")
    _, found = document(trl_file, "--gpu", "H100")
    assert not [one for one in found["findings"] if one["id"] == "key/lora_target_modules"]
    assert found["plan"]["target_modules"] == "all-linear"


@pytest.mark.parametrize(
    ("comment", "command"), [("# Start:  trl reward --config trl.yaml", "reward"), ("", "sft")]
)
def test_comments_say_what_the_keys_do_not(trl_file, document, comment, command):
    """A file for pairs is one of dpo or of reward: its own comment tells which."""
    Path(trl_file).write_text(f"{comment}\n{TRL}")
    assert document(trl_file, "--gpu", "H100")[1]["command"] == command


def test_room_for_answers_comes_on_top_of_the_request(trl_file, document):
    """TRL's files for GRPO limit the answer alone."""
    Path(trl_file).write_text(TRL + "max_completion_length: 256\nnum_generations: 8\n")
    _, found = document(trl_file, "--gpu", "H100")
    assert found["command"] == "grpo"
    plan = Path("plan.yaml")
    document(trl_file, "--gpu", "H100", "--plan", plan)
    assert read_plan(plan).stages[0].seq_len == 512 + 256


def test_a_smaller_batch_of_answers_is_made_up_for(trl_file, document):
    """The prompts of a step stay: half the answers at a time, and twice the steps between."""
    answers = "max_completion_length: 256\nnum_generations: 8\n"
    Path(trl_file).write_text(
        TRL.replace("accumulation_steps: 4", "accumulation_steps: 16") + answers
    )
    change = document(trl_file, "--gpu", "RTX 4090")[1]["change"]
    batch = change["per_device_train_batch_size"], change["gradient_accumulation_steps"]
    assert batch[0] < 4
    assert batch[1] > 16


LLAMA_FACTORY = """\
model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
dataset: shop
template: TEMPLATE
output_dir: out
"""


@pytest.mark.parametrize(
    ("template", "found"),
    [("qwen", ["template/of-another-family"]), ("llama3", []), ("llama3_nothink", [])],
)
def test_a_template_of_another_family_is_found(document, tmp_path, monkeypatch, template, found):
    """The template of other models is a warning with the right one; a variant is none."""
    monkeypatch.chdir(tmp_path)
    Path("lf.yaml").write_text(LLAMA_FACTORY.replace("TEMPLATE", template))
    _, said = document("lf.yaml", "--gpu", "H100")
    assert [one["id"] for one in said["findings"] if one["id"].startswith("template/")] == found
    assert said["changes"].get("template") == ("llama3" if found else None)


@pytest.mark.parametrize(
    ("model", "kind", "found"),
    [
        ("Qwen/Qwen3-8B-Base", "chat_template", {"model/base-with-chat"}),
        ("Qwen/Qwen2.5-7B-Instruct", "alpaca", {"axolotl/format-of-its-own"}),
        ("Qwen/Qwen2.5-7B-Instruct", "chat_template", set()),
    ],
)
def test_what_a_models_name_says_of_it_counts(document, tmp_path, monkeypatch, model, kind, found):
    """A base model may have no chat template; an instruct model has turns of its own."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b {n}"}]}
        for n in range(20)
    ]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("a.yaml").write_text(
        f"base_model: {model}\ndatasets: [{{path: rows.jsonl, type: {kind}}}]\nadapter: lora\n"
    )
    _, said = document("a.yaml", "--gpu", "H100")
    known = {"model/base-with-chat", "axolotl/format-of-its-own"}
    assert known & {one["id"] for one in said["findings"]} == found


def test_dataset_info_beside_the_file_is_found(document, tmp_path, monkeypatch):
    """LLaMA-Factory looks in ./data: the folder is proposed, and the rows are measured."""
    monkeypatch.chdir(tmp_path)
    Path("lf.yaml").write_text(LLAMA_FACTORY.replace("TEMPLATE", "llama3"))
    Path("dataset_info.json").write_text('{"shop": {"file_name": "shop.json"}}')
    rows = [{"instruction": f"Order {n}?", "output": f"It is sent on day {n}."} for n in range(60)]
    Path("shop.json").write_text(json.dumps(rows))
    _, said = document("lf.yaml", "--gpu", "H100")
    assert said["changes"]["dataset_dir"] == "."
    assert said["memory"]["hours"]


def test_what_should_fit_is_not_changed_again(document, tmp_path, monkeypatch):
    """The smallest change, applied, is not answered with another one."""
    monkeypatch.chdir(tmp_path)
    values = {
        "base_model": "NousResearch/Meta-Llama-3.1-8B", "datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca"}],
        "sequence_len": 8192, "sample_packing": True, "micro_batch_size": 1,
        "gradient_accumulation_steps": 8, "optimizer": "paged_adamw_8bit", "learning_rate": 2e-5,
        "bf16": "auto", "gradient_checkpointing": True, "attn_implementation": "flash_attention_2",
        "output_dir": "out", "num_epochs": 1,
    }  # fmt: skip
    Path("a.yaml").write_text(yaml.safe_dump(values))
    code, said = document("a.yaml", "--gpu", "RTX 4090")
    assert code == 3
    assert said["memory_with_change"]["fits"] == "may_fit"
    assert "should fit" in said["summary"]
    Path("b.yaml").write_text(yaml.safe_dump(values | said["changes"]))
    code, again = document("b.yaml", "--gpu", "RTX 4090")
    assert code == 0
    assert again["summary"].startswith("Should fit: ")
    assert set(again["changes"]).isdisjoint(said["change"])
    assert "sequence_len" not in again["changes"]


def test_modules_that_are_trained_whole_take_memory(trl_file, document):
    """Copies of the embeddings and of the output matrix: 2 x 152,064 x 3,584 weights of Qwen2.5-7B,
    by its config.json.
    """
    Path(trl_file).write_text(TRL + "lora_modules_to_save: [embed_tokens, lm_head]\n")
    _, found = document(trl_file, "--gpu", "H100")
    copies = [one for one in found["memory"]["terms"] if one["name"].startswith("trained embed")]
    assert "1,089,994,752 x" in copies[0]["because"]
    assert "lora/whole-embeddings" in [one["id"] for one in found["findings"]]
    Path(trl_file).write_text(TRL + "lora_modules_to_save: [lm_head]\n")
    _, found = document(trl_file, "--gpu", "H100")
    copies = [one for one in found["memory"]["terms"] if one["name"].startswith("trained embed")]
    assert "544,997,376 x" in copies[0]["because"]
