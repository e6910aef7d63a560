"""Keys of one method come from its own rule file."""

import pytest
from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Keys, check_shape
from advisor.ground.yaml_files import parse_yaml, read_shipped
from advisor.methods import methods
from advisor.methods.keys import declared_key
from advisor.methods.other_keys import OTHER_KEYS_FILE, other_keys
from advisor.methods.stage import stage_keys
from advisor.plan import keys as plan_keys
from advisor.plan.entries import entries
from advisor.plan.keys import BESIDE_STAGES, key_specs
from advisor.plan.model import Plan, PlanData, Stage, Task
from advisor.plan.read import plan_from_data, plan_shape, stage_shapes
from tests.methods.method_files import line_of, write_objective, write_update

NEW_KEY = "{beta: {type: number, min: 0, exclusive_min: true, default: 0.1}}"


def test_a_new_key_is_one_line_in_its_methods_file(tmp_path, monkeypatch):
    """A key declared in a rule file is read, bounded and given its default, with no code."""
    unused = "{packing: pairs are not packed}"
    write_objective(tmp_path, "dpo", keys=NEW_KEY, unused=unused)
    write_update(tmp_path, "full", trains="all")
    found = methods((tmp_path,))
    monkeypatch.setattr(plan_keys, "methods", lambda: found)

    def stage(more):
        keys = f"{{name: a, objective: dpo, update: full, learning_rate: 1e-6, {more}}}"
        text = f"model: m\ndata: {{path: t}}\nstages: [{keys}]\n"
        return plan_from_data(parse_yaml(text, name="p")).stages[0]

    read = stage("beta: 0.3")
    assert read.options == {"beta": 0.3}
    assert key_specs().effective(replace(read, options={})) == {"beta": 0.1}
    for more, said in (
        ("beta: 0", r"`beta` is 0\n  a number above 0"),
        ("packing: false", "not packed"),
    ):
        with pytest.raises(InputError, match=said):
            stage(more)


def test_a_malformed_declaration_is_refused_with_its_place(tmp_path):
    """Each is an error of the rule file, and the method is not read."""
    declared = [
        "a: {type: integr}",
        "b: {type: integer, mn: 3}",
        "c: {type: integer, min: 3, default: 1}",
    ]
    path = write_update(tmp_path, "lora", keys="".join(f"\n  {line}" for line in declared))
    first = line_of(path, "keys") + 1
    with pytest.raises(InputError) as caught:
        methods((tmp_path,)).check()
    assert [fault.headline.split(": ")[0] for fault in caught.value.faults] == [
        f"{path}:{first + line}:{column}" for line, column in enumerate((13, 22, 3))
    ]
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
    stage = Stage(name="a", objective="sft", update="lora", learning_rate=1e-4, options={"rank": 8})
    changes = {"x": {}, "y": {"rank": 4, "epochs": 2.0}}
    tasks = tuple(
        Task(name=name, data=PlanData(path=name), overrides=own) for name, own in changes.items()
    )
    found = entries(Plan(model="m", tasks=tasks, stages=(stage, replace(stage, name="b"))))
    assert [(entry.name, entry.starts_from, entry.data.path) for entry in found] == [
        ("a-x", None, "x"),
        ("b-x", "a-x", "x"),
        ("a-y", None, "y"),
        ("b-y", "a-y", "y"),
    ]
    assert (found[2].stage.options["rank"], found[2].stage.epochs) == (4, 2.0)
    assert found[0].stage.options["rank"] == 8


OTHERS = {
    "gradient_accumulation_steps": "did you mean 'grad_accum'?",
    "num_train_epochs": "did you mean 'epochs'?",
    "per_device_train_batch_size": "did you mean 'micro_batch_size'?",
    "lora_r": "did you mean 'rank'?",
    "r": "did you mean 'rank'?",
    "lora_alpha": "did you mean 'alpha'?",
    "max_seq_length": "did you mean 'seq_len'?",
    "cutoff_len": "did you mean 'seq_len'?",
    "sequence_len": "did you mean 'seq_len'?",
    "lr_scheduler_type": "did you mean 'scheduler'?",
    "sample_packing": "did you mean 'packing'?",
    "load_in_4bit": "did you mean `quantization: nf4`?",
    "lora_target_linear": "did you mean `target_modules: all-linear`?",
    "flash_attention": "did you mean `attention: auto`?",
    "bf16": "the number formats are `weights_dtype`",
    "eval_steps": "`holdout` is the share of the rows",
    "logging_steps": "a run logs automatically",
    "report_to": "beside the stages, `trackers: [tensorboard]`",
    "hub_model_id": "beside the stages, `push_to: owner/name`",
    "save_total_limit": "keeps its last two checkpoints",
}


def faults_of(stage="", above=""):
    """What is wrong with a plan that has these lines."""
    keys = f"{{name: sft, objective: sft, update: lora, learning_rate: 1.0e-4{stage}}}"
    text = f"version: 1\nmodel: a/b\ndata: {{path: a/b}}\n{above}stages: [{keys}]\n"
    with pytest.raises(InputError) as caught:
        plan_from_data(parse_yaml(text, name="plan.yaml"))
    return caught.value.faults


@pytest.mark.parametrize("theirs", OTHERS)
def test_a_key_of_another_trainer_leads_to_ours(theirs):
    """The key of this plan, the line to write, or who decides."""
    (fault,) = faults_of(f", {theirs}: 1")
    assert fault.what == f"unknown key '{theirs}'"
    assert OTHERS[theirs] in fault.hint


def test_a_key_that_stands_beside_the_stages_is_told_where_it_belongs():
    """Other tools have one level of keys; a plan has stages."""
    first, second = faults_of(above="learning_rate: 1.0e-4\nnum_train_epochs: 2\n")
    assert first.what == "unknown key 'learning_rate'"
    assert "is written into it: stages: [{...}]" in first.hint
    assert second.hint == "did you mean 'epochs'?"
    assert first.where.endswith("plan.yaml:4:1")


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
