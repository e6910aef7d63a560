"""Mixtures of experts: what a quantised base leaves in 16 bit, and what LoRA on each set of layers
trains.

Expected numbers are products of the sizes in each model's config.json, written out here.
"""

import pytest

from advisor.estimate.time import Machine
from tests.estimate.specs import RunSpec, memory_estimate, run_of, shape, time_estimate

GIB = 2**30
# layers, hidden size, experts, width of an expert; inputs + outputs of attention's four matrices.
MODELS = {
    "Qwen/Qwen3-30B-A3B": (48, 2048, 128, 768, 4 * 2048 + 2 * 32 * 128 + 2 * 4 * 128),
    "mistralai/Mixtral-8x7B-v0.1": (32, 4096, 8, 14336, 4 * 4096 + 2 * 32 * 128 + 2 * 8 * 128),
    "openai/gpt-oss-20b": (24, 2880, 32, 2880, 4 * 2880 + 2 * 64 * 64 + 2 * 8 * 64),
}


def term(memory, name):
    found = {one.name: one.size_bytes for moment in memory.moments for one in moment.terms}
    return found.get(name, 0)


@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_base_keeps_its_experts_in_16_bit(name):
    """nf4 leaves layers x experts x three matrices (and routers, below a hundredth) at 2 bytes."""
    layers, hidden, experts, width, _ = MODELS[name]
    memory = memory_estimate(RunSpec(quantization="nf4"), shape(name))
    matrices = layers * experts * 3 * hidden * width * 2
    assert term(memory, "experts left unquantised") == pytest.approx(matrices, rel=0.01)
    assert term(memory, "experts left unquantised") > matrices
    assert term(memory, "weights") < 1 * GIB  # attention at half a byte


def test_a_framework_with_linear_experts_quantises_them():
    """Published runs of transformers 4 held Mixtral in about a quarter of 87 GiB."""
    memory = memory_estimate(
        RunSpec(quantization="nf4", framework="axolotl"), shape("mistralai/Mixtral-8x7B-v0.1")
    )
    assert term(memory, "experts left unquantised") == 0
    assert memory.peak_bytes < 30 * GIB
    new = RunSpec(quantization="nf4", framework="axolotl, transformers 5.2")
    left = memory_estimate(new, shape("mistralai/Mixtral-8x7B-v0.1"))
    assert left.peak_bytes > 84 * GIB


@pytest.mark.parametrize("name", MODELS)
def test_lora_trains_attention_unless_experts_are_named(name):
    """rank x (in + out): of attention's matrices, and with `with-experts` of both tensors of each
    expert; `all-linear` means attention and shared layers.
    """
    layers, hidden, experts, width, attention = MODELS[name]
    shared = 16 * layers * attention
    routed = 16 * layers * experts * ((hidden + 2 * width) + (width + hidden))
    for word, expected in {
        "attention-and-shared": shared, "all-linear": shared, "with-experts": shared + routed,
        ("q_proj", "k_proj", "v_proj", "o_proj"): shared,
    }.items():  # fmt: skip
        assert run_of(RunSpec(rank=16, target_modules=word), shape(name)).trainable == expected


def test_names_of_a_dense_mlp_mean_shared_experts_in_a_mixture():
    """`down_proj` is no layer of Qwen3-30B-A3B; in Qwen3-Next it is that of the shared expert."""
    spec = RunSpec(rank=1, target_modules=("down_proj",))
    next_ = shape("Qwen/Qwen3-Next-80B-A3B-Instruct")
    assert run_of(spec, next_).trainable == 48 * (512 + 2048)


def test_corrections_of_experts_are_written_out_in_each_pass():
    """Without recomputing, the sum of weights and corrections is kept for all experts: 54 GiB more
    for Qwen3-30B-A3B; with it, that of one layer and its gradient.
    """
    model = shape("Qwen/Qwen3-30B-A3B")
    layers, hidden, experts, width, _ = MODELS["Qwen/Qwen3-30B-A3B"]
    one_layer = experts * (3 * hidden * width + 16 * (2 * hidden + 3 * width)) * 2
    spec = {"rank": 16, "target_modules": "with-experts"}
    kept = memory_estimate(RunSpec(gradient_checkpointing=False, **spec), model)
    assert term(kept, "experts with corrections") == layers * one_layer
    assert term(kept, "gradient of experts with corrections") == one_layer
    again = memory_estimate(RunSpec(gradient_checkpointing=True, **spec), model)
    assert term(again, "experts with corrections") == 2 * one_layer
    plain = memory_estimate(RunSpec(gradient_checkpointing=True, rank=16), model)
    assert term(plain, "experts with corrections") == 0


def test_full_fine_tuning_counts_every_expert():
    """Weights, gradients and two moments in bfloat16: 8 bytes for each of 30.5 billion."""
    memory = memory_estimate(RunSpec(update="full"), shape("Qwen/Qwen3-30B-A3B"))
    assert memory.peak_bytes > 30.5e9 * 8
    assert memory.peak_bytes < 30.5e9 * 8.5


def test_a_mixture_known_by_its_sizes_keeps_its_experts_too():
    """Of '30B-A3B' nine tenths are experts, whatever the model's name."""
    model = shape("acme-30B-A3B")
    assert model.origin == "size"
    memory = memory_estimate(RunSpec(quantization="nf4"), model)
    assert 50 * GIB < term(memory, "experts left unquantised") < 56 * GIB


def test_a_step_takes_the_time_of_the_active_parameters():
    """Qwen3-30B-A3B computes with 3.3 of its 30.5 billion, so its step is nearer to that of a 4B
    than of a 32B.
    """
    a100 = Machine(
        flops=200e12, bytes_per_s=1.6e12, link_bytes_per_s=1.8e11, launch_share=1.0, note="A100"
    )
    spec = RunSpec(micro_batch_size=4, seq_len=2048)
    step = {
        name: time_estimate(spec, shape(name), a100).step_s
        for name in ("Qwen/Qwen3-4B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-32B")
    }
    assert step["Qwen/Qwen3-30B-A3B"] < 2 * step["Qwen/Qwen3-4B"]
    assert step["Qwen/Qwen3-30B-A3B"] < step["Qwen/Qwen3-32B"] / 3
