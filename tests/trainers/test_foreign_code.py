"""Code that comes with a model runs only if the plan says so, and nobody is asked."""

import ast
import json
import shutil

import pytest

from advisor.ground.errors import InputError
from advisor.record.run import RECORD
from tests.conftest import PAIRS, ROOT
from tests.fake_model import write_safetensors

LOADERS = ("from_pretrained", "from_config", "pipeline", "load_dataset")
# They read JSON, or take a model that is loaded already.
NO_CODE = ("PeftModel", "PeftConfig", "LoraConfig", "GenerationConfig", "original")


@pytest.mark.light
def test_every_load_says_whether_code_may_run():
    """Each call of ours that can run a model's code passes `trust_remote_code`, by name or in the
    options that its function builds.
    """
    seen = []
    for path in [path for name in ("advisor", "trainers") for path in (ROOT / name).rglob("*.py")]:
        source = path.read_text("utf-8")
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                receiver = ast.unparse(call.func.value)
                if call.func.attr not in LOADERS or receiver in NO_CODE:
                    continue
                seen.append(f"{path.relative_to(ROOT)}:{call.lineno}")
                named = {keyword.arg for keyword in call.keywords}
                built = "trust_remote_code" in source and None in named
                assert "trust_remote_code" in named or built, seen[-1]
    assert len(seen) >= 10
    for name in ("torch.load(", "pickle.load", "allow_pickle", "load_dataset("):
        found = [path for path in (ROOT / "trainers").rglob("*.py") if name in path.read_text()]
        assert found == [], name


@pytest.fixture(scope="module")
def with_code(tiny_model, once):
    """A model of a type that transformers does not know, its code and its tokenizer's beside it.
    Each file of code makes a file `ran` in its folder.
    """

    def fill(folder):
        model = folder / "model"
        shutil.copytree(tiny_model, model)
        config = json.loads((model / "config.json").read_text())
        config["model_type"] = "ours"
        config["auto_map"] = {
            "AutoConfig": "evil.EvilConfig",
            "AutoModelForCausalLM": "evil.EvilModel",
            "AutoModelForSequenceClassification": "evil.EvilModel",
        }
        (model / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((model / "tokenizer_config.json").read_text())
        tokenizer["tokenizer_class"] = "EvilTokenizer"
        tokenizer["auto_map"] = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (model / "evil.py").write_text(
            f"open({str(folder / 'ran')!r}, 'w')\n"
            "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
            "class EvilConfig(LlamaConfig):\n    model_type = 'ours'\n"
            "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
            "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        )

    return once("with-code", fill)


def _show_row(model, tmp_path, align):
    from trainers.tools.show_row import show_row

    (tmp_path / "rows.jsonl").write_text(PAIRS)
    show_row(tmp_path / "rows.jsonl", row=1, model=str(model))


def _train(model, tmp_path, align):
    from trainers.start.loading import load_tokenizer

    load_tokenizer(align("sft", job_model=model))


def _load(model, tmp_path, align):
    import torch

    from trainers.start.loading import load_base

    load_base(align("sft", job_model=model), torch.device("cpu"))


def _reward(model, tmp_path, align):
    import torch

    from trainers.rewards.sources import load_reward_model

    folder = tmp_path / "reward"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    load_reward_model(align("sft"), folder, torch.device("cpu"))


def _reward_module(model, tmp_path, align):
    import torch

    from trainers.rewards.sources import load_reward_model

    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(model)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "adapter_model.safetensors", {"a": (1,)})
    load_reward_model(align("sft"), tmp_path, torch.device("cpu"))


def _results(model, tmp_path, align):
    import torch

    from trainers.tools.results import load_results, results_of

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
    from transformers import AutoConfig

    from trainers.job.libraries import quiet_libraries

    quiet_libraries()
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(str(with_code / "model"))
    assert not (with_code / "ran").exists()
