"""Plans are written short, with reasons that are true of their keys, and read back as they were."""

import os
import re
import shlex
import string

import pytest
import yaml
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.extras import extras
from advisor.ground.resources import resource_root
from advisor.ground.terminal import find_secrets
from advisor.ground.yaml_files import parse_yaml
from advisor.plan.comments import (
    BY_SET,
    borrowed_rate_warnings,
    comments_after,
    comments_of,
    comments_of_trial,
    stage_notes,
)
from advisor.plan.model import Launch, Origin, Plan, PlanData, Stage, Task
from advisor.plan.read import plan_from_data, set_values
from advisor.plan.write import plan_data, plan_digest, plan_text, write_plan_file
from tests.conftest import examples

STAGE = Stage(
    name="sft", objective="sft", update="lora", quantization="nf4", learning_rate=2e-5, epochs=2,
    micro_batch_size=4, options={"rank": 16, "alpha": 32},
)  # fmt: skip
PLAN = Plan(
    name="shop",
    model="Qwen/Qwen3-8B",
    data=PlanData(path="train.jsonl"),
    stages=(STAGE,),
    launch=Launch(device="cuda"),
    origin=Origin(composition="sft+qlora"),
)

REWARDS = """\
version: 1
model: Qwen/Qwen3-0.6B
data: {path: train.jsonl}
stages:
  - {name: sft, objective: sft, update: lora}
  - {name: rm, objective: rm, update: lora}
  - name: grpo
    objective: grpo
    update: lora
"""


def plan_of(text):
    return plan_from_data(parse_yaml(text, name="plan.yaml"))


names = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,12}\Z")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), texts, st.just(""),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
keys = texts.filter(lambda key: key != "<<")
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
OURS = {*Stage.__struct_fields__, "output_dir", "rank", "alpha", "loss_on", "target_modules"}
maps = st.dictionaries(keys.filter(lambda key: key not in OURS), nested, max_size=3)
data_values = st.builds(
    PlanData,
    path=texts,
    format=st.none() | texts,
    mapping=st.none() | st.dictionaries(keys, texts, max_size=2),
)


MODULE = {
    "rank": st.integers(1, 4096),
    "alpha": st.none() | st.floats(0.001, 1e6),
    "target_modules": texts | st.lists(texts, min_size=1, max_size=3),
}


def stages(update, own, **keys):
    """Stages of an update, with options of their own."""
    options = {"loss_on": st.sampled_from(["answers", "all"]), **own}
    return st.builds(
        Stage,
        name=st.just("s"),
        objective=st.just("sft"),
        update=st.just(update),
        learning_rate=st.floats(1e-12, 1),
        epochs=st.floats(1e-3, 1e4),
        max_steps=st.none() | st.integers(1, 10**9),
        scheduler=st.sampled_from(["linear", "cosine"]),
        warmup=st.floats(0, 0.99),
        seq_len=st.integers(8, 10**6),
        packing=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
        trl=maps,
        options=st.fixed_dictionaries({}, optional=options),
        **keys,
    )


NF4 = {"quantization": st.just("nf4"), "double_quantization": st.none() | st.booleans()}
STAGES = st.one_of(
    stages("full", {}), stages("lora", MODULE, peft=maps), stages("lora", MODULE, peft=maps, **NF4)
)
VALUES = {  # of the keys of optional features
    "hub": {"push_to": st.sampled_from(["mia/shop", "shop-team/a.b_c-1"])},
    "trackers": {
        "trackers": st.lists(
            st.sampled_from(["tensorboard", "wandb"]), min_size=1, unique=True
        ).map(tuple)
    },
}
EXTRAS = {
    name: st.builds(extras()[name].KEYS, **keys)
    for name, keys in VALUES.items()
    if name in extras()
}


@st.composite
def plans(draw):
    tasks = draw(st.lists(data_values, max_size=2))
    launched = {"device": "cuda", "processes": 2}
    return Plan(
        name=draw(names),
        model=draw(texts),
        revision=draw(st.none() | texts),
        trust_remote_code=draw(st.booleans()),
        extras=draw(st.fixed_dictionaries({}, optional=EXTRAS)),
        data=None if tasks else draw(data_values),
        tasks=tuple(Task(name=f"t{index}", data=one) for index, one in enumerate(tasks)),
        stages=tuple(
            replace(stage, name=f"s{index}")
            for index, stage in enumerate(draw(st.lists(STAGES, min_size=1, max_size=2)))
        ),
        launch=draw(
            st.sampled_from(
                [Launch(), *(Launch(**launched, strategy=one) for one in (None, "ddp", "fsdp"))]
            )
        ),
        origin=Origin(
            composition=draw(st.none() | texts),
            answers=draw(st.dictionaries(keys, nested, max_size=2)),
            hardware=draw(st.none() | texts),
        ),
    )


@examples(3, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans(), comment=st.text(max_size=40))
def test_plan_to_yaml_to_plan_is_lossless(plan, comment):
    """Any valid plan, with any comment, reads back equal, and PyYAML reads the same data."""
    text = plan_text(plan, {("stages", 0, "learning_rate"): comment, ("model",): comment})
    assume(not any(find_secrets(yaml.safe_load(text))))  # a plan with one is refused
    assert plan_of(text) == plan
    assert yaml.safe_load(text)["stages"][0]["learning_rate"] == plan.stages[0].learning_rate


def test_a_plan_is_short_and_carries_its_reasons():
    """Reasons in one column, no unchosen defaults, no place on this machine."""
    comments = {
        ("stages", 0, "update"): "small module (document/scenario-5)",
        ("stages", 0, "options", "rank"): "few rows (lora/rank)",
        ("stages", 0, "packing"): "rows are long anyway",
    }
    text = plan_text(PLAN, comments)
    first, *lines = text.splitlines()
    assert "advise run plan.yaml" in first
    absent = ("file:", str(resource_root()), "grad_accum", "seed")
    assert [words for words in absent if words in text] == []
    columns = {line.split("#")[0].strip("- "): line.index("#") for line in lines if "#" in line}
    assert set(columns) == {"update: lora", "rank: 16", "packing: false"}
    assert (len(set(columns.values())), "learning_rate: 2.0e-05" in text) == (1, True)
    assert len(lines) < 30


@pytest.mark.parametrize("name", ["plän 1.yaml", "it's.yaml", "a;b.yaml"])
def test_the_line_that_starts_a_plan_can_be_pasted(name):
    """The header names the file as a shell takes it, on one line."""
    line = plan_text(PLAN, name=name).splitlines()[0].split("with: ")[1]
    assert shlex.split(line) == ["advise", "run", name]


def test_a_folder_in_place_of_a_file_is_told_what_to_name(tmp_path):
    """The file inside it is named as a shell takes it."""
    (folder := tmp_path / "my plans").mkdir()
    with pytest.raises(InputError, match="is a directory") as told:
        write_plan_file(PLAN, {}, folder)
    assert shlex.split(told.value.faults[0].hint)[:2] == ["--plan", str(folder / "plan.yaml")]


def of_stage(plan=PLAN, **keys):
    """The plan with other keys of its stage; `options` come on top."""
    (stage,) = plan.stages
    options = stage.options | keys.pop("options", {})
    return replace(plan, stages=(replace(stage, **keys, options=options),))


def test_the_digest_names_model_data_and_stages_alone():
    """Name, launch, origin, defaults and when to save do not count; any trained value does."""
    first = plan_digest(PLAN)
    same = [
        replace(PLAN, name="other", launch=Launch(), origin=Origin()),
        of_stage(options={"target_modules": "all-linear"}),
        of_stage(epochs=2.0),
        of_stage(save_steps=3, save_minutes=None),
    ]
    assert {plan_digest(plan) for plan in same} == {first}
    changed = [
        replace(PLAN, model="other"),
        replace(PLAN, revision="main"),
        replace(PLAN, data=PlanData(path="b.jsonl")),
        of_stage(seed=1),
        of_stage(options={"rank": 8}),
    ]
    assert len({first, *map(plan_digest, changed)}) == 1 + len(changed)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    """On a full disk the old file stays, and the error ends with exit code 4."""
    path = tmp_path / "plan.yaml"
    write_plan_file(PLAN, {}, path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineNotReady, match="no space left"):
        write_plan_file(replace(PLAN, name="other"), {}, path, force=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.yaml"]


TRICKY = [
    "yes", "No", "null", "1e5", "0x1f", "1:30", "~", "-", "a: b", "a #b", "", " x", "2024-01-01",
    ".5", "...", "*x", "\u2028", string.punctuation,
]  # fmt: skip


def test_text_that_looks_like_something_else_is_quoted():
    """Names that YAML readers would take for true, null or numbers come back as text."""
    answers = {text or "empty": text for text in TRICKY}
    plan = replace(PLAN, origin=Origin(answers=answers))
    text = plan_text(plan)
    assert plan_of(text).origin == plan.origin
    assert yaml.safe_load(text)["origin"]["answers"] == answers
    assert plan_data(plan)["origin"]["answers"] == answers


NOTED = of_stage(
    replace(PLAN, launch=Launch(device="cuda", processes=2, strategy="ddp")), grad_accum=2
)
PLACE = ("stages", 0)
BATCH = "16 rows a step = 4 (micro_batch_size) x 2 (grad_accum) x 2 GPUs"


def notes(plan=NOTED, index=0, **known):
    return stage_notes(plan, index, **known).split("\n")


def noted(**keys):
    return of_stage(NOTED, **keys)


def test_the_batch_is_told_in_words_and_the_steps_where_they_are_known():
    """Rows of a step as a product of the keys, over all GPUs."""
    assert notes()[0] == f"{BATCH}."
    assert notes(steps=1234)[0] == f"{BATCH}; about 1,234 steps in all."
    assert notes(noted(max_steps=30), steps=1234)[0] == f"{BATCH}; 30 steps in all (max_steps)."
    assert notes(noted(packing=True))[0].startswith("16 sequences a step")
    assert notes(replace(NOTED, launch=Launch(device="cpu")))[0].endswith("x 1 process.")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "Loss: on the answers alone."),
        ({"options": {"loss_on": "all"}}, "Loss: on every token."),
        ({"objective": "cpt"}, "Loss: on every token."),
        ({}, "Rows over seq_len: left out; above 5 % of the rows the run stops instead"),
        ({"truncation": "truncate"}, "Rows over seq_len: cut (truncation: truncate)."),
        ({"objective": "cpt"}, "Documents over seq_len are split"),
        ({"holdout": 0.025}, "Held out: 2.5 % of the rows, measured before and after, and up to"),
        ({"holdout": 0.0}, "Held out: no rows"),
        ({"objective": "grpo"}, "measured before and after."),
        ({"save_steps": 50}, "Checkpoints: every 50 steps; the last two stay."),
        ({}, "Checkpoints: about ten in a run"),
        ({"seed": 7}, "Seed: 7."),
        ({}, "Chat template: the model's own if it has one, else a plain one"),
    ],
)
def test_what_a_run_does_without_a_key_is_said(keys, said, approved):
    """Defaults that an expert looks for stand above the stage, with what the keys change of them."""
    approved(found := list(notes(noted(**keys))))
    assert said in "\n".join(found)


def test_what_does_not_concern_a_stage_is_left_out():
    """Of a model that sorts, of a second stage, and of a task with its own batch."""
    assert re.findall("template|Loss", "\n".join(notes(noted(options={"head": "classes"})))) == []
    assert "Chat template: the model's own." in notes(instruct=True)
    (second,) = noted(name="more", micro_batch_size=1, seed=3).stages
    lines = notes(replace(NOTED, stages=(*NOTED.stages, second)), 1)
    assert [line.split(" ")[0] for line in lines] == ["4", "Checkpoints:"]
    task = Task(name="legal", data=PlanData(path="a/b"), overrides={"grad_accum": 1})
    first, *_ = notes(replace(NOTED, data=None, tasks=(task,)))
    assert "unless a task's overrides say otherwise" in first


def test_the_lines_are_read_back_and_made_again_after_a_change():
    """As it is now, without the steps counted before; a person's own lines are kept."""
    comments = {PLACE: stage_notes(NOTED, 0, steps=99), (*PLACE, "rank"): "usual"}
    text = plan_text(NOTED, comments)
    assert (comments_of(text, name="plan.yaml"), plan_of(text)) == (comments, NOTED)
    changed = set_values(NOTED, ["stages.0.grad_accum=8", "stages.0.seed=5"])
    found = comments_after(comments, NOTED, changed)[PLACE]
    assert (found, "64 rows a step" in found) == (stage_notes(changed, 0), True)
    assert "99" not in found
    renamed = set_values(NOTED, ["name=other"])
    assert comments_after(comments, NOTED, renamed)[PLACE] == comments[PLACE]
    text = plan_text(NOTED).replace("  - name: sft", "  # ours, of May\n  - name: sft")
    assert comments_of(text, name="plan.yaml")[PLACE] == "ours, of May"


def test_a_trials_copy_promises_no_more_steps_than_it_has():
    """--max-steps ends the stages earlier; nothing else of the plan is another."""
    comments = {PLACE: stage_notes(NOTED, 0, steps=1200), (*PLACE, "rank"): "usual"}
    trial = comments[PLACE].replace(
        "about 1,200 steps in all", "a trial of at most 4 steps (--max-steps)"
    )
    assert trial.startswith(f"{BATCH}; a trial of at most 4 steps (--max-steps).\n")
    assert comments_of_trial(comments, 4) == {**comments, PLACE: trial}
    assert comments_of_trial(None, 4) is None


UNRATED = "name: p\nmodel: m\ndata: {path: d.jsonl}\nstages: [{name: one, update: lora, %s}]\n"


@pytest.mark.parametrize(
    ("stage", "is_told"),
    [
        ("objective: dpo", True),
        ("objective: rm", True),
        ("objective: kto", True),
        ("objective: dpo, learning_rate: 2.0e-4", False),
        ("objective: sft", False),
        ("objective: cpt", False),
    ],
)
def test_a_borrowed_rate_is_told(stage, is_told):
    """A stage that compares or scores answers does not take supervised fine-tuning's silently."""
    document = parse_yaml(UNRATED % stage, name="plan.yaml")
    plan = plan_from_data(document)
    told = list(borrowed_rate_warnings(document.data, plan))
    assert [line.partition(", which")[0] for line in told] == (
        ["stage one names no learning_rate and takes 0.0002"] if is_told else []
    )
    changed = replace(plan, stages=(replace(plan.stages[0], learning_rate=1e-6),))
    assert not list(borrowed_rate_warnings(document.data, changed))


COMMENTS = {
    (*PLACE, "learning_rate"): "usual (lora/lr)",
    (*PLACE, "epochs"): "few rows are read three times (sft/epochs-small)",
    (*PLACE, "micro_batch_size"): "the largest that fits",
    (*PLACE, "grad_accum"): "16 rows a step: usual",
    (*PLACE, "rank"): "a usual rank (lora/rank)",
    ("launch", "device"): "RTX 4090",
}


RANK, DEVICE, EPOCHS = (*PLACE, "rank"), ("launch", "device"), (*PLACE, "epochs")


def older(what):
    return f"a usual rank (lora/rank); chosen before {what} was {BY_SET}"


AFTER = [  # what --set changes, and comments afterwards
    ([], COMMENTS),
    # Its reason is gone; the others of its stage stay, and say that they are older.
    (["stages.sft.epochs=1"], {EPOCHS: BY_SET, RANK: older("epochs"), DEVICE: "RTX 4090"}),
    # A new key, and one that goes back to its default.
    (["stages.0.max_steps=5", "data.path=b.jsonl", "stages.0.epochs=null"],
     {(*PLACE, "max_steps"): BY_SET, ("data", "path"): BY_SET, EPOCHS: BY_SET}),
    # Any key beside the stages makes the reasons of all stages older; the name makes none.
    (["data.path=b.jsonl"], {RANK: older("data.path"), DEVICE: "RTX 4090"}),
    (["model=other"], {RANK: older("model"), DEVICE: "RTX 4090"}),
    (["name=other", "stages.sft.save_steps=5"], {RANK: COMMENTS[RANK]}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), AFTER)
def test_comments_say_what_was_changed(settings, expected, approved):
    """And are read back from where they were written."""
    changed = set_values(PLAN, settings)
    found = comments_after(COMMENTS, PLAN, changed)
    assert {place: found[place] for place in expected} == expected
    assert settings or found == expected
    assert comments_of(plan_text(changed, found), name="plan.yaml") == found
    approved(plan_text(changed, found))


def test_comments_of_a_second_change_and_of_options():
    """What is older stays so; a place with `options` is the place beside the stage's own keys."""
    found = comments_after(COMMENTS, PLAN, set_values(PLAN, ["stages.sft.epochs=1"]))
    again = set_values(PLAN, ["stages.0.max_steps=5"])
    assert comments_after(found, PLAN, again)[RANK] == older("epochs")
    assert comments_after(None, PLAN, PLAN) == {}
    options = {("stages", 0, "options", "rank"): "a usual rank"}
    assert comments_after(options, PLAN, set_values(PLAN, ["stages.0.rank=4"])) == {RANK: BY_SET}
