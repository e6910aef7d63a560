"""Compute and memory traffic of a micro-batch."""

from __future__ import annotations

from advisor.estimate.blocks.layer import block_key
from advisor.estimate.methods import special
from advisor.estimate.model.dims import Dims
from advisor.estimate.run import Run
from advisor.estimate.targets import correction_ends, targets
from advisor.estimate.time.machine import Machine
from advisor.methods.rewards import models_that_score

# Of the bytes below, those that reach memory: the rest is found in the card's cache by the next
# kernel (the median over published speeds).
TRAFFIC_SHARE = 0.75
NARROW_DTYPES = ("fp8", "mxfp8", "nvfp4")
# Of a plain product's rate, what flash attention's passes reach: FlashAttention 2, which was made
# for A100s and is hardly faster on Blackwell (prime-rl's benchmarks at 65,536 tokens on B200,
# 2026-02), and kernels of newer cards (FlashAttention 3 on Hopper, the same benchmarks).
ATTENTION_SHARE, BLACKWELL_ATTENTION_SHARE, OWN_ATTENTION_SHARE = 0.45, 0.3, 0.6
HOPPER, BLACKWELL = 9, 10  # generations
# Of flash attention's rate, what PyTorch's memory-efficient kernel reaches: 0.36 on an H200 and on
# a B200, by the differences between lengths of NVIDIA's Llama 3.2 1B loop (cudnn-frontend,
# benchmark/Llama-3.2-1B-Training, read 2026-12-01). It computes heads whose values are narrower
# than their queries, which PyTorch's flash kernel refuses (torchtitan pull 1610).
EFFICIENT_OF_FLASH = 0.36
# Of a plain product's rate, what PyTorch's kernel for masks reaches, which is made for A100s:
# universal-llm-trainer's full steps at 2 x 8,192 tokens on A100 and H100 (2025-08) both say 0.24.
MASKED_SHARE = 0.24
FORWARD_TILES = 0.35  # a forward pass's share of what tiles take in both
# Bytes per token that the operations of a layer read and write, in 16 bit, for each element of the
# hidden state, of queries and keys, and of the MLP: counted operation by operation from
# transformers' LlamaDecoderLayer (5.24), inputs and outputs of matrix products included.
#   RMSNorm in plain operations: to float32 (6), square (8), mean (4), scale (8), to 16 bit (6),
#   weight (4) = 36 forward and twice that backward; two of them. Fused: 4 and 8.
#   Residual sums: 6 each, two of them, both ways; backward, sums of the branches' gradients: 18.
#   Products: the input is read by q, k, v, gate and up, outputs of o and down are written: 14.
#   Rotary embedding: negate, join, two products, sum = 16 forward and 24 backward. Fused: 4, 4.
#   Attention reads q, k, v and writes its output (4, backward 8) beside products (4).
#   Gate: silu (4), product (6), backward 18; fused 6 and 10; products' outputs and input 6.
Table = tuple[float, float, float]
EAGER_FORWARD: Table = (98, 24, 16)
EAGER_BACKWARD: Table = (188, 36, 24)
FUSED_FORWARD: Table = (34, 12, 12)
FUSED_BACKWARD: Table = (60, 16, 16)
# LayerNorm is one kernel in PyTorch, and a plain MLP has no gate: norms 8 + sums 12 + products 12;
# GELU 4 + products 4.
PLAIN_FORWARD: Table = (32, 8, 8)
PLAIN_BACKWARD: Table = (64, 16, 16)
# What a trained matrix reads once more for its gradient: the input and the output's gradient.
WEIGHT_GRADIENTS: Table = (14, 4, 6)
# An adapter of PEFT beside a linear layer, for each of its inputs and outputs, forward: input to
# float32 and back to 16 bit for the product (12); output, scaled and added (12). Backward the same
# again. Adapters in 16 bit: 2 and 12. (peft 0.21, tuners/lora/layer.py, Linear.forward)
ADAPTER_FORWARD, NARROW_ADAPTER_FORWARD = (12.0, 12.0), (2.0, 12.0)
# Bytes of a whole logit, forward and backward: to float32 (6), shifted copy (8), log-softmax (8),
# its gradient (8), the copy's (12), to 16 bit (6). Fused with the softmax: 12. In tiles: 16.
WHOLE_LOGIT, FUSED_LOGIT, TILED_LOGIT = 48.0, 12.0, 16.0
# A score of eager attention, forward: written (2), scaled (4), masked (4), softmax to float32 (6),
# back (6), read (2); backward the same in reverse, with both operands (transformers,
# eager_attention_forward). Every pair of tokens has one.
SCORE_FORWARD, SCORE_BACKWARD = 24.0, 36.0
DEQUANTISED = 4.5  # bytes moved for a weight of half a byte: read, written in 16 bit, read again
# fp8 recipes read each operand for its largest value, and write it narrow: 5 bytes an element.
CAST_TO_NARROW = 5.0
LINEAR_ENDS: Table = (10, 4, 3)  # elements that a layer's products read and write


def passes_of(run: Run) -> int:
    """Forward, backward as two, and the forward pass run again."""
    return 4 if run.checkpointing in ("full", "offload") else 3


def attended_tokens(run: Run, length: float, row_tokens: float | None) -> float:
    """Tokens that a token is compared with, in lengths of causal attention that skips half.

    Our packed rows: a mask keeps them apart under sdpa, whose kernels then compute the whole
    rectangle; flash attention computes each row alone (docs/gpu.md). Other trainers pack
    without keeping rows apart.
    """
    if has_padding_mask(run):
        return 2 * length
    if not run.stage.packing or not run.is_ours or run.stage.attention == "eager":
        return length
    if run.stage.attention == "sdpa":
        return 2 * length
    return min(length, row_tokens or length)


def has_padding_mask(run: Run) -> bool:
    """Whether another trainer's sdpa is said to compute rows padded to one length: transformers
    then hands it a mask (_ignore_causal_mask_sdpa), which no flash kernel of PyTorch's takes.
    """
    stage, said = run.stage, "attention" not in run.left_open
    padded = not stage.packing and stage.micro_batch_size > 1 and len(run.lengths) != 1
    return stage.attention == "sdpa" and said and padded and not run.is_ours


def attention_share(run: Run, machine: Machine) -> float:
    """Of a plain product's rate, what attention reaches. Ours takes Hopper's own kernels; others
    take a card's own where that is said, or is their habit.
    """
    if has_padding_mask(run):
        return MASKED_SHARE
    hopper, blackwell = machine.generation == HOPPER, machine.generation == BLACKWELL
    said = run.stage.attention == "flash_attention_3"
    said |= "attention" in run.left_open and run.trainer["transformer_engine"]
    if (hopper and (said or run.is_ours)) or (blackwell and said):
        return OWN_ATTENTION_SHARE
    share = BLACKWELL_ATTENTION_SHARE if blackwell else ATTENTION_SHARE
    narrow_values = run.stage.attention == "sdpa" and run.dims.has_narrow_values
    return share * (EFFICIENT_OF_FLASH if narrow_values else 1.0)


def computes_in_float32(run: Run) -> bool:
    """Whether norms, attention and output of a quantised base are float32: so after
    prepare_model_for_kbit_training, where neither autocast nor flash attention narrows them.
    """
    is_wide = run.prepared and run.hidden_bytes == 4
    return is_wide and not run.has_kernel and not block_key(run).autocast


def flops_per_token(
    run: Run, length: float, machine: Machine, *, tokens: float, all_experts: bool
) -> float:
    """FLOP per token: 2 per weight forward, 2 backward for activations, 2 for weights that train, 2
    when run again; attention beside. Products in a narrow format count for as much less as they
    are faster, and experts with few of a micro-batch's `tokens` for what their last tile computes
    besides.
    """
    d = run.dims
    weights = d.active - (d.embedding_params - d.head_params) - d.other_params
    weights = d.linear_params if d.encoder else weights
    if all_experts:
        weights += round(d.routed_params * (1 - d.used_experts / d.experts))
    factor = 4.0 if run.is_module else 6.0
    if passes_of(run) == 4:
        factor += 2.0
    what = run.objective
    own = special(what, "flop_factor")
    if own:
        factor = own(run, factor)
    elif what.generates:
        # Answers are read once more by the reference where moving away has a price, and by the
        # reward model.
        factor += 2.0 * (bool(run.options.get("beta")) + models_that_score(run.options))
    factor += 2.0 * what.extra_forwards
    other_models = special(what, "beside_flops")
    beside = other_models(run, weights) if other_models else 0.0
    # 4 q s forward and 8 backward; a causal kernel skips half.
    eager = run.stage.attention == "eager"
    attention = (12.0 + (4.0 if passes_of(run) == 4 else 0.0)) * d.attended(length, whole=eager)
    attention *= 1.0 if eager else 0.5 / attention_share(run, machine)
    corrected = 0.0
    if correction_ends(run) > 0:  # experts whose sum with the correction gets a gradient
        corrected = 2.0 * d.routed_layers * d.used_experts * 3 * d.hidden * d.expert_width
    narrow = 1.0
    if run.compute_dtype in NARROW_DTYPES and machine.narrow_gain:
        narrow = 1 / machine.narrow_gain
    head = float(d.head_params)
    if computes_in_float32(run):
        attention, head = attention / machine.float32_share, head / machine.float32_share
    routed = 0.0
    if d.experts > 1 and not all_experts:
        from advisor.estimate.time.mixtures import tile_weights

        routed = tile_weights(run, tokens)
    products = factor * ((weights - d.head_params + routed) * narrow + head)
    return products + attention + corrected + beside


def traffic_bytes(run: Run, machine: Machine, length: float) -> float:
    """Bytes per token that elementwise kernels, norms, adapters and the loss move in a sequence of
    so many.
    """
    d = run.dims
    is_fused = (
        run.stage.compile or run.stage.kernels not in ("none", "auto") or run.has_fused_layers
        or run.trainer["transformer_engine"]
        or not machine.overlaps  # a CPU keeps what kernels hand on in its caches
    )  # fmt: skip
    forward, backward = PLAIN_FORWARD, PLAIN_BACKWARD
    if d.gated:
        forward = FUSED_FORWARD if is_fused else EAGER_FORWARD
        backward = FUSED_BACKWARD if is_fused else EAGER_BACKWARD
    forwards = passes_of(run) - 2
    is_module = run.is_module
    layer = forwards * _sum(forward, d) + _sum(backward, d)
    if not is_module:
        layer += _sum(WEIGHT_GRADIENTS, d)
    if run.stage.attention == "eager":
        layer += d.heads * length * (forwards * SCORE_FORWARD + SCORE_BACKWARD)
    if run.compute_dtype in NARROW_DTYPES:
        layer += CAST_TO_NARROW * (1 if is_fused else 2) * (forwards + 1) * _sum(LINEAR_ENDS, d)
    if is_module:
        layer += (forwards + 1) * _adapters(run, fused=is_fused)
    width = run.stated_bytes / 2 if run.precision != "mixed" else 1.0
    width = 2.0 if computes_in_float32(run) else width
    logits = 0.0 if d.encoder else _logit(run) * d.vocab
    whole = d.layers * layer
    if d.experts > 1:
        from advisor.estimate.time.mixtures import dispatch_bytes

        whole += dispatch_bytes(d, forwards, fused=is_fused)
    return TRAFFIC_SHARE * (whole * (width if machine.overlaps else 1.0) + logits)


def _sum(table: Table, d: Dims) -> float:
    return table[0] * d.hidden + table[1] * (d.q_size + d.kv_size) + table[2] * d.width


def _logit(run: Run) -> float:
    loss = run.stated.get("loss")
    if loss is None:
        loss = "chunked" if run.is_ours or run.trainer["chunks"] else "full"
    return {"full": WHOLE_LOGIT, "fused": FUSED_LOGIT}.get(loss, TILED_LOGIT)


def _adapters(run: Run, *, fused: bool) -> float:
    if run.update.size_key != "rank":
        return 0.0
    narrow = run.trainer["adapters_in_16_bit"] or fused
    each_in, each_out = NARROW_ADAPTER_FORWARD if narrow else ADAPTER_FORWARD
    inputs, outputs = _adapted_ends(run)
    return each_in * inputs + each_out * outputs


def _adapted_ends(run: Run) -> tuple[int, int]:
    d = run.dims
    inputs = outputs = 0
    for name in targets(run):
        found = d.linear(name)
        if found is not None and name != "lm_head":
            used = d.used_experts if found[2] == d.experts > 1 else found[2]
            inputs, outputs = inputs + found[0] * used, outputs + found[1] * used
    return inputs, outputs


def weights_read_bytes(run: Run, tokens: float, *, all_experts: bool) -> float:
    """Bytes of weights that the passes of a micro-batch read, beside what they compute: of experts
    those that some token chooses.
    """
    d = run.dims
    reads = passes_of(run) - 1  # forward, again, and backward
    hit = 1.0 if all_experts else d.share_of_experts(tokens)
    elsewhere = d.routed_params * (1 - 1 / run.gpus) if run.shards_experts else 0.0
    size = 2.0 * (d.head_params + (d.routed_params - elsewhere) * hit)
    if run.stage.quantization is None:
        size += 2.0 * d.linear_params
    # Gradients are written, and added from the second on.
    trained = 0.0 if run.is_module else d.params - elsewhere
    grads = 2.0 * trained * (1 + 2 * (run.stage.grad_accum > 1))
    casts = 0.0
    if run.precision == "mixed" and run.stage.weights_dtype == "float32":
        casts = 6.0 * (d.linear_params + d.routed_params) * (passes_of(run) - 2)
    return reads * size + grads + casts


def dequantisation_bytes(run: Run) -> float:
    """Bytes per micro-batch that move to make 16-bit weights of 4-bit ones: in each pass."""
    if not run.stage.quantization:
        return 0.0
    return (passes_of(run) - 1) * run.quantisable * DEQUANTISED


def written_out_bytes(run: Run) -> float:
    """Bytes per micro-batch that move because a module computes weights anew: each forward pass
    reads the old and writes and reads the new ones, the backward pass their gradient.
    """
    d = run.dims
    own = special(run.update, "written_out")
    if own is None:
        return 0.0
    size = own(run) * d.routed_layers * run.stated_bytes
    return float(size * (3 * (passes_of(run) - 2) + 2))


def tiles_s(run: Run, machine: Machine, length: float) -> float:
    """Time per micro-batch for logits in tiles, where a machine is slow at them: of both sequences
    of a pair, of a written answer alone.
    """
    d = run.dims
    what = run.objective
    if what.logits != "tiles" or run.stated.get("loss") not in (None, "chunked"):
        return 0.0
    written = float(run.options.get("response_tokens") or length) if what.generates else length
    times = 1 + FORWARD_TILES * what.extra_forwards
    sequences = run.stage.micro_batch_size * what.sequences_per_row
    return times * sequences * min(length, written) * d.vocab * machine.tile_s
