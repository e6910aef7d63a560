"""One command for all recipes: `python -P -m trainers OBJECTIVE PLAN`."""

import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, MachineNotReady
from trainers.__main__ import main
from trainers.job import libraries
from trainers.stage import objective as recipes

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVES = sorted(path.stem for path in (ROOT / "rules" / "objectives").glob("*.yaml"))


def test_a_recipe_is_found_by_its_name_alone():
    """Every objective of the rules has a recipe."""
    assert OBJECTIVES
    for name in OBJECTIVES:
        assert callable(recipes.load_recipe(name).train)


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


def test_a_recipe_that_trains_nothing_is_refused(monkeypatch):
    """The file of a new objective lacks its function: the file is named."""
    monkeypatch.delattr(recipes.load_recipe("dpo"), "train")
    with pytest.raises(InputError, match=r"dpo\.py: a recipe needs a function train"):
        recipes.load_recipe("dpo")


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
    run = "import runpy, sys; sys.modules['numpy'] = None;"
    run += " runpy.run_module('trainers', {}, '__main__')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", run],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith("error: training needs numpy, which is not installed\n")
    assert "pip install" in done.stderr
    assert "[train]" in done.stderr


def test_faults_of_later_stages_are_told_before_the_first_one_trains(
    tmp_path, tiny_model, capsys, monkeypatch
):
    """A chain does not train for hours and then end on a key of its last stage; all are told
    together. Somebody else's recipe is not asked, since it might begin to train.
    """
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
    """Each call of ours that can run a model's code passes `trust_remote_code`, by name or in the
    options that its function builds.
    """
    seen = []
    for path in [path for name in ("advisor", "trainers") for path in (ROOT / name).rglob("*.py")]:
        source = path.read_text("utf-8")
        calls = ast.walk(ast.parse(source)) if any(name in source for name in LOADERS) else ()
        for call in calls:
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr not in LOADERS or ast.unparse(call.func.value) in NO_CODE:
                continue
            seen.append(f"{path.relative_to(ROOT)}:{call.lineno}")
            named = {keyword.arg for keyword in call.keywords}
            built = "trust_remote_code" in source and None in named
            assert "trust_remote_code" in named or built, seen[-1]
    assert len(seen) >= 10
    for name in ("torch.load(", "pickle.load", "allow_pickle", "load_dataset("):
        found = [path for path in (ROOT / "trainers").rglob("*.py") if name in path.read_text()]
        assert found == [], name
