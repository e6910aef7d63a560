"""The comments of a launch file, read back and after a change."""

from advisor.plan.comments import BY_SET, comments_after, comments_of
from advisor.plan.read import set_values
from advisor.plan.write import plan_text
from tests.plan.test_write import PLAN

STAGE = ("stages", 0)
COMMENTS = {
    (*STAGE, "learning_rate"): "usual (lora/lr)",
    (*STAGE, "epochs"): "few rows are read three times (sft/epochs-small)",
    (*STAGE, "micro_batch_size"): "the largest that fits",
    (*STAGE, "grad_accum"): "16 rows a step: usual",
    (*STAGE, "rank"): "a usual rank (lora/rank)",
    ("launch", "device"): "RTX 4090",
}


def after(*settings, comments=COMMENTS):
    return comments_after(comments, PLAN, set_values(PLAN, settings))


def test_nothing_changed_keeps_every_comment():
    """Without --set the reasons are those that were written; a place with `options` is the place
    beside the stage's own keys.
    """
    assert after() == COMMENTS
    assert comments_after(None, PLAN, PLAN) == {}
    found = after("stages.0.rank=4", comments={("stages", 0, "options", "rank"): "a usual rank"})
    assert found == {(*STAGE, "rank"): BY_SET}


def test_a_changed_value_says_that_set_changed_it():
    """Its reason is gone; the other reasons of its stage stay, and say that they are older. What
    was written beside a value is what is read for it.
    """
    changed = set_values(PLAN, ["stages.sft.epochs=1"])
    found = comments_after(COMMENTS, PLAN, changed)
    assert found[*STAGE, "epochs"] == BY_SET
    older = f"a usual rank (lora/rank); chosen before epochs was {BY_SET}"
    assert found[*STAGE, "rank"] == older
    assert found["launch", "device"] == "RTX 4090"
    again = set_values(PLAN, ["stages.0.max_steps=5"])
    assert comments_after(found, PLAN, again)[*STAGE, "rank"] == older
    assert comments_of(plan_text(changed, found), name="plan.yaml") == found


def test_a_value_that_had_no_comment_says_it_too():
    """A new key, and one that goes back to its default."""
    found = after("stages.0.max_steps=5", "data.path=b.jsonl", "stages.0.epochs=null")
    for place in ((*STAGE, "max_steps"), ("data", "path"), (*STAGE, "epochs")):
        assert found[place] == BY_SET


def test_reasons_rest_on_data_model_and_launch():
    """Any key beside the stages makes the reasons of all stages older; the name makes none."""
    for change, name in (("data.path=b.jsonl", "data.path"), ("model=other", "model")):
        found = after(change)
        assert found[*STAGE, "rank"].endswith(f"; chosen before {name} was {BY_SET}")
        assert found["launch", "device"] == "RTX 4090"
    assert after("name=other")[*STAGE, "rank"] == COMMENTS[*STAGE, "rank"]
