"""Plans are read strictly, with every fault of a file at once, as the JSON Schema says; so is --set."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from msgspec import to_builtins

from advisor.ground.errors import InputError
from advisor.methods import methods
from advisor.plan import keys
from advisor.plan.read import read_plan, resolve_path, set_values
from advisor.plan.write import plan_text
from advisor.schema.rules import plan_schema
from tests.conftest import of_keys
from tests.methods.method_files import write_update
from tests.plan.test_write import PLAN, REWARDS, plan_of

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


LORA = "update: lora\n    quantization: nf4\n    rank: 8"


TASKS = GOOD.replace(
    "data: {path: train.jsonl}\n",
    "tasks:\n  - name: legal\n    data: {path: l.jsonl}\n    overrides: {rank: 4}\n",
)


def test_a_good_plan_is_read_with_method_keys_in_options():
    """Keys of the update and the objective are options, the rest fields; remote code is off."""
    read = plan_of(GOOD)
    stage = read.stage("sft")
    assert stage.options == {"rank": 8, "loss_on": "all"}
    assert (stage.learning_rate, stage.epochs, stage.quantization) == (2e-4, 2.0, "nf4")
    assert stage.trl == {"neftune_noise_alpha": 5}
    assert read.trust_remote_code is False
    assert plan_of(TASKS).tasks[0].overrides == {"rank": 4}
    unrated = GOOD.replace("    learning_rate: 2e-4\n", "")
    for update, rate in ((LORA, 2e-4), ("update: full", 2e-5), (PREFIX, None)):
        stage = plan_of(unrated.replace(LORA, update)).stages[0]
        assert f"update: {stage.update}" in update
        assert stage.learning_rate == rate or rate is None


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
    ("model:", "trust_remote_code: 1\nmodel:", ["`trust_remote_code` is 1\n  true or false"]),
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


OVERRIDES = [
    ("update: full", ["`update` cannot differ between tasks"]),
    ("rnk: 4", ["did you mean 'rank'"]),
    ("rank: 0", ["plan.yaml:7:23: ", "`rank` is 0"]),
    ("epochs: -1", ["plan.yaml:7:25: ", "`epochs` is -1"]),
    ("warmup: 0.2, scheduler: constant", ["`warmup` has no effect"]),
]
REWARDS_FAULTS = {
    "both forms": ("verifier: exact\n    rewards: [{reward: a.py:f}]", "11:14",
                   "verifier and rewards both say where the reward comes from"),
    "unknown verifier": ("rewards: [{verifier: exakt}]", "10:26", "`verifier` is 'exakt'"),
    "weight 0": ("rewards: [{verifier: exact, weight: 0}]", "10:41", "weight 0: no effect"),
    "no number": ("rewards: [{verifier: exact, weight: two}]", "10:41", "`weight` is 'two'"),
    "one name twice": ("rewards: [{reward: a.py:f}, {reward: b.py:f}]", "10:42",
                       "two rewards are called 'f' (the first is rewards[0])"),
    "a name that no metric can have": ("rewards: [{verifier: exact, name: a/b}]", "10:39", "name is 'a/b'"),
    "two sources": ("rewards: [{verifier: exact, reward: a.py:f}]", "10:41", "verifier and reward both say"),
    "no source": ("rewards: [{weight: 2}]", "10:15", "this reward names nothing that scores"),
    "no function": ("rewards: [{reward: judge}]", "10:24", "`reward` is 'judge'"),
    "no pattern": ("rewards: [{verifier: format}]", "10:26", "verifier format needs the key pattern"),
    "pattern no regex": ('rewards: [{verifier: regex, pattern: "("}]', "10:42", "not a regular expression"),
    "dead key": ("rewards: [{verifier: exact, ngram: 2}]", "10:40", "'ngram' has no effect: verifier is exact"),
    "dead short key": ("pattern: x\n    rewards: [{verifier: exact}]", "10:14", "'pattern' has no effect beside rewards"),
    "too long": ("rewards: [{verifier: exact}, {verifier: length, overlong_tokens: 2000}]", "10:70",
                 "overlong_tokens 2000 are more than response_tokens 1024"),
    "penalties alone": ("rewards: [{verifier: length}, {verifier: repetition}]", "10:14",
                        "length and repetition alone say only which answers are bad"),
    "a penalty alone": ("verifier: length", "10:15", "length alone says only which answers are bad"),
    "unknown key": ("rewards: [{verifier: exact, wieght: 1}]", "10:33", "unknown key 'wieght'"),
    "empty": ("rewards: []", "10:14", "`rewards` is an empty list"),
}  # fmt: skip
SHARING = "tasks: [{name: c, data: {path: x}}, {name: b-c, data: {path: z}}]\nstages:\n" + "".join(
    f"  - {{name: {name}, objective: sft, update: full, learning_rate: 1e-5}}\n"
    for name in ("a", "a-b")
)


def changed(old, new, text=GOOD):
    assert old in text
    return text.replace(old, new, 1)


REFUSED = [
    *((changed(old, new), words) for old, new, words in FAULTS),
    *((changed("rank: 4", new, TASKS), words) for new, words in OVERRIDES),
    *(
        (f"{REWARDS}    {new}\n", [f"plan.yaml:{place}: ", said])
        for new, place, said in REWARDS_FAULTS.values()
    ),
    # The key belongs to those that learn from their own answers.
    (
        changed("objective: grpo", "objective: sft", REWARDS)
        + "    rewards: [{verifier: exact}]\n",
        ["`rewards` has no effect", "objective grpo"],
    ),
    # Stage a of task b-c and stage a-b of task c.
    (f"model: m\n{SHARING}", ["would share the folder a-b-c"]),
    # Something else than a plan.
    *(
        (text, [])
        for text in (
            "",
            "[]",
            "3",
            "stages: 3\nmodel: m\n",
            "model: m\ndata: {path: x}\nstages: [3]\n",
            "model: m\ndata: 3\nstages: []\n",
            "tasks: [3]\nmodel: m\nstages: [{}]\n",
        )
    ),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_each_fault_says_where_what_and_what_is_allowed(text, words, approved):
    """Line and column, what is allowed and the nearest known name."""
    with pytest.raises(InputError, match=r"^plan\.yaml:") as caught:
        plan_of(text)
    assert caught.value.exit_code == 2
    approved(said := caught.value.text())
    for word in words:
        assert said.startswith(word) if word.startswith("plan.yaml:") else word in said


@pytest.mark.parametrize("name", ["qlora", "ppo", "tasks"])
def test_plans_of_an_earlier_version_read_the_same(name):
    """Every value, to the type: 2 passes are 2.0 epochs; later versions may have more keys."""
    expected = json.loads((STORED / "plans.json").read_text(encoding="utf-8"))[name]
    read = to_builtins(read_plan(STORED / f"{name}.yaml"))
    assert json.dumps(of_keys(read, expected)) == json.dumps(expected)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        # A wrong type, an unknown key, one without effect and a wrong name, sorted by line.
        (
            GOOD.replace("name: shop", "name: Shop")
            .replace("rank: 8", "rnk: 8")
            .replace("epochs: 2", "epochs: two")
            .replace("cpu", "cpu, strategy: ddp"),
            [2, 10, 13, 15],
        ),
        (
            REWARDS + "    rewards: [{verifier: exact, weight: 0}, {reward: judge},"
            " {verifier: regex, ngram: 2}]\n",
            [10] * 4,
        ),
    ],
    ids=["stage", "rewards"],
)
def test_all_faults_of_a_file_come_together_in_file_order(text, lines):
    """Nobody has to start three times to hear of three mistakes."""
    with pytest.raises(InputError) as caught:
        plan_of(text)
    assert [int(item.headline.split(":")[1]) for item in caught.value.faults] == lines


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


def test_a_missing_learning_rate_without_a_default_says_what_is_usual(tmp_path, monkeypatch):
    """Without a default the error lists what is usual for the updates that have one."""
    write_update(tmp_path, "lora", keys="{rank: {type: integer}}")
    write_update(tmp_path, "full", defaults="{learning_rate: {value: 2e-5, source: trl}}")
    found = methods((tmp_path,))
    monkeypatch.setattr(keys, "methods", lambda: found)
    text = "model: m\ndata: {path: t}\nstages: [{name: a, objective: sft, update: lora}]\n"
    with pytest.raises(InputError, match=r"`learning_rate` is missing\n.*\n.*usual for full 2e-05"):
        plan_of(text)


def test_paths_are_meant_from_the_plans_folder(tmp_path):
    """A relative path belongs to the plan's folder, an absolute one stays."""
    assert resolve_path(tmp_path / "plan.yaml", "data/x.jsonl") == tmp_path / "data" / "x.jsonl"
    assert str(resolve_path(tmp_path / "plan.yaml", "/data/x")) == "/data/x"


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
    # null puts a value back to its default, so a method can be changed with the keys that belong to it.
    gone = [f"stages.0.{key}=null" for key in ("quantization", "rank", "alpha", "epochs")]
    stage = set_values(PLAN, ["stages.0.update=full", *gone]).stages[0]
    assert (stage.update, stage.options, stage.epochs) == ("full", {}, 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["stages.0.learning_rate"], "not a setting"),
        (["=3"], "not a setting"),
        (["stages.1.epochs=3"], "has no entry '1'"),
        (["stages.stf.epochs=3"], "did you mean 'sft'"),
        (["stages.0.epoch=3"], "did you mean 'epochs'"),
        (["stages.0.rank=eight"], "`rank` is 'eight'"),
        (["stages.0.update=full"], "`rank` has no effect"),
        (["stages.0.epochs=["], "not valid YAML"),
        (["model.x=3"], "'model' has no parts"),
        (["nothing=3"], "unknown key 'nothing'"),
        # All come together, each with its own place.
        (["stages.0.epochs=0", "stages.0.seq_len=1"], "\n--set stages.0.seq_len=1: "),
    ],
)
def test_a_wrong_setting_is_named_in_the_error(settings, words, approved):
    """The error starts with the setting it comes from."""
    with pytest.raises(InputError) as caught:
        set_values(PLAN, settings)
    assert words in caught.value.text()
    approved(caught.value.text())
    if words != "`rank` has no effect":  # there the dead key stands in the plan itself
        assert caught.value.text().startswith(f"--set {settings[0]}")
