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
    """Without --set the reasons are those that were written."""
    assert after() == COMMENTS
    assert comments_after(None, PLAN, PLAN) == {}


def test_a_changed_value_says_that_set_changed_it():
    """Its reason is gone; the other reasons of its stage stay, and say that they are older."""
    found = after("stages.sft.epochs=1")
    assert found[*STAGE, "epochs"] == BY_SET
    assert found[*STAGE, "rank"] == f"a usual rank (lora/rank); chosen before epochs was {BY_SET}"
    assert found["launch", "device"] == "RTX 4090"
    assert (
        comments_after(found, PLAN, set_values(PLAN, ["stages.0.max_steps=5"]))[*STAGE, "rank"]
        == (found[*STAGE, "rank"])
    )


def test_a_value_that_had_no_comment_says_it_too():
    """A new key, and one that goes back to its default."""
    found = after("stages.0.max_steps=5", "stages.0.learning_rate=1e-5", "data.path=b.jsonl")
    assert found[*STAGE, "max_steps"] == BY_SET
    assert found["data", "path"] == BY_SET
    assert after("stages.0.epochs=null")[*STAGE, "epochs"] == BY_SET


def test_reasons_rest_on_data_model_and_launch():
    """Any key beside the stages makes the reasons of all stages older; the name makes none."""
    for change, name in (("data.path=b.jsonl", "data.path"), ("model=other", "model")):
        found = after(change)
        assert found[*STAGE, "rank"].endswith(f"; chosen before {name} was {BY_SET}")
        assert found["launch", "device"] == "RTX 4090"
    assert after("name=other")[*STAGE, "rank"] == COMMENTS[*STAGE, "rank"]


def test_options_are_found_where_they_stand():
    """A place with `options` is the place beside the stage's own keys."""
    found = after("stages.0.rank=4", comments={("stages", 0, "options", "rank"): "a usual rank"})
    assert found == {(*STAGE, "rank"): BY_SET}


def test_a_written_comment_is_read_back():
    """What was written beside a value is what is read for it."""
    changed = set_values(PLAN, ["stages.0.epochs=1"])
    text = plan_text(changed, after("stages.0.epochs=1"))
    assert comments_of(text, name="plan.yaml") == after("stages.0.epochs=1")
