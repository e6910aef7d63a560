"""Memory that comes and goes with each batch: activations, a recomputed layer, logits and loss,
answers being written.
"""

from __future__ import annotations

from collections.abc import Iterator

from advisor.estimate import sources as src
from advisor.estimate.blocks.layer import layers_of
from advisor.estimate.methods import special
from advisor.estimate.run import Run
from advisor.estimate.types import Term, term_of

RERUN_SELECTIVE = 0.5  # half of it was kept
# transformers' ForCausalLMLoss on full logits. Forward: 16-bit logits, their float32 copy,
# log-softmax (2 + 4 + 4); until 4.48 the logits were shifted, with one more float32 copy: 14.
# Backward: log-softmax, the gradient it is given and the one it makes, in float32: 12.
LOSS_FULL_BYTES, LOSS_SHIFTED_LABELS_BYTES = 14.0, 12.0
# Beside a reference: the policy's logits and log-softmax stand (6 to 8) while the reference makes
# its own (10): TRL, dpo_trainer.py, compute_loss; LLaMA-Factory, train/dpo/trainer.py.
LOSS_REFERENCE_BYTES = 16.0
LOSS_FUSED_BYTES = 8.0
LOSS_COMPILED_BYTES = 8.0  # 16-bit logits, log-softmax whose place its gradient takes, 16 bit again
# A compiled model hands 16-bit logits to an eager loss: a float32 copy, log-softmax and gradients
# of both beside them: 14 to 18 by the loop (prime-rl's benchmarks of 0.6B, January 2026).
LOSS_OUTSIDE_BYTES = 16.0
LOSS_FLOAT32_BYTES = 12.0  # logits in float32 from the start: themselves, log-softmax, gradient
LOSS_CHUNK_BYTES = 8.0  # of the chunk being computed: float32 copy and gradient
LIT_LOSS_BYTES = 7.0
LOSS_HIDDEN_BYTES = 6  # the last hidden states, their float32 norm
EVALUATION_BYTES = 10.0  # 16-bit logits, float32 copy, log-softmax
# trl/kernels/chunked_logprob.py. Its kernel turns a tile of 16-bit logits into their gradient in
# place; without Triton, on the CPU, the same in torch holds the tile, its float32 copy scaled
# twice, log-probabilities, probabilities, the gradient and three steps towards it.
TILE_TOKENS, TILE_WORDS = 4096, 32768
TILE_BYTES, CPU_TILE_BYTES = 4, 33
OWN_TILE_TOKENS = 2048  # trainers/step/answer_loss.py: tokens whose logits are held on the CPU
# trainers/ppo/rollout.py: float32 logits held at once; on a GPU those of at least so many tokens.
PART_LOGIT_BYTES, PART_GPU_TOKENS = 64 * 2**20, 2048
PART_COPIES = 3  # logits, their exponentials, their gradient
WRITING_COPIES = 3  # of one token's logits: themselves, divided by the temperature, probabilities
LOGITS = "logits and loss"
CASTS = "autocast casts frozen float32 weights for each product, which keeps the cast"


def activations(run: Run) -> Iterator[Term]:
    """What the forward pass leaves for the backward pass."""
    d, tokens, wide = run.dims, run.tokens, run.hidden_bytes
    if run.checkpointing == "offload":
        size, because = 2 * tokens * d.hidden * wide, "layer inputs are moved to host memory"
        yield term_of("activations", size, f"{because}; two on the device", src.ACTIVATIONS)
        return
    if run.checkpointing == "full":
        because = (
            f"one hidden state per layer: {tokens:,} tokens x {d.layers} x {d.hidden} x {wide} B"
        )
        size = tokens * d.layers * d.hidden * wide
        yield term_of("activations", size, because, src.ACTIVATIONS)
        return
    kept = sum(kind.count * layer.kept for kind, layer in layers_of(run)) / d.layers
    kept += _kept_by_module(run)
    if run.checkpointing == "selective":
        # Every other matrix product is kept, from the first on (q, v, gate, down), with the
        # attention's output and the layer's input: torchtitan/distributed/
        # activation_checkpoint.py, where what an even count finds is computed again.
        matrices = 2 * (d.q_size + d.kv_size + d.width + (d.hidden if d.gated else 0))
        kept = min(kept, matrices + 2 * d.q_size + wide * d.hidden)
    because = f"{tokens:,} tokens x {d.layers} layers x {kept:,.0f} B that their operations save"
    yield term_of("activations", tokens * d.layers * kept, because, src.BLOCKS)
    if copies := _cast_weights(run) * d.layers:
        yield term_of("16-bit copies of frozen weights", copies, CASTS, src.BLOCKS)
    if written := run.written_out_bytes * d.routed_layers:
        because = (
            f"{d.routed_layers} layers: PEFT adds the correction to all experts of a layer, and the"
            " sum is kept for the backward pass"
        )
        yield term_of("experts with corrections", written, because, src.CORRECTED)


def _cast_weights(run: Run) -> float:
    """Bytes of a layer's frozen float32 weights that autocast casts: its cache holds weights that
    train alone, so each product makes a cast of its own and saves it for its input's gradient
    (aten/src/ATen/autocast_mode.cpp, cached_cast).
    """
    plain = run.weight_bytes == 4 and run.stage.quantization is None and not run.casts
    if not run.is_module or not plain or run.precision != "mixed":
        return 0.0
    return 2 * run.dims.linear_params / run.dims.layers


def _kept_by_module(run: Run) -> float:
    own = special(run.update, "kept_bytes")
    return float(own(run)) if own else 0.0


def recomputed_layer(run: Run) -> Iterator[Term]:
    """One layer's activations and their gradients while its part of the backward pass runs."""
    d, tokens = run.dims, run.tokens
    again = run.checkpointing != "none"
    if not again:
        more = max(layer.backward - layer.kept_inside for _, layer in layers_of(run))
        because = (
            f"{tokens:,} tokens x {more:,.0f} B beyond what it frees, of the layer being passed"
        )
        yield term_of("gradients of activations", tokens * more, because, src.BLOCKS)
    else:
        per_token = max(layer.backward for _, layer in layers_of(run)) + _kept_by_module(run)
        if run.checkpointing == "selective":
            per_token *= RERUN_SELECTIVE
        because = (
            f"{tokens:,} tokens x {per_token:,.0f} B: what its operations save, and gradients at"
            " the worst point"
        )
        yield term_of("recomputed layer", tokens * per_token, because, src.BLOCKS)
        yield term_of("16-bit copies of frozen weights", _cast_weights(run), CASTS, src.BLOCKS)
    if written := run.written_out_bytes:
        because = f"of the layer being passed{', and their gradient' if again else ''}"
        name = "experts with corrections" if again else "gradient of experts with corrections"
        yield term_of(name, written * (2 if again else 1), because, src.CORRECTED)
    if run.stage.quantization == "nf4":
        routed = d.expert_width * (2 if run.packs_experts and d.gated else 1)
        widest = max(d.shared_size if run.left_experts else routed, d.q_size)
        because = "in 16 bit while it is multiplied"
        yield term_of("dequantised matrix", 2 * d.hidden * widest, because, src.QLORA)
        if run.trainer["quantises_experts"] and run.left_experts == 0 and d.experts > 1:
            # Their products keep them for the backward pass: those of each layer, or of one that
            # is computed again.
            held = d.routed_layers if run.checkpointing == "none" else 1
            because = "experts in 16 bit while they compute, of each layer that is not run again"
            size = 2 * d.expert_layer_params * held
            yield term_of("dequantised experts", size, because, src.EXPERTS)
    trainer = run.trainer
    keeps_inputs = run.is_fsdp and trainer["fsdp"] == 1 and run.is_module and trainer["accelerate"]
    if keeps_inputs and run.checkpointing == "full":
        because = (
            f"frozen sharded units hold theirs to the end: {tokens:,} tokens x {d.layers} x"
            f" {d.hidden} x 2 B"
        )
        size = tokens * d.layers * d.hidden * 2
        yield term_of("gradients of hidden states", size, because, src.ACTIVATIONS)


def last_hidden(run: Run) -> Term:
    """What the output matrix multiplies: the last hidden states, with their float32 norm.

    It has the size of what a layer holds, so a recomputed layer takes these blocks over and no
    cache keeps them beside it.
    """
    tokens, hidden, each = run.tokens, run.dims.hidden, LOSS_HIDDEN_BYTES
    because = f"{tokens:,} tokens x {hidden:,} x {each} B, with their norm in float32"
    return term_of("last hidden states", tokens * each * hidden, because, src.COUNT)


def loss_memory(run: Run) -> list[Term]:
    """Logits and the loss on them, at the start of the backward pass; nothing worth a line if a row
    has a few classes.
    """
    d, tokens, chunks = run.dims, run.logit_tokens, run.trainer["chunks"]
    if not run.has_logits:
        return []
    if run.loss == "parts":
        return [_parts(run, PART_COPIES, "with exponentials and gradient")]
    is_chunked = run.loss == "chunked"
    if is_chunked and run.trainer["keeps_chunks"]:
        because = "logits are computed in chunks and every chunk is kept"
        terms = [term_of(LOGITS, tokens * d.vocab * LIT_LOSS_BYTES, because, src.LOSS)]
        if run.quantised_head:
            because = "in 16 bit, and transposed, while it is multiplied"
            terms.append(term_of("output matrix in 16 bit", 4 * d.head_params, because, src.QLORA))
        return terms
    if is_chunked and chunks:
        # A compiled loss writes no float32 copy of the chunk.
        chunk = 0.0 if run.compiled_loss else LOSS_CHUNK_BYTES / chunks
        because = f"16-bit logits of all tokens, the loss on one of {chunks} chunks at a time"
        return [term_of(LOGITS, tokens * d.vocab * (2 + chunk), because, src.LOSS)]
    if is_chunked:
        whole = not run.is_module and (run.is_ours or run.tiles_loss)
        size = _tile(run) * (CPU_TILE_BYTES if run.device.is_cpu else TILE_BYTES)
        size += 4 * d.head_params if whole else 0
        because = (
            f"tiles of {TILE_TOKENS:,} tokens x {TILE_WORDS:,} logits instead of whole"
            f" logits{', and a float32 gradient of the output matrix' if whole else ''}"
        )
        return [term_of(LOGITS, size, because, src.TRL_LOSS)]
    per = _bytes_of_a_logit(run)
    because = f"{tokens:,} tokens x {d.vocab:,} logits x {per:g} B ({run.loss} logits)"
    return [term_of(LOGITS, tokens * d.vocab * per, because, src.LOSS)]


def _tile(run: Run) -> int:
    return min(run.logit_tokens, TILE_TOKENS) * min(run.dims.vocab, TILE_WORDS)


def _bytes_of_a_logit(run: Run) -> float:
    if run.loss in ("fused", "chunked"):
        return LOSS_FUSED_BYTES
    if run.device.is_cpu:
        return LOSS_FLOAT32_BYTES
    if run.compiled_loss:
        return LOSS_COMPILED_BYTES
    if run.objective.reference == "always" and not run.is_ours:
        return LOSS_REFERENCE_BYTES
    if run.stage.compile:
        return LOSS_OUTSIDE_BYTES
    return LOSS_SHIFTED_LABELS_BYTES if run.trainer["shifts_labels"] else LOSS_FULL_BYTES


def evaluation_memory(run: Run) -> Iterator[Term]:
    """An evaluation batch of the training batch's size that keeps the loss alone."""
    d, tokens = run.dims, run.tokens
    layer = max(one.forward for _, one in layers_of(run)) + run.hidden_bytes * d.hidden
    because = f"{tokens:,} tokens x {layer:,.0f} B at its worst point: no activations are kept"
    yield term_of("one layer", tokens * layer, because, src.BLOCKS)
    if run.loss == "parts":
        yield _parts(run, PART_COPIES - 1, "with exponentials")
    elif run.has_logits:
        per = LOSS_FUSED_BYTES if run.loss == "fused" else EVALUATION_BYTES
        per = LOSS_COMPILED_BYTES if run.compiled_loss else per
        size = _tile(run) * 4 if run.loss == "chunked" else run.logit_tokens * d.vocab * per
        yield term_of(LOGITS, size, "the loss alone is kept, never the logits", src.LOSS)


def _parts(run: Run, copies: int, with_what: str) -> Term:
    is_ppo = run.objective.logits == "parts"
    part = PART_LOGIT_BYTES if is_ppo else OWN_TILE_TOKENS * run.dims.vocab * 4
    if is_ppo and not run.device.is_cpu:
        part = max(part, PART_GPU_TOKENS * run.dims.vocab * 4)
    logits = min(run.tokens * run.dims.vocab * 4, part)
    because = f"logits of a part of the tokens, {logits / 2**20:.0f} MiB, {with_what}"
    return term_of(LOGITS, copies * logits, because, src.PPO if is_ppo else src.PARTS)


def rollout_memory(run: Run) -> Iterator[Term]:
    """Keys and values of the answers being generated, and the logits they are drawn from."""
    d, answers, seq_len = run.dims, run.answers_at_once, run.stage.seq_len
    wide = 4 if run.weight_bytes == 4 and run.precision != "mixed" else 2
    cached = int(d.cached(seq_len))
    because = (
        f"{answers} answers x {cached:,} numbers for {seq_len:,} tokens in {d.layers} layers x"
        f" {wide} B"
    )
    yield term_of("keys and values of answers", answers * cached * wide, because, src.COUNT)
    because = f"{answers} answers x {d.vocab:,} logits x 4 B x {WRITING_COPIES}"
    size = answers * d.vocab * 4 * WRITING_COPIES
    yield term_of("logits of the next tokens", size, because, src.PPO)
