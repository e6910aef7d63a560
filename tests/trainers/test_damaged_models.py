"""A faulty model folder is exit code 2 by name, whoever finds it; its code runs only if allowed."""

import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from advisor.ground.errors import AdviseError, InputError
from advisor.model_files.folder import model_faults
from advisor.record.run import RECORD
from tests.conftest import PAIRS
from tests.fake_model import write_safetensors
from tests.trainers import moe
from tests.trainers.alignment import stage_of
from tests.trainers.conftest import job_in
from trainers.job.libraries import quiet_libraries
from trainers.rewards.sources import load_reward_model
from trainers.start import loading, model_files
from trainers.tools.results import load_results, results_of
from trainers.tools.show_row import show_row
from trainers.updates import load_update

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about the damage
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
TOKENIZER_CONFIG, GENERATION = "tokenizer_config.json", "generation_config.json"
INDEX, PICKLE = "model.safetensors.index.json", "pytorch_model.bin"
CPU = torch.device("cpu")


def change(name, **keys):
    """Change keys of a JSON file; those that are ... are taken out."""

    def rewrite(folder):
        found = json.loads((folder / name).read_text()) | keys
        found = {key: value for key, value in found.items() if value is not ...}
        (folder / name).write_text(json.dumps(found))

    return rewrite


config = partial(change, CONFIG)


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
    """Write the weights anew, as `transform` makes them of the map from name to tensor."""

    def rewrite(folder):
        made = transform(load_file(folder / name))
        save_file(made, folder / name, metadata={"format": "pt"})

    return rewrite


def drop(part):
    return tensors(lambda found: {name: found[name] for name in found if part not in name})


def sharded(damage):
    """Save as two shards with an index, then damage the folder."""

    def split(folder):
        found = load_file(folder / WEIGHTS)
        place = {name: f"{'ab'[at % 2]}.safetensors" for at, name in enumerate(sorted(found))}
        for shard in set(place.values()):
            part = {name: found[name] for name in found if place[name] == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": place}))
        damage(folder)

    return split


@dataclass
class Evil:
    """Its pickle makes a file when it is opened."""

    path: Path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def pickled(old, new, save):
    """In place of the weights a pickle that `save(evil, path)` writes."""

    def replace(folder):
        (folder / old).unlink()
        save(Evil(folder / "EXECUTED"), folder / new)

    return replace


def of_torch(evil, path):
    torch.save({"model.norm.weight": evil}, path)


BIAS, UP = "model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.up_proj.weight"
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
    "one shape": tensors(lambda found: found | {UP: found[UP][1:]}),
    "a bias too many": tensors(lambda found: found | {BIAS: torch.ones(64)}),
    "no tensors": tensors(lambda found: {}),
    "shard gone": sharded(gone("b.safetensors")),
    "shard cut": sharded(cut("b.safetensors", 0.4)),
    "index garbage": sharded(text(INDEX, b"{")),
    "index without a map": sharded(text(INDEX, b"{}")),
    "index of a list": sharded(text(INDEX, b'{"weight_map": [1]}')),
    "index of other files": sharded(text(INDEX, b'{"weight_map": {"model.norm.weight": "c"}}')),
    "pickle": pickled(WEIGHTS, PICKLE, lambda evil, path: path.write_bytes(pickle.dumps(evil))),
    "pickle of torch": pickled(WEIGHTS, PICKLE, of_torch),
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
    tokenizer = loading.load_tokenizer(job)
    model = loading.load_base(job, CPU)
    loading.check_vocabulary(model, tokenizer)
    return tokenizer, model


@pytest.fixture
def job_on(tiny_model, pairs, tmp_path):
    """A job on the model of a folder."""
    return lambda model=tiny_model, **keys: job_in(
        tmp_path, (stage_of("sft", **keys),), model=model, data=pairs
    )


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
    for is_checked in (True,) if name in UNNOTICED else (True, False):
        if not is_checked:
            for module in (loading, model_files):
                monkeypatch.setattr(module, "check_files", lambda *_: None)
            for look in ("tokenizer_faults", "base_faults"):
                monkeypatch.setattr(model_files, look, lambda _: [])
        with pytest.raises(AdviseError) as caught:
            load(job)
        said = caught.value.text()
        assert caught.value.exit_code in (2, 4), said
        assert str(folder) in said, said
        assert "Traceback" not in said
    assert not (folder / "EXECUTED").exists()


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_hidden_layers"])
def test_layers_that_predict_further_tokens_are_left_out(key, folder, job_on):
    """They stand behind the last layer, and transformers does not read them."""
    config(num_hidden_layers=1, **{key: 1})(folder)
    _, model = load(job_on(folder))
    assert len(model.model.layers) == 1


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """The folder with a LoRA of the tiny model, and a reward model of it."""
    folder = tmp_path_factory.mktemp("saved")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    wanted = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    get_peft_model(base, wanted).save_pretrained(folder / "adapter")
    scores = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    scores.save_pretrained(folder / "reward")
    return folder


ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def another_layer(found):
    more = {name.replace("layers.1.", "layers.7."): found[name].clone() for name in found}
    return found | more


ADAPTER_DAMAGES = {
    "weights cut": cut(ADAPTER, 0.5),
    "weights empty": cut(ADAPTER, 0),
    "weights gone": gone(ADAPTER),
    "a tensor gone": tensors(
        lambda found: {name: found[name] for name in sorted(found)[1:]}, ADAPTER
    ),
    "a layer too many": tensors(another_layer, ADAPTER),
    "pickle": pickled(ADAPTER, "adapter_model.bin", of_torch),
    "config cut": cut(ADAPTER_CONFIG, 0.5),
    "config a list": text(ADAPTER_CONFIG, b"[]"),
    "config of no kind": change(ADAPTER_CONFIG, peft_type="NOSUCH"),
    "config without a kind": change(ADAPTER_CONFIG, peft_type=...),
    "rank a text": change(ADAPTER_CONFIG, r="two"),
    "another rank": change(ADAPTER_CONFIG, r=4),
    "rank negative": change(ADAPTER_CONFIG, r=-1),
    "targets that are not there": change(ADAPTER_CONFIG, target_modules=["nosuch"]),
}


# Its head has to be in the file too: a new one would give scores at random.
REWARD_DAMAGES = {
    "weights cut": cut(WEIGHTS, 0.5), "weights of other layers": config(num_hidden_layers=3),
    "one layer gone": drop("layers.1."), "head gone": drop("score"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [*product(["adapter"], ADAPTER_DAMAGES), *product(["reward"], REWARD_DAMAGES)]
)
def test_a_damaged_adapter_or_reward_model_is_refused_with_its_name(
    kind, name, saved, job_on, tmp_path
):
    """Of an adapter that a stage continues from PEFT would leave a missing tensor at its start."""
    folder = shutil.copytree(saved / kind, tmp_path / kind)
    loads = {
        "adapter": lambda: loading.load_model(
            job_on(start_from="./adapter", rank=2), CPU, load_update("lora")
        ),
        "reward": lambda: load_reward_model(job_on(), folder, CPU),
    }
    loads[kind]()
    (ADAPTER_DAMAGES if kind == "adapter" else REWARD_DAMAGES)[name](folder)
    with pytest.raises(InputError, match=re.escape(str(folder))):
        loads[kind]()
    assert not (folder / "EXECUTED").exists()


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
            loading.load_base(job, CPU)
        if family not in ("olmoe", "llama4_text"):  # transformers has none that scores
            loading.load_base(job, CPU, head="SequenceClassification", num_labels=1)


def test_a_quantised_base_and_one_of_other_weights_are_told_apart(job_on, folder):
    """A left-over scale says that quantised weights were read as plain ones."""
    pytest.importorskip("bitsandbytes")
    loading.load_base(job_on(quantization="nf4", weights_dtype="bfloat16"), CPU)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight_scale_inv" for layer in (0, 1)]
    tensors(lambda found: found | {name: torch.ones(1) for name in names})(folder)
    with pytest.raises(InputError, match=f"no place for {names[0]}"):
        loading.load_base(job_on(), CPU, str(folder), head="SequenceClassification")


def test_a_special_token_without_an_embedding_is_bad_input_if_it_is_used(folder, job_on):
    """Gemma 3 1B has one for pictures that it cannot read: it trains."""
    added = json.loads((folder / TOKENIZER).read_text())["added_tokens"]
    extra = {
        "id": 400, "content": "<picture>", "special": True, "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False,
    }  # fmt: skip
    change(TOKENIZER, added_tokens=[*added, extra])(folder)
    assert model_faults(folder) == []
    tokenizer, model = load(job_on(folder))
    with pytest.raises(InputError, match=r"ids up to 400 \(<picture>\), the model only 400"):
        loading.check_vocabulary(model, tokenizer, [SimpleNamespace(input_ids=[3, 400])])


def test_a_pickle_of_tensors_alone_is_read_and_has_to_be_complete(folder, job_on):
    """The old format, which torch reads without executing anything."""
    found, path, job = load_file(folder / WEIGHTS), folder / PICKLE, job_on(folder)
    (folder / WEIGHTS).unlink()
    torch.save(found, path)
    assert model_faults(folder) == []
    load(job)
    torch.save(dict(list(found.items())[:5]), path)
    with pytest.raises(
        InputError, match=r"incomplete: pytorch_model.bin lacks model.layers.0.* more"
    ):
        load(job)
    cut(PICKLE, 0.5)(folder)
    with pytest.raises(InputError, match="model \u00e4"):
        load(job)


@pytest.fixture(scope="module")
def with_code(tiny_model, once):
    """A model of an unknown type with code of its own, each file of which makes a file `ran`."""

    def fill(folder):
        model = folder / "model"
        shutil.copytree(tiny_model, model)
        models = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
        places = dict.fromkeys(models, "evil.EvilModel")
        places["AutoConfig"] = "evil.EvilConfig"
        config(model_type="ours", auto_map=places)(model)
        own = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        change(TOKENIZER_CONFIG, tokenizer_class="EvilTokenizer", auto_map=own)(model)
        (model / "evil.py").write_text(
            f"open({str(folder / 'ran')!r}, 'w')\n"
            "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            "class EvilConfig(LlamaConfig):\n    model_type = 'ours'\n"
            "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
            "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        )

    return once("with-code", fill)


def show_a_row(model, tmp_path, align):
    (tmp_path / "rows.jsonl").write_text(PAIRS)
    show_row(tmp_path / "rows.jsonl", row=1, model=str(model))


def load_reward(model, tmp_path, align):
    folder = shutil.copytree(model, tmp_path / "reward")
    config(architectures=["LlamaForSequenceClassification"])(folder)
    load_reward_model(align("sft"), folder, CPU)


def load_reward_module(model, tmp_path, align):
    own = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(model)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(own))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": (1,)})
    load_reward_model(align("sft"), tmp_path, CPU)


def load_a_result(model, tmp_path, align):
    stage = {"name": "sft", "objective": "sft", "update": "full", "status": "done"}
    record = {"schema_version": 1, "name": "x", "status": "done", "model": str(model)}
    record["stages"] = [{**stage, "folder": "stages/sft"}]
    shutil.copytree(model, tmp_path / "stages" / "sft")
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / "plan.yaml").write_text(
        f"name: x\nmodel: {model}\ndata: {{path: d.jsonl}}\n"
        "stages: [{name: sft, objective: sft, update: full}]\n"
    )
    load_results(results_of(tmp_path), CPU)


@pytest.mark.parametrize(
    "way",
    [
        lambda model, _, align: loading.load_tokenizer(align("sft", job_model=model)),
        lambda model, _, align: loading.load_base(align("sft", job_model=model), CPU),
        show_a_row,
        load_reward,
        load_reward_module,
        load_a_result,
    ],
    ids=["tokenizer", "base", "show-row", "reward", "reward-module", "results"],
)
def test_code_of_a_model_never_runs_unasked(with_code, tmp_path, align, monkeypatch, way):
    """Exit code 2 with the plan's key; the code is not run, nobody is asked for a `y`."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    with pytest.raises(InputError, match=r"code of its own.*\n.*\n.*trust_remote_code: true"):
        way(with_code / "model", tmp_path, align)
    assert not (with_code / "ran").exists()


def test_libraries_cannot_ask_either(with_code, monkeypatch):
    """A load by TRL or PEFT, which pass nothing, is refused and asks nothing."""
    quiet_libraries()
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoConfig.from_pretrained(str(with_code / "model"))
    assert not (with_code / "ran").exists()
