"""CONTRIBUTING.md is true: each recipe, followed to the letter in a copy of the project, works."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
STEP = re.compile(
    r"^`(?P<path>[\w/.-]+)`, (?P<where>a new file|at the end of|in place of a line of)"
    r"(?P<keys>[^:\n]*)[^\n]*:\n\n```\w+\n(?P<text>.*?)^```$|^```bash\n(?P<commands>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RECIPES = dict(re.findall(r"^## (Add [^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
METHODS = ("Add an objective", "Add an update")


@dataclass(frozen=True, slots=True)
class Done:
    """What one command of a recipe printed."""

    command: str
    output: str


def environment(tree):
    settings = {"COLUMNS": "160", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    return {**os.environ, **settings}


def advise(tree, arguments, folder=None, code=0):
    """Run `advise` of that copy of the project; its standard output, or why it was refused."""
    done = subprocess.run(
        [sys.executable, "-m", "advisor", *arguments],
        cwd=folder or tree,
        env=environment(tree),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


@pytest.fixture
def tree(tmp_path):
    """A copy of the project without its tests."""
    for name in ("advisor", "rules", "trainers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_bundled"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def children_of(lines, keys):
    """(first line under the innermost key, line behind its last child), counted from 0."""
    place, indent = 0, -1
    for key in keys:
        place = next(
            number
            for number, line in enumerate(lines[place:], place)
            if line.lstrip().startswith(f"{key}:")
        )
        indent = len(lines[place]) - len(lines[place].lstrip())
        place += 1
    end = place
    for number, line in enumerate(lines[place:], place):
        if line.strip() and not line.lstrip().startswith("#"):
            if len(line) - len(line.lstrip()) <= indent:
                break
            end = number + 1
    return place, end


def write_block(path, where, keys, text):
    """Put a block of the page where the page says."""
    if where == "a new file":
        assert not path.exists(), f"{path} is there already"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    first, end = children_of(lines, keys)
    if where == "at the end of":
        lines.insert(end, text)
    else:
        start = text.partition(":")[0] + ":"
        (place,) = [number for number in range(first, end) if lines[number].startswith(start)]
        lines[place] = text
    path.write_text("".join(lines), encoding="utf-8")


def follow(recipe, tree):
    """Do what the recipe says; what each of its commands printed."""
    done = []
    for step in STEP.finditer(RECIPES[recipe]):
        if step["path"]:
            keys = re.findall(r"`(\w+)`", step["keys"])
            write_block(tree / step["path"], step["where"], keys, step["text"])
        else:
            for command in step["commands"].splitlines():
                name, *arguments = shlex.split(command)
                assert name == "advise"
                code = 2 if arguments[0] == "run" else 0
                done.append(Done(command, advise(tree, arguments, code=code)))
    assert done, "a recipe ends with a command that shows its effect"
    return done


def answer(done):
    """The JSON document that the recipe's last command printed."""
    return json.loads(done[-1].output)


def check_price(done):
    estimate = answer(done)["recommendation"]["estimate"]
    assert "$0.11/h (our_cloud, 2026-11-25)" in json.dumps(answer(done))
    assert 0 < estimate["usd"] < 0.11 * estimate["hours"] * 1.01


def check_task(done):
    assert answer(done)["situation"]["answers"]["task"]["value"] == "translation"
    assert answer(done)["recommendation"]["composition"] == "sft+lora"


def check_question(done):
    assert answer(done)["recommendation"]["composition"] == "sft+lora@per_task"
    assert "evidence/teams-kept-apart" in answer(done)["recommendation"]["decided_by"]


def check_stage_key(done):
    (stage,) = json.loads(done[0].output)
    assert stage["need_gib"] < stage["peak_gib"]
    assert "Wrote trl: trl.yaml" in done[1].output


CHECKS = {
    "Add a price": check_price,
    "Add a task": check_task,
    "Add a question": check_question,
    "Add a stage key": check_stage_key,
    # What the last commands print.
    "Add a GPU": ["of the device's 47.8 GiB: it fits"],
    "Add a model": [r"weights +5\.98 GiB"],  # 3,212,749,824 parameters of two bytes
    "Add a rule": ["what passes is the training data"],
    "Add an objective": ["ipo/gently", "it fits"],
    "Add an update": ["rules/updates/ln_tuning.yaml", "normalisation weights"],
    "Add a check before a run": ["google/gemma-3-1b-it: nobody has read the licence gemma yet"],
    "Add an optional feature": [r"json +the plan as JSON"],
}


def test_every_recipe_is_checked():
    """No recipe of the page goes untested, and every block of one stands where a test finds it."""
    assert set(RECIPES) == set(CHECKS)
    for recipe, text in RECIPES.items():
        assert len(STEP.findall(text)) == text.count("\n```\n"), recipe


@pytest.mark.parametrize("recipe", CHECKS)
def test_a_recipe_works_as_written(recipe, tree):
    """Its blocks go where it says, its commands run, the rules are proved, the effect is seen."""
    done = follow(recipe, tree)
    seen = CHECKS[recipe]
    if callable(seen):
        seen(done)
    else:
        outputs = [one.output for one in done[-len(seen) :]]
        assert [
            words for words, text in zip(seen, outputs, strict=True) if not re.search(words, text)
        ] == []
    for one in done:
        if one.command == "advise rules lint":
            assert "\n0 errors," in one.output


def test_a_recipe_adds_one_entry_or_a_few_files():
    """A GPU, a price, a model and a task are one entry; a method is two or three new files."""
    written = {
        recipe: [(step["path"], step["where"]) for step in STEP.finditer(text) if step["path"]]
        for recipe, text in RECIPES.items()
    }
    for recipe in ("Add a GPU", "Add a price", "Add a model", "Add a task"):
        assert len(written[recipe]) == 1, recipe
    for recipe in METHODS:
        assert {where for _, where in written[recipe]} == {"a new file"}, recipe
        assert len(written[recipe]) <= 3, recipe


def test_the_methods_work_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    """The same files in a folder that ADVISE_METHODS names: the project stays as it is."""
    monkeypatch.setenv("ADVISE_METHODS", str(tmp_path))
    for recipe in METHODS:
        for step in STEP.finditer(RECIPES[recipe]):
            if step["path"]:
                path = tmp_path / step["path"].removeprefix("advisor/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step["text"], encoding="utf-8")
    assert "ipo/gently" in advise(ROOT, ["rules", "ipo"], tmp_path)
    chosen = ["--model", "Qwen/Qwen3-8B", "--objective", "ipo", "--update", "ln_tuning"]
    shown = advise(ROOT, ["estimate", *chosen, "--gpu", "RTX 4090"], tmp_path)
    assert "normalisation weights" in shown


RECORDED = """
from advisor.methods.stage import recorded_values, trl_arguments
from advisor.plan.read import read_plan
from advisor.record.run import ResolvedSettings
stage = read_plan("plan.yaml").stages[0]
record = ResolvedSettings(**recorded_values(stage))
print(record.to_dict()["empty_cache_steps"], trl_arguments(stage)["torch_empty_cache_steps"])
"""


def test_a_stage_key_is_one_field_and_the_place_that_acts_on_it(tree):
    """It changes a plan, its estimate, TRL's arguments and file, and run.json."""
    recipe = "Add a stage key"
    changed = [one["path"] for one in STEP.finditer(RECIPES[recipe]) if "in place" in one[0]]
    assert changed == ["advisor/methods/stage.py", "advisor/estimate/memory/peak.py"]
    (done, _) = follow(recipe, tree)
    plan = (tree / "plan.yaml").read_text()
    (tree / "usual.yaml").write_text(plan.replace(", empty_cache_steps: 2", ""))
    (usual,) = json.loads(advise(tree, ["estimate", "usual.yaml", "--json"]))
    (stage,) = json.loads(done.output)
    assert stage["peak_gib"] < usual["peak_gib"]
    assert stage["need_gib"] == usual["need_gib"]
    assert "torch_empty_cache_steps: 2\n" in (tree / "trl" / "trl.yaml").read_text()
    shown = subprocess.run(
        [sys.executable, "-c", RECORDED],
        cwd=tree, env=environment(tree), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == "2 2\n"


@pytest.mark.slow
def test_the_methods_of_the_recipes_train(tree, tiny_model):
    """Objective and update of the page, together: advised, planned, trained, reloaded."""
    for recipe in METHODS:
        follow(recipe, tree)
    folder = tree / "work"
    folder.mkdir()
    rows = [
        {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(60)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = ["--task", "chat_assistant", "--data", "pairs.jsonl", "--model", str(tiny_model)]
    chosen = ["--gpu", "none", "--choose", "ipo+ln_tuning", "--force", "--plan", "plan.yaml"]
    advise(tree, ["--json", *answers, *chosen], folder)
    trial = ["run", "plan.yaml", "--max-steps", "2", "--no-judge", "--json"]
    run = json.loads(advise(tree, trial, folder))
    assert run["status"] == "done"
    checks = {check["name"]: check["ok"] for check in run["stages"][0]["checks"]}
    assert checks["saved-model-is-the-trained-one"], checks
