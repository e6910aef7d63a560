"""The time of a step against published speeds, and a stage's whole time by its parts, with how much
data it reads, against the rows themselves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.data.lengths import HISTOGRAM_TOKENS, _histogram
from advisor.estimate import cost_estimate
from advisor.estimate import whole_time as module
from advisor.estimate.memory.static import host_moments
from advisor.estimate.padding import tokens_read as read_by
from advisor.estimate.run import stage_of
from advisor.estimate.time import machine_of
from advisor.estimate.types import TimeEstimate
from advisor.estimate.whole_time import EvaluationRows, time_by_parts, total_time
from advisor.ground.types import ModelShape, TokenStats
from advisor.probe.catalogue import find_gpu
from tests.conftest import examples
from tests.estimate.specs import (
    RunSpec,
    estimate,
    hardware_with,
    memory_estimate,
    run_of,
    shape,
    shape_of,
    time_estimate,
)

SMOLLM = "HuggingFaceTB/SmolLM2-135M"
A100, H100 = "A100-SXM4-80GB", "H100 SXM"
TWO_CORES, WITH_BF16 = (machine_of(None, cpu_cores=2, cpu_bf16=has) for has in (False, True))
# Llama 4 by its own name, and as any other mixture of its size.
SCOUT, ANY_MIXTURE = (
    replace(shape("109B-A17B", params_b=109), id=name)
    for name in ("meta-llama/Llama-4-Scout-17B-16E", "some 109B-A17B")
)

LATENT = shape_of({  # DeepSeek-V2-Lite
    "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "first_k_dense_replace": 1, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 102400,
    "tie_word_embeddings": False,
})  # fmt: skip


def timed(*given):
    """The time of a run spec, by default of Qwen3-8B on an H100, and what is known of `rows`."""
    spec = {"model": "Qwen/Qwen3-8B", "on": H100, "rows": {}}
    for one in given:
        spec |= one
    model, on, rows = (spec.pop(key) for key in ("model", "on", "rows"))
    found = time_estimate(RunSpec(**spec), model, on, **rows)
    assert found is not None
    return found


def took(part, *given):
    """What a part of the step takes, the whole step, or the band around it from low to high."""
    found = timed(*given)
    whole = {"step": found.step_s, "writing": found.generate_s, "band": found.high_s / found.low_s}
    return {**whole, **dict(found.parts)}[part]


LOOP = {
    "model": "meta-llama/Llama-3.2-1B", "update": "full", "weights_dtype": "bfloat16",
    "optimizer": "adamw_fused", "packing": True, "gradient_checkpointing": False, "loss": "full",
    "attention": "flash_attention_2", "framework": "transformers 4.51",
}  # fmt: skip
QWEN = {"grad_accum": 8, "target_modules": ("c_attn", "c_proj", "w1", "w2"), "on": A100}


@pytest.mark.parametrize(
    ("spec", "published", "factor"),
    [
        # QwenLM/Qwen README, LoRA on one A100, checkpointing, batch 1 x 8
        ({"model": "Qwen/Qwen-7B-Chat", "seq_len": 4096, **QWEN}, 3244, 1.5),
        ({"model": "Qwen/Qwen-14B-Chat", "seq_len": 2048, **QWEN}, 1950, 1.5),
        # torchtune README, full tuning of a 3B, packed and compiled
        ({"model": "meta-llama/Llama-3.2-3B", "on": A100, "update": "full", "seq_len": 4096,
          "micro_batch_size": 2, "packing": True, "compile": True,
          "gradient_checkpointing": False}, 8998, 1.5),
        # AnswerDotAI fsdp_qlora, Llama 2 7B on two RTX 4090
        ({"model": "meta-llama/Llama-2-7b-hf", "on": "RTX 4090", "quantization": "nf4",
          "seq_len": 2048, "micro_batch_size": 10, "gpus": 2, "sharding": "fsdp"}, 2250, 1.5),
        # NeMo Automodel's performance summary of 2025-10: mixtures on eight H100
        *(({"model": name, "update": "full", "weights_dtype": "bfloat16", "seq_len": 4096, "gpus": 8,
            "micro_batch_size": rows, "grad_accum": 16, "packing": True, "sharding": "fsdp",
            "gradient_checkpointing": again, "framework": "NeMo AutoModel Oct 2025"}, speed, 1.25)
          for name, rows, again, speed in (("Qwen/Qwen3-30B-A3B", 4, True, 12_040),
                                           ("openai/gpt-oss-20b", 2, False, 13_058))),
        # NVIDIA's loop over Llama 3.2 1B (cudnn-frontend, 2025-06), rows of 2,048 and of 16,384 tokens
        *(({**LOOP, "on": card, "seq_len": length, "micro_batch_size": rows}, rows * length / took, 1.1)
          for card, length, rows, took in (("H200", 2048, 6, 0.240), ("H200", 16_384, 1, 0.500),
                                           ("B200", 2048, 6, 0.154), ("B200", 16_384, 1, 0.374))),
        # axolotl, QLoRA of Llama 4 Scout on one H100
        ({"model": SCOUT, "quantization": "nf4", "seq_len": 4096, "framework": "axolotl"}, 519, 2),
    ],
)  # fmt: skip
def test_published_speeds_are_met(spec, published, factor):
    assert 1 / factor < timed(spec).tokens_per_s_per_gpu / published < factor


ON_CORES = {
    "model": SMOLLM, "on": TWO_CORES, "weights_dtype": "float32", "rank": 16,
    "gradient_checkpointing": False,
}  # fmt: skip
PPO = {**ON_CORES, "objective": "ppo", "micro_batch_size": 4, "grad_accum": 2, "seq_len": 100}
TILES = {**ON_CORES, "on": WITH_BF16, "precision": "mixed", "seq_len": 512, "rank": 32}
SIXTEEN_TOKENS = {"generations": 8, "response_tokens": 16}


def answers(**options):
    return {"options": {"response_tokens": 32, **options}}


@pytest.mark.parametrize(
    ("spec", "measured_s", "factor"),
    [
        ({**ON_CORES, "micro_batch_size": 4, "seq_len": 128}, 2.6, 1.73),  # 2 to 3 s a step
        # Two inner epochs over eight answers of 25 tokens to prompts of 75, 7 s for writing.
        ({**PPO, **answers(ppo_epochs=2)}, 29.7, 1.5),
        # With logits in tiles, under autocast: every pass costs its launches, every logit its tile.
        ({**TILES, "objective": "kto", "micro_batch_size": 4, "grad_accum": 2,
          "rows": {"tokens_total": 22_800, "rows_total": 100}}, 30.0, 1.5),
        *(({**TILES, "objective": "grpo", "micro_batch_size": rows, "grad_accum": 8 // rows,
            "options": SIXTEEN_TOKENS, "rows": {"tokens_total": 6000, "rows_total": 100}}, took_s, 1.5)
          for rows, took_s in ((2, 53.6), (8, 34.7))),
    ],
)  # fmt: skip
def test_measured_steps_on_two_cores_are_met(spec, measured_s, factor):
    assert 1 / factor < timed(spec).step_s / measured_s < factor


LONG = {
    "model": "meta-llama/Llama-3.1-8B", "update": "full", "seq_len": 8192, "packing": True,
    "compile": True, "gpus": 8, "sharding": "fsdp",
}  # fmt: skip
EAGER = {
    "model": "Qwen/Qwen-7B-Chat", "on": A100, "seq_len": 2048, "framework": "ms-swift",
    "target_modules": ("c_attn",),
}  # fmt: skip
HALVES = {"seq_len": 1024, "lengths": ((100, 50), (1000, 50)), "packing": False}
SMALL = {"model": "Qwen/Qwen3-0.6B"}
PACKED = {
    **SMALL, "seq_len": 8192, "packing": True, "rows": {"tokens_total": 8_192_000, "rows_total": 16_000},
}  # fmt: skip
PADDED = {"framework": "transformers 4.49", "seq_len": 8192, "micro_batch_size": 2}
MIXED_ROWS = {**ON_CORES, "micro_batch_size": 4, "seq_len": 200, "precision": "pure"}
LIGER = {"on": A100, "seq_len": 2048}
GRPO = {
    "objective": "grpo", "update": "lora", "rank": 32, "micro_batch_size": 1, "seq_len": 1024,
    "options": {"generations": 16, "response_tokens": 1024},
}  # fmt: skip
DISTILL = {
    **SMALL, "objective": "distill", "precision": "mixed", "micro_batch_size": 4, "grad_accum": 4,
}  # fmt: skip
SAME, MORE = (1 - 1e-9, 1 + 1e-9), (1 + 1e-9, math.inf)


def taught(share, params=8_190_735_360):
    return {"options": {"teacher_params": params, "response_tokens": 256, "on_policy": share}}


@pytest.mark.parametrize(
    ("part", "spec", "slower", "faster", "ratio"),
    [
        # Below some hundred tokens a step is bound by launches: half the tokens take as long.
        ("step", {**SMALL, "rank": 8}, {"seq_len": 64}, {"seq_len": 32}, (1, 1.11)),
        # transformers 4 calls experts one after the other, 4-bit ones with their own launches.
        *(("step", {"model": "Qwen/Qwen3-30B-A3B", "quantization": bits, "seq_len": 512},
           {"framework": "transformers 4.51"}, {"framework": "transformers 5.2"}, (1.5, 99))
          for bits in (None, "nf4")),
        # fp8 on an H100 gains 10 to 40 % of a long step.
        ("step", LONG, {}, {"compute_dtype": "fp8"}, (1.1, 1.6)),
        # Eager attention moves every score: 0.73 of the speed was published (ms-swift).
        ("step", EAGER, {"attention": "eager"}, {"attention": "flash_attention_2"}, (1 / 0.9, 1 / 0.6)),
        # transformers' Llama4TextMoe sends tokens through all experts: 109B parameters, not 17B.
        ("compute", {"quantization": "nf4", "seq_len": 4096, "framework": "axolotl"},
         {"model": SCOUT}, {"model": ANY_MIXTURE}, (3, math.inf)),
        # What is learned from oftener takes longer, and no reward model looks at what is checked.
        ("step", PPO, answers(ppo_epochs=4), answers(ppo_epochs=2), (1.5, math.inf)),
        ("step", PPO, answers(ppo_epochs=2), answers(ppo_epochs=2, verifier="exact"), MORE),
        ("step", {**PPO, "objective": "grpo"}, answers(generations=16, verifier="exact"),
         answers(generations=8, verifier="exact"), (1.5, 2)),
        ("step", {**PPO, "objective": "rloo"}, answers(beta=0.05, verifier="exact"),
         answers(beta=0.0, verifier="exact"), MORE),
        # bfloat16 helps where the processor multiplies it: 2.91 to 1.96 s, 3.6 to 2.75 s a step.
        ("step", {**MIXED_ROWS, "on": WITH_BF16}, {}, {"precision": "mixed"},
         (3.6 / 2.75 - 0.1, 2.91 / 1.96)),
        ("step", MIXED_ROWS, {}, {"precision": "mixed"}, SAME),
        ("step", MIXED_ROWS, {}, {"on": WITH_BF16}, SAME),
        # Half of the rows have up to 100 tokens, half up to 1,000.
        ("step", {"seq_len": 1024, "micro_batch_size": 4}, {}, HALVES, (1 + 1e-9, 4)),
        # Less is known of an RTX 3090's link.
        ("band", {"gpus": 2, "sharding": "fsdp"}, {"on": "RTX 3090"}, {}, MORE),
        # 16 rows of 512 tokens in a sequence of 8,192: sdpa computes the rectangle, flash attention
        # each row alone; without packing a causal kernel skips half.
        ("compute", PACKED, {"attention": "sdpa"}, {"packing": None, "rows": {}}, MORE),
        ("compute", PACKED, {"packing": None, "rows": {}}, {"attention": "flash_attention_2"}, MORE),
        # Others' padded rows take PyTorch's kernel for masks, and FlashAttention 3 only where said.
        ("compute", PADDED, {"attention": "sdpa"}, {"attention": "flash_attention_2"}, (1.5, 4)),
        ("compute", PADDED, {"attention": "flash_attention_2"}, {"attention": "flash_attention_3"}, MORE),
        # Of values narrower than queries PyTorch's flash kernel makes nothing.
        ("compute", {"model": LATENT, "seq_len": 4096, "framework": "transformers 5.2"},
         {"attention": "sdpa"}, {"attention": "flash_attention_2"}, (1.2, 3)),
        # Sixteen rows for each of 128 experts fill no tile of grouped products, 256 almost all.
        ("compute", {"model": "Qwen/Qwen3-30B-A3B", "framework": "transformers 5.2"},
         {"seq_len": 256, "grad_accum": 16}, {"seq_len": 4096}, (1.4, 3)),
        # Others round weights at random in one kernel, ours in many.
        ("optimizer", {**SMALL, "update": "full", "optimizer": "adamw_stochastic"}, {},
         {"framework": "trl"}, MORE),
        *((part, LIGER, {"kernels": "none"}, {"kernels": "liger"}, ratio) for part, ratio in
          (("memory traffic", (1 / 0.8, math.inf)), ("launches", MORE), ("compute", SAME))),
        # A cache of keys and values slows long answers down.
        ("writing", {"objective": "grpo", "micro_batch_size": 8},
         {"seq_len": 2176, "options": {"generations": 8, "response_tokens": 2048}},
         {"seq_len": 1152, "options": {"generations": 8, "response_tokens": 1024}}, (2.1, math.inf)),
        # A call writes up to 512 answers: only caches take more. Two calls take twice as long.
        ("writing", GRPO, {"grad_accum": 32}, {"grad_accum": 16}, (1 + 1e-9, 1.5)),
        ("writing", GRPO, {"grad_accum": 64}, {"grad_accum": 32}, (1.98, 2.02)),
        # The more a student writes, and the larger its teacher, the longer a step takes.
        ("step", DISTILL, taught(1.0), taught(0.25), MORE),
        ("step", DISTILL, taught(0.25), taught(0.0), MORE),
        ("step", DISTILL, taught(0.0), taught(0.0, 596_049_920), MORE),
    ],
)  # fmt: skip
def test_one_setting_makes_a_step_faster(part, spec, slower, faster, ratio):
    assert ratio[0] <= took(part, spec, slower) / took(part, spec, faster) <= ratio[1]


LLAMA_7B_ON_TWO = {
    "model": "meta-llama/Llama-2-7b-hf", "on": "RTX 3090", "seq_len": 2048, "micro_batch_size": 6,
    "gpus": 2, "framework": "transformers", "sharding": "ddp",
}  # fmt: skip
ZERO = {
    "model": "Qwen/Qwen-1_8B-Chat", "on": A100, "update": "full", "seq_len": 256, "gpus": 2,
    "framework": "transformers+deepspeed", "sharding": "ddp",
}  # fmt: skip
OFFLOADED = {"on": "RTX 4090", "seq_len": 4096, "gradient_checkpointing": "offload"}
CROSSED_S = 2 * 4096 * 36 * 4096 * 2 / (0.8 * 31.5e9)
ON_HOST = {"on": "RTX 4090", "update": "full", "optimizer": "adamw_cpu", "seq_len": 1024}
# 40 bytes a weight at a server's 60 GB/s, and gradients and weights cross the link.
ON_HOST_S = 8.19e9 * 40 / 60e9 + 8.19e9 * 4 / (0.8 * 31.5e9)
SHARED = {"model": "meta-llama/Llama-2-70b-hf", "update": "full", "gpus": 16, "seq_len": 2048}
# Three times in 16 bit: weights for both passes, and gradients; an eighth is there already.
DIVIDED = {**LONG, "on": "B200", "gradient_checkpointing": False, "weights_dtype": "bfloat16"}
GATHERED_S = 3 * 2 * 8.03e9 * 7 / 8 / (0.48 * 900e9)
LAID_OUT_S = 3 * 4 * 8.03e9 / (0.8 * 8e12)
DEEPSPEED = {**ON_HOST, "framework": "trl, deepspeed", "sharding": "zero3"}


@pytest.mark.parametrize(
    ("part", "spec", "without", "least_s", "most_s"),
    [
        # Gathering 16-bit weights between two GeForce cards takes seconds a micro-batch, as it did
        # in fsdp_qlora's benchmarks (14.1 s against 10.3 s under DDP for 12,288 tokens).
        ("step", {**LLAMA_7B_ON_TWO, "sharding": "fsdp"}, LLAMA_7B_ON_TWO, 1.5, 6),
        # Short micro-batches take some milliseconds a layer and pass under ZeRO-3.
        ("step", {**ZERO, "sharding": "zero3"}, ZERO, 24 * 3 * 0.8e-3, 24 * 3 * 4e-3),
        # Kept inputs in host memory cross the link twice, partly beside the computation.
        ("communication", OFFLOADED, None, CROSSED_S * (1 - 1e-6), CROSSED_S * (1 + 1e-6)),
        ("step", OFFLOADED, {**OFFLOADED, "gradient_checkpointing": True}, 1e-9, CROSSED_S),
        # An optimizer on the host is one kernel over float32.
        ("optimizer", ON_HOST, None, 0.98 * ON_HOST_S, 1.02 * ON_HOST_S),
        # DeepSpeed brings the sum of a step's gradients to the GPU and back for each micro-batch.
        ("optimizer", {**DEEPSPEED, "grad_accum": 8}, DEEPSPEED, 7 * 1.2, 7 * 1.4),
        # Gathering beside a computation reaches 0.48 of NVLink 5, and FSDP 2 lays out what came.
        ("communication", DIVIDED, None, 0.8 * GATHERED_S, GATHERED_S),
        ("memory traffic", DIVIDED, {**DIVIDED, "sharding": "ddp"}, 0.98 * LAID_OUT_S, 1.02 * LAID_OUT_S),
        # Where no sharding is named, what fits no GPU whole is taken as sharded.
        ("communication", SHARED, None, 1e-9, math.inf),
    ],
)  # fmt: skip
def test_what_a_setting_adds_takes_so_many_seconds(part, spec, without, least_s, most_s):
    assert least_s < took(part, spec) - (took(part, without) if without else 0) < most_s


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({**LONG, "on": A100, "compute_dtype": "fp8"}, "fp8"),  # it has no such products
        (SHARED, "fsdp is assumed"),
        *(({"seq_len": cap, "micro_batch_size": 4, "rows": {"differ": True}}, f"{mean} tokens on average")
          for cap, mean in ((256, 128), (4096, 400))),
    ],
)  # fmt: skip
def test_what_is_assumed_is_said(spec, said):
    assert any(said in warning for warning in timed(spec).warnings)


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        # Nothing tells the rows' lengths: half of a short cap, some hundred tokens of a long one.
        ({"seq_len": 256, "micro_batch_size": 4, "rows": {"differ": True}}, 4 * 128),
        ({"seq_len": 4096, "micro_batch_size": 4, "rows": {"differ": True}}, 4 * 400),
        # Of a histogram they are 300 on average, however they are padded.
        (HALVES, 300), ({**HALVES, "micro_batch_size": 4}, 4 * 300),
    ],
)  # fmt: skip
def test_a_step_reads_so_many_tokens(spec, tokens):
    found = timed(spec)
    assert found.tokens_per_s_per_gpu * found.step_s == pytest.approx(tokens, rel=0.02)


def mixed(used, width, experts):
    """Qwen3-30B-A3B with fewer and wider experts: as many parameters, and as many for a token."""
    config = {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "intermediate_size": 6144, "vocab_size": 151936, "tie_word_embeddings": False,
        "num_experts": experts, "num_experts_per_tok": used, "moe_intermediate_size": width,
    }  # fmt: skip
    return shape_of(config)


def test_rows_that_go_to_experts_take_time():
    """Rows of 2,048 numbers go to four experts more: 18 bytes a number in both forward passes, 32
    backward, three quarters of them in memory, of 0.8 of an H100's 3.35 TB/s.
    """
    spec = {"update": "full", "seq_len": 4096, "framework": "transformers 5.2"}
    many, few = (
        took("memory traffic", spec, {"model": mixed(*sizes)})
        for sizes in ((8, 768, 128), (4, 1536, 64))
    )
    moved = 48 * 4 * 2048 * (2 * 18 + 32) * 0.75 * 4096
    assert many - few == pytest.approx(moved / (0.8 * 3.35e12), rel=0.05)


def test_the_run_takes_steps_times_step():
    """1,000 rows in batches of 2 x 4 are 125 steps; unknown tokens give no time, not a guess."""
    spec = {**SMALL, "micro_batch_size": 2, "grad_accum": 4}
    result = timed(spec, {"rows": {"tokens_total": 200_000, "rows_total": 1000}})
    assert (result.steps, result.duration_s) == (125, pytest.approx(125 * result.step_s))
    assert timed(spec).duration_s is None


def test_money_is_hours_times_cards_times_price():
    """Two hours on four cards at $1.50 cost $12; no price means no cost, never zero."""
    priced = replace(find_gpu("RTX 4090").spec, price_usd_per_h=1.5)
    assert cost_estimate(7200, 4, priced)[0] == pytest.approx(12.0)
    assert cost_estimate(7200, 4, replace(priced, price_usd_per_h=None))[0] is None
    assert cost_estimate(None, 4, priced)[0] is None


@pytest.mark.parametrize("objective", ["dpo", "orpo", "rm"])
def test_both_sequences_of_a_pair_take_time(objective):
    """A pair takes one row's steps, each with two passes' tokens; pairs of 2000 are cut at 512."""
    spec = {"on": A100, "micro_batch_size": 16, "seq_len": 512, "gradient_checkpointing": True}
    one, two, cut = (
        timed(spec, {"objective": name, "rows": {"tokens_total": tokens, "rows_total": 1000}})
        for name, tokens in (("sft", 500_000), (objective, 1_000_000), (objective, 4_000_000))
    )
    assert one.steps == two.steps == 63
    assert two.step_s > 1.8 * one.step_s
    assert cut.step_s < 1.1 * two.step_s


@pytest.mark.parametrize(
    ("count", "link", "said"),
    [(2, None, True), (1, None, False), (2, "NVLink 3 (4 active links per card)", False)],
)
def test_a_guessed_link_is_said_where_it_counts(count, link, said):
    """Two RTX 3090 may have a bridge: what was taken is a warning, and a reason names it."""
    spec = RunSpec(gpus=count, sharding="fsdp" if count > 1 else None)
    hardware = hardware_with("RTX 3090", count, interconnect=link)
    warnings = " ".join(estimate(spec, SMALL["model"], hardware).memory.warnings)
    assert ("a bridge between two GPUs is taken to be absent" in warnings) is said
    assert ("bridge" in warnings) is said
    found = timed(SMALL, {"on": "RTX 4090", "gpus": 2, "sharding": "fsdp"})
    assert "no peer-to-peer" in found.because


SMOLLM_135M = ModelShape(
    id="SmolLM2-135M", origin="size", params=134_515_008, architecture="llama", hidden_size=576,
    layers=30, heads=9, kv_heads=3, head_dim=64, intermediate_size=1536, vocab_size=49152,
    tied_embeddings=True,
)  # fmt: skip
SPEC = RunSpec(micro_batch_size=4, seq_len=256, rank=8, weights_dtype="float32")
LOOKED = EvaluationRows(rows=20, row_tokens=96, answer_tokens=56)
MACHINE = machine_of(None, cpu_cores=2)


def training(steps=1, low=1.0, high=1.0):
    """100 seconds of training."""
    step_s = 100.0 / steps
    return TimeEstimate(
        step_s=step_s, steps=steps, tokens_per_s_per_gpu=1.0, because="",
        low_s=low * step_s, high_s=high * step_s,
    )  # fmt: skip


def times_of(looked=LOOKED, *, model=SMOLLM_135M, trained=None, **changed):
    run = run_of(replace(SPEC, **changed), model)
    return time_by_parts(run, MACHINE, looked, trained or training())


def test_the_parts_are_those_of_a_measured_run():
    """A run of this stage took 9.5 s of loading on two cores that other programs used, too, and one
    of sixteen answers written together 27 s of a core before its training and 26 s after.
    """
    times = times_of()
    assert 9.5 / 2.4 < times.load_s < 9.5 * 1.5
    assert 27 / 2.4 < times.before_s < 27 * 1.5
    assert 26 / 2.4 < times.after_s < 26 * 1.5
    assert times.train_s == 100.0
    parts = ("load_s", "before_s", "train_s", "after_s", "prepare_s", "evaluate_s", "save_s")
    assert times.total_s == pytest.approx(sum(getattr(times, part) for part in parts))


def test_tokenising_held_out_loss_checkpoints_and_a_download_count():
    """50,000 rows of 96 tokens take ten seconds; held-out loss and checkpoints 5 % at most."""
    looked, hub = replace(LOOKED, all_rows=50_000), replace(SMOLLM_135M, origin="catalogue")
    times = times_of(looked, model=hub, trained=training(50, 0.8, 1.5))
    assert times.prepare_s == pytest.approx(9.6)
    assert 0 < times.save_s < times.evaluate_s == pytest.approx(5.0)
    assert times.download_s == pytest.approx(4 * 134_515_008 / 30e6)
    assert times.low_s == pytest.approx(0.8 * times.total_s)
    assert times.high_s == pytest.approx(1.5 * times.total_s)
    half = times.with_training(50.0)
    assert half.total_s < times.total_s - 50.0
    assert half.low_s / half.total_s == pytest.approx(0.8)
    assert times_of(looked, trained=training(50)).download_s == 0
    assert times_of(looked, model=hub, evaluation=False).evaluate_s == 0


def test_what_is_not_measured_takes_no_time():
    """Without the comparison the probe and the checks are left; a trial has few of all."""
    whole, unjudged = times_of(), times_of(replace(LOOKED, judge=False))
    assert unjudged.before_s < 1 < whole.before_s
    assert unjudged.after_s < whole.after_s
    assert times_of(objective="cpt").before_s < whole.before_s / 2
    assert times_of(replace(LOOKED, trial=True)).before_s < whole.before_s / 1.5
    assert times_of(objective="rm").before_s < 1


def test_times_of_a_chain_add_up():
    """Together they are known if each is, and rows beyond the most looked at add nothing."""
    one = times_of()
    assert times_of(replace(LOOKED, rows=64)) == times_of(replace(LOOKED, rows=10_000))
    assert total_time([one, one]).total_s == pytest.approx(2 * one.total_s)
    assert total_time([one, None]) is None


def test_the_numbers_are_those_of_the_trainers():
    """The advisor never imports the trainers; what they measure is written down twice."""
    pytest.importorskip("torch")
    from trainers.evaluation import generation, loss, pairs
    from trainers.keep import held_out_curve, progress

    theirs = {
        "HELD_OUT_ROWS": loss.HELD_OUT_ROWS, "SAMPLES": loss.SAMPLES,
        "LONGEST_SAMPLE": loss.LONGEST_SAMPLE, "GENERATION_S": generation.GENERATION_S,
        "FEWEST_TOGETHER": generation.FEWEST_TOGETHER,
        "GENERAL": len(generation.GENERAL.read_text().splitlines()),
        "TIMES_MEASURED": held_out_curve.MOST_TIMES, "MOST_ROWS": held_out_curve.MOST_ROWS,
        "LARGEST_SHARE": held_out_curve.LARGEST_SHARE, "TRIAL_ROWS": generation.TRIAL_ROWS,
        "TRIAL_SAMPLES": generation.TRIAL_SAMPLES, "TRIAL_GENERAL": generation.TRIAL_GENERAL,
        "PROMPTS": pairs.HELD_OUT_PROMPTS, "TRIAL_PROMPTS": pairs.TRIAL_PROMPTS,
    }  # fmt: skip
    assert (
        {name: getattr(module, name) for name in theirs},
        pairs.HELD_OUT,
        progress.LARGEST_SHARE,
    ) == (theirs, loss.HELD_OUT_ROWS, held_out_curve.LARGEST_SHARE)


def stats(lengths, *, sides=1):
    counts = sorted({length: lengths.count(length) for length in lengths}.items())
    total = sides * sum(lengths)
    return TokenStats(
        total=total, mean=total / len(lengths), p50=0, p90=0, p95=0, p99=0, longest=max(lengths),
        counted_by="test", histogram=_histogram(counts),
    )  # fmt: skip


def test_the_bases_own_answers_take_blocks_of_time():
    """180 rows of 96 tokens ask for a fifth of all tokens: 48 rows, or 69 answers, of which some are
    cut: three blocks; 500 answers at most. A file takes none.
    """
    run, looked = run_of(SPEC, SMOLLM_135M), replace(LOOKED, all_rows=200)

    def prepare_s(replay, share=0.2):
        own = {**run.options, "replay": replay, "replay_share": share}
        asking = replace(run, stage=replace(run.stage, options=own))
        return time_by_parts(asking, MACHINE, looked, training()).prepare_s

    none, one, two = prepare_s("general.jsonl"), prepare_s({"rows": 30}), prepare_s({"rows": 60})
    assert none == times_of(looked).prepare_s < one < two < prepare_s({"rows": 90})
    assert prepare_s({"rows": 500}) == prepare_s({"rows": 90}) < prepare_s({"rows": 500}, 0.8)
    assert prepare_s({"rows": 500}, 0.8) - one == pytest.approx(15 * (two - one))


def tokens_read(rows, **stage):
    """Tokens of a row that is read, and the share of rows that are."""
    usual = {"objective": "sft", "seq_len": 512, "truncation": "drop", "packing": False}
    return read_by(rows, stage_of({"update": "lora", **usual, **stage}))


EVEN = stats([*range(1, 513)])  # as many rows of each length, as the histogram takes for granted
ALIKE, WRITTEN = stats([300] * 4), replace(stats([300] * 4, sides=2), request_mean=40.0)
CUT = (128.5 + 256) / 2


@pytest.mark.parametrize(
    ("rows", "stage", "tokens", "share"),
    [
        (EVEN, {"seq_len": 256}, 128.5, 0.5),  # longer rows are left out with their tokens
        (EVEN, {"seq_len": 256, "truncation": "truncate"}, CUT, 1.0),
        # What is parted is read whole.
        (stats([3000] * 4), {"objective": "cpt", "truncation": "stop"}, None, 1.0),
        (stats([3000] * 4), {"packing": True, "truncation": "stop"}, None, 1.0),
        # Where no row is short enough the longest that could be read stands.
        (ALIKE, {"seq_len": 100}, 100, 1.0),
        # A stage that writes its answers reads the request and its own longest answer.
        *((WRITTEN, {"objective": name, "truncation": "stop", "response_tokens": 64, "seq_len": most},
           read, 1.0) for name in ("ppo", "grpo", "rloo") for most, read in ((512, 104), (96, 96))),
    ],
)  # fmt: skip
def test_rows_are_read_as_the_stage_says(rows, stage, tokens, share):
    found = tokens_read(rows, **stage)
    assert found[1] == pytest.approx(share, rel=0.01)
    assert tokens is None or found[0] == pytest.approx(tokens, rel=0.01)


def test_both_sides_count_only_where_both_run():
    both, one = (
        tokens_read(stats([100] * 8, sides=2), objective=name)[0] for name in ("dpo", "sft")
    )
    assert both == pytest.approx(200)
    assert one == pytest.approx(both / 2, rel=0.2)  # from the histogram's bins
    assert tokens_read(WRITTEN, truncation="stop", response_tokens=64)[0] > 104


@examples(2, deadline=200)
@given(
    st.lists(st.integers(1, 2 * HISTOGRAM_TOKENS[-1]), max_size=40),
    *[st.integers(HISTOGRAM_TOKENS[0], 40_000)] * 2,
    st.sampled_from(["drop", "truncate"]),
)
def test_a_longer_sequence_never_reads_fewer_rows(lengths, first, second, truncation):
    rows = stats([8, *lengths])
    kept = [
        tokens_read(rows, seq_len=length, truncation=truncation)
        for length in sorted((first, second))
    ]
    assert kept[0][1] <= kept[1][1] + 1e-9
    assert all(0 < tokens <= rows.longest * 1.001 for tokens, _ in kept)


LLAMA_70B = "meta-llama/Llama-3.1-70B"
WEIGHTS = 2 * 8_030_261_248  # of Llama 3.1 8B in bfloat16, as the hub counts them
SHARDED = RunSpec(
    objective="sft", update="full", weights_dtype="bfloat16", precision="pure",
    optimizer="adamw_fused", micro_batch_size=1, seq_len=1024, gpus=8, sharding="fsdp",
)  # fmt: skip
LORA = {"update": "lora", "rank": 16, "precision": "mixed"}
FOUR_BIT = replace(SHARDED, update="lora", quantization="nf4", precision="mixed")


def moments(spec, model="meta-llama/Llama-3.1-8B", machines=1):
    found = host_moments(run_of(spec, model, machines=machines))
    return {one.name: one.size_bytes for one in found}


@pytest.mark.parametrize(
    ("changed", "machines", "moment", "expected"),
    [
        # The base is whole in each machine while it is loaded, whatever is trained.
        *((changed, machines, "loading", WEIGHTS) for changed in ({}, LORA) for machines in (1, 2)),
        # All weights are put together in the first machine, and the adapters alone where they are
        # trained: rank 16 on all linear layers, float32.
        ({}, 2, "saving", WEIGHTS),
        (LORA, 1, "saving", 4 * 41_943_040),
        # A checkpoint holds parts twice while they are written: a weight and two moments of it,
        # shared out over the machines.
        ({}, 1, "checkpoint", 2 * 3 * WEIGHTS),
        ({}, 2, "checkpoint", 3 * WEIGHTS),
        # Offloaded weights, gradients and two moments stay beside the weights that are saved; in a
        # checkpoint weights and moments stand once more, since they need no copy from a GPU.
        ({"offload_weights": True}, 1, "training", 4 * WEIGHTS),
        ({"offload_weights": True}, 1, "checkpoint", 7 * WEIGHTS),
        ({"offload_weights": True}, 1, "saving", 5 * WEIGHTS),
    ],
)
def test_machines_hold_so_much_in_each_moment(changed, machines, moment, expected):
    """Bytes of the first machine."""
    found = moments(replace(SHARDED, **changed), machines=machines)
    assert found[moment] == pytest.approx(expected, rel=1e-6 if "offload_weights" in changed else 0)


@pytest.mark.parametrize(
    "changed", [{"sharding": "ddp"}, {"framework": "torchtune"}, {"gpus": 1, "sharding": None}]
)
def test_nothing_is_said_where_nothing_is_divided_by_our_trainers(changed):
    """A whole model on each GPU, or one GPU; others read and save a model in ways of their own."""
    assert moments(replace(SHARDED, **changed)) == {}


def test_a_4_bit_base_is_divided_while_it_is_loaded():
    """Half a byte a weight in parts, scales whole, and the output's matrix on its way."""
    # 80 layers of 855,638,016 linear weights; 128,256 x 8,192 twice; norms beside them.
    linear, end = 80 * 855_638_016, 128_256 * 8_192 * 2
    for gpus in (2, 8):
        found = memory_estimate(replace(FOUR_BIT, gpus=gpus), LLAMA_70B)
        (loading,) = (moment for moment in found.moments if moment.name == "loading")
        parts = (linear / 2 + 2 * end) / gpus + linear * (1 / 64 + 4 / (64 * 256)) + end
        held = sum(term.size_bytes for term in loading.terms[:4])
        assert held == pytest.approx(parts, rel=0.001)
    assert "loading" not in moments(FOUR_BIT, LLAMA_70B)  # quantised on the GPUs, tensor by tensor
    theirs = memory_estimate(replace(FOUR_BIT, framework="fsdp-qlora"), LLAMA_70B)
    assert all(moment.name != "loading" for moment in theirs.moments)
