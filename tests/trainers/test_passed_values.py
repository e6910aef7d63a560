"""Values of `trl:` and `peft:` that a library refuses are bad input, not a bug of ours."""

import json

import pytest

from trainers.__main__ import explain_error
from trainers.step.pass_through import needs_faults, type_faults

VALUES = {
    "adam_beta1": (9, "below 1"),
    "adam_beta2": (-0.1, "below 1"),
    "adam_epsilon": (-1, "at least 0"),
    "max_grad_norm": (-1, "at least 0"),
    "dataloader_num_workers": (-1, "at most 1024"),
}
MODULE_VALUES = {
    "a negative rank": ({"rank_pattern": {"q_proj": -4}}, "of 'q_proj' is -4"),
    "no rank": ({"rank_pattern": {"q_proj": "x"}}, "of 'q_proj' is 'x'"),
    "a rank of a billion": ({"rank_pattern": {"q_proj": 10**9}}, "at most 65536"),
    "no pattern": ({"rank_pattern": {"(": 4}}, "is no regular expression"),
    "no pattern to leave out": ({"exclude_modules": "("}, "is no regular expression"),
    "an endless pattern": ({"target_modules": "(a+)+$"}, "does not come to an end"),
}


@pytest.mark.parametrize(("key", "value", "allowed"), [(k, *v) for k, v in VALUES.items()])
def test_numbers_out_of_range_are_told_before_a_model_is_loaded(key, value, allowed):
    """Each has its range."""
    from trl import SFTConfig

    (fault,) = type_faults("trl", {key: value}, SFTConfig)
    assert f"'{key}' is {value}" in fault.headline
    assert allowed in fault.allowed


@pytest.mark.parametrize(("given", "told"), MODULE_VALUES.values(), ids=MODULE_VALUES.keys())
def test_patterns_of_layers_are_tried_before_a_model_is_loaded(monkeypatch, given, told):
    """What is no pattern, and what would match for ever, is named."""
    from peft import LoraConfig

    monkeypatch.setattr("trainers.step.pass_through.PATTERN_SECONDS", 0.2)
    faults = list(type_faults("peft", given, LoraConfig))
    assert told in " ".join(f"{fault.headline} {fault.allowed}" for fault in faults)


def test_what_a_library_refuses_names_the_keys(make):
    """An error inside a library is that of the keys that were passed on; without such keys, and
    where our own code fails, it stays a bug.
    """

    def raised(call, *given):
        with pytest.raises(Exception, match=r"[a-z]") as caught:
            call(*given)
        return caught.value

    library = raised(json.loads, "backend")
    job = make(trl={"torch_compile_backend": "x"}, peft={"lora_bias": True})
    told = explain_error(library, job)
    assert told.exit_code == 2
    assert "trl: torch_compile_backend, peft: lora_bias): Expecting value" in told.text()
    assert "trainer-error.log" in told.text()
    assert explain_error(library, make()).exit_code == 70
    ours = raised(list, needs_faults("trl", {"run_name": 1}, None, job))
    assert explain_error(ours, job).exit_code == 70
