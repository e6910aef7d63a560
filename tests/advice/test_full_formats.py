"""Which format full fine-tuning gets: the one with the most exact updates that the memory holds."""

from __future__ import annotations

import pytest

from advisor.advice.planning import comment_of
from tests.advice.situations import asked, fitted

FLOAT32 = ("float32", "mixed", "adamw_fused")
SPLIT = ("bfloat16", "pure", "adamw_split")
STOCHASTIC = ("bfloat16", "pure", "adamw_stochastic")


def fitted_on(model, gpu, composition="sft+full"):
    return fitted(composition, asked(task="other", model=model, gpu=gpu, data_rows=20_000))


def formats(stage):
    return tuple(stage.reasons[key].value for key in ("weights_dtype", "precision", "optimizer"))


@pytest.mark.parametrize(
    ("composition", "model", "gpu", "wanted", "fits"),
    [
        # 1.7e9, 4.0e9 and 8.2e9 weights at 16 to 18, 10 and 8 bytes, with gradients of earlier
        # micro-batches, on 80, 48 and 24 GB.
        ("sft+full", "Qwen/Qwen3-1.7B", "H100", FLOAT32, "fits"),
        ("sft+full", "Qwen/Qwen3-4B", "A100 80GB", SPLIT, "fits"),
        # Of SPLIT the upper end is above 48 GiB.
        ("sft+full", "Qwen/Qwen3-4B", "RTX A6000", STOCHASTIC, "fits"),
        ("sft+full", "Qwen/Qwen3-8B", "H100", STOCHASTIC, "fits"),
        ("sft+full", "Qwen/Qwen3-1.7B", "RTX 4090", SPLIT, "fits"),
        # Nothing says that memory is short.
        ("sft+full", "Qwen/Qwen3-8B", "unknown", FLOAT32, "unknown"),
        ("sft+full", "Qwen/Qwen3-0.6B", "T4", FLOAT32, "fits"),  # no bfloat16 there
        ("sft+full", "Qwen/Qwen3-4B", "T4", FLOAT32, "too_big"),
        # Of formats that are all too big the smallest is kept: that is what must fit.
        ("sft+full", "Qwen/Qwen3-8B", "RTX 4090", STOCHASTIC, "too_big"),
        # A module that does not fit is told as usual: its trained part is float32 anyway.
        ("sft+lora", "meta-llama/Llama-3.1-70B", "RTX 4090",
         ("bfloat16", "mixed", "adamw_fused"), "too_big"),
    ],
)  # fmt: skip
def test_the_memory_decides_the_format(composition, model, gpu, wanted, fits):
    """float32 weights where they fit, else bfloat16 weights in two halves, else bfloat16 weights
    rounded at random; never bfloat16 weights with an optimizer that rounds updates away.
    """
    stage = fitted_on(model, gpu, composition)
    assert (formats(stage), stage.cost.fits) == (wanted, fits)


def test_a_processor_keeps_float32():
    """In which precision it computes depends on the processor."""
    assert formats(fitted_on("Qwen/Qwen3-4B", "none"))[::2] == ("float32", "adamw_fused")


def test_the_comment_says_what_the_format_before_would_need():
    """Beside the value stands why it is not float32, in GiB, and the rule."""
    text = comment_of(fitted_on("Qwen/Qwen3-4B", "A100 80GB").reasons["weights_dtype"])
    assert text.startswith("weights_dtype float32 would need ")
    assert " GiB, and there are 80.0 GiB: bfloat16 weights" in text
    assert text.endswith("(base/split-weights-on-gpu)")
    need = float(text.split("would need ")[1].split(" GiB")[0])
    assert need > 16 * 4.02e9 / 2**30  # 16 bytes a weight, of 4.02e9 weights
    text = comment_of(fitted_on("Qwen/Qwen3-8B", "H100").reasons["optimizer"])
    assert "optimizer adamw_split would need" in text
    assert "and there are 79.6 GiB" in text


@pytest.mark.parametrize("objective", ["dpo", "sft>rm>ppo", "grpo", "rm", "kto"])
def test_every_objective_keeps_small_updates(objective):
    """Preference and reinforcement stages at 1e-6 and less need it most."""
    for gpu in ("H100", "RTX 4090"):
        stage = fitted_on("Qwen/Qwen3-1.7B", gpu, f"{objective}+full")
        assert formats(stage) in (FLOAT32, SPLIT, STOCHASTIC)
