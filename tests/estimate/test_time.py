"""Step time against published and measured speeds, and how settings change it."""

import math

import pytest
from msgspec.structs import replace

from advisor.estimate import cost_estimate
from advisor.estimate.time import machine_of
from advisor.probe.catalogue import find_gpu
from tests.estimate.specs import RunSpec, estimate, hardware_with, shape, time_estimate

SMOLLM = "HuggingFaceTB/SmolLM2-135M"
A100, H100 = "A100-SXM4-80GB", "H100 SXM"
TWO_CORES, WITH_BF16 = (machine_of(None, cpu_cores=2, cpu_bf16=has) for has in (False, True))
# Llama 4 by its own name, and as any other mixture of its size.
SCOUT, ANY_MIXTURE = (
    replace(shape("109B-A17B", params_b=109), id=name)
    for name in ("meta-llama/Llama-4-Scout-17B-16E", "some 109B-A17B")
)


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
