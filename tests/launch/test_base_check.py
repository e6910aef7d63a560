"""A model that is not what it says is refused before anything is written, torch-free."""

import json
import os
import re

import pytest

from advisor.ground.errors import InputError
from advisor.ground.model_folder import INDEX, WEIGHTS, adapter_faults, model_faults
from advisor.ground.model_structure import config_faults, spans_words
from tests.fake_model import llama_tensors, write_fake_model, write_safetensors
from tests.launch.conftest import CONFIG, PLAN, run

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


def test_every_fault_of_a_model_is_told_in_one_go_before_anything_is_written(shop):
    """Six layers are promised and two are there; the tokenizer's file is cut as well."""
    (shop / "model" / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 6}))
    (shop / "model" / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError) as caught:
        run(output="out")
    text = caught.value.text()
    assert "layers 2 to 5 of 6 (counted from 0) are not in model.safetensors" in text
    assert "tokenizer.json: line 1, column 11: not valid JSON" in text
    assert not (shop / "out").exists()


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("", "stage sft: objective distill needs a teacher"),
        ("    teacher: ./nowhere\n", "stage sft: teacher: no such folder: "),
        ("    teacher: ./model\n", "the model that is trained: it has nothing to teach"),
        ("    teacher: ./large\n", "layers 2 to 5 of 6 (counted from 0) are not in"),
    ],
    ids=["none", "no-folder", "itself", "damaged"],
)
def test_a_teacher_is_checked_before_anything_is_written(shop, teacher, said):
    """A distillation without a teacher, with one that is not there, and with a damaged one."""
    write_fake_model(shop / "large", CONFIG)
    (shop / "large" / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 6}))
    plan = PLAN.replace("objective: sft\n", f"objective: distill\n{teacher}")
    (shop / "plan.yaml").write_text(plan)
    with pytest.raises(InputError) as caught:
        run(output="out")
    assert said in caught.value.text()
    assert not (shop / "out").exists()


def test_the_folders_that_a_stage_starts_from_and_is_scored_by_are_checked_too(shop):
    """An adapter that was cut off, and a reward model without its last layer."""
    (shop / "mine").mkdir()
    (shop / "mine" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (shop / "mine" / "adapter_model.safetensors").write_bytes(b"\x08")
    write_fake_model(shop / "rm", CONFIG)
    (shop / "rm" / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))
    stage = PLAN.replace("objective: sft", "objective: ppo\n    reward_model: ./rm").replace(
        "    rank: 8 ", "    start_from: ./mine\n    rank: 8 "
    )
    (shop / "plan.yaml").write_text(stage)
    with pytest.raises(InputError) as caught:
        run(output="out")
    text = caught.value.text()
    assert "mine/adapter_model.safetensors: is cut off" in text
    assert "layer 2 of 3 (counted from 0)" in text


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
    text = PLAN.replace("objective: sft", f"objective: ppo{rewards.rstrip()}")
    (shop / "plan.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        run(output="out")
    told = caught.value.text()
    assert re.search(
        r"own.py has no function 'scores'\n  it defines: score\n  did you mean 'score'", told
    )
    assert re.search(r"reward: no such file: .*other.py", told)
    assert re.search(r"schema: no such file: .*form.json", told)
    assert re.search(r"reward_model: .*nowhere holds no model", told)
    assert not (shop / "out").exists()


def without(folder, part):
    tensors = llama_tensors(UNTIED)
    return write_safetensors(
        folder / WEIGHTS, {name: shape for name, shape in tensors.items() if part not in name}
    )


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
    "no output matrix": (lambda f: without(f, "lm_head.weight"), r"lm_head\) is not in model.saf"),
    "no embeddings": (lambda f: without(f, "embed_tokens.weight"), "token embeddings are not in"),
    "no last norm": (lambda f: without(f, "model.norm.weight"), "model.norm.weight is not in"),
    "one tensor": (
        lambda f: without(f, "layers.1.mlp.up_proj.weight"),
        "model.layers.1.mlp.up_proj.weight is not in model.safetensors",
    ),
    "first layer": (lambda f: without(f, "layers.0."), "layer 0 of 2 .* is not in model.safetensors"),
    "hidden size": (lambda f: rewritten(f, hidden_size=128), r"shape \[256, 64\], and config.json says \[256, 128\]"),
    "vocabulary": (lambda f: rewritten(f, vocab_size=300), r"shape \[256, 64\], .* says \[300, 64\]"),
    "heads": (lambda f: rewritten(f, num_attention_heads=7), "7 attention heads .* do not divide"),
    "kv heads": (lambda f: rewritten(f, num_key_value_heads=3), "3 key and value heads"),
    "fewer kv heads": (lambda f: rewritten(f, num_key_value_heads=2), r"says \[32, 64\]"),
    "width": (lambda f: rewritten(f, intermediate_size=96), r"says \[96, 64\]"),
    "more layers": (lambda f: rewritten(f, num_hidden_layers=1), "says 1 layers .* has 2"),
    "huge": (lambda f: rewritten(f, num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "text": (lambda f: rewritten(f, hidden_size="64"), 'hidden_size is "64"'),
    "null": (lambda f: rewritten(f, vocab_size=None), "vocab_size is null"),
    "negative": (lambda f: rewritten(f, num_attention_heads=-4), "num_attention_heads is -4"),
    "quantised by nothing": (
        lambda f: rewritten(f, quantization_config="yes"),
        'quantization_config is "yes"',
    ),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    "cut": (lambda f: os.truncate(f / WEIGHTS, 5000), "model.safetensors: is cut off"),
    "cut header": (lambda f: os.truncate(f / WEIGHTS, 60), "do not hold its header"),
    "empty": (lambda f: os.truncate(f / WEIGHTS, 0), "model.safetensors: is empty"),
    "longer": (lambda f: (f / WEIGHTS).open("ab").write(b"12"), "2 bytes after its last tensor"),
    "garbage": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99), "is no safetensors file"),
    "not JSON": (lambda f: header(f, lambda _: "{]"), "its header is not JSON"),
    "no object": (lambda f: header(f, lambda _: "[1]"), "not a JSON object"),
    "bad entry": (lambda f: header(f, lambda h: h.update(x=3)), "does not describe 'x'"),
    "offsets": (
        lambda f: header(f, lambda h: h["model.norm.weight"].update(data_offsets=[0, 128])),
        "does not begin where the tensor before it ends",
    ),
    "bytes": (
        lambda f: header(f, lambda h: h["model.norm.weight"].update(shape=[65])),
        "not as many as its shape needs",
    ),
    "twice": (lambda f: header(f, lambda _: '{"a": 1, "a": 2}'), "names 'a' twice"),
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
    faults = model_faults(tmp_path)
    assert all(str(tmp_path) in fault.headline for fault in faults)
    assert re.search(expected, "\n".join(fault.headline for fault in faults))


def test_a_checkpoint_of_several_files_is_whole_or_says_what_is_missing(tmp_path):
    """Missing, cut and stray files of an index, and tensors that are not where it says."""
    write_fake_model(tmp_path, UNTIED)
    parts = list(shard(tmp_path, UNTIED, count=4))
    assert text_of(tmp_path) == ""
    (tmp_path / parts[1]).rename(tmp_path / "away")
    assert f"1 of the 4 weight files that {INDEX} names is missing: {parts[1]}" in text_of(tmp_path)
    assert text_of(tmp_path, downloads=True) == ""
    (tmp_path / "away").rename(tmp_path / parts[1])
    (tmp_path / parts[0]).write_bytes((tmp_path / parts[3]).read_bytes())
    text = text_of(tmp_path)
    assert f"{parts[0]}: lacks tensors that {INDEX} says are in it" in text
    assert f"{parts[3]}: holds tensors that another file holds too" in text
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    assert "names '../../x.safetensors', which is no file inside it" in text_of(tmp_path)
    (tmp_path / INDEX).write_text('{"weight_map": ["a"]}')
    assert "has no map from tensors to files" in text_of(tmp_path)


def test_a_model_in_the_hub_cache_is_checked_as_far_as_it_is_there(shop, monkeypatch):
    """A shard that was not downloaded yet is the trainer's business, but not offline; one that is
    damaged is told at once.
    """
    snapshot = shop / "hub" / "models--org--tiny" / "snapshots" / "abc"
    write_fake_model(snapshot, CONFIG)
    first, second = shard(snapshot, CONFIG)
    monkeypatch.setenv("HF_HUB_CACHE", str(shop / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: org/tiny"))
    assert run().status == "done"
    (snapshot / second).unlink()
    with pytest.raises(InputError, match=f"is missing: {second}"):
        run(output="out")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    os.truncate(snapshot / first, 999)
    with pytest.raises(InputError) as caught:
        run(output="out")
    assert [fault.headline for fault in caught.value.faults] == [
        f"{snapshot / first}: is cut off: 999 bytes do not hold its header"
    ]


def test_what_may_be_absent_is_not_missed(tmp_path):
    """A tied output matrix, the head of a model that only scores, and families whose names are not
    known.
    """
    write_fake_model(tmp_path, CONFIG)
    assert text_of(tmp_path) == ""
    rewritten(tmp_path)
    assert "lm_head" in text_of(tmp_path)
    assert text_of(tmp_path, writes=False) == ""
    write_safetensors(tmp_path / WEIGHTS, {"tower.0.kernel": (3, 4)})
    rewritten(tmp_path, model_type="unheard-of")
    assert text_of(tmp_path) == ""


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    """The highest id counts, of the vocabulary and of added tokens."""
    write_fake_model(tmp_path, CONFIG)
    vocabulary = {"model": {"vocab": {"a": 0, "b": 255}}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert text_of(tmp_path) == ""
    vocabulary["added_tokens"] = [{"id": 256, "content": "<x>", "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert text_of(tmp_path) == ""
    vocabulary["added_tokens"][0]["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert "token ids up to 256, the model only 256 embeddings" in text_of(tmp_path)


GROUPS = {"g_idx": (64,), "qweight": (8, 64), "qzeros": (1, 8), "scales": (1, 64)}
STORED = {
    "gptq": ("F32", GROUPS),
    "awq": ("F32", {name: GROUPS[name] for name in ("qweight", "qzeros", "scales")}),
    "bitsandbytes": ("U8", {"weight": (2048, 1), "weight.absmax": (64,)}),
    "fp8": ("U8", {"weight": (64, 64), "weight_scale_inv": (1, 1)}),
    "compressed-tensors": ("F32", {"weight_packed": (64, 8), "weight_scale": (64, 1)}),
}


@pytest.mark.parametrize("method", STORED)
def test_a_quantised_checkpoint_is_not_compared_with_plain_weights(method, tmp_path):
    """Its linear layers have other tensors; its layers are counted all the same."""
    write_fake_model(tmp_path, UNTIED)
    rewritten(tmp_path, quantization_config={"quant_method": method})
    dtype, parts = STORED[method]
    packed = {}
    for name, shape in llama_tensors(UNTIED).items():
        linear = name.removesuffix(".weight") if "_proj" in name else None
        packed |= (
            {f"{linear}.{part}": size for part, size in parts.items()} if linear else {name: shape}
        )
    write_safetensors(tmp_path / WEIGHTS, packed, dtype)
    assert text_of(tmp_path) == ""
    rewritten(tmp_path, quantization_config={"quant_method": method}, num_hidden_layers=4)
    assert "layers 2 to 3 of 4" in text_of(tmp_path)


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
    from advisor.situation.model_files import catalogue_ids, organisation_models

    seen = 0
    for stem, hub_id in catalogue_ids():
        entry = organisation_models(stem)[hub_id]
        assert config_faults(entry, hub_id) == []
        seen += 1
    assert seen > 100


@pytest.mark.parametrize(
    ("spans", "words"),
    [([(2, 2)], "layer 2"), ([(2, 5)], "layers 2 to 5"), ([(0, 1), (4, 4)], "layers 0 to 1 and 4")],
)
def test_layers_are_listed_as_stretches(spans, words):
    """Counted from 0, as in the names of tensors."""
    assert spans_words(spans) == words
