"""Whatever is wrong with a model's folder is exit code 2 with its name, whoever finds it: the check
of the files, or the libraries that load a model which was just downloaded and never checked.
"""

import json
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from advisor.ground.errors import AdviseError, InputError
from advisor.model_files.folder import model_faults
from tests.trainers import moe
from tests.trainers.alignment import stage_of
from tests.trainers.conftest import job_in
from trainers.rewards.sources import load_reward_model
from trainers.start import loading, model_files
from trainers.start.loading import check_vocabulary, load_base, load_tokenizer
from trainers.updates import load_update

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about the damage
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
TOKENIZER_CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
INDEX = "model.safetensors.index.json"
CPU = torch.device("cpu")


def change(name, **keys):
    """Change keys of a JSON file; those that are ... are taken out."""

    def rewrite(folder):
        found = json.loads((folder / name).read_text()) | keys
        found = {key: value for key, value in found.items() if value is not ...}
        (folder / name).write_text(json.dumps(found))

    return rewrite


def config(**keys):
    return change(CONFIG, **keys)


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, share):
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def gone(name):
    return lambda folder: (folder / name).unlink()


def circle(name):
    return lambda folder: (gone(name)(folder), (folder / name).symlink_to(name))


def a_folder(name):
    return lambda folder: (gone(name)(folder), (folder / name).mkdir())


def tensors(transform, name=WEIGHTS):
    """Write the weights anew, as `transform` changes the map from name to tensor."""

    def rewrite(folder):
        found = load_file(folder / name)
        transform(found)
        save_file(found, folder / name, metadata={"format": "pt"})

    return rewrite


def drop(part):
    def transform(found):
        for name in [name for name in found if part in name]:
            del found[name]

    return tensors(transform)


def sharded(damage):
    """Save as two shards with an index, then damage the folder."""

    def split(folder):
        found, shards = load_file(folder / WEIGHTS), ("a.safetensors", "b.safetensors")
        names = sorted(found)
        place = {name: shards[index % 2] for index, name in enumerate(names)}
        for shard in shards:
            part = {name: found[name] for name in names if place[name] == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": place}))
        damage(folder)

    return split


class Evil:
    """Its pickle makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def plain_pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / "EXECUTED")))


def torch_pickle(old, new):
    def replace(folder):
        (folder / old).unlink()
        torch.save({"model.norm.weight": Evil(folder / "EXECUTED")}, folder / new)

    return replace


def strange_bias(found):
    found["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)


def a_row_less(found):
    found["model.layers.1.mlp.up_proj.weight"] = found["model.layers.1.mlp.up_proj.weight"][1:]


DAMAGES = {
    "weights cut": cut(WEIGHTS, 0.5),
    "weights cut in the header": cut(WEIGHTS, 0.002),
    "weights empty": cut(WEIGHTS, 0),
    "weights garbage": text(WEIGHTS, b"\xff" * 4096),
    "weights text": text(WEIGHTS, b"<html>404</html>" * 9),
    "weights gone": gone(WEIGHTS),
    "weights a folder": a_folder(WEIGHTS),
    "weights a circle": circle(WEIGHTS),
    "weights of other layers": config(num_hidden_layers=6),
    "one layer gone": drop("layers.1."),
    "one tensor gone": drop("layers.0.mlp.up_proj"),
    "norm gone": drop("model.norm"),
    "embeddings gone": drop("embed_tokens"),
    "output matrix gone": config(tie_word_embeddings=False),
    "one shape": tensors(a_row_less),
    "a bias too many": tensors(strange_bias),
    "no tensors": tensors(lambda found: found.clear()),
    "shard gone": sharded(gone("b.safetensors")),
    "shard cut": sharded(cut("b.safetensors", 0.4)),
    "index garbage": sharded(text(INDEX, b"{")),
    "index without a map": sharded(text(INDEX, b"{}")),
    "index of a list": sharded(text(INDEX, b'{"weight_map": [1]}')),
    "index of other files": sharded(text(INDEX, b'{"weight_map": {"model.norm.weight": "c"}}')),
    "pickle": plain_pickle,
    "pickle of torch": torch_pickle(WEIGHTS, "pytorch_model.bin"),
    "config cut": cut(CONFIG, 0.5),
    "config empty": text(CONFIG, b""),
    "config not UTF-8": text(CONFIG, b'{"model_type": "\xff\xfe"}'),
    "config a list": text(CONFIG, b"[1, 2]"),
    "config a circle": circle(CONFIG),
    "config a folder": a_folder(CONFIG),
    "config nested": text(CONFIG, b"[" * 100_000),
    "no model_type": config(model_type=...),
    "unknown model_type": config(model_type="llamma"),
    "model_type a number": config(model_type=3),
    "hidden_size": config(hidden_size=128),
    "hidden_size a text": config(hidden_size="64"),
    "hidden_size null": config(hidden_size=None),
    "hidden_size negative": config(hidden_size=-64),
    "hidden_size huge": config(hidden_size=2**60),
    "hidden_size zero": config(hidden_size=0),
    "heads": config(num_attention_heads=7),
    "kv heads": config(num_key_value_heads=3),
    "layers a text": config(num_hidden_layers="two"),
    "layers fewer": config(num_hidden_layers=1),
    "vocab_size": config(vocab_size=100),
    "vocab_size larger": config(vocab_size=10_000),
    "context a text": config(max_position_embeddings="long"),
    "activation": config(hidden_act="nosuch"),
    "rope": config(rope_parameters={"rope_type": "nosuch", "rope_theta": "x"}),
    "quantised by a text": config(quantization_config="4bit"),
    "quantised by a list": config(quantization_config=[4]),
    "code of its own": config(
        model_type="mine", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    ),
    "tokenizer cut": cut(TOKENIZER, 0.5),
    "tokenizer garbage": text(TOKENIZER, b"\x00\x01\x02" * 50),
    "tokenizer empty": text(TOKENIZER, b""),
    "tokenizer an empty object": text(TOKENIZER, b"{}"),
    "tokenizer a list": text(TOKENIZER, b"[]"),
    "tokenizer without a vocabulary": change(TOKENIZER, model={"type": "BPE"}),
    "tokenizer of no kind": change(TOKENIZER, model={"type": "nosuch"}),
    "tokenizer gone": gone(TOKENIZER),
    "tokenizer a circle": circle(TOKENIZER),
    "tokenizer_config cut": cut(TOKENIZER_CONFIG, 0.5),
    "tokenizer_config a list": text(TOKENIZER_CONFIG, b"[]"),
    "tokenizer's end a number": change(TOKENIZER_CONFIG, eos_token=[1]),
    "model_max_length": change(TOKENIZER_CONFIG, model_max_length={}),
    "end of generation": change(GENERATION, eos_token_id={"a": 1}),
    "end of generation a list": change(GENERATION, eos_token_id=[[2], "x"]),
    "temperature": change(GENERATION, temperature="warm"),
    "generation_config cut": cut(GENERATION, 0.5),
}  # fmt: skip
# What the libraries read without a word where nothing was checked before.
UNNOTICED = {"generation_config cut"}


def load(job):
    """What a stage reads of the folder before it trains: its tokenizer and model."""
    tokenizer = load_tokenizer(job)
    model = load_base(job, CPU)
    check_vocabulary(model, tokenizer)
    return tokenizer, model


@pytest.fixture
def job_on(tiny_model, pairs, tmp_path):
    """A job on the model of a folder."""

    def build(model=tiny_model, **keys):
        return job_in(tmp_path, (stage_of("sft", **keys),), model=model, data=pairs)

    return build


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model, under a name that is no plain word."""
    return shutil.copytree(tiny_model, tmp_path / "model \u00e4 'x'")


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_with_its_name(name, folder, job_on, monkeypatch):
    """By the check, by the trainer after it, and by the trainer alone, as for a model of the hub."""
    DAMAGES[name](folder)
    assert all(str(folder) in fault.headline for fault in model_faults(folder))
    job = job_on(folder)
    for unchecked in (False, True):
        if unchecked and name in UNNOTICED:
            continue
        if unchecked:
            for module in (loading, model_files):
                monkeypatch.setattr(module, "check_files", lambda *_: None)
            monkeypatch.setattr(model_files, "tokenizer_faults", lambda _: [])
            monkeypatch.setattr(model_files, "base_faults", lambda _: [])
        with pytest.raises(AdviseError) as caught:
            load(job)
        assert caught.value.exit_code in (2, 4), caught.value.text()
        said = caught.value.text()
        assert str(folder) in said, said
        assert "Traceback" not in said
    assert not (folder / "EXECUTED").exists()


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """The folder of a LoRA of the tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    wanted = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, wanted).save_pretrained(folder)
    return folder


ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def another_layer(found):
    for name in [name for name in found if "layers.1." in name]:
        found[name.replace("layers.1.", "layers.7.")] = found[name].clone()


ADAPTER_DAMAGES = {
    "weights cut": cut(ADAPTER, 0.5),
    "weights empty": cut(ADAPTER, 0),
    "weights gone": gone(ADAPTER),
    "a tensor gone": tensors(lambda found: found.pop(min(found)), ADAPTER),
    "a layer too many": tensors(another_layer, ADAPTER),
    "pickle": torch_pickle(ADAPTER, "adapter_model.bin"),
    "config cut": cut(ADAPTER_CONFIG, 0.5),
    "config a list": text(ADAPTER_CONFIG, b"[]"),
    "config of no kind": change(ADAPTER_CONFIG, peft_type="NOSUCH"),
    "config without a kind": change(ADAPTER_CONFIG, peft_type=...),
    "rank a text": change(ADAPTER_CONFIG, r="two"),
    "another rank": change(ADAPTER_CONFIG, r=4),
    "rank negative": change(ADAPTER_CONFIG, r=-1),
    "targets that are not there": change(ADAPTER_CONFIG, target_modules=["nosuch"]),
}


@pytest.mark.parametrize("name", ADAPTER_DAMAGES)
def test_a_damaged_adapter_is_refused_with_its_name(name, adapter, job_on, tmp_path):
    """An adapter that a stage continues from: PEFT would leave a missing tensor at its start."""
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    ADAPTER_DAMAGES[name](folder)
    job = job_on(start_from="./adapter", rank=2)
    with pytest.raises(InputError) as caught:
        loading.load_model(job, CPU, load_update("lora"))
    assert str(folder) in caught.value.text()
    assert not (folder / "EXECUTED").exists()


@pytest.mark.parametrize(
    "damage", [cut(WEIGHTS, 0.5), config(num_hidden_layers=3), drop("layers.1."), drop("score")]
)
def test_a_damaged_reward_model_is_refused(damage, tiny_model, job_on, tmp_path):
    """Its head has to be in the file too: a new one would give scores at random."""
    folder, job = tmp_path / "rm", job_on()
    loader = AutoModelForSequenceClassification
    loader.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    load_reward_model(job, folder, CPU)
    damage(folder)
    with pytest.raises(InputError) as caught:
        load_reward_model(job, folder, CPU)
    assert str(folder) in caught.value.text()


FAMILIES = [
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi", "opt", "falcon",
    "olmo2", "bloom", "stablelm", "mixtral", "qwen3_moe", "olmoe", "gpt_oss", "llama4_text",
    "deepseek_v3", "bert",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_no_undamaged_family_is_refused(family, job_on, tmp_path):
    """Tied in one file and untied in several, and with a new head that scores."""
    sizes = {**moe.SHAPE, **moe.FAMILIES.get(family, {})}
    kind = "MaskedLM" if family == "bert" else "CausalLM"
    for tied, shard in ((True, "1GB"), (False, "10KB")):
        folder = tmp_path / f"tied-{tied}"
        wanted = transformers.AutoConfig.for_model(family, **sizes, tie_word_embeddings=tied)
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(wanted)
        model.save_pretrained(folder, max_shard_size=shard)
        assert model_faults(folder) == []
        job = job_on(folder, attention="eager")
        if family != "bert":
            load_base(job, CPU)
        if family not in ("olmoe", "llama4_text"):  # transformers has none that scores
            load_base(job, CPU, head="SequenceClassification", num_labels=1)


def test_a_quantised_base_and_one_of_other_weights_are_told_apart(job_on, folder):
    """Weights that bitsandbytes quantises as they load are all there; a scale that is left over
    says that quantised weights were read as plain ones.
    """
    pytest.importorskip("bitsandbytes")
    load_base(job_on(quantization="nf4", weights_dtype="bfloat16"), CPU)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight_scale_inv" for layer in (0, 1)]
    tensors(lambda found: found.update({name: torch.ones(1) for name in names}))(folder)
    with pytest.raises(InputError, match=f"no place for {names[0]}"):
        load_base(job_on(), CPU, str(folder), head="SequenceClassification")


def test_a_special_token_without_an_embedding_is_bad_input_if_it_is_used(folder, job_on):
    """Gemma 3 1B has one for pictures that it cannot read: it trains."""
    added = json.loads((folder / TOKENIZER).read_text())["added_tokens"]
    extra = {"id": 400, "content": "<picture>", "special": True, "single_word": False}
    extra |= {"lstrip": False, "rstrip": False, "normalized": False}
    change(TOKENIZER, added_tokens=[*added, extra])(folder)
    assert model_faults(folder) == []
    tokenizer, model = load(job_on(folder))
    with pytest.raises(InputError, match=r"ids up to 400 \(<picture>\), the model only 400"):
        check_vocabulary(model, tokenizer, [SimpleNamespace(input_ids=[3, 400])])


def test_a_pickle_of_tensors_alone_is_read_and_has_to_be_complete(folder, job_on):
    """The old format, which torch reads without executing anything."""
    found, path, job = load_file(folder / WEIGHTS), folder / "pytorch_model.bin", job_on(folder)
    (folder / WEIGHTS).unlink()
    torch.save(found, path)
    assert model_faults(folder) == []
    load(job)
    torch.save(dict(list(found.items())[:5]), path)
    why = r"incomplete: pytorch_model.bin lacks model.layers.0.* more"
    with pytest.raises(InputError, match=why):
        load(job)
    cut("pytorch_model.bin", 0.5)(folder)
    with pytest.raises(InputError, match="model \u00e4"):
        load(job)
