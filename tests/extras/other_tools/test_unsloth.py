"""A plan as Unsloth's files: its own configuration classes take every value, and its script is in
the present form of FastLanguageModel. Read: unslothai/unsloth 015bdef0d9, 2026-08-22.
"""

import ast
import json
from typing import get_args, get_type_hints

import pytest
import yaml

from tests.extras.other_tools.unsloth_config import Config, Data, Logging, Lora, Training

SECTIONS = {"data": Data, "training": Training, "lora": Lora, "logging": Logging}
# Of from_pretrained (unsloth/models/loader.py) and get_peft_model (unsloth/models/llama.py).
LOADS = {
    "model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit",
    "full_finetuning", "token", "device_map", "rope_scaling", "fix_tokenizer", "trust_remote_code",
    "use_gradient_checkpointing", "revision", "use_exact_model_name", "fast_inference",
    "random_state", "max_lora_rank", "load_in_fp8",
}  # fmt: skip
ADAPTS = {
    "model", "r", "target_modules", "lora_alpha", "lora_dropout", "bias", "layers_to_transform",
    "use_gradient_checkpointing", "random_state", "max_seq_length", "use_rslora", "modules_to_save",
    "init_lora_weights", "loftq_config", "target_parameters",
}  # fmt: skip
PLAN = """\
version: 1
name: replies
model: {model}
data: {{path: rows.jsonl}}
stages:
  - {{name: sft, objective: {objective}, update: {update}, {keys}learning_rate: 0.0002, epochs: 1.5, seq_len: 512}}
launch: {{device: cuda}}
"""


def faults_of(kind, values):
    """What the class would not keep: a key that it drops, a value of another type or choice."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            yield key
        elif choices := get_args(hints[key]) if "Literal" in str(hints[key]) else ():
            if value not in choices:
                yield key, value
        elif hints[key] in (bool, int, float, str) and type(value) is not hints[key]:
            yield key, value


def export(call, tmp_path, *, model="Qwen/Qwen3-30B-A3B", objective="sft", update="lora", keys=""):
    rows = [{"prompt": f"Where is {i}?", "completion": f"At {i}."} for i in range(60)]
    if objective == "cpt":
        rows = [{"text": f"The shop at {i} sells lamps of every kind. " * 20} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = PLAN.format(model=model, objective=objective, update=update, keys=keys)
    (tmp_path / "plan.yaml").write_text(text)
    return call("export", "plan.yaml", "--to", "unsloth", "--out", "u")


@pytest.mark.parametrize(
    ("update", "keys"),
    [("lora", "quantization: nf4, "), ("lora", "rank: 8, packing: true, "), ("full", "")],
)
def test_unsloths_own_classes_keep_every_value(call, tmp_path, update, keys, approved):
    """Its reader drops unknown keys in silence, so each key and type is one of its classes'."""
    code, _, err = export(call, tmp_path, update=update, keys=keys)
    assert code == 0, err
    text = (tmp_path / "u/unsloth.yaml").read_text()
    approved([text.splitlines(), err.splitlines()])
    values = yaml.safe_load(text)
    assert {*values} <= {*get_type_hints(Config)}
    for name, kind in SECTIONS.items():
        assert list(faults_of(kind, values.get(name, {}))) == []
    training = values["training"]
    assert (training["load_in_4bit"], training["training_type"]) == ("nf4" in keys, update)
    assert training["max_steps"] or training["packing"]  # 1.5 epochs are no whole number there
    assert (tmp_path / "u" / values["data"]["local_dataset"][0]).exists()
    # `gate_proj` would adapt the experts, which a plan leaves as they are
    assert values["lora"]["target_modules"] == "q_proj,k_proj,v_proj,o_proj"


@pytest.mark.parametrize("objective", ["sft", "cpt"])
def test_the_script_has_the_present_form(call, tmp_path, objective, approved):
    """Unsloth is imported first, and only arguments that it has are given."""
    code, _, err = export(call, tmp_path, objective=objective, model="Qwen/Qwen3-8B")
    assert code == 0, err
    tree = ast.parse(text := (tmp_path / "u/train.py").read_text())
    approved(text)
    assert [one.module for one in tree.body if isinstance(one, ast.ImportFrom)][0] == "unsloth"
    calls = {
        node.func.attr: {one.arg for one in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert calls["from_pretrained"] <= LOADS
    assert calls["get_peft_model"] <= ADAPTS
    assert ("train_on_responses_only" in ast.unparse(tree)) == (objective == "sft")
    assert (tmp_path / "u/unsloth.yaml").exists() == (objective == "sft")


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"objective": "dpo"}, "dpo is not written"), ({"update": "prefix"}, "no update 'prefix'")],
)
def test_what_unsloth_has_no_word_for_is_refused(call, tmp_path, keys, said, approved):
    """And nothing is written."""
    code, _, err = export(call, tmp_path, **keys)
    assert (code, said in err) == (2, True)
    approved(err)
    assert not (tmp_path / "u").exists()
