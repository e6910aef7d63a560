"""What a plan asks of a model that no loading gives is told before the model is read."""

import json

import pytest

from advisor.ground.errors import InputError
from tests.launch.conftest import CONFIG, PLAN, run

MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "mixtral"}


def refused(shop, config, *, plan=PLAN):
    """The faults of a plan whose model has this config.json; nothing may have been written."""
    (shop / "model" / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (shop / "plan.yaml").write_text(plan)
    with pytest.raises(InputError) as caught:
        run(output="out")
    assert not (shop / "out").exists()
    return caught.value.text()


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_few_bits_are_not_quantised_again(shop, method):
    """transformers would raise its own ValueError after reading the checkpoint."""
    plan = PLAN.replace("    rank: 8", "    quantization: nf4\n    rank: 8")
    text = refused(shop, {"quantization_config": {"quant_method": method}}, plan=plan)
    assert f"stored in {method}, which cannot be quantised a second time" in text
    assert "quantization: null" in text


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_quantised_weights_are_not_trained_whole(shop, method):
    """Whole weights of a packed checkpoint cannot change."""
    plan = PLAN.replace("update: lora", "update: full").replace(
        "    rank: 8                # few rows (lora/rank)\n", ""
    )
    text = refused(shop, {"quantization_config": {"quant_method": method}}, plan=plan)
    assert f"stored in {method}, whose weights are frozen" in text
    assert "name the model that the checkpoint was made from" in text


def test_with_experts_needs_a_mixture(shop):
    """A dense model has no experts to correct; a mixture does."""
    plan = PLAN.replace("    rank: 8", "    target_modules: with-experts\n    rank: 8")
    assert "needs a mixture of experts" in refused(shop, {}, plan=plan)
    (shop / "model" / "config.json").write_text(json.dumps({**CONFIG, **MIXTURE}))
    assert run(output="there").exit_code == 0


def test_models_without_sdpa_are_told_which_attention_they_have(shop):
    """gpt-oss and Gemma 2 have eager attention, and sdpa is what a plan that is silent means."""
    text = refused(shop, {"model_type": "gemma2"})
    assert "transformers has no sdpa attention for gemma2 models" in text
    assert "attention: eager" in text
