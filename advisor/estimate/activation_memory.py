"""Memory that comes and goes with each batch: activations, one layer run again, logits and loss,
answers being written.
"""

from __future__ import annotations

from collections.abc import Sequence

from advisor.estimate import sources as src
from advisor.estimate.methods import special
from advisor.estimate.resolved_run import ResolvedRun, answers_at_once, term_of
from advisor.estimate.types import Term
from advisor.methods import objective, update

# One layer run again with frozen weights, per token: what SwiGLU and the projections keep plus
# their gradients. Fitted on the slope of 4 and 8 and 16 sequences of 4096 (Mistral 7B, Llama 3 8B):
# 270 kB per token = 12 I + 24 H.
RERUN_MLP, RERUN_HIDDEN = 12, 24
# transformers' grouped_mm_experts_forward: input, output and weighted output of each used expert.
ROUTED_BYTES = 6
RERUN_SELECTIVE = 0.5  # half of it was kept
CHECKPOINTED_PARTS = 4  # attention, MLP and two norms, where each is checkpointed for itself
RERUN_FUSED_MLP = 8  # gate and up with their gradients; the product is computed again
# Loss on full logits: 16-bit logits, their float32 copy, the shifted copy, log-softmax whose place
# its gradient takes.
LOSS_FULL_BYTES, LOSS_FUSED_BYTES = 14.0, 8.0
# Without a shifted copy: log-softmax, its gradient and that of the logits, 4 B each.
SHIFTED_COPY_BYTES = 2.0
LOSS_COMPILED_BYTES = 8.0  # 16-bit logits, log-softmax whose place its gradient takes, 16 bit again
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
# trainers/ppo/rollout.py: float32 logits held at once. trainers/rollouts/: answers at once.
PART_LOGIT_BYTES = 64 * 2**20
PART_COPIES = 3  # logits, their exponentials, their gradient
WRITING_COPIES = 3  # of one token's logits: themselves, divided by the temperature, probabilities


def activations(s: ResolvedRun) -> list[Term]:
    """What the forward pass leaves for the backward pass."""
    d, tokens = s.dims, s.tokens
    if s.checkpointing in ("full", "offload"):
        if s.checkpointing == "offload":
            return [
                term_of(
                    "activations",
                    2 * tokens * d.hidden * s.hidden_bytes,
                    "layer inputs are moved to host memory; two on the device",
                    src.ACTIVATIONS,
                )
            ]
        states = CHECKPOINTED_PARTS if s.stack.checkpoints_parts else 1
        size = tokens * d.layers * states * d.hidden * s.hidden_bytes
        words = "one hidden state" if states == 1 else f"{states} hidden states"
        product = f"{tokens:,} tokens x {d.layers * states} x {d.hidden} x {s.hidden_bytes} B"
        return [term_of("activations", size, f"{words} per layer: {product}", src.ACTIVATIONS)]
    per_layer = layer_bytes(s)
    written = s.written_out_bytes * d.routed_layers
    if s.checkpointing == "selective":
        # Every other matrix product is kept (half of q, k, v, o, gate, up, down), with the
        # attention's output and the layer's input.
        matrices = d.q_size + 2 * d.kv_size + 2 * d.hidden + (2 if d.gated else 1) * d.width
        per_layer = min(per_layer, matrices + 2 * d.q_size + s.hidden_bytes * d.hidden)
    terms = [
        term_of(
            "activations",
            tokens * d.layers * per_layer,
            f"{tokens:,} tokens x {d.layers} layers x {per_layer:,.0f} B kept in each",
            src.ACTIVATIONS,
        )
    ]
    if written:
        because = (
            f"{d.routed_layers} layers: PEFT adds the correction to all experts of a layer, and the"
            " sum is kept for the backward pass"
        )
        terms.append(term_of("experts with corrections", written, because, src.CORRECTED))
    return terms


def layer_bytes(s: ResolvedRun) -> float:
    """Bytes per token that one layer keeps without checkpointing, by what its operations save for
    the backward pass.

    Compared with what autograd really keeps in tests/estimate/test_against_torch.py.
    """
    d, spec, stack = s.dims, s.spec, s.stack
    wide = 4 if s.weight_bytes == 4 and spec.precision != "mixed" else 2
    frozen, norms = s.is_module, d.norms
    attention = wide * (2 * d.q_size + 2 * d.kv_size)  # q, k, v and the attention's output
    scores = 5 * d.heads * spec.seq_len * (wide / 2) if s.eager else 0.0
    if (
        frozen and stack.fused_adapters
    ):  # each norm's input and result, gate and up; adapters share the results
        return 4 * wide * d.hidden + attention + 2 * wide * d.width + scores
    if not d.gated:
        total: float = (
            2 * norms * wide * d.hidden + s.hidden_bytes * d.hidden
        )  # LayerNorms: input and result
    elif frozen and spec.kernels == "liger" and not stack.name:
        total = norms * wide * d.hidden  # the input alone; the result only if something needs it
    elif spec.compile or s.fused_norms:
        total = 2 * norms * wide * d.hidden
    elif frozen and not stack.plain_blocks:
        total = (
            4 * norms * d.hidden
        )  # RMSNorms in eager code: a float32 copy each; a frozen scale needs no result
    else:
        total = (
            8 * norms * d.hidden + s.hidden_bytes * d.hidden
        )  # the float32 copy, its product, the result
    total += attention
    if not frozen or stack.plain_blocks:
        total += (
            wide * d.q_size
        )  # the output projection's own input, and what rotating q and k keeps
    # Gate, up and the activated gate, which Liger computes again; or the value before activation.
    gated = 2 if spec.kernels == "liger" else 3
    total += wide * (gated if d.gated else 1) * d.width
    if d.experts > 1 and not stack.linear_experts:
        # The output of each used expert, for the router's weights; its input where experts train.
        total += wide * d.used_experts * d.hidden * (1 if frozen else 2)
    how = update(spec.update)
    layers_with_module, own_layers = special(how, "adapted"), special(how, "kept_bytes")
    adapted = layers_with_module(d, spec) if layers_with_module else ()
    keeps_all = frozen and bool(spec.quantization) and stack.keeps_quantised_inputs
    if keeps_all and not stack.plain_blocks:  # results of norms, too: inputs of the other matrices
        total += wide * norms * d.hidden
    if not frozen or keeps_all:
        total += wide * d.width  # the last matrix keeps its input if it trains
    elif own_layers:
        total += own_layers(d, spec)
    return total + _adapter_inputs(s, adapted, wide) + scores


def _adapter_inputs(s: ResolvedRun, adapted: Sequence[str], wide: int) -> float:
    """Bytes per token of the inputs that LoRA's first matrices keep.

    In the weights' own dtype layers with the same input share it; float32 adapters beside 16-bit
    weights cast a copy each, which autocast casts back to 16 bit; dropout keeps its result and a
    mask for each.
    """
    d, spec = s.dims, s.spec
    dropout = 1 if s.stack.name or spec.options.get("dropout") else 0
    own_copy = s.train_bytes != wide or dropout
    kept = (
        wide
        if s.train_bytes == wide
        else (4 if spec.precision == "pure" and not s.stack.name else 2)
    )
    total, seen = 0.0, set()
    for name in adapted:
        sizes = d.linear(name)
        if sizes is None:
            continue
        shared = name.startswith("shared_")
        source = (
            "down"
            if name.endswith("down_proj")
            else (
                "attention"
                if name == "o_proj"
                else "mlp"
                if name.removeprefix("shared_") in ("gate_proj", "up_proj", "gate_up")
                else "hidden"
            )
        )
        width = d.width if source == "down" and not shared else sizes[0]
        if own_copy:
            total += (kept + dropout) * width
        elif source not in seen and source != "attention":  # the attention's output is kept anyway
            total += kept * width
        seen.add(source)
    if s.stack.plain_blocks and "down" in seen:
        total += wide * d.width
    return total


def recomputed_layer(s: ResolvedRun) -> list[Term]:
    """One layer's activations and their gradients while its part of the backward pass runs."""
    d, tokens, spec = s.dims, s.tokens, s.spec
    scale = 2.0 if s.weight_bytes == 4 and spec.precision != "mixed" else 1.0
    terms = []
    if s.checkpointing == "none":
        terms.append(
            term_of(
                "gradients of activations",
                tokens * (6 * d.hidden + 4 * d.width) * scale,
                "of the layer being passed",
                src.ACTIVATIONS,
            )
        )
    else:
        mlp, attention = (
            (RERUN_FUSED_MLP if s.fused_mlp else RERUN_MLP) * d.width,
            RERUN_HIDDEN * d.hidden,
        )
        routed = d.experts > 1 and not s.stack.linear_experts
        mlp += ROUTED_BYTES * d.used_experts * d.hidden if routed else 0
        per_token: float = (
            max(mlp, attention) if s.stack.checkpoints_parts else mlp + attention
        ) * scale
        if s.eager:
            per_token += 5 * d.heads * spec.seq_len * scale
        if s.checkpointing == "selective":
            per_token *= RERUN_SELECTIVE
        because = (
            f"{tokens:,} tokens x {per_token:,.0f} B: the layer's activations and their gradients"
        )
        terms.append(term_of("one layer run again", tokens * per_token, because, src.ACTIVATIONS))
    if s.written_out_bytes:
        again = s.checkpointing != "none"
        because = f"of the layer being passed{', and their gradient' if again else ''}"
        name = "experts with corrections" if again else "gradient of experts with corrections"
        size = s.written_out_bytes * (2 if again else 1)
        terms.append(term_of(name, size, because, src.CORRECTED))
    if spec.quantization == "nf4":
        widest = d.shared_size if s.left_experts else d.expert_width
        terms.append(
            term_of(
                "a matrix in 16 bit",
                2 * d.hidden * max(widest, d.q_size),
                "taken out of 4 bit while it is multiplied",
                src.QLORA,
            )
        )
    if s.keeps_inputs and s.checkpointing == "full":
        size = tokens * d.layers * d.hidden * 2
        terms.append(
            term_of(
                "gradients of hidden states",
                size,
                f"frozen sharded units hold theirs to the end: {tokens:,} tokens x {d.layers} x"
                f" {d.hidden} x 2 B",
                src.ACTIVATIONS,
            )
        )
    return terms


def last_hidden(s: ResolvedRun) -> list[Term]:
    """What the output matrix multiplies: the last hidden states, with their float32 norm.

    Of the size of what a layer holds, so a layer run again takes these blocks over and no cache
    keeps them beside it.
    """
    size = s.tokens * LOSS_HIDDEN_BYTES * s.dims.hidden
    return [
        term_of(
            "last hidden states",
            size,
            f"{s.tokens:,} tokens x {s.dims.hidden:,} x {LOSS_HIDDEN_BYTES} B, with their norm in"
            " float32",
            src.COUNT,
        )
    ]


def loss_memory(s: ResolvedRun) -> list[Term]:
    """Logits and the loss on them, at the start of the backward pass; nothing worth a line where a
    row has a few classes.
    """
    d, tokens = s.dims, s.tokens
    if d.encoder or objective(s.spec.objective).logits == "none":
        return []
    if s.loss == "parts":
        return [_parts(s, PART_COPIES, "with exponentials and gradient")]
    if s.loss == "chunked" and s.stack.keeps_chunks:
        size = tokens * d.vocab * LIT_LOSS_BYTES
        terms = [
            term_of(
                "logits and loss",
                size,
                "logits are computed in chunks and every chunk is kept",
                src.LOSS,
            )
        ]
        if s.quantised_head:
            terms.append(
                term_of(
                    "output matrix in 16 bit",
                    4 * d.head_params,
                    "taken out of 4 bit, and turned, while it is multiplied",
                    src.QLORA,
                )
            )
        return terms
    if s.loss == "chunked" and s.stack.chunks:
        size = tokens * d.vocab * (2 + LOSS_CHUNK_BYTES / s.stack.chunks)
        return [
            term_of(
                "logits and loss",
                size,
                f"16-bit logits of all tokens, the loss on one of {s.stack.chunks} chunks at a"
                " time",
                src.LOSS,
            )
        ]
    if s.loss == "chunked" and not s.stack.whole_logits:
        tile = min(tokens, TILE_TOKENS) * min(d.vocab, TILE_WORDS)
        whole = not s.is_module and not s.stack.name
        size = tile * (CPU_TILE_BYTES if s.cpu else TILE_BYTES) + (
            4 * d.head_params if whole else 0
        )
        because = (
            f"tiles of {TILE_TOKENS:,} tokens x {TILE_WORDS:,} words instead of whole"
            f" logits{', and a float32 gradient of the output matrix' if whole else ''}"
        )
        return [term_of("logits and loss", size, because, src.TRL_LOSS)]
    per = _bytes_of_a_logit(s)
    return [
        term_of(
            "logits and loss",
            tokens * d.vocab * per,
            f"{tokens:,} tokens x {d.vocab:,} words x {per:g} B ({s.loss} logits)",
            src.LOSS,
        )
    ]


def _bytes_of_a_logit(s: ResolvedRun) -> float:
    """Of one logit where the loss takes all of them at once."""
    if s.loss in ("fused", "chunked"):
        return LOSS_FUSED_BYTES
    if s.cpu:
        return LOSS_FLOAT32_BYTES
    if s.compiled_loss:
        return LOSS_COMPILED_BYTES
    return LOSS_FULL_BYTES - (SHIFTED_COPY_BYTES if s.stack.shifts_labels else 0)


def evaluation_memory(s: ResolvedRun) -> list[Term]:
    """An evaluation batch of the training batch's size that keeps the loss alone."""
    d, tokens = s.dims, s.tokens
    terms = [
        term_of(
            "one layer",
            tokens * (4 * d.width + 8 * d.hidden),
            "no activations are kept",
            src.ACTIVATIONS,
        )
    ]
    if s.loss == "parts":
        terms.append(_parts(s, PART_COPIES - 1, "with exponentials"))
    elif not d.encoder and objective(s.spec.objective).logits != "none":
        whole = s.loss != "chunked"
        per = (
            LOSS_COMPILED_BYTES
            if s.compiled_loss
            else LOSS_FUSED_BYTES
            if s.loss == "fused"
            else EVALUATION_BYTES
        )
        size = (
            tokens * d.vocab * per
            if whole
            else min(tokens, TILE_TOKENS) * min(d.vocab, TILE_WORDS) * 4
        )
        terms.append(
            term_of("logits and loss", size, "the loss alone is kept, never the logits", src.LOSS)
        )
    return terms


def _parts(s: ResolvedRun, copies: int, with_what: str) -> Term:
    """Logits of as many answer tokens as our PPO scores at once."""
    logits = min(s.tokens * s.dims.vocab * 4, PART_LOGIT_BYTES)
    return term_of(
        "logits and loss",
        copies * logits,
        f"logits of a part of the tokens, {logits / 2**20:.0f} MiB, {with_what}",
        src.PPO,
    )


def rollout_memory(s: ResolvedRun) -> list[Term]:
    """Keys and values of the answers being generated, and the logits they are drawn from."""
    d, spec = s.dims, s.spec
    answers = answers_at_once(spec)
    wide = 4 if s.weight_bytes == 4 and spec.precision != "mixed" else 2
    size = answers * spec.seq_len * d.layers * 2 * d.kv_size * wide
    return [
        term_of(
            "keys and values of answers",
            size,
            f"{answers} answers x {spec.seq_len:,} tokens x {d.layers} layers x 2 x {d.kv_size} x"
            f" {wide} B",
            src.COUNT,
        ),
        term_of(
            "logits of the next tokens",
            answers * d.vocab * 4 * WRITING_COPIES,
            f"{answers} answers x {d.vocab:,} words x 4 B x {WRITING_COPIES}",
            src.PPO,
        ),
    ]
