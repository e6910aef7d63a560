"""Plans are read strictly, with every fault of a file at once, as the JSON Schema says; so is --set."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from msgspec import to_builtins

from advisor.ground.errors import InputError
from advisor.ground.types import DataProfile, TokenStats
from advisor.ground.yaml_files import parse_yaml
from advisor.methods import methods
from advisor.plan import keys
from advisor.plan.read import plan_from_data, read_plan, resolve_path, set_values
from advisor.plan.write import plan_text
from advisor.schema.rules import plan_schema
from advisor.situation.of_plan import amounts
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
# What is written in place of what; what is said stands in tests/golden.
FAULTS = [
    ("rank: 8", "rnak: 8"), ("epochs: 2", "epoch: 2"), ("model: models/smol", "modle: x\nmodel: z"),
    ("path: train.jsonl", "path: t, formt: x"), ("device: cpu", "device: cdua"),
    ("update: lora", "update: lroa"), ("rank: 8", "rank: 0"), ("rank: 8", "rank: '8'"),
    ("loss_on: all", "loss_on: answer"), ("2e-4", "3"), ("2e-4", "'2e-4'"), ("2e-4", "1e999"),
    ("epochs: 2", "epochs: true"), ("version: 1", "version: 2"), ("name: shop", "name: ../x"),
    ("- name: sft", "- name: SFT 1"), ("trl: {neftune_noise_alpha: 5}", "trl: {learning_rate: 5}"),
    ("trl: {neftune_noise_alpha: 5}", "trl: {output_dir: x}"),
    ("trl: {neftune_noise_alpha: 5}", "trl: {optim_args: {a: 1}}"),
    ("trl: {neftune_noise_alpha: 5}", "trl: 3"),
    ("trl: {neftune_noise_alpha: 5}", "options: {rank: 8}"),
    ("data: {path: train.jsonl}", "data: {path: train.jsonl}\ntasks: []"),
    ("data: {path: train.jsonl}\n", ""), ("model: models/smol\n", ""), ("    objective: sft\n", ""),
    # A key without effect: why, and what it belongs to.
    ("update: lora\n    quantization: nf4", "update: full"),
    (LORA, "update: full\n    quantization: nf4"),
    ("quantization: nf4", "double_quantization: true"),
    (LORA, "update: full\n    peft: {use_dora: true}"),
    ("epochs: 2", "scheduler: constant\n    warmup: 0.1"),
    ("objective: sft", "objective: grpo\n    group_by_length: true"),
    ("objective: sft", "objective: rm\n    packing: true"), ("objective: sft", "objective: rm"),
    ("device: cpu", "device: cpu, strategy: ddp"), ("rank: 8", "data: other.jsonl"),
    ("device: cpu}", "device: cpu}\ntasks: [{name: a, data: {path: x}}]"),
    ("epochs: 2", "attention: flash_attention_2"), ("model:", "trust_remote_code: 1\nmodel:"),
    ("objective: sft", "objective: grpo\n    keep: best\n    early_stopping: 3"),
    ("objective: sft", "objective: ppo\n    keep: best"),
    ("objective: sft", "objective: ppo\n    compile: true"),
    ("epochs: 2", "attention: flex_attention"),
    ("epochs: 2", "holdout: 0\n    keep: best\n    early_stopping: 3"),
    # What the file of a method declares under `refuses`.
    (LORA, PREFIX.replace("false", "true")), (LORA, PREFIX + "\n    packing: true"),
    (LORA, PREFIX + "\n    attention: flash_attention_2"),
]  # fmt: skip


OVERRIDES = [
    "update: full", "rnk: 4", "rank: 0", "epochs: -1", "warmup: 0.2, scheduler: constant",
]  # fmt: skip
REWARDS_FAULTS = {
    "both forms": "verifier: exact\n    rewards: [{reward: a.py:f}]",
    "unknown verifier": "rewards: [{verifier: exakt}]",
    "weight 0": "rewards: [{verifier: exact, weight: 0}]",
    "no number": "rewards: [{verifier: exact, weight: two}]",
    "one name twice": "rewards: [{reward: a.py:f}, {reward: b.py:f}]",
    "a name that no metric can have": "rewards: [{verifier: exact, name: a/b}]",
    "two sources": "rewards: [{verifier: exact, reward: a.py:f}]",
    "no source": "rewards: [{weight: 2}]", "no function": "rewards: [{reward: judge}]",
    "no pattern": "rewards: [{verifier: format}]",
    "pattern no regex": 'rewards: [{verifier: regex, pattern: "("}]',
    "dead key": "rewards: [{verifier: exact, ngram: 2}]",
    "dead short key": "pattern: x\n    rewards: [{verifier: exact}]",
    "too long": "rewards: [{verifier: exact}, {verifier: length, overlong_tokens: 2000}]",
    "penalties alone": "rewards: [{verifier: length}, {verifier: repetition}]",
    "a penalty alone": "verifier: length", "unknown key": "rewards: [{verifier: exact, wieght: 1}]",
    "empty": "rewards: []",
}  # fmt: skip
SHARING = "tasks: [{name: c, data: {path: x}}, {name: b-c, data: {path: z}}]\nstages:\n" + "".join(
    f"  - {{name: {name}, objective: sft, update: full, learning_rate: 1e-5}}\n"
    for name in ("a", "a-b")
)


def changed(old, new, text=GOOD):
    assert old in text
    return text.replace(old, new, 1)


REFUSED = [
    *(changed(old, new) for old, new in FAULTS),
    *(changed("rank: 4", new, TASKS) for new in OVERRIDES),
    *(f"{REWARDS}    {new}\n" for new in REWARDS_FAULTS.values()),
    # The key belongs to those that learn from their own answers.
    changed("objective: grpo", "objective: sft", REWARDS) + "    rewards: [{verifier: exact}]\n",
    # Stage a of task b-c and stage a-b of task c.
    f"model: m\n{SHARING}",
    # Something else than a plan.
    "", "[]", "3", "stages: 3\nmodel: m\n", "model: m\ndata: {path: x}\nstages: [3]\n",
    "model: m\ndata: 3\nstages: []\n", "tasks: [3]\nmodel: m\nstages: [{}]\n",
]  # fmt: skip


@pytest.mark.extra("benchmarks", "hub", "trackers")
@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_each_fault_says_where_what_and_what_is_allowed(text, approved):
    """Line and column, what is allowed and the nearest known name."""
    with pytest.raises(InputError, match=r"^plan\.yaml:") as caught:
        plan_of(text)
    assert caught.value.exit_code == 2
    approved(caught.value.text())


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


@pytest.mark.extra("benchmarks", "hub", "trackers")
@pytest.mark.parametrize(
    "settings",
    [
        "stages.0.learning_rate", "=3", "stages.1.epochs=3", "stages.stf.epochs=3",
        "stages.0.epoch=3", "stages.0.rank=eight", "stages.0.update=full", "stages.0.epochs=[",
        "model.x=3", "nothing=3",
        # All come together, each with its own place.
        "stages.0.epochs=0 stages.0.seq_len=1",
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_in_the_error(settings, approved):
    """The error starts with the setting it comes from."""
    with pytest.raises(InputError) as caught:
        set_values(PLAN, settings.split())
    approved(caught.value.text())


STAGE = {"name": "a", "objective": "sft", "update": "lora", "learning_rate": 1e-4, "holdout": 0.0}


def plan(launch=None, **keys):
    document = {"model": "m", "data": {"path": "d.jsonl"}, "stages": [{**STAGE, **keys}]}
    document |= {"launch": launch} if launch else {}
    return plan_from_data(parse_yaml(json.dumps(document), name="plan.yaml"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"replay": {"rows": 501}}, "from 1 to 500"),
        ({"replay": {"rows": 5, "share": 1}}, "unknown key 'share'"),
        ({"replay": 500}, "a file or folder, or a map with the keys rows"),
        ({"replay_share": 0.3}, "`replay_share` has no effect: there is no `replay`"),
        ({"replay": {"rows": 5}, "head": "classes"}, "head: classes trains no model that answers"),
        ({"replay": "a.jsonl", "head": "seq2seq"}, "head: seq2seq trains no model that answers"),
        ({"replay": {"rows": 5}, "objective": "dpo"}, "replay"),
        (
            {"replay": {"rows": 5}, "launch": {"processes": 2, "strategy": "fsdp"}},
            "a base whose weights are divided answers nothing before training",
        ),
    ],
)
def test_where_it_cannot_help_it_is_refused(keys, said):
    with pytest.raises(InputError, match=said):
        plan(**keys)


@pytest.mark.parametrize("objective", ["sft", "cpt"])
def test_its_tokens_count(objective):
    """A fifth of all tokens is a quarter of the stage's own; 10 bundled rows a pass are less; the
    rows of a file are as long as the stage's.
    """
    counts = {"p50": 100, "p90": 110, "p95": 120, "p99": 130, "longest": 140}
    stats = TokenStats(total=100_000, mean=100.0, counted_by="x", **counts)
    about = {"format": "messages", "mapping": {}, "objectives": (objective,)}
    data = DataProfile(path="d", kind="paired", rows=1000, tokens=stats, **about)
    given = {"objective": objective, "epochs": 2, "replay_share": 0.2, "packing": False}

    def read(**keys):
        found = plan(**{**given, **keys})
        return amounts(found, found.stages[0], data, None)

    plain = plan(objective=objective, epochs=2)
    own = amounts(plain, plain.stages[0], data, None)
    assert (own, read(replay="general.jsonl")) == ((200_000, 2000), (250_000, 2500))
    assert read(replay={"rows": 500}) == (250_000, 2000 + round(50_000 / 90))
    assert read(replay={"rows": 10}) == (200_000 + 2 * 10 * 90, 2020)
