"""Code that comes with a model runs only if the plan says so, and nobody is asked."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoConfig

from advisor.ground.errors import InputError
from advisor.record.run import RECORD
from tests.conftest import PAIRS
from tests.fake_model import write_safetensors
from trainers.job.libraries import quiet_libraries
from trainers.rewards.sources import load_reward_model
from trainers.start.loading import load_base, load_tokenizer
from trainers.tools.results import load_results, results_of
from trainers.tools.show_row import show_row


def change(path, **keys):
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture(scope="module")
def with_code(tiny_model, once):
    """A model of a type that transformers does not know, its code and its tokenizer's beside it.
    Each file of code makes a file `ran` in its folder.
    """

    def fill(folder):
        model = folder / "model"
        shutil.copytree(tiny_model, model)
        models = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
        places = dict.fromkeys(models, "evil.EvilModel")
        places["AutoConfig"] = "evil.EvilConfig"
        change(model / "config.json", model_type="ours", auto_map=places)
        own = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        change(model / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=own)
        (model / "evil.py").write_text(
            f"open({str(folder / 'ran')!r}, 'w')\n"
            "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            "class EvilConfig(LlamaConfig):\n    model_type = 'ours'\n"
            "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
            "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        )

    return once("with-code", fill)


def _show_row(model, tmp_path, align):
    (tmp_path / "rows.jsonl").write_text(PAIRS)
    show_row(tmp_path / "rows.jsonl", row=1, model=str(model))


def _train(model, tmp_path, align):
    load_tokenizer(align("sft", job_model=model))


def _load(model, tmp_path, align):
    load_base(align("sft", job_model=model), torch.device("cpu"))


def _reward(model, tmp_path, align):
    folder = shutil.copytree(model, tmp_path / "reward")
    change(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    load_reward_model(align("sft"), folder, torch.device("cpu"))


def _reward_module(model, tmp_path, align):
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(model)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": (1,)})
    load_reward_model(align("sft"), tmp_path, torch.device("cpu"))


def _results(model, tmp_path, align):
    stage = {"name": "sft", "objective": "sft", "update": "full", "status": "done"}
    record = {"schema_version": 1, "name": "x", "status": "done", "model": str(model)}
    shutil.copytree(model, tmp_path / "stages" / "sft")
    record["stages"] = [{**stage, "folder": "stages/sft"}]
    (tmp_path / RECORD).write_text(json.dumps(record))
    (tmp_path / "plan.yaml").write_text(
        f"name: x\nmodel: {model}\ndata: {{path: d.jsonl}}\n"
        "stages: [{name: sft, objective: sft, update: full}]\n"
    )
    load_results(results_of(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize("way", [_show_row, _train, _load, _reward, _reward_module, _results])
def test_code_of_a_model_never_runs_unasked(with_code, tmp_path, align, monkeypatch, way):
    """Exit code 2 with the plan's key; the code is not run, nobody is asked for a `y`."""

    def asked(*words):
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(InputError, match=r"code of its own.*\n.*\n.*trust_remote_code: true"):
        way(with_code / "model", tmp_path, align)
    assert not (with_code / "ran").exists()


def test_libraries_cannot_ask_either(with_code, monkeypatch):
    """A load by TRL or PEFT, which pass nothing, is refused and asks nothing."""
    quiet_libraries()
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(str(with_code / "model"))
    assert not (with_code / "ran").exists()
