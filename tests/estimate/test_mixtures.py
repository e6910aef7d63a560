"""Mixtures of experts: what a quantised base leaves in 16 bit, and what LoRA on each set of layers
trains.

Expected numbers are products of the sizes in each model's config.json, written out here.
"""

import pytest

from advisor.estimate.time import Machine
from tests.estimate.specs import RunSpec, memory_estimate, run_of, shape, terms, time_estimate

GIB = 2**30
QWEN, MIXTRAL = "Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-v0.1"
# layers, hidden size, experts, width of an expert; inputs + outputs of attention's four matrices.
MODELS = {
    QWEN: (48, 2048, 128, 768, 4 * 2048 + 2 * 32 * 128 + 2 * 4 * 128),
    MIXTRAL: (32, 4096, 8, 14336, 4 * 4096 + 2 * 32 * 128 + 2 * 8 * 128),
    "openai/gpt-oss-20b": (24, 2880, 32, 2880, 4 * 2880 + 2 * 64 * 64 + 2 * 8 * 64),
}
LEFT, LAYER = "experts left unquantised", "backward pass through one layer"


@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_base_keeps_its_experts_in_16_bit(name):
    """nf4 leaves layers x experts x three matrices (and routers, below a hundredth) at 2 bytes."""
    layers, hidden, experts, width, _ = MODELS[name]
    held, matrices = terms(RunSpec(quantization="nf4"), name), 6 * layers * experts * hidden * width
    assert matrices < held[LEFT] <= 1.01 * matrices
    assert held["weights"] < 1 * GIB  # attention at half a byte


@pytest.mark.parametrize(
    ("model", "spec", "least", "most"),
    [
        # Published runs of transformers 4, with linear experts, held it in about a quarter of 87 GiB.
        (MIXTRAL, {"quantization": "nf4", "framework": "axolotl"}, 0, 30 * GIB),
        (MIXTRAL, {"quantization": "nf4", "framework": "axolotl, transformers 5.2"}, 84 * GIB, 120 * GIB),
        # Full tuning: weights, gradients and two moments in bfloat16 of 30.5 billion.
        (QWEN, {"update": "full"}, 30.5e9 * 8, 30.5e9 * 8.5),
    ],
)  # fmt: skip
def test_every_expert_is_counted_as_it_is_stored(model, spec, least, most):
    """The peak, by what trains and by the version that decides about experts."""
    assert least < memory_estimate(RunSpec(**spec), model).peak_bytes < most
    assert LEFT not in terms(RunSpec(**spec), model) or "5.2" in spec["framework"]


@pytest.mark.parametrize(
    "word",
    [
        "attention-and-shared",
        "all-linear",
        "with-experts",
        ("q_proj", "k_proj", "v_proj", "o_proj"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_lora_trains_attention_unless_experts_are_named(name, word):
    """rank x (in + out), of attention and shared layers, and of both expert tensors if named."""
    layers, hidden, experts, width, attention = MODELS[name]
    routed = experts * ((hidden + 2 * width) + (width + hidden)) * (word == "with-experts")
    trainable = run_of(RunSpec(rank=16, target_modules=word), name).trainable
    assert trainable == 16 * layers * (attention + routed)


def test_names_of_a_dense_mlp_mean_shared_experts_in_a_mixture():
    """`down_proj` is no layer of Qwen3-30B-A3B; in Qwen3-Next it is that of the shared expert."""
    spec = RunSpec(rank=1, target_modules=("down_proj",))
    assert run_of(spec, "Qwen/Qwen3-Next-80B-A3B-Instruct").trainable == 48 * (512 + 2048)


def test_corrections_of_experts_are_written_out_in_each_pass():
    """All experts' are kept (54 GiB for Qwen3-30B-A3B); with recomputing, those of one layer."""
    layers, hidden, experts, width, _ = MODELS[QWEN]
    one_layer = experts * (3 * hidden * width + 16 * (2 * hidden + 3 * width)) * 2
    kept, again, plain = (
        terms(RunSpec(rank=16, gradient_checkpointing=recompute, target_modules=word), QWEN, LAYER)
        for recompute, word in ((False, "with-experts"), (True, "with-experts"), (True, None))
    )
    written_out = "experts with corrections"
    assert kept[written_out] == layers * one_layer
    assert kept["gradient of experts with corrections"] == one_layer
    assert (again[written_out], written_out in plain) == (2 * one_layer, False)


def test_a_mixture_known_by_its_sizes_keeps_its_experts_too():
    """Of '30B-A3B' nine tenths are experts, whatever the model's name."""
    model = shape("acme-30B-A3B")
    assert model.origin == "size"
    assert 50 * GIB < terms(RunSpec(quantization="nf4"), model)[LEFT] < 56 * GIB


def test_a_step_takes_the_time_of_the_active_parameters():
    """Qwen3-30B-A3B computes with 3.3 of 30.5 billion, so it is nearer to a 4B than to a 32B."""
    a100 = Machine(
        flops=200e12, bytes_per_s=1.6e12, link_bytes_per_s=1.8e11, launch_share=1.0, note="A100"
    )
    small, mixture, large = (
        time_estimate(RunSpec(micro_batch_size=4, seq_len=2048), name, a100).step_s
        for name in ("Qwen/Qwen3-4B", QWEN, "Qwen/Qwen3-32B")
    )
    assert mixture < 2 * small
    assert mixture < large / 3
