"""A model that is not what it says is refused before anything is written, torch-free."""

import json
import os
import re

import pytest

from advisor.model_files.config import config_faults
from advisor.model_files.folder import INDEX, WEIGHTS, adapter_faults, model_faults
from tests.fake_model import llama_tensors, write_fake_model, write_safetensors
from tests.launch.conftest import CONFIG, FULL, PLAN, RANK, refused, run

UNTIED = CONFIG | {"tie_word_embeddings": False}


def text_of(folder, **options):
    return "\n".join(fault.headline for fault in model_faults(folder, **options))


def shard(folder, config, *, count=2):
    """Write the weights as `count` files with an index; the tensors of each."""
    names = list(llama_tensors(config).items())
    parts = {
        f"model-{place + 1:05d}-of-{count:05d}.safetensors": dict(names[place::count])
        for place in range(count)
    }
    for name, tensors in parts.items():
        write_safetensors(folder / name, tensors)
    named = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    (folder / WEIGHTS).unlink(missing_ok=True)
    return parts


def faults_of(shop, config=None, *, plan=PLAN):
    """The faults of a plan, and of a model with this config.json; nothing may have been written."""
    if config is not None:
        (shop / "model" / "config.json").write_text(json.dumps({**CONFIG, **config}))
    text = refused(text=plan, output="out")
    assert not (shop / "out").exists()
    return text


def test_every_fault_of_a_model_is_told_in_one_go_before_anything_is_written(shop):
    """The weights are cut off, and the tokenizer's file; so are the adapter that a stage starts from
    and the reward model that scores it.
    """
    (shop / "mine").mkdir()
    (shop / "mine" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (shop / "mine" / "adapter_model.safetensors").write_bytes(b"\x08")
    write_fake_model(shop / "rm", CONFIG)
    for name in ("model", "rm"):
        os.truncate(shop / name / WEIGHTS, 5000)
    (shop / "model" / "tokenizer.json").write_text('{"model": ')
    starts = "objective: ppo\n    reward_model: ./rm\n    start_from: ./mine"
    text = faults_of(shop, plan=PLAN.replace("objective: sft", starts))
    assert re.search(
        r"model/model.safetensors: is cut off: [\d,]+ of [\d,]+ bytes of tensors", text
    )
    assert "tokenizer.json: line 1, column 11: not valid JSON" in text
    assert "mine/adapter_model.safetensors: is cut off" in text
    assert "rm/model.safetensors: is cut off" in text


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("", "stage sft: objective distill needs a teacher"),
        ("    teacher: ./nowhere\n", "stage sft: teacher: no such folder: "),
        ("    teacher: ./model\n", "the model that is trained: it has nothing to teach"),
        ("    teacher: ./large\n", "large/model.safetensors: is cut off"),
    ],
    ids=["none", "no-folder", "itself", "damaged"],
)
def test_a_teacher_is_checked_before_anything_is_written(shop, teacher, said):
    """A distillation without a teacher, with one that is not there, and with a damaged one."""
    write_fake_model(shop / "large", CONFIG)
    os.truncate(shop / "large" / WEIGHTS, 5000)
    plan = PLAN.replace("objective: sft\n", f"objective: distill\n{teacher}")
    assert said in faults_of(shop, plan=plan)


def test_files_of_rewards_are_looked_for_before_anything_is_written(shop):
    """A function that its file does not define, a file and a schema that are not there: together."""
    (shop / "own.py").write_text("def score(prompts, completions):\n    return [0.0]\n")
    rewards = """
    rewards:
      - {reward: own.py:scores}
      - {reward: other.py:score}
      - {verifier: json_schema, schema: form.json}
      - {reward_model: ./nowhere}
"""
    told = faults_of(shop, plan=PLAN.replace("objective: sft", f"objective: ppo{rewards.rstrip()}"))
    defines = "own.py has no function 'scores'\n  it defines: score\n  did you mean 'score'"
    assert defines in told
    assert re.search(r"reward: no such file: .*other.py", told)
    assert re.search(r"schema: no such file: .*form.json", told)
    assert re.search(r"reward_model: .*nowhere holds no model", told)


def rewritten(folder, **changes):
    return (folder / "config.json").write_text(json.dumps(UNTIED | changes))


def header(folder, change):
    """Write the weights' header anew, as `change` makes of it."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size])
    text = change(found)
    text = json.dumps(found) if text is None else text
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[8 + size :])


DAMAGES = {
    "heads": (lambda f: rewritten(f, num_attention_heads=7), "7 attention heads .* do not divide"),
    "kv heads": (lambda f: rewritten(f, num_key_value_heads=3), "3 key and value heads"),
    "huge": (lambda f: rewritten(f, num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "text": (lambda f: rewritten(f, hidden_size="64"), 'hidden_size is "64"'),
    "null": (lambda f: rewritten(f, vocab_size=None), "vocab_size is null"),
    "negative": (lambda f: rewritten(f, num_attention_heads=-4), "num_attention_heads is -4"),
    "quantised by nothing": (
        lambda f: rewritten(f, quantization_config="yes"), 'quantization_config is "yes"'),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "cut": (lambda f: os.truncate(f / WEIGHTS, 5000), "model.safetensors: is cut off"),
    "cut header": (lambda f: os.truncate(f / WEIGHTS, 60), "do not hold its header"),
    "empty": (lambda f: os.truncate(f / WEIGHTS, 0), "model.safetensors: is empty"),
    "longer": (lambda f: (f / WEIGHTS).open("ab").write(b"12"), "2 bytes belong to no tensor"),
    "garbage": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99), "is no safetensors file"),
    "not JSON": (lambda f: header(f, lambda _: "{]"), "its header is not JSON"),
    "no object": (lambda f: header(f, lambda _: "[1]"), "not a JSON object"),
    "bad entry": (lambda f: header(f, lambda h: h.update(x=3)), "does not describe 'x'"),
    "bytes": (
        lambda f: header(f, lambda h: h["model.norm.weight"].update(shape=[65])),
        "not as many as its shape needs",
    ),
    "pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha"),
        "is a Git LFS pointer",
    ),
    "folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), "is a folder"),
    "circle": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(WEIGHTS)),
        "cannot be read: Too many levels of symbolic links",
    ),
    "pipe": (lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)), "not a regular file"),
    "none": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_whole_is_named(name, tmp_path):
    """Weights or config.json that cannot be those of one model, each with what is wrong."""
    write_fake_model(tmp_path, UNTIED)
    assert text_of(tmp_path) == ""
    damage, expected = DAMAGES[name]
    damage(tmp_path)
    assert all(str(tmp_path) in line for line in text_of(tmp_path).splitlines())
    assert re.search(expected, text_of(tmp_path))


def test_a_checkpoint_of_several_files_is_whole_or_says_what_is_missing(tmp_path):
    """Missing and cut files of an index, and names that lead out of the folder."""
    write_fake_model(tmp_path, UNTIED)
    parts = list(shard(tmp_path, UNTIED, count=4))
    assert text_of(tmp_path) == ""
    (tmp_path / parts[1]).rename(tmp_path / "away")
    assert f"1 of the 4 weight files that {INDEX} names is missing: {parts[1]}" in text_of(tmp_path)
    assert text_of(tmp_path, downloads=True) == ""
    (tmp_path / "away").rename(tmp_path / parts[1])
    os.truncate(tmp_path / parts[0], 999)
    assert f"{parts[0]}: is cut off: " in text_of(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    assert "names '../../x.safetensors', which is no file inside it" in text_of(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": ["a"]}')
    assert "has no map from tensors to files" in text_of(tmp_path)


def test_a_model_in_the_hub_cache_is_checked_as_far_as_it_is_there(shop, monkeypatch):
    """A missing shard is the trainer's business, but not offline; a damaged one is told at once."""
    snapshot = shop / "hub" / "models--org--tiny" / "snapshots" / "abc"
    write_fake_model(snapshot, CONFIG)
    first, second = shard(snapshot, CONFIG)
    monkeypatch.setenv("HF_HUB_CACHE", str(shop / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(text=PLAN.replace("model: model", "model: org/tiny")).status == "done"
    (snapshot / second).unlink()
    assert f"is missing: {second}" in refused(output="out")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    os.truncate(snapshot / first, 999)
    said = refused(output="out")
    assert said.startswith(f"{snapshot / first}: is cut off: 999 bytes do not hold its header")
    assert "missing" not in said


def test_an_adapter_needs_its_config_and_whole_weights(tmp_path):
    """A folder without a module has none to complain about."""
    assert adapter_faults(tmp_path) == []
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    texts = [fault.headline for fault in adapter_faults(tmp_path)]
    assert "names no kind of module" in texts[0]
    assert "base_model_name_or_path is no text" in texts[1]
    assert "adapter_model.safetensors: is empty" in texts[2]


def test_no_catalogued_model_is_refused():
    """The numbers of every model in the catalogue are numbers that a model can have."""
    from advisor.situation.catalogue import catalogue_ids, organisation_models

    ids = list(catalogue_ids())
    entries = (organisation_models(hub_id.split("/")[0].lower())[hub_id] for hub_id in ids)
    assert [
        fault for args in zip(entries, ids, strict=True) for fault in config_faults(*args)
    ] == []
    assert len(ids) > 100


# --------------------------------------------------------------------------- what no loading gives

NF4 = PLAN.replace(RANK, f"    quantization: nf4\n{RANK}")
EXPERTS = PLAN.replace(RANK, f"    target_modules: with-experts\n{RANK}")


@pytest.mark.parametrize(
    ("plan", "config", "words", "hint"),
    [
        *(
            (NF4, {"quantization_config": {"quant_method": method}},
             f"stored in {method}, which cannot be quantised a second time", "quantization: null")
            for method in ("mxfp4", "fp8")
        ),
        *(
            (FULL, {"quantization_config": {"quant_method": method}},
             f"stored in {method}, whose weights are frozen",
             "name the model that the checkpoint was made from")
            for method in ("gptq", "awq", "bitsandbytes")
        ),
        (EXPERTS, {}, "needs a mixture of experts", ""),
        # sdpa is what a plan that is silent means.
        (PLAN, {"model_type": "gemma2"}, "transformers has no sdpa attention for gemma2 models",
         "attention: eager"),
    ],
)  # fmt: skip
def test_what_no_loading_gives_is_told_before_the_model_is_read(shop, plan, config, words, hint):
    """Each with what the checkpoint is, and the setting that loads it."""
    text = faults_of(shop, config, plan=plan)
    assert words in text
    assert hint in text


def test_a_mixture_has_experts_to_correct(shop):
    """As the refused dense model has not."""
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "mixtral"}
    (shop / "model" / "config.json").write_text(json.dumps({**CONFIG, **mixture}))
    assert run(text=EXPERTS, output="there").exit_code == 0
