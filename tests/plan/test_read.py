"""Plans are read strictly, with every fault of a file at once, as the JSON Schema says; so is --set."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from msgspec import to_builtins

from advisor.ground.errors import InputError
from advisor.ground.yaml_files import parse_yaml
from advisor.methods import methods
from advisor.plan import keys
from advisor.plan.read import plan_from_data, read_plan, resolve_path, set_values
from advisor.plan.write import plan_text
from advisor.schema.rules import plan_schema
from tests.methods.method_files import write_update
from tests.plan.test_write import PLAN

# Launch files that an earlier version wrote, and what it read in them.
STORED = Path(__file__).with_name("stored")
GOOD = """\
version: 1
name: shop
model: models/smol
data: {path: train.jsonl}
stages:
  - name: sft
    objective: sft
    update: lora
    quantization: nf4
    rank: 8
    loss_on: all
    learning_rate: 2e-4
    epochs: 2
    trl: {neftune_noise_alpha: 5}
launch: {device: cpu}
"""


def plan(text):
    return plan_from_data(parse_yaml(text, name="plan.yaml"))


LORA = "update: lora\n    quantization: nf4\n    rank: 8"


def fault(old, new, *, text=GOOD):
    """The error text after one change of the good plan."""
    assert old in text
    with pytest.raises(InputError) as caught:
        plan(text.replace(old, new, 1))
    assert caught.value.exit_code == 2
    return caught.value.text()


def test_a_good_plan_is_read_with_method_keys_in_options():
    """Keys of the update and of the objective are options, the rest fields."""
    stage = plan(GOOD).stage("sft")
    assert stage.options == {"rank": 8, "loss_on": "all"}
    assert (stage.learning_rate, stage.epochs, stage.quantization) == (2e-4, 2.0, "nf4")
    assert stage.trl == {"neftune_noise_alpha": 5}


PREFIX = "update: prefix\n    gradient_checkpointing: false\n    prefix_tokens: 8"
# What is written in place of what, and what is said; the place comes first.
FAULTS = [
    ("rank: 8", "rnak: 8", ["plan.yaml:10:5: ", "unknown key 'rnak'", "did you mean 'rank'?"]),
    ("epochs: 2", "epoch: 2",
     ["plan.yaml:13:5: ", "unknown key 'epoch'", "did you mean 'epochs'?"]),
    ("model: models/smol", "modle: x\nmodel: z",
     ["plan.yaml:3:1: ", "unknown key 'modle'", "did you mean 'model'?"]),
    ("path: train.jsonl", "path: t, formt: x",
     ["plan.yaml:4:17: ", "unknown key 'formt'", "did you mean 'format'?"]),
    ("device: cpu", "device: cdua",
     ["plan.yaml:15:18: ", "`device` is 'cdua'", "did you mean 'cuda'?"]),
    ("update: lora", "update: lroa",
     ["plan.yaml:8:13: ", "`update` is 'lroa'", "did you mean 'lora'?"]),
    ("rank: 8", "rank: 0", ["plan.yaml:10:11: ", "`rank` is 0", "a whole number from 1 to 4,096"]),
    ("rank: 8", "rank: '8'", ["plan.yaml:10:11: ", "`rank` is '8'", "remove the quotes"]),
    ("loss_on: all", "loss_on: answer",
     ["plan.yaml:11:14: ", "`loss_on` is 'answer'", "did you mean 'answers'?"]),
    ("2e-4", "3", ["plan.yaml:12:20: ", "`learning_rate` is 3", "at most 1"]),
    ("2e-4", "'2e-4'", ["plan.yaml:12:20: ", "`learning_rate` is '2e-4'", "remove the quotes"]),
    ("2e-4", "1e999", ["plan.yaml:12:20: ", "too large to be usable"]),
    ("epochs: 2", "epochs: true", ["plan.yaml:13:13: ", "`epochs` is true", "a number above 0"]),
    ("version: 1", "version: 2",
     ["plan.yaml:1:10: ", "`version` is 2", "another version of advise"]),
    ("name: shop", "name: ../x", ["plan.yaml:2:7: ", "becomes a folder's name"]),
    ("- name: sft", "- name: SFT 1", ["plan.yaml:6:11: ", "becomes a folder's name"]),
    ("trl: {neftune_noise_alpha: 5}", "trl: {learning_rate: 5}",
     ["plan.yaml:14:11: ", "a key of the stage itself", "move it out of trl"]),
    ("trl: {neftune_noise_alpha: 5}", "trl: {output_dir: x}", ["plan.yaml:14:11: ", "--output"]),
    ("trl: {neftune_noise_alpha: 5}", "trl: {optim_args: {a: 1}}",
     ["plan.yaml:14:10: ", "`trl: optim_args` is {'a': 1}", "a text such as momentum=0.9"]),
    ("trl: {neftune_noise_alpha: 5}", "trl: 3", ["plan.yaml:14:10: ", "`trl` is 3", "a map"]),
    ("trl: {neftune_noise_alpha: 5}", "options: {rank: 8}",
     ["plan.yaml:14:5: ", "unknown key 'options'"]),
    ("data: {path: train.jsonl}", "data: {path: train.jsonl}\ntasks: []",
     ["plan.yaml:5:1: ", "`tasks` is empty"]),
    ("data: {path: train.jsonl}\n", "", ["plan.yaml:1:1: ", "the plan has no data"]),
    ("model: models/smol\n", "", ["plan.yaml:1:1: ", "`model` is missing", "or a folder"]),
    ("    objective: sft\n", "",
     ["plan.yaml:6:5: ", "`objective` is missing", "one of cpt, sft, dpo"]),
    # A key without effect: why, and what it belongs to.
    ("update: lora\n    quantization: nf4", "update: full",
     ["`rank` has no effect", "objective sft and update full", "it belongs to update lora"]),
    (LORA, "update: full\n    quantization: nf4",
     ["needs a frozen base", "with update lora, adapter, prefix"]),
    ("quantization: nf4", "double_quantization: true",
     ["`double_quantization` has no effect", "quantization: nf4"]),
    (LORA, "update: full\n    peft: {use_dora: true}", ["`peft` has no effect"]),
    ("epochs: 2", "scheduler: constant\n    warmup: 0.1",
     ["`warmup` has no effect", "constant_with_warmup"]),
    ("objective: sft", "objective: grpo\n    group_by_length: true",
     ["`group_by_length` has no effect", "the answers that it writes itself"]),
    ("objective: sft", "objective: rm\n    packing: true",
     ["`packing` has no effect", "objective rm does not pack"]),
    ("objective: sft", "objective: rm", ["`loss_on` has no effect", "it belongs to objective sft"]),
    ("device: cpu", "device: cpu, strategy: ddp", ["`strategy` has no effect", "one process"]),
    ("rank: 8", "data: other.jsonl", ["`data` has no effect"]),
    ("device: cpu}", "device: cpu}\ntasks: [{name: a, data: {path: x}}]",
     ["both `data` and `tasks`"]),
    ("epochs: 2", "attention: flash_attention_2", ["needs a CUDA"]),
    ("objective: sft", "objective: grpo\n    keep: best\n    early_stopping: 3",
     ["`keep` has no effect", "`early_stopping` has no effect", "before and after training"]),
    ("objective: sft", "objective: ppo\n    keep: best", ["`keep` has no effect"]),
    ("objective: sft", "objective: ppo\n    compile: true",
     ["`compile` is true, which does not go with objective ppo", "compile: false"]),
    ("epochs: 2", "attention: flex_attention", ["flex_attention needs a CUDA", "auto"]),
    ("epochs: 2", "holdout: 0\n    keep: best\n    early_stopping: 3",
     ["`keep: best` needs a loss on held-out rows", "`early_stopping: 3` needs"]),
    # What the file of a method declares under `refuses`.
    (LORA, PREFIX.replace("false", "true"),
     ["`gradient_checkpointing` is true, which does not go with update prefix", "drops the cache",
     "smaller micro_batch_size"]),
    (LORA, PREFIX + "\n    packing: true",
     ["`packing` is true, which does not go with update prefix", "packing: false"]),
    (LORA, PREFIX + "\n    attention: flash_attention_2",
     ["`attention` is flash_attention_2, which does not go with update prefix", "sdpa or eager"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "words"), FAULTS)
def test_each_fault_says_where_what_and_what_is_allowed(old, new, words):
    """Line and column, what is allowed and the nearest known name."""
    text = fault(old, new)
    assert text.startswith("plan.yaml:")
    for word in words:
        assert text.startswith(word) if word.startswith("plan.yaml:") else word in text


def test_what_a_method_refuses_is_read_without_it():
    """The stage of the last cases is sound otherwise."""
    assert plan(GOOD.replace(LORA, PREFIX)).stages[0].update == "prefix"


@pytest.mark.parametrize("name", ["qlora", "ppo", "tasks"])
def test_plans_of_an_earlier_version_read_the_same(name):
    """Every value, to the type: 2 passes are 2.0 epochs; later versions may have more keys."""
    expected = json.loads((STORED / "plans.json").read_text(encoding="utf-8"))[name]

    def known(value, stored):
        if isinstance(value, dict) and isinstance(stored, dict):
            return {key: known(value[key], stored[key]) for key in value if key in stored}
        if isinstance(value, list | tuple) and isinstance(stored, list):
            return [known(*pair) for pair in zip(value, stored, strict=True)]
        return value

    read = to_builtins(read_plan(STORED / f"{name}.yaml"))
    assert json.dumps(known(read, expected)) == json.dumps(expected)


def test_all_faults_of_a_file_come_together_in_file_order():
    """A wrong type, an unknown key, one without effect and a wrong name, sorted by line."""
    text = GOOD.replace("name: shop", "name: Shop").replace("rank: 8", "rnk: 8")
    text = text.replace("epochs: 2", "epochs: two").replace("cpu", "cpu, strategy: ddp")
    with pytest.raises(InputError) as caught:
        plan(text)
    lines = [int(item.headline.split(":")[1]) for item in caught.value.faults]
    assert lines == [2, 10, 13, 15]


def read_stages(folder, *names):
    """A plan in a folder with these stages; "b<a" starts from a."""
    stages = [
        {"name": name, "objective": "sft", "update": "full"}
        | ({"start_from": start} if start else {})
        for name, _, start in (one.partition("<") for one in names)
    ]
    path = folder / "plan.yaml"
    path.write_text(json.dumps({"model": "m", "data": {"path": "t"}, "stages": stages}))
    return read_plan(path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a", "a"), "the name 'a' is taken by stages.0."),
        (("a<b", "b"), "`start_from` is 'b', a stage that is trained later"),
        (("sft", "b<stf"), "did you mean 'sft'"),
        (("a<nowhere",), "neither an earlier stage nor a folder"),
    ],
)
def test_stage_names_are_unique_and_start_from_earlier_stages(tmp_path, names, said):
    """A stage starts from an earlier one or an existing folder, never from a later one."""
    (tmp_path / "old").mkdir()
    assert read_stages(tmp_path, "a", "b<a", "c<old").stages[2].start_from == "old"
    with pytest.raises(InputError, match=said):
        read_stages(tmp_path, *names)


def test_a_missing_learning_rate_takes_the_default_of_the_update():
    """The update's own file gives the learning rate that a plan leaves out."""
    text = GOOD.replace("    learning_rate: 2e-4\n", "")
    assert plan(text).stages[0].learning_rate == 2e-4
    assert plan(text.replace(LORA, "update: full")).stages[0].learning_rate == 2e-5


def test_a_missing_learning_rate_without_a_default_says_what_is_usual(tmp_path, monkeypatch):
    """Without a default the error lists what is usual for the updates that have one."""
    write_update(tmp_path, "lora", keys="{rank: {type: integer}}")
    write_update(tmp_path, "full", defaults="{learning_rate: {value: 2e-5, source: trl}}")
    found = methods((tmp_path,))
    monkeypatch.setattr(keys, "methods", lambda: found)
    text = "model: m\ndata: {path: t}\nstages: [{name: a, objective: sft, update: lora}]\n"
    with pytest.raises(InputError, match=r"`learning_rate` is missing\n.*\n.*usual for full 2e-05"):
        plan_from_data(parse_yaml(text, name="p"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("update: full", "`update` cannot differ between tasks"),
        ("rnk: 4", "did you mean 'rank'"),
        ("rank: 0", "plan.yaml:7:23: `rank` is 0"),
        ("epochs: -1", "plan.yaml:7:25: `epochs` is -1"),
        ("warmup: 0.2, scheduler: constant", "`warmup` has no effect"),
    ],
)
def test_task_overrides_are_checked_like_stage_keys(overrides, said):
    """A task may change numbers within the same bounds, but not what the stages are."""
    task = "tasks:\n  - name: legal\n    data: {path: l.jsonl}\n    overrides: {rank: 4}\n"
    text = GOOD.replace("data: {path: train.jsonl}\n", task)
    assert plan(text).tasks[0].overrides == {"rank": 4}
    assert said in fault("rank: 4", overrides, text=text)


def test_folders_of_stages_and_tasks_cannot_collide():
    """Stage a of task b-c and stage a-b of task c would share a folder: refused."""
    stages = [
        f"{{name: {name}, objective: sft, update: full, learning_rate: 1e-5}}"
        for name in ("a", "a-b")
    ]
    tasks = "tasks: [{name: c, data: {path: x}}, {name: b-c, data: {path: z}}]"
    with pytest.raises(InputError, match="would share the folder a-b-c"):
        plan(f"model: m\n{tasks}\nstages: [{', '.join(stages)}]\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "stages: 3\nmodel: m\n",
        "model: m\ndata: {path: x}\nstages: [3]\n",
        "model: m\ndata: 3\nstages: []\n",
        "tasks: [3]\nmodel: m\nstages: [{}]\n",
    ],
)
def test_something_else_than_a_plan_is_an_input_error(text):
    """Any plain data that is not a plan is refused without a traceback."""
    with pytest.raises(InputError, match=r"plan\.yaml"):
        plan(text)


def test_paths_are_meant_from_the_plans_folder(tmp_path):
    """A relative path belongs to the plan's folder, an absolute one stays."""
    assert resolve_path(tmp_path / "plan.yaml", "data/x.jsonl") == tmp_path / "data" / "x.jsonl"
    assert str(resolve_path(tmp_path / "plan.yaml", "/data/x")) == "/data/x"


def test_remote_code_is_off_unless_written():
    """trust_remote_code is false unless the plan says true in so many words."""
    assert plan(GOOD).trust_remote_code is False
    said = "`trust_remote_code` is 1\n  true or false"
    assert said in fault("model:", "trust_remote_code: 1\nmodel:")


@pytest.fixture(
    scope="module", params=[jsonschema.Draft202012Validator, jsonschema.Draft7Validator]
)
def validator(request):
    """A validator of the draft the schema names, and of the older one that many editors know."""
    schema = plan_schema()
    request.param.check_schema(schema)
    return request.param(schema)


EDITED = GOOD.replace("2e-4", "2.0e-4")


def test_good_plans_are_valid(validator):
    """What the reader takes and what the writer writes is valid."""
    for text in (EDITED, plan_text(PLAN)):
        validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rank: 8", "rnak: 8"),
        ("rank: 8", "rank: 0"),
        ("update: lora\n    quantization: nf4", "update: full"),
        ("quantization: nf4", "double_quantization: true"),
        ("name: shop", "name: A b"),
        ("loss_on: all", "loss_on: x"),
    ],
)
def test_what_the_reader_refuses_is_flagged_in_the_editor(validator, old, new):
    """Unknown, out-of-range and dead keys are invalid in the schema too."""
    assert list(validator.iter_errors(yaml.safe_load(EDITED.replace(old, new))))


def test_every_key_says_what_it_means():
    """An editor shows a sentence beside each key, also where several methods declare it."""
    schema = plan_schema()
    keys = {**schema["properties"], **schema["$defs"]["Stage"]["properties"]}
    assert len(keys) > 80
    assert [name for name, one in keys.items() if not one.get("description")] == []


# -------------------------------------------------------------------------- --set


def test_values_are_set_by_number_or_name():
    """A stage is named by number or name; nested and method keys are reached alike."""
    changed = set_values(
        PLAN,
        [
            "stages.0.learning_rate=1e-4",
            "stages.sft.rank=8",
            "stages.sft.trl.neftune_noise_alpha=5",
            "data.path=b.jsonl",
            "stages.sft.target_modules=[q_proj, v_proj]",
        ],
    )
    stage = changed.stage("sft")
    assert (stage.learning_rate, changed.data.path) == (1e-4, "b.jsonl")
    assert stage.trl == {"neftune_noise_alpha": 5}
    assert stage.options == {"rank": 8, "alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    assert set_values(PLAN, []) is PLAN


def test_null_puts_a_value_back_to_its_default():
    """So a method can be changed together with the keys that belong to it."""
    gone = [f"stages.0.{key}=null" for key in ("quantization", "rank", "alpha", "epochs")]
    stage = set_values(PLAN, ["stages.0.update=full", *gone]).stages[0]
    assert (stage.update, stage.options, stage.epochs) == ("full", {}, 1.0)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stages.0.learning_rate", "not a setting"),
        ("=3", "not a setting"),
        ("stages.1.epochs=3", "has no entry '1'"),
        ("stages.stf.epochs=3", "did you mean 'sft'"),
        ("stages.0.epoch=3", "did you mean 'epochs'"),
        ("stages.0.rank=eight", "`rank` is 'eight'"),
        ("stages.0.update=full", "`rank` has no effect"),
        ("stages.0.epochs=[", "not valid YAML"),
        ("model.x=3", "'model' has no parts"),
        ("nothing=3", "unknown key 'nothing'"),
    ],
)
def test_a_wrong_setting_is_named_in_the_error(setting, words):
    """The error starts with the setting it comes from."""
    with pytest.raises(InputError) as caught:
        set_values(PLAN, [setting])
    assert words in caught.value.text()
    if words != "`rank` has no effect":  # there the dead key stands in the plan itself
        assert caught.value.text().startswith(f"--set {setting}")


def test_all_wrong_settings_come_together():
    """Two wrong settings give two faults, each with its own place."""
    wrong = ["stages.0.epochs=0", "stages.0.seq_len=1"]
    with pytest.raises(InputError) as caught:
        set_values(PLAN, wrong)
    places = [fault.headline.split(":")[0] for fault in caught.value.faults]
    assert places == [f"--set {setting}" for setting in wrong]
