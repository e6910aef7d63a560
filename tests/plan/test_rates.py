"""A plan that names no learning rate."""

from dataclasses import replace

import pytest

from advisor.ground.yaml_files import parse_yaml
from advisor.plan.comments import borrowed_rate_warnings
from advisor.plan.read import plan_from_data

PLAN = "name: p\nmodel: m\ndata: {path: d.jsonl}\nstages: [{name: one, update: lora, %s}]\n"


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
    document = parse_yaml(PLAN % stage, name="plan.yaml")
    plan = plan_from_data(document)
    told = list(borrowed_rate_warnings(document.data, plan))
    assert [line.partition(", which")[0] for line in told] == (
        ["stage one names no learning_rate and takes 0.0002"] if is_told else []
    )
    changed = replace(plan, stages=(replace(plan.stages[0], learning_rate=1e-6),))
    assert not list(borrowed_rate_warnings(document.data, changed))
