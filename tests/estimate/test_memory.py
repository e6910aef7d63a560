"""Memory estimates against hand sums, published bytes, and what must hold for any setting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.model.dims import dims_of
from advisor.ground.types import Gpu, Hardware, ModelShape
from advisor.ground.units import GIB
from advisor.probe.catalogue import find_gpu
from tests.conftest import examples
from tests.estimate.specs import RunSpec, estimate, memory_estimate, run_of, shape
from tests.estimate.specs import terms as terms_of

LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"
MODELS = (
    "Qwen/Qwen3-0.6B", LLAMA, "mistralai/Mixtral-8x7B-Instruct-v0.1", "google/gemma-2-2b",
    "HuggingFaceTB/SmolLM2-135M",
)  # fmt: skip
STEP, START = "optimizer step", "loss and start of the backward pass"
LAYER, WRITING = "backward pass through one layer", "generating answers"


def needs(spec, name):
    """Bytes that must be there."""
    return memory_estimate(spec, shape(name)).need_bytes


def peak(spec: RunSpec, name: str = LLAMA, *, cpu: bool = False) -> int:
    return memory_estimate(spec, shape(name), cpu=cpu).peak_bytes


def terms(spec: RunSpec, name: str = LLAMA, moment: str = STEP) -> dict[str, int]:
    return terms_of(spec, name, moment)


def test_full_tuning_in_bf16_peaks_at_ten_bytes_a_parameter():
    """IBM's fms-acceleration measured 67.459 GiB for Mistral 7B at 8 x 4096 tokens: 10 bytes x 7.24
    billion.
    """
    spec = RunSpec(
        update="full", precision="pure", optimizer="adamw", micro_batch_size=8, seq_len=4096,
        loss="fused", framework="fms-hf-tuning (TRL SFTTrainer)", packing=True,
    )  # fmt: skip
    assert peak(spec, "mistralai/Mistral-7B-v0.1") / GIB == pytest.approx(67.459, rel=0.002)


def test_a_fused_step_saves_the_foreach_temporaries():
    """The optimizer step of a fused AdamW holds weights, gradients and two moments: 8 bytes a
    parameter.
    """
    spec = RunSpec(update="full", optimizer="adamw_fused", micro_batch_size=1, seq_len=16)
    assert sum(terms(spec).values()) == 8 * 8_030_261_248


def test_lora_keeps_twelve_bytes_and_a_gradient_per_trainable_parameter():
    """Rank 16 on q, k, v, o of Mistral 7B trains 13,631,488 parameters (32 layers x 16 x 26,624),
    kept in float32 with two moments.
    """
    spec = RunSpec(rank=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    assert run_of(spec, shape("mistralai/Mistral-7B-v0.1")).trainable == 13_631_488
    step = terms(spec, "mistralai/Mistral-7B-v0.1")
    assert step["adapters"] + step["optimizer state"] + step["gradients"] == 16 * 13_631_488


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize(("framework", "width"), [("LLaMA-Factory", 2), ("", 4)])
def test_trained_embeddings_are_copies_with_gradient_and_moments(quantization, framework, width):
    """Both matrices of Llama 3.1 8B (2 x 128,256 x 4,096) are copied, by PEFT in 16 bit, by the
    bundled trainers in float32: copy, gradient and two moments are 8 or 16 bytes of each number.
    """
    spec = RunSpec(rank=16, quantization=quantization, framework=framework)
    plain, found = terms(spec), terms(replace(spec, options={"train_embeddings": True}))
    numbers = 2 * 128_256 * 4096
    assert sum(found.values()) - sum(plain.values()) == 4 * width * numbers
    assert found["trained embeddings and output"] == width * numbers


# Llama 3.1 8B: numbers of embeddings and output, of norms, and of linear layers.
EMBEDDINGS, NORMS = 2 * 128_256 * 4096, 65 * 4096
LINEAR = 8_030_261_248 - EMBEDDINGS - NORMS
NF4 = RunSpec(quantization="nf4")
FULL_DPO = RunSpec(
    objective="dpo", update="full", weights_dtype="bfloat16", gpus=2, sharding="fsdp"
)
DEEPSPEED = RunSpec(
    update="full", optimizer="adamw_cpu", micro_batch_size=1, seq_len=8192, gpus=8,
    framework="DeepSpeed",
)  # fmt: skip
FLAT = RunSpec(
    update="lora", micro_batch_size=1, seq_len=1034, gpus=2, sharding="fsdp", framework="lit-gpt",
    counter="allocated", gradient_checkpointing=True,
)  # fmt: skip
PPO = RunSpec(
    objective="ppo", micro_batch_size=8, grad_accum=8, seq_len=512, options={"response_tokens": 256}
)
SUMS = {
    "nf4: half a byte of linear weights, scales, and the rest in 16 bit": (
        NF4, LLAMA, STEP,
        {"weights": LINEAR // 2, "quantisation constants": round(LINEAR * (1 / 64 + 4 / 16384)),
         "weights left unquantised": 2 * (EMBEDDINGS + NORMS)},
    ),
    "without double quantization a float32 scale per 64 weights": (
        replace(NF4, double_quantization=False), LLAMA, STEP,
        {"quantisation constants": LINEAR // 16},
    ),
    "PEFT's preparation turns what is not quantised into float32": (
        replace(NF4, kbit_prepared=True), LLAMA, STEP,
        {"weights left unquantised": 4 * (EMBEDDINGS + NORMS)},
    ),
    # `python -m tests.distributed --memory` counts as many.
    "a divided reference keeps the dtype of the plan, pure": (
        replace(FULL_DPO, precision="pure"), QWEN, STEP, {"reference model": 8_190_735_360},
    ),
    "a divided reference keeps the dtype of the plan, mixed": (
        replace(FULL_DPO, precision="mixed"), QWEN, STEP, {"reference model": 8_190_735_360},
    ),
    "ZeRO-2 of DeepSpeed holds two buckets": (
        replace(DEEPSPEED, sharding="zero2"), LLAMA, START,
        {"communication buckets": 2 * 2 * 500_000_000},
    ),
    "ZeRO-3 holds three": (
        replace(DEEPSPEED, sharding="zero3"), LLAMA, START,
        {"communication buckets": 3 * 2 * 500_000_000},
    ),
    "frozen weights in one flat parameter with adapters have gradients of the whole layer": (
        FLAT, LLAMA, LAYER, {"first gradients": 2 * dims_of(shape(LLAMA)).layer_params * 2},
    ),
    "accelerate wraps adapters for themselves": (
        replace(FLAT, framework="fms-hf-tuning"), LLAMA, LAYER, {"first gradients": None},
    ),
    # More rows in a batch add no logits.
    "PPO scores a part of the tokens": (
        PPO, LLAMA, START,
        {"last hidden states": 6 * 4096 * 8 * 512, "logits and loss": 3 * 2048 * 128_256 * 4},
    ),
    "PPO writes 32 answers at a time": (
        PPO, LLAMA, WRITING, {"keys and values of answers": 32 * 512 * 32 * 2 * 1024 * 2},
    ),
    "PPO writes no more answers than there are": (
        replace(PPO, grad_accum=1), LLAMA, WRITING,
        {"keys and values of answers": 8 * 512 * 32 * 2 * 1024 * 2},
    ),
    "a paged state is not counted on the device": (
        RunSpec(update="full", optimizer="paged_adamw"), QWEN, STEP, {"optimizer state": None},
    ),
    "nor in 8 bit": (
        RunSpec(update="full", optimizer="paged_adamw_8bit"), QWEN, STEP, {"optimizer state": None},
    ),
    "nor one of the host": (
        RunSpec(update="full", optimizer="adamw_cpu"), QWEN, STEP, {"optimizer state": None},
    ),
    # On adapters the reference is the base with the adapter off.
    "DPO on adapters holds no second model": (
        RunSpec(objective="dpo"), QWEN, STEP, {"reference model": None},
    ),
    "full DPO does": (
        RunSpec(objective="dpo", update="full"), QWEN, STEP, {"reference model": 2 * 8_190_735_360},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_a_term_is_what_a_sum_by_hand_says(name):
    """To the byte; None where there is no such term."""
    spec, model, moment, expected = SUMS[name]
    found = terms(spec, model, moment)
    assert {term: found.get(term) for term in expected} == expected


def test_published_load_of_a_one_billion_llama():
    """fsdp_qlora's profile of a custom 1B LLaMA printed 2.311 GB (decimal) after loading bf16
    weights.
    """
    custom = ModelShape(
        id="custom", origin="folder",
        params=24 * (4 * 2048**2 + 3 * 2048 * 4096 + 2 * 2048) + 2 * 32000 * 2048 + 2048,
        architecture="llama", hidden_size=2048, layers=24,
        heads=16, kv_heads=16, head_dim=128, intermediate_size=4096, vocab_size=32000,
        tied_embeddings=False,
    )  # fmt: skip
    result = memory_estimate(RunSpec(update="full"), custom)
    weights = next(term.size_bytes for term in result.moments[0].terms if term.name == "weights")
    assert weights / 1e9 == pytest.approx(2.311, rel=0.02)
    assert weights / GIB < 2.15  # the same bytes in GiB are a smaller number


def test_a_step_inside_the_backward_pass_holds_no_gradients():
    """With the optimizer in the backward pass only one layer's gradients exist at a time."""
    spec = RunSpec(update="full", optimizer_in_backward=True, micro_batch_size=1, seq_len=16)
    assert terms(spec)["gradients"] < 8_030_261_248 * 2 / 20


def test_models_beside_the_one_that_trains_take_memory():
    """A full DPO holds a second one; full PPO needs policy, reference, reward and value at once,
    which on adapters share the base.
    """
    assert peak(RunSpec(objective="dpo", micro_batch_size=4)) > peak(RunSpec(micro_batch_size=4))
    full, shared = (
        peak(RunSpec(objective="ppo", update=update), "Qwen/Qwen3-0.6B")
        for update in ("full", "lora")
    )
    assert full > 2 * shared


def test_ppo_is_estimated_with_what_its_loop_holds_at_once():
    """Logits of a part of the tokens and so many answers at a time, as trainers/ppo/rollout.py
    says.
    """
    from advisor.estimate.memory.activations import PART_GPU_TOKENS, PART_LOGIT_BYTES
    from advisor.estimate.methods.ppo import ANSWERS_AT_ONCE
    from trainers.ppo.rollout import LOGIT_BYTES
    from trainers.rollouts.transformers_engine import AT_ONCE
    from trainers.step.answer_loss import TILE_TOKENS

    assert (ANSWERS_AT_ONCE, PART_LOGIT_BYTES) == (AT_ONCE, LOGIT_BYTES)
    assert PART_GPU_TOKENS == TILE_TOKENS
    host = memory_estimate(PPO, shape(LLAMA), cpu=True)
    found = [term for one in host.moments for term in one.terms if term.name == "logits and loss"]
    assert max(term.size_bytes for term in found) == 3 * 64 * 2**20


def test_layers_checkpointed_in_parts_keep_four_hidden_states():
    """NeMo Automodel wraps attention, MLP and both norms of each layer; its labels come shifted, so
    the logits are not copied once more.
    """
    spec = RunSpec(
        update="full", precision="pure", micro_batch_size=8, seq_len=2048, gpus=8, sharding="fsdp",
        loss="full", framework="NeMo Automodel", counter="allocated",
    )  # fmt: skip
    name, plain = "meta-llama/Llama-3.2-1B", replace(spec, framework="torchtune")
    ours, theirs = (terms(one, name, START) for one in (plain, spec))
    assert theirs["activations"] == 4 * ours["activations"]
    assert theirs["logits and loss"] == ours["logits and loss"] * 12 / 14
    again = [terms(one, name, LAYER)["recomputed layer"] for one in (spec, plain)]
    assert again[0] < again[1]


def test_our_sharded_modules_compute_as_on_one_gpu_and_full_weights_in_16_bit():
    """FSDP casts weights that train in place alone: a float32 base is gathered as it is, its
    residual stream is float32, and autocast makes the copies that it makes on one GPU.
    """
    spec = RunSpec(
        update="lora", weights_dtype="float32", precision="mixed", seq_len=1024, gpus=8,
        sharding="fsdp",
    )  # fmt: skip
    other = {"weights_dtype": "bfloat16"}, {"update": "full"}, {"gpus": 1, "sharding": None}
    wide, half, full, alone = (terms(replace(spec, **keys), moment=LAYER) for keys in ({}, *other))
    copies = "16-bit copies of frozen weights"
    assert wide["gathered weights"] == 2 * half["gathered weights"]
    assert full["gathered weights"] == half["gathered weights"]
    assert wide["activations"] == alone["activations"] == 2 * full["activations"]
    assert wide[copies] == alone[copies]
    assert copies not in half


def test_deepspeed_on_one_device_has_its_float32_copies_and_nothing_to_divide():
    """Qwen's README: full tuning of 1.84 billion parameters on one GPU took 43.5 GiB at every
    length: 22 bytes a parameter, the buckets, the context. Its step makes one flat copy of all
    gradients, then that in float32 (deepspeed/runtime/zero/stage_1_and_2.py).
    """
    spec = RunSpec(
        update="full", precision="pure", optimizer="adamw", micro_batch_size=1, seq_len=256,
        framework="HF Trainer", gpus=1, sharding="zero2", gradient_checkpointing=True,
    )  # fmt: skip
    name = "Qwen/Qwen-1_8B-Chat"
    step = terms(spec, name)
    held = (
        "weights",
        "float32 master weights",
        "optimizer state",
        "gradients",
        "float32 gradients",
    )
    assert sum(step[term] for term in held) == pytest.approx(22 * shape(name).params)
    assert step["communication buckets"] == 2_000_000_000
    assert peak(replace(spec, sharding=None), name) < 0.6 * peak(spec, name)


def test_embeddings_of_each_layer_are_never_quantised():
    """Gemma 4 E2B has 2.35 billion of its 4.63 billion parameters in them."""
    dims = dims_of(shape("google/gemma-4-E2B"))
    lookups = 35 * 256 * 262144
    assert dims.embedding_params == 262144 * 1536 + lookups
    held = terms(RunSpec(update="lora", quantization="nf4", gpus=1), "google/gemma-4-E2B")
    assert held["weights left unquantised"] > 2 * lookups
    assert held["weights"] < 0.5 * (dims.params - lookups)


def test_the_default_loss_never_holds_whole_logits():
    """TRL 1.16 computes the loss in tiles, so the bundled trainers' default lies far below full
    logits.
    """
    spec = RunSpec(micro_batch_size=8, seq_len=2048)
    full = peak(replace(spec, loss="full"))
    assert peak(spec) < 0.75 * full


@pytest.mark.parametrize(
    ("update", "norms"),
    # A norm of plain torch keeps a float32 copy, and if its scale trains the normalised input in 16
    # bit; Liger its input. The result, which a trained matrix needs, is kept by both.
    [("lora", 2 * 4 - 2 * 2), ("full", 2 * (4 + 2) - 2 * 2)],
)
def test_liger_keeps_less_of_norms_and_gates(update, norms):
    """The activated gate is computed again (2 B a number of the MLP's width). Hand sum for Llama 3.1
    8B: 32 layers, hidden 4096, width 14336. auto counts as none: the machine is not known.
    """
    spec = RunSpec(
        update=update, precision="mixed" if update == "lora" else "pure", seq_len=1024,
        micro_batch_size=2, rank=16, gradient_checkpointing=False,
    )  # fmt: skip
    plain, auto, liger = (
        terms(replace(spec, kernels=word), moment=START)["activations"]
        for word in ("none", "auto", "liger")
    )
    assert auto == plain
    assert plain - liger == 2048 * 32 * (norms * 4096 + 2 * 14336)


def cpu_terms(spec: RunSpec, **rows: bool) -> dict[str, int]:
    found = memory_estimate(spec, shape("HuggingFaceTB/SmolLM2-135M"), cpu=True, **rows)
    return {term.name: term.size_bytes for term in found.peak.terms}


def test_the_cpu_has_float32_weights_and_no_cuda_context():
    """On the CPU the weights take 4 bytes and Python itself is counted."""
    names = cpu_terms(RunSpec(counter="nvidia-smi"))
    assert names["weights"] == 4 * 134_515_008
    assert "CUDA context" not in names
    assert "Python and libraries" in names


def test_a_measured_cpu_run_lies_within_the_right_size():
    """A LoRA step of SmolLM2-135M (4 x 128 tokens) peaks below 3 GiB of RAM: what a laptop has, not
    what a server has.
    """
    spec = RunSpec(rank=16, micro_batch_size=4, seq_len=128, gradient_checkpointing=False)
    assert 1.2 < peak(spec, "HuggingFaceTB/SmolLM2-135M", cpu=True) / GIB < 3.0


def test_the_cpu_holds_the_logits_of_two_thousand_tokens():
    """More tokens add none, whatever trains."""
    spec = RunSpec(update="lora", rank=16, micro_batch_size=4, weights_dtype="float32")
    for chosen in (spec, replace(spec, update="full"), replace(spec, micro_batch_size=2)):
        assert cpu_terms(chosen)["logits and loss"] == 3 * 2048 * 49_152 * 4


def test_padded_rows_on_the_cpu_keep_masks_and_repeated_keys():
    """Rows of one length need neither."""
    lengths = ((512, 5), (1024, 5))
    spec = RunSpec(
        update="lora", rank=16, micro_batch_size=4, gradient_checkpointing=False, lengths=lengths,
        precision="pure",
    )  # fmt: skip
    padded, alike = cpu_terms(spec), cpu_terms(replace(spec, lengths=((1024, 10),)))
    tokens = 4 * 1024 * 30
    # A float32 mask, and keys and values for 9 heads of 64 instead of 3.
    more = tokens * (4 * 1024 + 2 * 4 * (9 - 3) * 64)
    assert padded["activations"] - alike["activations"] == more
    assert cpu_terms(replace(spec, seq_len=2048))["activations"] == padded["activations"]


def test_memory_of_layers_run_again_serves_no_logits_on_the_cpu():
    """Where layers are run again, more freed memory is held, though less comes and goes."""
    spec = RunSpec(update="lora", rank=16, micro_batch_size=4, weights_dtype="float32")
    kept = "freed memory not returned"
    again, plain = (cpu_terms(replace(spec, gradient_checkpointing=one)) for one in (True, False))
    assert again[kept] > 0.1 * GIB + 0.5 * again["logits and loss"]
    assert again["activations"] < plain["activations"]


def test_counters_are_ordered():
    """allocated <= active <= reserved <= nvidia-smi, for the same run."""
    counters = ("allocated", "active", "reserved", "nvidia-smi")
    values = [peak(RunSpec(counter=counter)) for counter in counters]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_a_shape_without_dimensions_is_not_guessed():
    """A parameter count alone gives no memory estimate here."""
    alone = ModelShape(id="x", origin="size", params=7_000_000_000)
    assert memory_estimate(RunSpec(), alone) is None


def test_a_guessed_shape_widens_the_band_and_says_so():
    """A model known by its size alone has a wider band and its note among the warnings."""
    known = memory_estimate(RunSpec(), shape("Qwen/Qwen3-8B"))
    wide = memory_estimate(RunSpec(), shape("SomeModel 9B"))
    assert wide.high_bytes / wide.peak_bytes > known.high_bytes / known.peak_bytes
    assert any("guessed" in warning for warning in wide.warnings)


def test_unknown_hardware_rules_nothing_out():
    """With unknown hardware fit is unknown and the memory is still said."""
    unknown = Hardware(kind="unknown", origin="unknown")
    result = estimate(RunSpec(), shape("Qwen/Qwen3-8B"), unknown)
    assert result.fits == "unknown"
    assert result.memory is not None
    assert "hardware" in result.unknown


def test_a_24_gib_card_holds_qlora_of_8b_and_not_its_full_tuning():
    """The textbook case: 8B on 24 GiB works with QLoRA and not in full."""
    card = Hardware(
        kind="cuda", origin="stated", gpus=(Gpu(name="card", memory_total_bytes=24 * GIB),)
    )
    model = shape("meta-llama/Llama-3.1-8B")
    assert estimate(RunSpec(quantization="nf4", micro_batch_size=2), model, card).fits == "fits"
    assert estimate(RunSpec(update="full"), model, card).fits == "too_big"


specs = st.builds(
    RunSpec,
    objective=st.sampled_from(["sft", "dpo", "ppo", "rm", "kto", "orpo", "grpo"]),
    update=st.sampled_from(["full", "lora", "adapter", "prefix"]),
    rank=st.sampled_from([None, 1, 8, 64, 256]),
    optimizer=st.sampled_from(
        [None, "adamw", "adamw_8bit", "paged_adamw", "adafactor", "sgd", "adamw_cpu"]
    ),
    micro_batch_size=st.integers(1, 16),
    seq_len=st.sampled_from([16, 128, 1024, 8192]),
    grad_accum=st.sampled_from([1, 8]),
    gradient_checkpointing=st.sampled_from([True, False, "selective", "offload"]),
    attention=st.sampled_from(["sdpa", "eager"]),
    loss=st.sampled_from([None, "full", "fused", "chunked"]),
    gpus=st.sampled_from([1, 2, 8]),
    sharding=st.sampled_from([None, "ddp", "zero2", "zero3", "fsdp"]),
    options=st.sampled_from([{}, {"train_embeddings": True}]),
    counter=st.sampled_from(["allocated", "active", "reserved", "nvidia-smi", "unknown"]),
)


@examples(3)
@given(
    spec=specs, name=st.sampled_from(MODELS), cpu=st.booleans(),
    memory_gib=st.sampled_from([8, 16, 24, 48, 80, 192]),
)  # fmt: skip
def test_every_number_is_finite_positive_and_adds_up(spec, name, cpu, memory_gib):
    """No term is negative or NaN, the peak is the sum of its terms, and the band encloses it. Less
    memory changes the reading and not the need, which is at most the uncapped reading.
    """
    free = memory_estimate(spec, shape(name), cpu=cpu)
    assert all(
        math.isfinite(term.size_bytes) and term.size_bytes >= 0 and term.because
        for moment in free.moments
        for term in moment.terms
    )
    assert free.peak_bytes == sum(term.size_bytes for term in free.peak.terms)
    assert 0 < free.low_bytes <= free.peak_bytes <= free.high_bytes
    free = memory_estimate(spec, shape(name))
    found = memory_estimate(spec, shape(name), device_bytes=memory_gib * GIB)
    assert found.need_bytes == free.need_bytes <= free.peak_bytes
    assert found.needed.total_bytes == found.need_bytes
    assert 0 < found.need_low_bytes <= found.need_bytes <= found.need_high_bytes
    assert found.readable_bytes is not None
    assert found.peak_bytes == min(free.peak_bytes, found.readable_bytes)
    assert found.peak.total_bytes == max(found.peak_bytes, found.need_bytes)


@examples(3)
@given(spec=specs, name=st.sampled_from(MODELS), more=st.integers(1, 8))
def test_memory_grows_with_batch_length_and_rank(spec, name, more):
    """A larger batch, a longer sequence or a higher rank never holds fewer tensors, nor needs less
    memory, to 1 %: what the allocator loses is tabulated. Cached blocks may become fewer, since
    larger tensors fill them.
    """
    larger = (
        replace(spec, micro_batch_size=spec.micro_batch_size + more),
        replace(spec, seq_len=spec.seq_len + 64 * more),
        replace(spec, rank=(spec.rank or 16) + more),
    )
    for one in larger:
        assert needs(one, name) >= 0.99 * needs(spec, name)
        if spec.counter in ("allocated", "active"):
            assert peak(one, name) >= peak(spec, name)


@examples(3)
@given(
    spec=specs, name=st.sampled_from(MODELS), sharding=st.sampled_from(["zero2", "zero3", "fsdp"])
)
def test_sharding_never_raises_one_devices_share(spec, name, sharding):
    """Dividing the model over devices never holds more tensors on each than a whole copy, nor do
    more devices. What an allocator keeps beside them may not follow.
    """
    spec = replace(spec, counter="allocated")
    whole = peak(replace(spec, gpus=4, sharding="ddp"), name)
    four = peak(replace(spec, gpus=4, sharding=sharding), name)
    assert four <= whole * 1.001
    assert peak(replace(spec, gpus=8, sharding=sharding), name) <= four * 1.001


@examples(2)
@given(spec=specs, name=st.sampled_from(MODELS))
def test_qlora_needs_no_more_than_lora_and_lora_no_more_than_full(spec, name):
    """For the same shape and batch with checkpointing, the tensors of QLoRA <= LoRA <= full. What
    an allocator keeps beside them may not follow, nor copies of trained embeddings of a tiny model.
    """
    spec = replace(
        spec, counter="allocated", options={}, objective="sft", gradient_checkpointing=True,
        sharding=None, gpus=1, optimizer="adamw", rank=16,
    )  # fmt: skip
    full, lora, qlora = (
        peak(replace(spec, update=update, quantization=bits), name)
        for update, bits in (("full", None), ("lora", None), ("lora", "nf4"))
    )
    assert qlora <= lora <= full


@pytest.mark.parametrize(("counter", "most"), [("reserved", 79.45 - 0.6), ("nvidia-smi", 79.45)])
def test_a_reading_never_exceeds_the_gpu_and_the_need_does(counter, most):
    """CUDA hands out about 79.3 GiB of an 80 GB A100 (PyTorch's messages), and a counter of the
    allocator shows no context; full tuning of 70B needs several times that.
    """
    gpu = find_gpu("A100-SXM4-80GB").spec
    spec = RunSpec(update="full", counter=counter)
    found = memory_estimate(spec, shape("meta-llama/Llama-3.3-70B-Instruct"), device=gpu)
    assert found.peak_bytes / GIB == pytest.approx(most, abs=0.1)
    assert found.high_bytes == gpu.memory_bytes
    assert found.need_bytes > 500 * GIB
    assert found.needed.total_bytes == found.need_bytes


def test_cached_blocks_are_given_back_before_a_run_fails():
    """What a padded run keeps of other lengths fills the GPU and no more, and is no need."""
    gpu = find_gpu("A100-SXM4-40GB").spec
    spec = RunSpec(
        update="lora", micro_batch_size=8, seq_len=4096, framework="ms-swift", counter="nvidia-smi"
    )
    free, bounded = (
        memory_estimate(spec, shape("mistralai/Mistral-7B-v0.1"), device=device)
        for device in (None, gpu)
    )
    assert bounded.peak_bytes < 40 * GIB < free.peak_bytes
    assert bounded.peak.total_bytes == bounded.peak_bytes
    assert bounded.need_bytes == free.need_bytes < 40 * GIB


@pytest.mark.parametrize("memory_gib", [None, 24, 80])
def test_a_reading_over_many_lengths_has_a_band_above_zero(memory_gib):
    """An epoch of 50,000 short rows and a few long ones leaves a cache of several times the need,
    most of which may not come; the lower end stays above zero.
    """
    spec = RunSpec(
        loss="full", micro_batch_size=4, seq_len=8192, lengths=((500, 50_000), (8192, 10)),
        framework="ms-swift", counter="reserved",
    )  # fmt: skip
    found = memory_estimate(
        spec, shape("Qwen/Qwen3-4B"), device_bytes=memory_gib and memory_gib * GIB
    )
    assert 0 < found.low_bytes <= found.peak_bytes <= found.high_bytes
