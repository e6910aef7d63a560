"""Every key that rules/updates/ declares reaches the config of its update; every update answers the
same questions.
"""

from pathlib import Path

import pytest
from msgspec import structs

from advisor.plan.keys import key_specs
from trainers.updates import load_update

ROOT = Path(__file__).resolve().parents[3]
OTHER = {
    "adapter": {"bottleneck": 9, "placement": "houlsby", "dropout": 0.25},
    "prefix": {"prefix_tokens": 7},
}
# Tested where it acts: test_prefix.py.
ELSEWHERE = {"prefix": {"prefix_text"}}


@pytest.fixture
def base(make):
    import torch

    from trainers.start import loading

    return loading.load_base(make(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("update", "key"), [(update, key) for update, keys in OTHER.items() for key in keys]
)
def test_the_key_changes_the_config(update, key, make, base):
    """A key that nothing reads would be a lie in the plan."""
    module = load_update(update)
    plain, other = make(update=update), make(update=update, **{key: OTHER[update][key]})
    assert module.peft_config(other.stage, other.options, base) != module.peft_config(
        plain.stage, plain.options, base
    )


@pytest.mark.light
@pytest.mark.parametrize("update", OTHER)
def test_every_declared_key_is_covered(update):
    """No key of the update's file is missing from the test above."""
    own = {
        key
        for key, spec in key_specs().allowed("sft", update).items()
        if spec.owner == f"update {update}"
    }
    assert own == set(OTHER[update]) | ELSEWHERE.get(update, set())


@pytest.mark.parametrize(
    "update",
    sorted(
        path.stem
        for path in (ROOT / "trainers" / "updates").glob("*.py")
        if path.stem != "__init__"
    ),
)
def test_every_update_answers_the_same_questions(update, make):
    """The module has what the Protocol asks, owned fields exist in its config class, and each is a
    field or key that exists.
    """
    from dataclasses import fields

    from advisor.plan.model import Plan, Stage

    module = load_update(update)
    assert all(
        hasattr(module, name) for name in ("PLAN_KEYS", "CONFIG", "faults", "arguments", "start")
    )
    config = module.config_class()
    stage = make(update=update).stage
    assert not module.faults(stage)
    known = (
        set(Stage.__struct_fields__)
        | set(Plan.__struct_fields__)
        | set(key_specs().allowed("sft", update))
    )
    if config is not None:
        assert set(module.PLAN_KEYS) <= {item.name for item in fields(config)} | {"revision"}
        assert set(module.PLAN_KEYS.values()) <= known
    assert not module.faults(structs.replace(stage, peft={}))
