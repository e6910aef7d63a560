"""Apple and AMD GPUs: nothing of NVIDIA's on such a page, only what runs there in the plan, and what
was never tried is said.
"""

import json
import random
from contextlib import nullcontext

import pytest

from advisor.advice.advise import advise
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.kernels import never_tried
from advisor.methods.optimizers import optimizer
from advisor.render.advice_json import advice_document
from advisor.ruleset.load import load_rules, only_layer
from advisor.situation.build import situation_of
from tests.advice.situations import random_answers, without_flips
from tests.conftest import scaled

RULES = load_rules()
GUIDE = only_layer(RULES, "document")
APPLE = ("M4 Max 64GB", "M2 16GB", "M3 Max 36GB")
AMD = ("RX 7900 XTX", "MI300X")


def advice_on(known):
    return advise(situation_of(AnswerSet(known=known)), RULES, GUIDE)


def on(gpu, **known):
    stated = {"gpu": gpu, **known}
    return advice_on({name: Answer(value=value, origin="flag") for name, value in stated.items()})


@pytest.mark.parametrize("gpus", [APPLE, AMD], ids=["apple", "amd"])
def test_nothing_of_nvidia_on_the_page(gpus):
    """No context, no generation and no optimizer that another maker's GPU does not have, in any
    answer; and a warning wherever something is trained. One in four says what would change it.
    """
    rng = random.Random(3)
    trained = 0
    for seed in range(scaled(80)):
        known = {**random_answers(seed).known, "gpu": Answer(value=rng.choice(gpus), origin="flag")}
        known.pop("gpus", None)
        try:
            with without_flips() if seed % 4 else nullcontext():
                advice = advice_on(known)
        except InputError:  # what was drawn contradicts itself
            continue
        text = json.dumps(advice_document(advice, plan=None))
        assert "CUDA" not in text
        assert "Ampere" not in text
        if not advice.recommendation.composition.chain:
            continue
        trained += 1
        assert any("never run on an A" in warning for warning in advice.warnings)
        assert any("MLX" in warning for warning in advice.warnings) is (gpus is APPLE)
        if gpus is APPLE:
            for candidate in (advice.recommendation, *advice.alternatives):
                for stage in candidate.stages:
                    assert "mps" in optimizer(str(stage.reasons["optimizer"].value)).devices
    assert trained >= 5


def test_four_bit_is_for_what_does_not_fit_otherwise_on_a_mac():
    """A small budget alone asks for it on other GPUs; here LoRA comes first while it fits."""
    qa = {"task": "other", "data_kind": "paired", "data_rows": 3000, "budget": "low"}
    small = on("M4 Max 64GB", model="Qwen/Qwen3-8B", **qa)
    assert str(small.recommendation.composition) == "sft+lora"
    large = on("M4 Max 64GB", model="Qwen/Qwen3-32B", **qa)
    assert str(large.recommendation.composition) == "sft+qlora"
    assert any("mlx_lm.convert -q" in warning for warning in large.warnings)


def test_other_gpus_have_no_such_warning():
    """NVIDIA's and the processor are what was tried."""
    for kind in ("cuda", "cpu", "unknown"):
        assert never_tried(kind, "nf4") == ()
