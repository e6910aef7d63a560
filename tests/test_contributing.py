"""CONTRIBUTING.md is true: each recipe, followed to the letter in a copy of the project, works."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
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
STAGE_KEY = "Add a stage key"  # see below
METHODS = ("Add an objective", "Add an update")


def ours(tree, *arguments, folder=None, code=0):
    """Run Python with that copy of the project; its standard output, or why it was refused."""
    settings = {"COLUMNS": "160", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder or tree, env={**os.environ, **settings}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr


def advise(tree, *arguments, **more):
    """The same of `advise`."""
    return ours(tree, "-m", "advisor", *arguments, **more)


@pytest.fixture
def tree(tmp_path):
    """A copy of the project without its tests."""
    for name in ("advisor", "rules", "trainers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_bundled"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def indent(line):
    return len(line) - len(line.lstrip())


def children_of(lines, keys):
    """(first line under the innermost key, line behind its last child), counted from 0."""
    place, depth = 0, -1
    for key in keys:
        place += next(
            count for count, line in enumerate(lines[place:]) if line.lstrip().startswith(f"{key}:")
        )
        depth = indent(lines[place])
        place += 1
    said = [
        (number, indent(line))
        for number, line in enumerate(lines[place:], place)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    children = itertools.takewhile(lambda one: one[1] > depth, said)
    return place, max((number + 1 for number, _ in children), default=place)


def write_block(path, where, keys, text):
    """Put a block of the page where the page says."""
    if where == "a new file":
        assert not path.exists(), f"{path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    first, end = children_of(lines, keys)
    if where == "at the end of":
        lines.insert(end, text)
    else:
        start = re.match(r" *\w+( =|:)", text)[0]
        (place,) = [number for number in range(first, end) if lines[number].startswith(start)]
        lines[place] = text
    path.write_text("".join(lines), encoding="utf-8")


def follow(recipe, tree):
    """Do what the recipe says; each of its commands, and what it printed."""
    done = []
    for step in STEP.finditer(RECIPES[recipe]):
        if step["path"]:
            keys = re.findall(r"`(\w+)`", step["keys"])
            write_block(tree / step["path"], step["where"], keys, step["text"])
        for command in (step["commands"] or "").splitlines():
            name, *arguments = shlex.split(command)
            assert name == "advise"
            code = 2 if arguments[0] == "run" else 0
            done.append((command, advise(tree, *arguments, code=code)))
    assert done, "a recipe ends with a command that shows its effect"
    return done


def check_price(answer, *_):
    estimate = answer["recommendation"]["estimate"]
    assert "$0.11/h (our_cloud, 2026-11-25)" in json.dumps(answer)
    assert 0 < estimate["usd"] < 0.11 * estimate["hours"] * 1.01


def check_task(answer, *_):
    assert answer["situation"]["answers"]["task"]["value"] == "translation"
    assert answer["recommendation"]["composition"] == "sft+lora"


def check_question(answer, *_):
    assert answer["recommendation"]["composition"] == "sft+lora@per_task"
    assert "evidence/teams-kept-apart" in answer["recommendation"]["decided_by"]


CHECKS = {
    "Add a price": check_price,
    "Add a task": check_task,
    "Add a question": check_question,
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
    """No recipe is untested: a GPU, price, model or task is one entry, a method a few new files."""
    assert set(RECIPES) == {*CHECKS, STAGE_KEY}
    for recipe, text in RECIPES.items():
        steps = list(STEP.finditer(text))
        assert len(steps) == text.count("\n```\n"), recipe
        written = [step["where"] for step in steps if step["path"]]
        if recipe in ("Add a GPU", "Add a price", "Add a model", "Add a task"):
            assert len(written) == 1, recipe
        if recipe in METHODS:
            assert set(written) == {"a new file"}, recipe
            assert len(written) <= 3, recipe


@pytest.mark.parametrize("recipe", CHECKS)
def test_a_recipe_works_as_written(recipe, tree):
    """Its blocks go where it says, its commands run, the rules are proved, the effect is seen."""
    done, seen = follow(recipe, tree), CHECKS[recipe]
    if callable(seen):
        seen(json.loads(done[-1][1]))
    else:
        outputs = [output for _, output in done[-len(seen) :]]
        unseen = [one for one, text in zip(seen, outputs, strict=True) if not re.search(one, text)]
        assert unseen == []
    linted = [output for command, output in done if command == "advise rules lint"]
    assert [output for output in linted if "\n0 errors," not in output] == []


def test_the_methods_work_from_a_folder_of_ones_own(tmp_path, monkeypatch):
    """The same files in a folder that ADVISE_METHODS names: the project stays as it is."""
    monkeypatch.setenv("ADVISE_METHODS", str(tmp_path))
    for step in (step for recipe in METHODS for step in STEP.finditer(RECIPES[recipe])):
        if step["path"]:
            path = tmp_path / step["path"].removeprefix("advisor/")
            write_block(path, step["where"], (), step["text"])
    assert "ipo/gently" in advise(ROOT, "rules", "ipo", folder=tmp_path)
    chosen = ("--model", "Qwen/Qwen3-8B", "--objective", "ipo", "--update", "ln_tuning")
    shown = advise(ROOT, "estimate", *chosen, "--gpu", "RTX 4090", folder=tmp_path)
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
    changed = [one["path"] for one in STEP.finditer(RECIPES[STAGE_KEY]) if "in place" in one[0]]
    assert changed == ["advisor/methods/stage.py", "advisor/estimate/memory/peak.py"]
    (_, estimated), (_, exported) = follow(STAGE_KEY, tree)
    assert "Wrote trl: trl.yaml" in exported
    plan = (tree / "plan.yaml").read_text()
    (tree / "usual.yaml").write_text(plan.replace(", empty_cache_steps: 2", ""))
    (usual,) = json.loads(advise(tree, "estimate", "usual.yaml", "--json"))
    (stage,) = json.loads(estimated)
    assert stage["need_gib"] < stage["peak_gib"] < usual["peak_gib"]
    assert stage["need_gib"] == usual["need_gib"]
    assert "torch_empty_cache_steps: 2\n" in (tree / "trl" / "trl.yaml").read_text()
    assert ours(tree, "-c", RECORDED) == "2 2\n"


@pytest.mark.slow
def test_the_methods_of_the_recipes_train(tree, tiny_model):
    """Objective and update of the page, together: advised, planned, trained, reloaded."""
    for recipe in METHODS:
        follow(recipe, tree)
    folder = tree / "work"
    folder.mkdir()
    row = '{{"prompt": "What is {0}?", "chosen": "It is {0}.", "rejected": "No."}}\n'
    (folder / "pairs.jsonl").write_text("".join(row.format(n) for n in range(60)))
    answers = ["--task", "chat_assistant", "--data", "pairs.jsonl", "--model", str(tiny_model)]
    chosen = ["--gpu", "none", "--choose", "ipo+ln_tuning", "--force", "--plan", "plan.yaml"]
    advise(tree, "--json", *answers, *chosen, folder=folder)
    trial = ["run", "plan.yaml", "--max-steps", "2", "--no-judge", "--json"]
    run = json.loads(advise(tree, *trial, folder=folder))
    assert run["status"] == "done"
    checks = {check["name"]: check["ok"] for check in run["stages"][0]["checks"]}
    assert checks["saved-model-is-the-trained-one"], checks
