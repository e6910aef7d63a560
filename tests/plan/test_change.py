"""--set changes a plan and is checked like the file."""

import pytest

from advisor.ground.errors import InputError
from advisor.plan.read import set_values
from tests.plan.test_write import PLAN


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
