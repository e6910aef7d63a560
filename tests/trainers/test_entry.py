"""One command for all recipes: `python -P -m trainers OBJECTIVE PLAN`."""

import ast
import importlib.metadata
import json
import subprocess
import sys

import pytest

from advisor.ground.errors import InputError, MachineNotReady
from tests.conftest import ROOT
from trainers.__main__ import main
from trainers.job import libraries
from trainers.stage import objective as recipes


def test_a_recipe_is_found_by_its_name_alone(monkeypatch):
    """Every objective of the rules has a recipe; the file of one that lacks its function is named."""
    objectives = [path.stem for path in (ROOT / "rules" / "objectives").glob("*.yaml")]
    assert objectives
    assert all(callable(recipes.load_recipe(name).train) for name in objectives)
    monkeypatch.delattr(recipes.load_recipe("dpo"), "train")
    with pytest.raises(InputError, match=r"dpo\.py: a recipe needs a function train"):
        recipes.load_recipe("dpo")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dop", ["unknown objective 'dop'", "known: cpt, distill, dpo", "did you mean 'dpo'?"]),
        ("__main__", ["unknown objective '__main__'"]),
        ("classes", ["unknown objective 'classes'", "known: cpt, distill, dpo"]),
    ],
)
def test_what_is_no_recipe_is_refused(name, words, tmp_path, capsys):
    """An unknown objective is exit 2 with the nearest name; nothing is written."""
    assert main([name, "plan.yaml", "--stage", "sft", "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_takes():
    """`python -P -m trainers --help` starts without torch being needed."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "trainers", "--help"],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "objective" in done.stdout
    assert " torch\n" not in done.stderr


def test_a_missing_library_is_said_with_the_line_that_installs_it():
    """Without the extra `train` the command ends with exit 4 before it reads anything."""
    hidden = "import runpy, sys; sys.modules['numpy'] = None;"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{hidden} runpy.run_module('trainers', {{}}, '__main__')"],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith("error: training needs numpy, which is not installed\n")
    assert [one for one in ("pip install", "[train]") if one not in done.stderr] == []


def test_faults_of_later_stages_are_told_before_the_first_one_trains(
    tmp_path, tiny_model, capsys, monkeypatch
):
    """All faults come together; somebody else's recipe is not asked, since it might train."""
    common = {"update": "lora", "learning_rate": 1e-3, "seq_len": 64, "max_steps": 1}
    stages = [
        {"name": "sft", "objective": "sft", **common},
        {"name": "dpo", "objective": "dpo", **common, "trl": {"adam_beta1": [9]}},
        {"name": "ppo", "objective": "ppo", **common, "reward": "own.py:score"},
    ]
    (tmp_path / "own.py").write_text("def score(prompts, completions): return [0.0]\n")
    data = {"path": "train.jsonl"}
    plan = {"version": 1, "name": "x", "model": str(tiny_model), "data": data, "stages": stages}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = ["sft", str(tmp_path / "plan.json"), "--stage", "sft", "--run", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "stage dpo: trl: 'adam_beta1' is a list" in said
    assert "stage ppo: response_tokens 256 leave no room for a prompt within seq_len 64" in said
    asked = []
    monkeypatch.setattr(recipes.load_recipe("dpo"), "train", asked.append)
    assert main(command) == 2  # there are no rows
    assert asked == []
    assert "adam_beta1" not in capsys.readouterr().err


@pytest.mark.light
def test_untested_versions_are_refused_with_both_named(monkeypatch):
    """A library outside the tested range is exit 4, naming the installed and the wanted version."""
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "trl" else real(name)
    )
    with pytest.raises(MachineNotReady, match=r"trl 0\.1 is installed.*\n\s*wanted: trl.*>=1"):
        libraries.check_versions(quantized=False)


LOADERS = ("from_pretrained", "from_config", "pipeline", "load_dataset")
# They read JSON, or take a model that is loaded already.
NO_CODE = ("PeftModel", "PeftConfig", "LoraConfig", "GenerationConfig", "original")


@pytest.mark.light
def test_every_load_says_whether_code_may_run():
    """Each call of ours that can run a model's code passes `trust_remote_code`."""
    paths = [path for name in ("advisor", "trainers") for path in (ROOT / name).rglob("*.py")]
    sources = {path.relative_to(ROOT): path.read_text("utf-8") for path in paths}
    loads = [
        (path, call.lineno, {keyword.arg for keyword in call.keywords})
        for path, source in sources.items()
        if any(name in source for name in LOADERS)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr in LOADERS and ast.unparse(call.func.value) not in NO_CODE
    ]
    assert len(loads) >= 10
    for path, line, named in loads:
        built = "trust_remote_code" in sources[path] and None in named
        assert "trust_remote_code" in named or built, f"{path}:{line}"
    unsafe = ("torch.load(", "pickle.load", "allow_pickle", "load_dataset(")
    own = {path: source for path, source in sources.items() if path.parts[0] == "trainers"}
    assert [(path, name) for path in own for name in unsafe if name in own[path]] == []
