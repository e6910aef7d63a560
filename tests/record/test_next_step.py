"""Command lines for the next run: each `--set` that is printed changes the run it is printed for."""

import itertools

import pytest

from advisor.plan.entries import entries
from advisor.plan.read import read_plan, set_values
from advisor.record.next_step import longer_setting, resume_command
from advisor.record.smaller import as_settings, changes, weight_changes

LENGTHS = ({}, {"epochs": 5.0}, {"max_steps": 60}, {"epochs": 3.0, "max_steps": 7})
UPDATES = ({"update": "lora"}, {"update": "lora", "quantization": "nf4"}, {"update": "full"})
OVERRIDES = (None, {}, {"epochs": 4.0}, {"max_steps": 9}, {"micro_batch_size": 2, "seq_len": 600})


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """A plan of each length, update and override."""
    path = tmp_path_factory.mktemp("plans") / "plan.yaml"
    found = []
    for length, update, override in itertools.product(LENGTHS, UPDATES, OVERRIDES):
        keys = {"name": "sft", "objective": "sft", "micro_batch_size": 4, **length, **update}
        rows = "data: {path: a.jsonl}"
        if override is not None:
            rows = f"tasks: [{{name: hr, data: {{path: a.jsonl}}, overrides: {override}}}]"
        stage = ", ".join(
            f"{key}: {value}" for key, value in {**keys, "learning_rate": 1e-4}.items()
        )
        path.write_text(f"model: m\n{rows.replace(chr(39), '')}\nstages: [{{{stage}}}]\n")
        found.append(read_plan(path))
    return found


def test_every_setting_that_is_advised_changes_its_stage(plans):
    """In what decides: `max_steps` where the plan has it, a task's own key where it has one."""
    for plan in plans:
        (entry,) = entries(plan)
        (longer,) = entries(set_values(plan, [longer_setting(entry)]))
        steps, more = entry.stage.max_steps, longer.stage.max_steps
        assert (more == 2 * steps) if steps else (longer.stage.epochs == 2 * entry.stage.epochs)
        for change in (*changes(entry.stage), *weight_changes(entry.stage)):
            words = as_settings(entry, change).replace("--set ", "").split()
            (smaller,) = entries(set_values(plan, words))
            for key, value in change.values.items():
                if value is not None:
                    assert getattr(smaller.stage, key) == value != getattr(entry.stage, key)


def test_a_command_can_be_pasted():
    """Spaces are quoted, a folder is no option, and what the call was given is there."""
    assert resume_command("my runs/shop", only="legal", max_steps=3, judge=False) == (
        "advise run 'my runs/shop' --only legal --max-steps 3 --no-judge"
    )
    assert resume_command("-x") == "advise run ./-x"
