"""Memory estimates against hand sums, published bytes, and what must hold for any setting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.estimate.memory.peak import memory_estimate as memory_of
from advisor.estimate.model.dims import dims_of
from advisor.estimate.time import Machine
from advisor.ground.types import ModelShape
from advisor.ground.units import GIB
from advisor.plan.model import Launch, Plan, PlanData, Stage, VLLMServer
from advisor.probe.catalogue import find_gpu
from advisor.situation.of_plan import plan_run
from tests.conftest import examples
from tests.estimate.specs import (
    RunSpec,
    estimate,
    hardware_with,
    memory_estimate,
    run_of,
    shape,
    terms,
    time_estimate,
)

LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"
MODELS = (
    "Qwen/Qwen3-0.6B", LLAMA, "mistralai/Mixtral-8x7B-Instruct-v0.1", "google/gemma-2-2b",
    "HuggingFaceTB/SmolLM2-135M",
)  # fmt: skip
STEP, START = "optimizer step", "loss and start of the backward pass"
LAYER, WRITING = "backward pass through one layer", "generating answers"


def bytes_of(what, *given):
    """A run's peak, need, or the term or terms of a moment; None if it has no such term."""
    spec = {"model": LLAMA, "moment": STEP, "cpu": False}
    for one in given:
        spec |= one
    model, moment, cpu = (spec.pop(key) for key in ("model", "moment", "cpu"))
    if what in ("peak", "need"):
        return getattr(memory_estimate(RunSpec(**spec), model, cpu=cpu), f"{what}_bytes")
    held = terms(RunSpec(**spec), model, moment, cpu=cpu)
    return held.get(what) if isinstance(what, str) else sum(held[name] for name in what or held)


def peak(spec, name=LLAMA):
    return memory_estimate(spec, name).peak_bytes


def at_most(size_bytes):
    return pytest.approx(0, abs=size_bytes)


EVERY = ()  # terms of a moment
# Llama 3.1 8B: all its numbers, those of embeddings and output, of norms, and of linear layers.
ALL, EMBEDDINGS, NORMS = 8_030_261_248, 2 * 128_256 * 4096, 65 * 4096
LINEAR = ALL - EMBEDDINGS - NORMS
MISTRAL, SMOLLM, LLAMA_7B = (
    "mistralai/Mistral-7B-v0.1", "HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-2-7b-hf",
)  # fmt: skip
ONE_BILLION = ModelShape(
    id="custom", origin="folder",
    params=24 * (4 * 2048**2 + 3 * 2048 * 4096 + 2 * 2048) + 2 * 32000 * 2048 + 2048,
    architecture="llama", hidden_size=2048, layers=24,
    heads=16, kv_heads=16, head_dim=128, intermediate_size=4096, vocab_size=32000,
    tied_embeddings=False,
)  # fmt: skip
FULL, NF4, TWO = {"update": "full"}, {"quantization": "nf4"}, {"gpus": 2, "sharding": "fsdp"}
IN_16_BIT = {"weights_dtype": "bfloat16"}
FULL_DPO = {"model": QWEN, "objective": "dpo", **FULL, **IN_16_BIT, **TWO}
DEEPSPEED = {
    **FULL, "optimizer": "adamw_cpu", "micro_batch_size": 1, "seq_len": 8192, "gpus": 8,
    "framework": "DeepSpeed", "moment": START,
}  # fmt: skip
ON_ONE_DEVICE = {
    **FULL, "model": "Qwen/Qwen-1_8B-Chat", "precision": "pure", "optimizer": "adamw",
    "micro_batch_size": 1, "seq_len": 256, "framework": "HF Trainer", "gpus": 1, "sharding": "zero2",
    "gradient_checkpointing": True,
}  # fmt: skip
HELD_BY_ZERO = (
    "weights", "float32 master weights", "optimizer state", "gradients", "float32 gradients",
)  # fmt: skip
FLAT = {
    "update": "lora", "micro_batch_size": 1, "seq_len": 1034, **TWO, "framework": "lit-gpt",
    "counter": "allocated", "gradient_checkpointing": True, "moment": LAYER,
}  # fmt: skip
# Llama 2 7B by lit-gpt: adapters and frozen weights are one flat parameter.
NO_SYNC = {
    "model": LLAMA_7B, "framework": "lit-gpt", **TWO, "grad_accum": 128, "loss": "chunked",
    "moment": LAYER,
}  # fmt: skip
ADAM = {**FULL, "model": "meta-llama/Llama-3.2-1B", "framework": "transformers"}
# axolotl's example of gpt-oss 20B on two GPUs of 24 GB: three gathered layers and two of gradients.
OFFLOADED = {
    **FULL, **TWO, "model": "openai/gpt-oss-20b", "framework": "axolotl", "offload_weights": True,
    "gradient_checkpointing": "offload", "seq_len": 4096, "packing": True, "grad_accum": 2,
    "loss": "chunked", "counter": "unknown", "precision": "pure", "attention": "flash_attention_2",
    "moment": LAYER,
}  # fmt: skip
LOGIT, SCORED = "logits and loss", 4096 * 151_936
OTHERS = {"model": QWEN, "framework": "a script of 2026", "seq_len": 4096, "precision": "mixed"}
OTHERS |= {"gradient_checkpointing": True, "moment": START}
# NeMo Automodel's labels come shifted.
IN_PARTS = {
    **FULL, "model": "meta-llama/Llama-3.2-1B", "precision": "pure", "micro_batch_size": 8,
    "seq_len": 2048, "gpus": 8, "sharding": "fsdp", "loss": "full", "counter": "allocated",
    "moment": START,
}  # fmt: skip
AUTOMODEL, TORCHTUNE = {"framework": "NeMo Automodel"}, {"framework": "torchtune"}
# FSDP casts weights that train in place alone: a float32 base is gathered as it is, its residual
# stream is float32, and autocast makes the copies that it makes on one GPU.
WIDE = {
    "update": "lora", "weights_dtype": "float32", "precision": "mixed", "seq_len": 1024, "gpus": 8,
    "sharding": "fsdp", "moment": LAYER,
}  # fmt: skip
ALONE, COPIES = {"gpus": 1, "sharding": None}, "16-bit copies of frozen weights"
PPO = {
    "objective": "ppo", "micro_batch_size": 8, "grad_accum": 8, "seq_len": 512,
    "options": {"response_tokens": 256},
}  # fmt: skip
WRITES = {**PPO, "moment": WRITING}
ON_CPU = {
    "model": SMOLLM, "cpu": True, "moment": "peak", "rank": 16, "micro_batch_size": 4,
    "weights_dtype": "float32",
}  # fmt: skip
LOGITS = {"logits and loss": 3 * 2048 * 49_152 * 4}
SUMS = [
    # IBM's fms-acceleration measured 67.459 GiB at 8 x 4096 tokens: 10 bytes x 7.24 billion.
    ("full tuning of Mistral 7B in bf16 peaks at ten bytes a parameter",
     {**FULL, "model": MISTRAL, "precision": "pure", "optimizer": "adamw", "packing": True,
      "micro_batch_size": 8, "seq_len": 4096, "loss": "fused",
      "framework": "fms-hf-tuning (TRL SFTTrainer)"},
     {"peak": pytest.approx(67.459 * GIB, rel=0.002)}),
    ("a fused step holds weights, gradients and two moments, and no foreach temporaries",
     {**FULL, "optimizer": "adamw_fused", "micro_batch_size": 1, "seq_len": 16}, {EVERY: 8 * ALL}),
    ("with the optimizer in the backward pass only one layer's gradients exist at a time",
     {**FULL, "optimizer_in_backward": True, "micro_batch_size": 1, "seq_len": 16},
     {"gradients": at_most(ALL * 2 / 20)}),
    # 32 layers x 16 x 26,624 numbers, in float32.
    ("LoRA of rank 16 on q, k, v, o keeps two moments and a gradient",
     {"model": MISTRAL, "rank": 16, "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj")},
     {"adapters": 4 * 13_631_488, "optimizer state": 8 * 13_631_488, "gradients": 4 * 13_631_488}),
    # fsdp_qlora's profile printed 2.311 GB (decimal) after loading bf16 weights.
    ("a custom LLaMA of a billion parameters is loaded as published",
     {**FULL, "model": ONE_BILLION}, {"weights": pytest.approx(2.311e9, rel=0.016)}),
    ("nf4: half a byte of linear weights, scales, and the rest in 16 bit",
     NF4,
     {"weights": LINEAR // 2, "quantisation constants": round(LINEAR * (1 / 64 + 4 / 16384)),
      "weights left unquantised": 2 * (EMBEDDINGS + NORMS)}),
    ("without double quantization a float32 scale per 64 weights",
     {**NF4, "double_quantization": False}, {"quantisation constants": LINEAR // 16}),
    ("PEFT's preparation turns what is not quantised into float32",
     {**NF4, "kbit_prepared": True}, {"weights left unquantised": 4 * (EMBEDDINGS + NORMS)}),
    # `python -m tests.distributed --memory` counts as many.
    ("a divided reference keeps the dtype of the plan, pure",
     {**FULL_DPO, "precision": "pure"}, {"reference model": 8_190_735_360}),
    ("a divided reference keeps the dtype of the plan, mixed",
     {**FULL_DPO, "precision": "mixed"}, {"reference model": 8_190_735_360}),
    ("DDP's buckets are a second copy of all gradients",
     {**FULL, "model": QWEN, "gpus": 2}, {"communication buckets": 2 * 8_190_735_360}),
    ("others make a pair's logits whole, the reference's beside the policy's",
     {**OTHERS, "objective": "dpo"}, {LOGIT: 2 * SCORED * 16}),
    *((f"{name} makes logits of so much of the row",
       {**OTHERS, "objective": "grpo", "framework": name, "options": {"response_tokens": 1024}},
       {LOGIT: SCORED * per}) for name, per in (("verl 2026", 12), ("TRL 2026", 3))),
    ("verl keeps 16-bit weights", {**FULL, **OTHERS, **TWO, "framework": "verl"},
     {"weights": 8_190_735_360}),
    ("Liger's fused loss never makes all logits",
     {**OTHERS, "kernels": "liger", "loss": "fused"}, {LOGIT: at_most(SCORED)}),
    ("Automodel gathers no expert", {**NO_SYNC, **AUTOMODEL, "model": "Qwen/Qwen3-30B-A3B"},
     {"gathered weights": at_most(3 * GIB)}),
    ("attention left open is none that no device has room for",
     {**OTHERS, "model": "openai/gpt-oss-20b", "seq_len": 131_072, "moment": LAYER},
     {"recomputed layer": at_most(200 * GIB)}),
    ("DeepSpeed keeps float32 weights on several devices too",
     {**DEEPSPEED, "sharding": "zero3", "optimizer": "adamw"},
     {("weights", "float32 master weights"): pytest.approx(6 * shape(LLAMA).params / 8)}),
    # Qwen's README: 43.5 GiB at every length, of 1.84 billion parameters: 22 bytes, buckets, context.
    ("DeepSpeed on one device has its float32 copies",
     ON_ONE_DEVICE,
     {HELD_BY_ZERO: pytest.approx(22 * shape("Qwen/Qwen-1_8B-Chat").params)}),
    # sub_group_size is 1e9: a device's share of a 70B model is stepped on in parts.
    ("ZeRO-3 steps on one group of float32 gradients at a time",
     {**FULL, "model": "meta-llama/Llama-3.1-70B", "framework": "DeepSpeed", "gpus": 8,
      "sharding": "zero3", "fp32_master_weights": True, "optimizer": "adamw"},
     {"float32 gradients": 4_000_000_000}),
    ("DeepSpeed moves gradients as they come",
     {**DEEPSPEED, "model": LLAMA_7B, "sharding": "zero2"}, {"gradients": None}),
    ("transformers' own AdamW steps on one parameter at a time",
     {**ADAM, "optimizer": "adamw_hf"}, {"optimizer temporaries": 2 * 128256 * 2048}),
    ("PyTorch's on lists of all",
     {**ADAM, "optimizer": "adamw"}, {"optimizer temporaries": 2 * 1_235_814_400}),
    ("and twice before 2.1",
     {**ADAM, "optimizer": "adamw", "library_versions": {"torch": "2.0.1"}},
     {"optimizer temporaries": 4 * 1_235_814_400}),
    ("frozen weights in one flat parameter with adapters have gradients of the whole layer",
     FLAT, {"first gradients": 2 * dims_of(shape(LLAMA)).layer_params * 2}),
    ("accelerate wraps adapters for themselves",
     {**FLAT, "framework": "fms-hf-tuning"}, {"first gradients": None}),
    ("under no_sync gradients of earlier micro-batches are whole",
     NO_SYNC, {"gradients of earlier micro-batches": pytest.approx(12.1 * GIB, rel=0.02)}),
    ("and adapters' own where they are wrapped for themselves",
     {**NO_SYNC, "framework": "transformers"},
     {"gradients of earlier micro-batches": at_most(0.02 * 12.1 * GIB)}),
    ("of one micro-batch there is no earlier one",
     {**NO_SYNC, "grad_accum": 1}, {"gradients of earlier micro-batches": None}),
    ("who adds gradients up in parts keeps none",
     {**NO_SYNC, **TORCHTUNE}, {"gradients of earlier micro-batches": None}),
    ("FSDP 2 with offload holds a unit's gradient and what is on its way",
     OFFLOADED, {"peak": pytest.approx(21 * GIB, rel=0.15)}),
    ("half weights of a sharded base need no copies", {**WIDE, **IN_16_BIT}, {COPIES: None}),
    # More rows in a batch add no logits.
    ("PPO scores a part of the tokens",
     {**PPO, "moment": START},
     {"last hidden states": 6 * 4096 * 8 * 512, "logits and loss": 3 * 2048 * 128_256 * 4}),
    ("PPO writes 32 answers at a time",
     WRITES, {"keys and values of answers": 32 * 512 * 32 * 2 * 1024 * 2}),
    ("PPO writes no more answers than there are",
     {**WRITES, "grad_accum": 1}, {"keys and values of answers": 8 * 512 * 32 * 2 * 1024 * 2}),
    *((f"a state of {optimizer} is not counted on the device",
       {**FULL, "model": QWEN, "optimizer": optimizer}, {"optimizer state": None})
      for optimizer in ("paged_adamw", "paged_adamw_8bit", "adamw_cpu")),
    # On adapters the reference is the base with the adapter off.
    ("DPO on adapters holds no second model",
     {"model": QWEN, "objective": "dpo"}, {"reference model": None}),
    ("full DPO does",
     {"model": QWEN, "objective": "dpo", **FULL}, {"reference model": 2 * 8_190_735_360}),
    ("on the CPU weights take 4 bytes and there is no CUDA context",
     {"model": SMOLLM, "cpu": True, "moment": "peak", "counter": "nvidia-smi"},
     {"weights": 4 * 134_515_008, "CUDA context": None,
      "Python and libraries": pytest.approx(GIB, abs=GIB - 1)}),
    # 4 x 128 tokens: what a laptop has, not what a server has.
    ("a LoRA step of SmolLM2-135M on the CPU peaks as measured",
     {"model": SMOLLM, "cpu": True, "rank": 16, "micro_batch_size": 4, "seq_len": 128,
      "gradient_checkpointing": False},
     {"peak": pytest.approx(2.1 * GIB, abs=0.9 * GIB)}),
    ("the CPU holds the logits of two thousand tokens", ON_CPU, LOGITS),
    ("whatever trains", {**ON_CPU, **FULL}, LOGITS),
    ("and however many there are", {**ON_CPU, "micro_batch_size": 2}, LOGITS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"), [row[1:] for row in SUMS], ids=[row[0] for row in SUMS]
)
def test_a_term_is_what_a_sum_by_hand_or_a_publication_says(given, expected):
    """To the byte, or as near as a measured number is; None where there is no such term."""
    assert {what: bytes_of(what, given) for what in expected} == expected


@pytest.mark.parametrize(
    ("what", "spec", "more", "less", "low", "high"),
    [
        # A full DPO holds a second model; full PPO policy, reference, reward and value at once,
        # which on adapters share the base.
        ("peak", {"micro_batch_size": 4}, {"objective": "dpo"}, {}, 1 + 1e-9, 99),
        ("peak", {"model": "Qwen/Qwen3-0.6B", "objective": "ppo"}, FULL, {"update": "lora"}, 2, 99),
        # TRL 1.16 computes the loss in tiles, and so do the bundled trainers.
        ("peak", {"micro_batch_size": 8, "seq_len": 2048}, {"loss": "full"}, {}, 1 / 0.75, 99),
        ("peak", ON_ONE_DEVICE, {}, {"sharding": None}, 1 / 0.6, 99),
        # Layers that are checkpointed in parts keep four hidden states, and run less again.
        ("logits and loss", IN_PARTS, TORCHTUNE, AUTOMODEL, 14 / 12, 14 / 12),
        ("gathered weights", WIDE, {}, IN_16_BIT, 2, 2),
        ("gathered weights", WIDE, FULL, IN_16_BIT, 1, 1),
        ("activations", WIDE, {}, ALONE, 1, 1),
        ("activations", WIDE, {}, FULL, 2, 2),
        (COPIES, WIDE, {}, ALONE, 1, 1),
    ],
)  # fmt: skip
def test_one_setting_takes_so_many_times_as_much(what, spec, more, less, low, high):
    """From the lower to the upper number."""
    assert low - 1e-9 <= bytes_of(what, spec, more) / bytes_of(what, spec, less) <= high + 1e-9


WITH_EMBEDDINGS = {"rank": 16, "options": {"train_embeddings": True}}
# A norm of plain torch keeps a float32 copy, and if its scale trains the normalised input in 16 bit;
# Liger its input. The result, which a trained matrix needs, is kept by both. The activated gate is
# computed again: 2 B a number of the MLP's width. 32 layers, hidden 4096, width 14336.
GATES = {
    "rank": 16, "seq_len": 1024, "micro_batch_size": 2, "gradient_checkpointing": False,
    "kernels": "none", "moment": START,
}  # fmt: skip
UPDATES = (
    ({"update": "lora", "precision": "mixed"}, 2 * 4 - 2 * 2),
    ({"update": "full", "precision": "pure"}, 2 * (4 + 2) - 2 * 2),
)
PADDED = {
    "model": SMOLLM, "cpu": True, "moment": "peak", "update": "lora", "rank": 16, "precision": "pure",
    "micro_batch_size": 4, "gradient_checkpointing": False, "lengths": ((512, 5), (1024, 5)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "spec", "without", "least", "most"),
    [
        # Both matrices are copied, by PEFT in 16 bit, by the bundled trainers in float32: copy,
        # gradient and two moments are 8 or 16 bytes of each number.
        *((what, {**WITH_EMBEDDINGS, "quantization": bits, "framework": framework}, {"options": {}},
           share * width * EMBEDDINGS, share * width * EMBEDDINGS)
          for bits in (None, "nf4") for framework, width in (("LLaMA-Factory", 2), ("", 4))
          for what, share in ((EVERY, 4), ("trained embeddings and output", 1))),
        *(("activations", {**GATES, **update}, {"kernels": "liger"},
           2048 * 32 * (norms * 4096 + 2 * 14336), 2048 * 32 * (norms * 4096 + 2 * 14336))
          for update, norms in UPDATES),
        # auto counts as none: the machine is not known.
        *(("activations", {**GATES, **update}, {"kernels": "auto"}, 0, 0) for update, _ in UPDATES),
        # Padded rows on the CPU keep a float32 mask, and keys and values for 9 heads of 64 instead
        # of 3; rows of one length need neither, and none is longer than the longest.
        ("activations", PADDED, {"lengths": ((1024, 10),)},
         *[4 * 1024 * 30 * (4 * 1024 + 2 * 4 * (9 - 3) * 64)] * 2),
        ("activations", PADDED, {"seq_len": 2048}, 0, 0),
        # Before 0.43 a four-bit product kept its input: results of both norms, and the MLP's last
        # input, without checkpointing.
        ("activations",
         {**NF4, "framework": "transformers", "gradient_checkpointing": False, "seq_len": 1024,
          "target_modules": ("q_proj", "v_proj"), "library_versions": {"bitsandbytes": "0.42"},
          "moment": LAYER},
         {"library_versions": {"bitsandbytes": "0.43.1"}}, 1024 * 32 * 2 * (2 * 4096), math.inf),
    ],
)  # fmt: skip
def test_one_setting_takes_so_many_bytes_more(what, spec, without, least, most):
    """Than the same run with another setting in its place."""
    assert least <= bytes_of(what, spec) - (bytes_of(what, spec, without) or 0) <= most


@pytest.mark.train
def test_ppo_is_estimated_with_what_its_loop_holds_at_once():
    """Logits of part of the tokens and as many answers at a time as trainers/ppo/rollout.py."""
    from advisor.estimate.memory.activations import PART_GPU_TOKENS, PART_LOGIT_BYTES
    from advisor.estimate.methods.ppo import ANSWERS_AT_ONCE
    from trainers.ppo.rollout import LOGIT_BYTES
    from trainers.rollouts.transformers_engine import AT_ONCE
    from trainers.step.answer_loss import TILE_TOKENS

    assert (ANSWERS_AT_ONCE, PART_LOGIT_BYTES) == (AT_ONCE, LOGIT_BYTES)
    assert PART_GPU_TOKENS == TILE_TOKENS
    host = memory_estimate(RunSpec(**PPO), LLAMA, cpu=True)
    found = [term for one in host.moments for term in one.terms if term.name == "logits and loss"]
    assert max(term.size_bytes for term in found) == 3 * 64 * 2**20


def test_embeddings_of_each_layer_are_never_quantised():
    """Gemma 4 E2B has 2.35 billion of its 4.63 billion parameters in them."""
    dims, lookups = dims_of(shape("google/gemma-4-E2B")), 35 * 256 * 262144
    assert dims.embedding_params == 262144 * 1536 + lookups
    held = terms(RunSpec(update="lora", quantization="nf4", gpus=1), "google/gemma-4-E2B")
    assert held["weights left unquantised"] > 2 * lookups
    assert held["weights"] < 0.5 * (dims.params - lookups)


def test_memory_of_layers_run_again_serves_no_logits_on_the_cpu():
    """Where layers are run again, more freed memory is held, though less comes and goes."""
    again, plain = ({**ON_CPU, "gradient_checkpointing": one} for one in (True, False))
    held = bytes_of("freed memory not returned", again)
    assert held > 0.1 * GIB + 0.5 * bytes_of("logits and loss", again)
    assert bytes_of("activations", again) < bytes_of("activations", plain)


def test_counters_are_ordered():
    """allocated <= active <= reserved <= nvidia-smi, for the same run."""
    counters = ("allocated", "active", "reserved", "nvidia-smi")
    values = [bytes_of("peak", {"counter": counter}) for counter in counters]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_a_guessed_shape_widens_the_band_and_says_so():
    """A size alone gives a wider band and a warning; a parameter count alone gives no estimate."""
    known, wide = (memory_estimate(RunSpec(), name) for name in (QWEN, "SomeModel 9B"))
    assert wide.high_bytes / wide.peak_bytes > known.high_bytes / known.peak_bytes
    assert any("guessed" in warning for warning in wide.warnings)
    alone = ModelShape(id="x", origin="size", params=7_000_000_000)
    assert memory_estimate(RunSpec(), alone) is None


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
    """Terms sum to the peak inside the band; less memory changes the reading, never the need."""
    free = memory_estimate(spec, name, cpu=cpu)
    assert all(
        math.isfinite(term.size_bytes) and term.size_bytes >= 0 and term.because
        for moment in free.moments
        for term in moment.terms
    )
    assert free.peak_bytes == sum(term.size_bytes for term in free.peak.terms)
    assert 0 < free.low_bytes <= free.peak_bytes <= free.high_bytes
    free = memory_estimate(spec, name)
    found = memory_estimate(spec, name, device_bytes=memory_gib * GIB)
    assert found.need_bytes == free.need_bytes <= free.peak_bytes
    assert found.needed.total_bytes == found.need_bytes
    assert 0 < found.need_low_bytes <= found.need_bytes <= found.need_high_bytes
    assert found.readable_bytes is not None
    assert found.peak_bytes == min(free.peak_bytes, found.readable_bytes)
    assert found.peak.total_bytes == max(found.peak_bytes, found.need_bytes)


@examples(3)
@given(
    spec=specs, name=st.sampled_from(MODELS), more=st.integers(1, 8),
    sharding=st.sampled_from(["zero2", "zero3", "fsdp"]),
)  # fmt: skip
def test_memory_grows_with_batch_length_and_rank_and_shrinks_with_gpus(spec, name, more, sharding):
    """Larger batches, lengths and ranks never hold fewer tensors, nor more devices more on each."""
    for larger in (
        {"micro_batch_size": spec.micro_batch_size + more}, {"seq_len": spec.seq_len + 64 * more},
        {"rank": (spec.rank or 16) + more},
    ):  # fmt: skip
        found, plain = (memory_estimate(one, name) for one in (replace(spec, **larger), spec))
        assert found.need_bytes >= 0.99 * plain.need_bytes  # the allocator's loss is tabulated
        if spec.counter in ("allocated", "active"):  # larger tensors may fill cached blocks
            assert found.peak_bytes >= plain.peak_bytes
    whole, four, eight = (
        peak(replace(spec, counter="allocated", gpus=gpus, sharding=how), name)
        for gpus, how in ((4, "ddp"), (4, sharding), (8, sharding))
    )
    kept = 4 * shape(name).params if sharding.startswith("zero") else 0  # DeepSpeed's masters
    assert four <= whole * 1.001 + kept
    assert eight <= four * 1.001


@examples(2)
@given(spec=specs, name=st.sampled_from(MODELS))
def test_qlora_needs_no_more_than_lora_and_lora_no_more_than_full(spec, name):
    """For one shape and batch, with checkpointing, the tensors of QLoRA <= LoRA <= full."""
    # What an allocator keeps, and a tiny model's copies of trained embeddings, may not follow.
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
    """CUDA hands out some 79.3 GiB of 80 GB (PyTorch's messages); an allocator shows no context."""
    gpu = find_gpu("A100-SXM4-80GB").spec
    spec = RunSpec(update="full", counter=counter)
    found = memory_estimate(spec, "meta-llama/Llama-3.3-70B-Instruct", device=gpu)
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
    free, bounded = (memory_estimate(spec, MISTRAL, device=device) for device in (None, gpu))
    assert bounded.peak_bytes < 40 * GIB < free.peak_bytes
    assert bounded.peak.total_bytes == bounded.peak_bytes
    assert bounded.need_bytes == free.need_bytes < 40 * GIB
    found = estimate(spec, MISTRAL, hardware_with(48))  # nor do they decide what fits
    assert found.memory.peak_bytes > 0.95 * 48 * GIB
    assert (found.is_likely, found.fits != "too_big") == (True, True)


EVEN = tuple((128 * step, 50) for step in range(1, 17))  # rows of even lengths up to 2,048 tokens
RAGGED = RunSpec(
    framework="transformers Trainer", counter="reserved", micro_batch_size=4, seq_len=2048,
    loss="full", lengths=EVEN,
)  # fmt: skip


def cached(found, name="cache of other lengths"):
    return sum(term.size_bytes for term in found.peak.terms if term.name == name)


def test_lengths_that_differ_raise_the_reading_and_hardly_the_need():
    """Cached lengths are given back when short; our runs expand segments (trainer_process.py)."""
    ragged, packed, own = (
        memory_estimate(replace(RAGGED, **changed), LLAMA)
        for changed in ({}, {"packing": True}, {"framework": None})
    )
    assert cached(packed) == 0
    assert cached(ragged) > 5 * GIB
    assert ragged.peak_bytes - packed.peak_bytes > 5 * GIB
    assert abs(ragged.need_bytes - packed.need_bytes) < 2 * GIB
    small = memory_estimate(RAGGED, LLAMA, device_bytes=40 * GIB)
    assert small.peak_bytes < 40 * GIB
    assert small.need_bytes == ragged.need_bytes
    assert cached(own) < 0.05 * own.peak_bytes
    assert own.peak_bytes - own.need_bytes < 0.1 * own.peak_bytes


@pytest.mark.parametrize("counter", ["allocated", "active"])
def test_a_counter_of_tensors_shows_no_cache(counter):
    """Allocated and active memory hold no cached blocks."""
    found = memory_estimate(replace(RAGGED, counter=counter), LLAMA)
    names = {one.name for one in found.peak.terms}
    assert not names & {"allocator cache", "cache of other lengths", "fragmentation"}


MODEL = "Qwen/Qwen3-8B"
H100 = hardware_with("H100 SXM")
CARD = H100.gpus[0].spec
GRPO = RunSpec(
    objective="grpo", update="lora", rank=32, micro_batch_size=1, grad_accum=64, seq_len=2048,
    options={"generations": 16, "response_tokens": 1024},
)  # fmt: skip
VLLM = replace(GRPO, options={**GRPO.options, "rollouts": "vllm"})


def test_a_server_generates_faster_and_the_rest_of_a_step_is_the_same():
    own, served, sft = (
        time_estimate(spec, MODEL, "H100 SXM")
        for spec in (GRPO, VLLM, replace(GRPO, objective="sft"))
    )
    assert served.generate_s == pytest.approx(own.served_s)
    assert own.generate_s > 1.5 * served.generate_s
    assert own.step_s - own.generate_s == pytest.approx(served.step_s - served.generate_s)
    assert sft.generate_s == 0


def test_a_server_that_sleeps_is_there_while_answers_are_written_alone():
    awake, asleep = (
        memory_estimate(replace(VLLM, server_memory=0.6, framework=name), MODEL, device=CARD)
        for name in ("trl 0.26", "EasyR1 0.3.2 (verl)")
    )
    assert asleep.needed.name == "generating answers"
    assert asleep.need_bytes < awake.need_bytes


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (GRPO, "of a step; a vLLM server"),
        (VLLM, None),
        (replace(GRPO, update="ia3"), None),  # no server takes such a module
        (replace(GRPO, objective="sft"), None),
    ],
)
def test_the_advice_says_what_a_server_would_save(spec, said):
    found = [text for text in estimate(spec, shape(MODEL), H100).memory.warnings if "vLLM" in text]
    assert [said in text for text in found] == ([True] if said else [])


def test_a_server_on_the_same_gpu_takes_its_share_of_it():
    """launch.vllm with gpus 0: 0.4 of 80 GB beside everything that trains."""
    memory_bytes = H100.gpus[0].memory_total_bytes
    stage = Stage(
        name="grpo", objective="grpo", update="lora", learning_rate=1e-5,
        options={"rollouts": "vllm"},
    )  # fmt: skip
    plan = Plan(model="m", data=PlanData(path="x"), stages=(stage,))
    alone, shared, beside = (
        memory_of(
            plan_run(
                replace(plan, launch=Launch(device="cuda", vllm=server)), stage, shape(MODEL), H100
            )
        )
        for server in (None, VLLMServer(python="p", gpus=0, memory=0.4), VLLMServer(python="p"))
    )
    assert shared.peak_bytes - alone.peak_bytes == pytest.approx(0.4 * memory_bytes, rel=0.12)
    assert beside.peak_bytes == alone.peak_bytes
    (term,) = [term for term in shared.peak.terms if term.name.startswith("vLLM server")]
    assert term.size_bytes == pytest.approx(0.4 * memory_bytes)


STUDENT, TEACHER_PARAMS = shape("Qwen/Qwen3-0.6B"), 8_190_735_360  # of Qwen3-8B
DISTILL = RunSpec(objective="distill", precision="mixed", micro_batch_size=4, grad_accum=4)
ON_STORED = {"teacher_params": TEACHER_PARAMS, "response_tokens": 256, "on_policy": 0.0}


@pytest.mark.parametrize(
    ("spec", "generates"),
    [
        (GRPO, True),
        (VLLM, False),  # with a server of its own GPU the trainer never holds answers
        (replace(VLLM, objective="ppo"), True),
        (replace(DISTILL, options=ON_STORED), False),
    ],
)
def test_training_alone_generates_nothing(spec, generates):
    moments = [moment.name for moment in memory_estimate(spec, STUDENT).moments]
    assert ("generating answers" in moments) is generates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"teacher_params": TEACHER_PARAMS}, TEACHER_PARAMS * 2),
        ({"teacher_params": TEACHER_PARAMS, "teacher_quantization": "nf4"}, 0.55 * TEACHER_PARAMS),
        ({"teacher_params": 0}, 0),  # the student's own frozen base
        ({}, STUDENT.params * 2),  # not known: taken as large as the student
    ],
    ids=["16-bit", "4-bit", "own-base", "not-known"],
)
def test_the_teacher_stands_beside_the_student(options, expected):
    """Its weights are a line of every moment, by its own size and quantization."""
    held = terms(replace(DISTILL, options=options), STUDENT, "peak").get("teacher", 0)
    assert held == pytest.approx(expected, rel=1e-6, abs=1)


QWEN_MIXTURE, MIXTRAL = "Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-v0.1"
# layers, hidden size, experts, width of an expert; inputs + outputs of attention's four matrices.
MIXTURES = {
    QWEN_MIXTURE: (48, 2048, 128, 768, 4 * 2048 + 2 * 32 * 128 + 2 * 4 * 128),
    MIXTRAL: (32, 4096, 8, 14336, 4 * 4096 + 2 * 32 * 128 + 2 * 8 * 128),
    "openai/gpt-oss-20b": (24, 2880, 32, 2880, 4 * 2880 + 2 * 64 * 64 + 2 * 8 * 64),
}
LEFT, ONE_LAYER = "experts left unquantised", "backward pass through one layer"


@pytest.mark.parametrize("name", MIXTURES)
def test_nf4_packs_experts_and_int8_leaves_them_in_16_bit(name):
    """Layers x experts x three matrices (and routers, below a hundredth): half a byte each, or two;
    of a divided base a part, but two where it is divided only once it has loaded. While it loads,
    gate and up of all experts of a layer come besides."""
    layers, hidden, experts, width, _ = MIXTURES[name]
    matrices = 3 * layers * experts * hidden * width
    eight, packed = (terms(RunSpec(quantization=word), name) for word in ("int8", "nf4"))
    assert 2 * matrices < eight[LEFT] <= 2.02 * matrices
    assert LEFT not in packed
    assert matrices / 2 < packed["weights"] < matrices / 2 + GIB
    shared = {"quantization": "nf4", "gpus": 2, "sharding": "fsdp"}
    divided, late = (terms(RunSpec(**shared, **more), name) for more in ({}, {"update": "prefix"}))
    assert (divided["weights"], LEFT in divided) == (packed["weights"] / 2, False)
    assert matrices < late[LEFT] <= 1.01 * matrices
    loading = terms(RunSpec(quantization="nf4"), name, "loading")
    # MXFP4 in 16 bit and packed twice; of other files 16 bit twice besides.
    each = 2 if "gpt-oss" in name else 5
    assert loading["one matrix on its way"] == each * 2 * matrices / layers / 3


@pytest.mark.parametrize(
    ("model", "spec", "least", "most"),
    [
        # Published runs of transformers 4, with linear experts, held it in about a quarter of 87 GiB.
        (MIXTRAL, {"quantization": "nf4", "framework": "axolotl"}, 0, 30 * GIB),
        (MIXTRAL, {"quantization": "nf4", "framework": "axolotl, transformers 5.2"}, 84 * GIB, 120 * GIB),
        # Full tuning: weights, gradients and two moments in bfloat16 of 30.5 billion.
        (QWEN_MIXTURE, {"update": "full"}, 30.5e9 * 8, 30.5e9 * 8.5),
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
@pytest.mark.parametrize("name", MIXTURES)
def test_lora_trains_attention_unless_experts_are_named(name, word):
    """rank x (in + out), of attention and shared layers, and of both expert tensors if named."""
    layers, hidden, experts, width, attention = MIXTURES[name]
    routed = experts * ((hidden + 2 * width) + (width + hidden)) * (word == "with-experts")
    trainable = run_of(RunSpec(rank=16, target_modules=word), name).trainable
    assert trainable == 16 * layers * (attention + routed)


def test_names_of_a_dense_mlp_mean_shared_experts_in_a_mixture():
    """`down_proj` is no layer of Qwen3-30B-A3B; in Qwen3-Next it is that of the shared expert."""
    spec = RunSpec(rank=1, target_modules=("down_proj",))
    assert run_of(spec, "Qwen/Qwen3-Next-80B-A3B-Instruct").trainable == 48 * (512 + 2048)


def test_corrections_of_experts_are_written_out_in_each_pass():
    """All experts' are kept (54 GiB for Qwen3-30B-A3B); with recomputing, those of one layer."""
    layers, hidden, experts, width, _ = MIXTURES[QWEN_MIXTURE]
    one_layer = experts * (3 * hidden * width + 16 * (2 * hidden + 3 * width)) * 2
    kept, again, plain = (
        terms(
            RunSpec(rank=16, gradient_checkpointing=recompute, target_modules=word),
            QWEN_MIXTURE,
            ONE_LAYER,
        )
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
    assert 50 * GIB < terms(RunSpec(quantization="int8"), model)[LEFT] < 56 * GIB


def test_a_step_takes_the_time_of_the_active_parameters():
    """Qwen3-30B-A3B computes with 3.3 of 30.5 billion, so it is nearer to a 4B than to a 32B."""
    a100 = Machine(
        flops=200e12, bytes_per_s=1.6e12, link_bytes_per_s=1.8e11, launch_share=1.0, note="A100"
    )
    small, mixture, large = (
        time_estimate(RunSpec(micro_batch_size=4, seq_len=2048), name, a100).step_s
        for name in ("Qwen/Qwen3-4B", QWEN_MIXTURE, "Qwen/Qwen3-32B")
    )
    assert mixture < 2 * small
    assert mixture < large / 3
