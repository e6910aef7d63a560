"""Keys of one method, rewards as parts with weights, and every path of a plan, however copied."""

import json
import re

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Keys, check_shape
from advisor.ground.yaml_files import parse_yaml, read_shipped
from advisor.launch.earlier import read_inputs
from advisor.launch.prepare import Options, prepare_plan
from advisor.methods import methods, objectives, updates
from advisor.methods.keys import PathText, declared_key
from advisor.methods.other_keys import OTHER_KEYS_FILE, other_keys
from advisor.methods.rewards import models_that_score, overlong_tokens, reward_parts
from advisor.methods.stage import stage_keys
from advisor.plan import keys as plan_keys
from advisor.plan.entries import entries, whole_model, with_paths
from advisor.plan.keys import BESIDE_STAGES, key_specs
from advisor.plan.model import Plan, PlanData, Stage, Task
from advisor.plan.read import plan_shape, stage_shapes
from advisor.plan.write import plan_text
from tests.methods.method_files import line_of, write_objective, write_update
from tests.plan.test_write import REWARDS, plan_of


def stage(name, objective, *, update="lora", learning_rate=1e-4, **keys):
    return Stage(name=name, objective=objective, update=update, learning_rate=learning_rate, **keys)


NEW_KEY = "{beta: {type: number, min: 0, exclusive_min: true, default: 0.1}}"


def test_a_new_key_is_one_line_in_its_methods_file(tmp_path, monkeypatch):
    """A key declared in a rule file is read, bounded and given its default, with no code."""
    write_objective(tmp_path, "dpo", keys=NEW_KEY, unused="{packing: pairs are not packed}")
    write_update(tmp_path, "full", trains="all")
    found = methods((tmp_path,))
    monkeypatch.setattr(plan_keys, "methods", lambda: found)
    text = "model: m\ndata: {path: t}\nstages: [{name: a, objective: dpo, update: full, learning_rate: 1e-6, beta: 0.3}]\n"
    (read,) = plan_of(text).stages
    assert read.options == {"beta": 0.3}
    assert key_specs().effective(replace(read, options={})) == {"beta": 0.1}
    with pytest.raises(InputError, match=r"`beta` is 0\n  a number above 0"):
        plan_of(text.replace("0.3", "0"))
    with pytest.raises(InputError, match="not packed"):
        plan_of(text.replace("beta: 0.3", "packing: false"))


def test_a_malformed_declaration_is_refused_with_its_place(tmp_path):
    """Each is an error of the rule file, and the method is not read."""
    declared = """
  a: {type: integr}
  b: {type: integer, mn: 3}
  c: {type: integer, min: 3, default: 1}"""
    path = write_update(tmp_path, "lora", keys=declared)
    line = line_of(path, "keys")
    with pytest.raises(InputError) as caught:
        methods((tmp_path,)).check()
    places = [fault.headline.split(": ")[0] for fault in caught.value.faults]
    assert places == [f"{path}:{line + 1}:13", f"{path}:{line + 2}:22", f"{path}:{line + 3}:3"]
    assert not methods((tmp_path,)).updates


@pytest.mark.parametrize(
    ("said", "good", "bad"),
    [
        ({"type": "integer", "min": 1, "max": 4}, [1, 4, None], [0, 5, 1.0, True, "1"]),
        ({"type": "number", "min": 0, "exclusive_min": True, "default": 1}, [0.1, 3],
         [0, None, True]),
        ({"type": "number", "max": 1, "exclusive_max": True}, [0.9, -3], [1, 1.1]),
        ({"type": "text"}, ["a", None], ["", 3, ["a"]]),
        ({"type": "path"}, ["a/b", None], ["", 3]),
        ({"type": "function"}, ["scores.py:judge"], ["scores.py", "judge", ":", 3]),
        ({"type": "text_or_list"}, ["a", ["a", "b"]], ["", [], [1], 3]),
        ({"type": "boolean", "default": False}, [True, False], [0, 1, None, "true"]),
        ({"type": "choice", "values": ["a", 1], "default": "a"}, ["a", 1], ["b", True, 1.0]),
        ({"type": "choice", "values": [True, "a"], "default": "a"}, [True], [1, False]),
    ],
)  # fmt: skip
def test_types_and_bounds_are_strict(said, good, bad):
    """No value is turned into another type, and bounds are part of the range unless exclusive."""
    key = declared_key("k", "update lora", said)
    assert all(key.accepts(value) for value in good)
    assert not any(key.accepts(value) for value in bad)


def test_tasks_are_trained_one_after_the_other_through_all_stages():
    """Each entry goes on from its own task's stage before."""
    a, b = stage("a", "sft", options={"rank": 8}), stage("b", "sft", options={"rank": 8})
    changes = {"x": {}, "y": {"rank": 4, "epochs": 2.0}}
    tasks = tuple(
        Task(name=name, data=PlanData(path=name), overrides=own) for name, own in changes.items()
    )
    found = entries(Plan(model="m", tasks=tasks, stages=(a, b)))
    assert [(entry.name, entry.starts_from, entry.data.path) for entry in found] == [
        ("a-x", None, "x"),
        ("b-x", "a-x", "x"),
        ("a-y", None, "y"),
        ("b-y", "a-y", "y"),
    ]
    of_x, _, of_y, _ = (entry.stage for entry in found)
    assert (of_x.options["rank"], of_y.options["rank"], of_y.epochs) == (8, 4, 2.0)


OTHERS = [
    "gradient_accumulation_steps", "num_train_epochs", "per_device_train_batch_size", "lora_r", "r",
    "lora_alpha", "max_seq_length", "cutoff_len", "sequence_len", "lr_scheduler_type",
    "sample_packing", "load_in_4bit", "lora_target_linear", "flash_attention", "bf16", "eval_steps",
    "logging_steps", "report_to", "hub_model_id", "save_total_limit",
]  # fmt: skip


BESIDE = "learning_rate: 1.0e-4\nnum_train_epochs: 2\n"


# Other tools have one level of keys; a plan has stages.
@pytest.mark.parametrize(
    ("inside", "above"), [*((f", {theirs}: 1", "") for theirs in OTHERS), ("", BESIDE)]
)
def test_a_key_of_another_trainer_leads_to_ours(inside, above, approved):
    """The key of this plan, the line to write, who decides, or where it belongs."""
    keys = f"{{name: sft, objective: sft, update: lora, learning_rate: 1.0e-4{inside}}}"
    with pytest.raises(InputError) as caught:
        plan_of(f"version: 1\nmodel: a/b\ndata: {{path: a/b}}\n{above}stages: [{keys}]\n")
    approved(caught.value.text())


def test_every_line_that_is_offered_can_be_written():
    """What stands behind 'did you mean' is taken by a plan, and every key of ours exists."""
    data = read_shipped(rules_dir() / "tools" / "other_keys.yaml", shape=OTHER_KEYS_FILE).data
    known = {*stage_keys(), *key_specs().names(), *plan_shape().keys, *BESIDE_STAGES}
    assert known.issuperset({*data["same"], *(entry["of"] for entry in data["otherwise"])})
    written = [entry["write"] for entry in data["otherwise"] if "write" in entry]
    assert len(written) > 8
    for line in written:
        key = line.partition(":")[0]
        shape = Keys(keys={key: stage_shapes("sft", "lora")[key]})
        assert not check_shape(parse_yaml(line, name="line"), shape), line
    assert all(set(data["tools"]).issuperset(names) for names in data["same"].values())
    # Nothing of ours is answered as if it were another tool's.
    assert not known.intersection(other_keys()) - {"target_modules", "template"}


PARTS = """\
    rewards:
      - {verifier: exact, weight: 2}
      - {verifier: format, pattern: "<a>.*</a>", weight: 0.5, name: tags}
      - {verifier: length, overlong_tokens: 100}
      - {reward: own/scores.py:judge, weight: -1}
      - {reward_model: rm}
      - {reward_model: ../their/rm, name: theirs}
"""


def test_rewards_are_parts_with_weights_and_names():
    """Without a weight a part counts once, and without a name it goes by its source."""
    plan = plan_of(REWARDS + PARTS)
    options = plan.stages[2].options
    assert [(part.name, part.weight, part.source) for part in reward_parts(options)] == [
        ("exact", 2.0, "verifier"),
        ("tags", 0.5, "verifier"),
        ("length", 1.0, "verifier"),
        ("judge", -1.0, "reward"),
        ("rm", 1.0, "reward_model"),
        ("theirs", 1.0, "reward_model"),
    ]
    moved = with_paths(plan, lambda path: f"/there/{path}").stages[2].options
    values = [part.value for part in reward_parts(moved)]
    assert values[3:] == ["/there/own/scores.py:judge", "rm", "/there/../their/rm"]
    odd = [{"reward_model": "../my rm/"}, {"reward_model": ".."}]
    assert [part.name for part in reward_parts({"rewards": odd})] == ["my-rm", "reward_model"]
    assert (models_that_score(options), entries(plan)[2].needs) == (2, ("sft", "rm"))
    assert overlong_tokens({}, 20_480) == 4_096  # DAPO's numbers
    assert plan_of(plan_text(plan)) == plan


def test_the_short_form_is_one_part():
    """A single key is the same as a list with one entry."""
    short = plan_of(REWARDS + '    verifier: regex\n    pattern: "4"\n').stages[2].options
    long = plan_of(REWARDS + '    rewards: [{verifier: regex, pattern: "4"}]').stages[2].options
    assert reward_parts(short) == reward_parts(long) != ()
    assert reward_parts({}) == ()
    assert entries(plan_of(REWARDS + "    beta: 0.1\n"))[2].scored_by == ("rm",)
    assert entries(plan_of(REWARDS + "    verifier: exact\n"))[2].scored_by == ()


def test_files_of_rewards_are_inputs_of_the_run(tmp_path):
    """Another function in the same file makes it another run, as another data file does."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "scores.py").write_text("def judge(**_): ...")
    (tmp_path / "plan.yaml").write_text(REWARDS + PARTS)
    found = read_inputs(prepare_plan(tmp_path / "plan.yaml", Options(output=tmp_path / "out")), {})
    assert list(found) == ["file ../own/scores.py"]


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
    found = with_paths(plan, lambda path: f"/there/{path}")
    paths = [found.model, found.data.path, found.tasks[0].data.path, found.stages[0].data]
    assert paths == [f"/there/{one}" for one in ("base", "a.jsonl", "legal.jsonl", "corpus")]
    assert [one.start_from for one in found.stages[1:4:2]] == ["cpt", "/there/old/run"]
    assert [dict(item.options) for item in found.stages] == [there for *_, there in OPTIONS]


def test_what_says_that_it_is_a_file_or_folder_is_declared_as_one():
    """No path is left behind in a copy: a key about files has a type that is moved."""
    keys = {
        spec.name: spec
        for objective in objectives()
        for update in updates()
        for spec in key_specs().allowed(objective, update).values()
    }
    about = {
        name
        for name, spec in keys.items()
        if re.search(r"(?<![^ ,])(file|folder)(?![^ ,])", spec.help)
    }
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
    assert (found(other), found(run / "stages" / "two")) == (tmp_path / "before", base)
