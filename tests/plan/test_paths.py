"""Every path of a plan, and nothing else, is found where a plan is copied or written elsewhere."""

import json

from advisor.methods import objectives, updates
from advisor.methods.keys import PathText
from advisor.plan.entries import whole_model, with_paths
from advisor.plan.keys import key_specs
from advisor.plan.model import Plan, PlanData, Stage, Task


def moved(text):
    return f"/there/{text}"


def stage(name, objective, *, update="lora", learning_rate=1e-4, **keys):
    return Stage(name=name, objective=objective, update=update, learning_rate=learning_rate, **keys)


OPTIONS = [  # of stages, and what becomes of them
    ("cpt", {"replay": "general.txt"}, {"replay": "/there/general.txt"}),
    ("rm", {}, {}),
    ("sft", *[{"replay": {"rows": 90}}] * 2),
    ("ppo", *[{"reward_model": "rm", "response_tokens": 8}] * 2),
    ("grpo", {"reward": "scores.py:judge", "schema": "form.json", "pattern": "a.jsonl"},
     {"reward": "/there/scores.py:judge", "schema": "/there/form.json", "pattern": "a.jsonl"}),
    ("rloo", {"reward_model": "their/rm"}, {"reward_model": "/there/their/rm"}),
]  # fmt: skip


def test_model_data_starts_and_declared_keys_are_moved():
    """A stage's name stays one, in start_from and as reward model."""
    more = {
        "cpt": {"data": "corpus"},
        "rm": {"start_from": "cpt"},
        "ppo": {"start_from": "old/run"},
    }
    plan = Plan(
        model="base",
        data=PlanData(path="a.jsonl"),
        stages=tuple(stage(one, one, options=own, **more.get(one, {})) for one, own, _ in OPTIONS),
        tasks=(Task(name="legal", data=PlanData(path="legal.jsonl")),),
    )
    found = with_paths(plan, moved)
    paths = (found.model, found.data.path, found.tasks[0].data.path)
    assert paths == ("/there/base", "/there/a.jsonl", "/there/legal.jsonl")
    cpt, rm, _, ppo, *_ = found.stages
    assert (cpt.data, rm.start_from, ppo.start_from) == ("/there/corpus", "cpt", "/there/old/run")
    assert [dict(item.options) for item in found.stages] == [there for *_, there in OPTIONS]


def test_what_says_that_it_is_a_file_or_folder_is_declared_as_one():
    """No path is left behind in a copy: a key about files has a type that is moved."""
    keys = {
        spec.name: spec
        for objective in objectives()
        for update in updates()
        for spec in key_specs().allowed(objective, update).values()
    }
    words = {name: set(spec.help.replace(",", " ").split()) for name, spec in keys.items()}
    about = {name for name, said in words.items() if {"file", "folder"} & said}
    shapes = {name: getattr(spec.shape, "options", [spec.shape]) for name, spec in keys.items()}
    paths = {
        name: [one for one in found if isinstance(one, PathText)] for name, found in shapes.items()
    }
    assert about == {name for name, found in paths.items() if found}
    assert {"replay", "schema", "reward_model"} <= about


def test_the_base_of_a_module_is_found_where_the_project_lies_now(tmp_path):
    """A module of this run leads to the model below it, another to what it names, if here."""
    whole, one, two = stage("whole", "sft", update="full"), stage("one", "sft"), stage("two", "dpo")
    plan = Plan(model="base", data=PlanData(path="a.jsonl"), stages=(whole, one, two))
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run / "stages" / "one", run / "stages" / "two", other):
        folder.mkdir(parents=True)
        named = {"base_model_name_or_path": str(tmp_path / "before")}
        (folder / "adapter_config.json").write_text(json.dumps(named))
    (run / "stages" / "whole").mkdir()

    def found(start):
        return whole_model(plan, start, run=run, folder=run)

    base = run / "stages" / "whole"
    assert found(None) is None
    assert found(base) == found(run / "stages" / "one") == found(run / "stages" / "two") == base
    assert found(other) is None
    (tmp_path / "before").mkdir()
    assert found(other) == tmp_path / "before"
    assert found(run / "stages" / "two") == base
