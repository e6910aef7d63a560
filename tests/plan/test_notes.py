"""The comments of a launch file: the lines above a stage are true of its keys, those beside values are
read back, also after a change; a rate that is borrowed is told.
"""

import pytest
from msgspec.structs import replace

from advisor.ground.yaml_files import parse_yaml
from advisor.plan.comments import (
    BY_SET,
    borrowed_rate_warnings,
    comments_after,
    comments_of,
    comments_of_trial,
    stage_notes,
)
from advisor.plan.model import Launch, Plan, PlanData, Stage, Task
from advisor.plan.read import plan_from_data, set_values
from advisor.plan.write import plan_text
from tests.plan.test_write import PLAN as SHOP

STAGE = Stage(
    name="sft", objective="sft", update="lora", learning_rate=1e-4, micro_batch_size=4,
    grad_accum=2, options={"rank": 16},
)  # fmt: skip
PLAN = Plan(
    model="a/b",
    data=PlanData(path="a/b"),
    stages=(STAGE,),
    launch=Launch(device="cuda", processes=2, strategy="ddp"),
)
PLACE = ("stages", 0)


def notes(plan=PLAN, index=0, **known):
    return stage_notes(plan, index, **known).split("\n")


def of_stage(**keys):
    return replace(PLAN, stages=(replace(STAGE, **keys),))


def test_the_batch_is_told_in_words_and_the_steps_where_they_are_known():
    """Rows of a step as a product of the keys, over all GPUs."""
    said = "16 rows a step = 4 (micro_batch_size) x 2 (grad_accum) x 2 GPUs"
    assert notes()[0] == f"{said}."
    assert notes(steps=1234)[0] == f"{said}; about 1,234 steps in all."
    assert notes(of_stage(max_steps=30), steps=1234)[0] == f"{said}; 30 steps in all (max_steps)."
    assert notes(of_stage(packing=True))[0].startswith("16 sequences a step")
    alone = replace(PLAN, launch=Launch(device="cpu"))
    assert notes(alone)[0].endswith("x 1 process.")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "Loss: on the answers alone."),
        ({"options": {"loss_on": "all"}}, "Loss: on every token."),
        ({"objective": "cpt", "options": {}}, "Loss: on every token."),
        ({}, "Rows over seq_len: left out; above 5 % of the rows the run stops instead"),
        ({"truncation": "truncate"}, "Rows over seq_len: cut (truncation: truncate)."),
        ({"objective": "cpt", "options": {}}, "Documents over seq_len are split"),
        ({"holdout": 0.025}, "Held out: 2.5 % of the rows, measured before and after, and up to"),
        ({"holdout": 0.0}, "Held out: no rows"),
        ({"objective": "grpo", "options": {}}, "measured before and after."),
        ({"save_steps": 50}, "Checkpoints: every 50 steps; the last two stay."),
        ({}, "Checkpoints: about ten in a run"),
        ({"seed": 7}, "Seed: 7."),
        ({}, "Chat template: the model's own if it has one, else a plain one"),
    ],
)
def test_what_a_run_does_without_a_key_is_said(keys, said):
    """Defaults that an expert looks for stand above the stage, with what the keys change of them."""
    assert said in "\n".join(notes(of_stage(**keys)))


def test_what_does_not_concern_a_stage_is_left_out():
    """Of a model that sorts, of a second stage, and of a task with its own batch."""
    said = "\n".join(notes(of_stage(options={"head": "classes"})))
    assert "template" not in said
    assert "Loss" not in said
    assert "Chat template: the model's own." in notes(instruct=True)
    second = replace(STAGE, name="more", micro_batch_size=1, seed=3)
    lines = notes(replace(PLAN, stages=(STAGE, second)), 1)
    assert [line.split(" ")[0] for line in lines] == ["4", "Checkpoints:"]
    task = Task(name="legal", data=PlanData(path="a/b"), overrides={"grad_accum": 1})
    first, *_ = notes(replace(PLAN, data=None, tasks=(task,)))
    assert "unless a task's overrides say otherwise" in first


def test_the_lines_are_read_back_and_made_again_after_a_change():
    """As it is now, without the steps counted before; a person's own lines are kept."""
    comments = {PLACE: stage_notes(PLAN, 0, steps=99), (*PLACE, "rank"): "usual"}
    text = plan_text(PLAN, comments)
    assert comments_of(text, name="plan.yaml") == comments
    assert plan_from_data(parse_yaml(text, name="plan.yaml")) == PLAN
    changed = set_values(PLAN, ["stages.0.grad_accum=8", "stages.0.seed=5"])
    found = comments_after(comments, PLAN, changed)[PLACE]
    assert found == stage_notes(changed, 0)
    assert "64 rows a step" in found
    assert "99" not in found
    renamed = set_values(PLAN, ["name=other"])
    assert comments_after(comments, PLAN, renamed)[PLACE] == comments[PLACE]
    text = plan_text(PLAN).replace("  - name: sft", "  # ours, of May\n  - name: sft")
    assert comments_of(text, name="plan.yaml")[PLACE] == "ours, of May"


def test_a_trials_copy_promises_no_more_steps_than_it_has():
    """--max-steps ends the stages earlier; nothing else of the plan is another."""
    comments = {PLACE: stage_notes(PLAN, 0, steps=1200), (*PLACE, "rank"): "usual"}
    found = comments_of_trial(comments, 4)
    first = "16 rows a step = 4 (micro_batch_size) x 2 (grad_accum) x 2 GPUs"
    assert found[PLACE].split("\n")[0] == f"{first}; a trial of at most 4 steps (--max-steps)."
    assert found[PLACE].split("\n")[1:] == comments[PLACE].split("\n")[1:]
    assert found[*PLACE, "rank"] == "usual"
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


# -------------------------------------------------------------------------- comments beside values


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
    (["name=other"], {RANK: COMMENTS[RANK]}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), AFTER)
def test_comments_say_what_was_changed(settings, expected):
    """And are read back from where they were written."""
    changed = set_values(SHOP, settings)
    found = comments_after(COMMENTS, SHOP, changed)
    assert {place: found[place] for place in expected} == expected
    assert settings or found == expected
    assert comments_of(plan_text(changed, found), name="plan.yaml") == found


def test_comments_of_a_second_change_and_of_options():
    """What is older stays so; a place with `options` is the place beside the stage's own keys."""
    found = comments_after(COMMENTS, SHOP, set_values(SHOP, ["stages.sft.epochs=1"]))
    again = set_values(SHOP, ["stages.0.max_steps=5"])
    assert comments_after(found, SHOP, again)[RANK] == older("epochs")
    assert comments_after(None, SHOP, SHOP) == {}
    options = {("stages", 0, "options", "rank"): "a usual rank"}
    assert comments_after(options, SHOP, set_values(SHOP, ["stages.0.rank=4"])) == {RANK: BY_SET}
