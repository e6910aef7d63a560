"""Peak memory of one device: the largest of a run's moments, each a sum of named terms. Arithmetic only.

N weights, L layers, H hidden, I MLP width, V vocabulary, T tokens of one micro-batch on one device, g devices. Bytes everywhere.
Not covered: vision towers, tensor and context parallelism, offloaded activations' host side, dropout masks, fragmentation beyond a share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.estimate import sources as src
from advisor.estimate.dims import Dims, dims_of, targets, trainable_params
from advisor.types import MemoryEstimate, ModelShape, Moment, RunSpec, Source, Term
from advisor.units import GIB

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# nf4: half a byte, and a float32 scale per 64 weights; double quantization stores the scales in 8 bits with one more per 256.
NF4_CONSTANT_BYTES = 4 / 64
NF4_DOUBLE_CONSTANT_BYTES = 1 / 64 + 4 / (64 * 256)
INT8_BYTES = 1.0
# One layer run again with frozen weights, per token: what SwiGLU and the projections keep plus their gradients.
# Fitted on the slope of 4 and 8 and 16 sequences of 4096 (Mistral 7B, Llama 3 8B): 270 kB per token = 12 I + 24 H.
RERUN_MLP, RERUN_HIDDEN = 12, 24
# Loss on full logits: bf16 logits, their float32 copy, the shifted copy, log-softmax and its gradient.
LOSS_FULL_BYTES, LOSS_FUSED_BYTES = 15.0, 8.0
LOSS_FLOAT32_BYTES = 12.0  # logits in float32 from the start: themselves, log-softmax, gradient
LIT_LOSS_BYTES = 7.0
LOSS_HIDDEN_BYTES = 6  # the last hidden states, their float32 norm
TILE_TOKENS, TILE_WORDS = 4096, 32768  # trl/kernels/chunked_logprob.py
# Beyond what is allocated: blocks split and kept. Weights and states are allocated once and lose little; what comes and goes with
# each batch loses more, and as much again where every batch has another length.
STATIC_CACHE = {"allocated": 0.0, "active": 0.0, "reserved": 0.02, "unknown": 0.02, "nvidia-smi": 0.02}
DYNAMIC_CACHE = {"allocated": 0.0, "active": 0.02, "reserved": 0.10, "unknown": 0.10, "nvidia-smi": 0.10}
RAGGED_CACHE = 1.0
RAGGED_LOOPS = ("swift", "trl", "axolotl", "llama-factory", "llamafactory")  # pad each batch to its longest row
CONTEXT_BYTES, NCCL_BYTES = int(0.6 * GIB), int(0.6 * GIB)
FUSED_NORMS = ("torchtune", "torchtitan", "nemo", "liger", "unsloth")  # one kernel that keeps its input alone
DEEPSPEED_BUCKET_ELEMENTS = 500_000_000
CPU_OPTIMIZERS = ("adamw_cpu", "adam_cpu", "cpu_adam")
# Half-widths of the band, shares of the peak, by what was known of the model; measured on the published open cases.
BAND_KNOWN, BAND_GUESSED = 0.12, 0.30


@dataclass(frozen=True, slots=True)
class Setting:
    """A RunSpec with every default filled in, as the formulas want it."""

    spec: RunSpec
    dims: Dims
    tokens: int
    rows: int
    gpus: int
    cpu: bool
    sharding: str | None
    shard_all: int  # over how many devices weights are divided
    shard_states: int
    shard_grads: int
    weight_bytes: int  # bytes of one unquantised weight
    hidden_bytes: int  # of one element of the residual stream
    train_bytes: int  # of one trainable parameter
    trainable: int
    checkpointing: str  # "none" | "full" | "selective" | "offload"
    optimizer: str
    loss: str
    framework: str
    offloaded: bool  # weights live in host memory (FSDP's CPU offload, which brings the optimizer there)


def memory_estimate(spec: RunSpec, shape: ModelShape, *, cpu: bool = False) -> MemoryEstimate | None:
    """The peak of one device with its terms and band; None where the shape holds no dimensions."""
    dims = dims_of(shape)
    if dims is None:
        return None
    setting = resolve(spec, dims, cpu=cpu)
    static = [*_weights(setting), *_reference(setting)]
    states, grads = _states(setting), _gradients(setting)
    kept = [] if spec.grad_accum == 1 else grads  # with accumulation the gradients of earlier micro-batches stay
    activations = _activations(setting)
    loss = _loss(setting)
    moments = [
        _moment("loss and start of the backward pass", setting, [*static, *states, *kept, *activations, *loss]),
        _moment("backward pass through one layer", setting, [*static, *states, *kept, *activations, *_rerun(setting)]),
        _moment("end of the backward pass", setting, [*static, *states, *grads, *_rerun(setting)]),
        _moment("optimizer step", setting, [*static, *states, *grads, *_step_temporaries(setting)]),
        _moment("evaluation", setting, [*static, *states, *_evaluation(setting)]),
    ]
    if spec.objective in ("ppo", "grpo", "rloo"):
        moments.append(_moment("generating answers", setting, [*static, *states, *_rollout(setting)]))
    peak = max(moment.total_bytes for moment in moments)
    share = BAND_KNOWN if shape.origin in ("catalogue", "folder", "hub", "suggested") else BAND_GUESSED
    warnings = [shape.note] if shape.origin == "size" and shape.note else []
    if dims.encoder and spec.objective != "sft":
        warnings.append("an encoder: estimated as a classifier")
    if cpu:
        warnings.append("training on the CPU: the same terms in RAM, float32 compute")
    return MemoryEstimate(moments=tuple(moments), low_bytes=round(peak * (1 - share)), high_bytes=round(peak * (1 + share)), warnings=tuple(warnings))


def resolve(spec: RunSpec, dims: Dims, *, cpu: bool = False) -> Setting:
    """The spec with what the bundled trainers would use where it is silent."""
    gpus = max(1, spec.gpus)
    sharding = (spec.sharding or ("ddp" if gpus > 1 else None)) if gpus > 1 else None
    weight_bytes = 4 if cpu else DTYPE_BYTES.get(spec.weights_dtype, 2)
    sharded = gpus if sharding in ("fsdp", "zero3") else 1
    trainable = trainable_params(dims, spec)
    if spec.update == "full":
        train_bytes = weight_bytes
        if sharding == "fsdp" and spec.precision == "mixed":
            train_bytes = weight_bytes = 4  # accelerate upcasts the flat parameters
    else:
        # PEFT keeps adapters in float32, and so do the bundled trainers; TRL alone turns those of a quantised base into bf16.
        train_bytes = 2 if spec.quantization and spec.framework == "trl" else 4
    bf16_compute = sharding == "fsdp" and spec.update == "full" and (spec.precision == "mixed" or spec.weights_dtype != "float32")
    # The residual stream follows the embedding's dtype; float32 after prepare_model_for_kbit_training, which upcasts norms and embeddings.
    upcast = spec.kbit_prepared or weight_bytes == 4 or (sharding == "fsdp" and spec.update != "full" and spec.framework is not None)
    hidden_bytes = 4 if upcast else 2
    if bf16_compute:  # FSDP casts what it gathers, so the layers compute and keep bf16
        hidden_bytes = 2
    checkpointing = "none" if not spec.gradient_checkpointing else (spec.gradient_checkpointing if isinstance(spec.gradient_checkpointing, str) else "full")
    if checkpointing not in ("none", "full", "selective", "offload"):
        checkpointing = "full"
    # The bundled trainers score in tiles on a card; on the CPU they hold the logits of the learned tokens whole.
    loss = spec.loss or ("full" if spec.objective in ("orpo", "ppo") or (cpu and spec.objective in ("sft", "cpt")) else "chunked")
    doubled = 2 if spec.objective in ("dpo", "orpo", "rm") else 1
    rows = spec.micro_batch_size * doubled
    return Setting(
        spec=spec, dims=dims, tokens=rows * spec.seq_len, rows=rows, gpus=gpus, cpu=cpu, sharding=sharding, shard_all=sharded,
        shard_states=gpus if sharding in ("fsdp", "zero3", "zero2", "zero1") else 1, shard_grads=gpus if sharding in ("fsdp", "zero3", "zero2") else 1,
        weight_bytes=weight_bytes, hidden_bytes=hidden_bytes, train_bytes=train_bytes, trainable=trainable, checkpointing=checkpointing,
        optimizer=spec.optimizer or "adamw_fused", loss=loss, framework=(spec.framework or "").lower(), offloaded=sharding == "fsdp" and spec.optimizer in CPU_OPTIMIZERS,
    )  # fmt: skip


def _term(name: str, size_bytes: float, because: str, source: Source) -> Term:
    return Term(name=name, size_bytes=max(0, round(size_bytes)), because=because, source=source)


def _untied(s: Setting) -> int:
    """Weights a framework holds twice: litgpt gives every model an output matrix of its own."""
    return s.dims.head_params if s.framework.startswith("lit") and s.dims.embedding_params == s.dims.head_params and not s.dims.encoder else 0


def _per_device(share: int) -> str:
    return f" / {share} devices" if share > 1 else ""


# --------------------------------------------------------------------------- what is there all the time


def _weights(s: Setting) -> list[Term]:
    """The model's own weights with quantisation constants, what is gathered around a shard, and added parameters."""
    d, spec, share = s.dims, s.spec, s.shard_all
    terms = []
    if spec.quantization in ("nf4", "int8"):
        outside = 4 if spec.kbit_prepared or s.cpu else s.weight_bytes
        per_weight = 0.5 if spec.quantization == "nf4" else INT8_BYTES
        terms.append(_term("weights", d.linear_params * per_weight / share, f"{d.linear_params:,} linear weights x {per_weight:g} B{_per_device(share)}", src.QLORA))
        if spec.quantization == "nf4":
            constant = NF4_DOUBLE_CONSTANT_BYTES if spec.double_quantization else NF4_CONSTANT_BYTES
            terms.append(
                _term("quantisation constants", d.linear_params * constant / share, f"a scale per 64 weights, {'8-bit' if spec.double_quantization else 'float32'}", src.QLORA)
            )
        rest = d.embedding_params + d.other_params + _untied(s)
        terms.append(_term("weights left unquantised", rest * outside / share, f"{rest:,} of embeddings, output and norms x {outside} B{_per_device(share)}", src.QLORA))
    else:
        outside = s.weight_bytes
        held = d.params + _untied(s)
        terms.append(_term("weights", 0 if s.offloaded else held * outside / share, f"{held:,} x {outside} B{_per_device(share)}", src.COUNT))
    if share > 1:
        # The root unit (embeddings and output) stays gathered, two blocks at a time (prefetch).
        layer_bytes = d.layer_params * (0.5 if spec.quantization == "nf4" else 2)
        whole = sum(term.size_bytes for term in terms) * (share - 1)
        gathered = d.embedding_params * 2 + 2 * layer_bytes
        if spec.update != "full" and s.framework.startswith("lit"):
            gathered = whole * share / (share - 1)  # Fabric's FSDP never frees frozen units: nothing in them triggers the hook that does
        elif not s.offloaded:
            gathered = min(gathered, whole)
        terms.append(_term("gathered weights", gathered, "embeddings, output and two layers in full while they compute", src.FSDP))
    if spec.update != "full":
        name = {"lora": "adapters", "adapter": "bottleneck adapters", "prefix": "prefix"}[spec.update] if spec.update in ("lora", "adapter", "prefix") else "added parameters"
        terms.append(_term(name, s.trainable * s.train_bytes / share, f"{s.trainable:,} trainable parameters x {s.train_bytes} B{_per_device(share)}", src.LORA))
    elif spec.fp32_master_weights and s.weight_bytes < 4:
        terms.append(_term("float32 master weights", d.params * 4 / s.shard_states, f"{d.params:,} x 4 B{_per_device(s.shard_states)}", src.ZERO))
    elif spec.precision == "mixed" and s.weight_bytes == 4 and not s.cpu and s.sharding != "fsdp":
        terms.append(_term("16-bit copies of the weights", d.linear_params * 2 / share, "autocast keeps a cast of every weight through the step", src.COUNT))
    return terms


def _reference(s: Setting) -> list[Term]:
    """The further roles of a preference or reinforcement stage."""
    d, spec, share = s.dims, s.spec, s.shard_all
    base = d.params * s.weight_bytes if not spec.quantization else d.linear_params * 0.52 + (d.embedding_params + d.other_params) * s.weight_bytes
    if spec.objective in ("dpo", "kto") and spec.update == "full":
        return [_term("reference model", base / share, "a frozen copy of the policy", src.COUNT)]
    if spec.objective in ("grpo", "rloo") and spec.update == "full" and spec.options.get("beta"):
        return [_term("reference model", base / share, "a frozen copy of the policy, since beta is not zero", src.COUNT)]
    if spec.objective != "ppo":
        return []
    if spec.update == "full":
        states = d.params * (2 * s.weight_bytes if not spec.optimizer or "8bit" not in spec.optimizer else 2)
        return [
            _term("reference model", base / share, "a frozen copy of the policy", src.PPO),
            _term("reward model", base / share, "a frozen model of the policy's size", src.PPO),
            _term("value model", (2 * base + states) / share, "a second model that trains: weights, gradients and optimizer state", src.PPO),
        ]
    adapters = s.trainable * s.train_bytes
    return [_term("reward and value adapters", (2 * adapters + 3 * adapters) / share, "all four roles share one frozen base; value trains too", src.PPO)]


def _states(s: Setting) -> list[Term]:
    """Adam's moments, or what another optimizer keeps, on this device."""
    per, why = _state_bytes(s)
    if s.optimizer in CPU_OPTIMIZERS:
        return [_term("optimizer state", 0, "held in host memory", src.ADAM)]
    if s.optimizer.startswith("paged") and not s.cpu:
        return [_term("optimizer state", 0, f"paged: up to {s.trainable * per / GIB:.2f} GiB in unified memory, counted by no allocator and moved out under pressure", src.QLORA)]
    return [_term("optimizer state", s.trainable * per / s.shard_states, f"{why} x {s.trainable:,} trainable parameters{_per_device(s.shard_states)}", src.ADAM)]


def _state_bytes(s: Setting) -> tuple[float, str]:
    name = s.optimizer
    width = 4 if s.spec.fp32_master_weights else s.train_bytes
    if "8bit" in name:
        return 2 + 2 * 4 / 256, "2 moments of 1 B with a scale per 256"
    if name == "adafactor":
        return 0.05 * width, "row and column means, about a twentieth"
    if name.startswith("sgd"):
        return 0.0, "no moments"
    if name in ("lion", "rmsprop", "adagrad", "sgd_momentum"):
        return width, f"one moment of {width} B"
    return 2 * width, f"2 moments of {width} B"


def _gradients(s: Setting) -> list[Term]:
    if s.spec.optimizer_in_backward:
        one = (s.dims.layer_params if s.spec.update == "full" else s.trainable // s.dims.layers) * s.train_bytes
        return [_term("gradients", one, "one layer at a time: the step runs inside the backward pass", src.COUNT)]
    if s.offloaded:
        return [_term("gradients", 0, "moved to host memory layer by layer", src.FSDP)]
    share = s.shard_grads
    terms = [_term("gradients", s.trainable * s.train_bytes / share, f"{s.trainable:,} trainable parameters x {s.train_bytes} B{_per_device(share)}", src.COUNT)]
    if s.sharding in ("zero2", "zero3") and s.spec.update == "full":
        # transformers' "auto" sets them to the square of the hidden size.
        elements = min(DEEPSPEED_BUCKET_ELEMENTS if s.framework else s.dims.hidden**2, s.trainable)
        terms.append(_term("communication buckets", elements * 2 * 2, f"reduce and all-gather, {elements:,} elements each", src.DEEPSPEED))
    elif s.sharding == "ddp":
        terms.append(_term("communication buckets", min(25 * 2**20, s.trainable * s.train_bytes), "DDP reduces in buckets of 25 MiB", src.COUNT))
    return terms


def _step_temporaries(s: Setting) -> list[Term]:
    """What the optimizer holds beside its state while it steps."""
    fused = "fused" in s.optimizer or "8bit" in s.optimizer or "paged" in s.optimizer or s.optimizer in CPU_OPTIMIZERS or s.optimizer.startswith("sgd")
    if fused or s.spec.optimizer_in_backward or s.sharding in ("zero2", "zero3"):
        return []
    width = 4 if s.spec.fp32_master_weights else s.train_bytes
    return [_term("optimizer temporaries", s.trainable * width / s.shard_states, "the foreach step builds its update for all parameters at once", src.FOREACH)]


# --------------------------------------------------------------------------- what grows with the tokens


def _activations(s: Setting) -> list[Term]:
    """What the forward pass leaves for the backward pass."""
    d, tokens = s.dims, s.tokens
    if s.checkpointing in ("full", "offload"):
        if s.checkpointing == "offload":
            return [_term("activations", 2 * tokens * d.hidden * s.hidden_bytes, "layer inputs are moved to host memory; two on the device", src.ACTIVATIONS)]
        size = tokens * d.layers * d.hidden * s.hidden_bytes
        return [_term("activations", size, f"one hidden state per layer: {tokens:,} tokens x {d.layers} x {d.hidden} x {s.hidden_bytes} B", src.ACTIVATIONS)]
    per_layer = _layer_bytes(s)
    if s.checkpointing == "selective":
        # Every other matrix product is kept (half of q, k, v, o, gate, up, down), with the attention's output and the layer's input.
        matrices = d.q_size + 2 * d.kv_size + 2 * d.hidden + (2 if d.gated else 1) * d.width
        per_layer = min(per_layer, matrices + 2 * d.q_size + s.hidden_bytes * d.hidden)
    return [_term("activations", tokens * d.layers * per_layer, f"{tokens:,} tokens x {d.layers} layers x {per_layer:,.0f} B kept in each", src.ACTIVATIONS)]


def _layer_bytes(s: Setting) -> float:
    """Bytes per token that one layer keeps without checkpointing, by what its operations save for the backward pass.

    Compared with what autograd really keeps in tests/estimate/test_against_torch.py.
    """
    d, spec = s.dims, s.spec
    wide = 4 if s.weight_bytes == 4 and spec.precision != "mixed" else 2
    frozen = spec.update != "full"
    lit = s.framework.startswith("lit")
    if not d.gated:
        total: float = 4 * wide * d.hidden + s.hidden_bytes * d.hidden  # two LayerNorms: input and result
    elif spec.compile or any(name in s.framework for name in FUSED_NORMS):
        total = 4 * wide * d.hidden
    elif frozen and not lit:
        total = 8 * d.hidden  # two RMSNorms in eager code: a float32 copy each; a frozen scale needs no result
    else:
        total = 16 * d.hidden + s.hidden_bytes * d.hidden  # the float32 copy, its product, the result
    total += wide * (2 * d.q_size + 2 * d.kv_size)  # q, k, v and the attention's output
    if not frozen or lit:
        total += wide * d.q_size  # the output projection's own input, and what rotating q and k keeps
    total += wide * (3 if d.gated else 1) * d.width  # gate, up and the activated gate; or the value before the activation
    adapted = targets(d, spec) if spec.update == "lora" else ()
    if not frozen or (spec.quantization and s.framework):
        total += wide * d.width  # the last matrix keeps its input if it trains, or under bitsandbytes before 0.43
    elif spec.update == "adapter":
        total += (2 if spec.options.get("placement") == "houlsby" else 1) * 4 * d.hidden
    total += _adapter_inputs(s, adapted, wide, lit)
    if spec.attention == "eager":
        total += 5 * d.heads * spec.seq_len * (wide / 2)
    return total


def _adapter_inputs(s: Setting, adapted: Sequence[str], wide: int, lit: bool) -> float:
    """Bytes per token of the inputs that LoRA's first matrices keep.

    In the weights' own dtype layers with the same input share it; float32 adapters beside 16-bit weights cast a copy each,
    which autocast casts back to 16 bit; dropout keeps its result and a mask for each.
    """
    d, spec = s.dims, s.spec
    dropout = 1 if s.framework or spec.options.get("dropout") else 0
    own_copy = s.train_bytes != wide or dropout
    kept = wide if s.train_bytes == wide else (4 if spec.precision == "pure" and not s.framework else 2)
    total, seen = 0.0, set()
    for name in adapted:
        sizes = d.linear(name)
        if sizes is None:
            continue
        source = "down" if name.endswith("down_proj") else "attention" if name == "o_proj" else "mlp" if name in ("gate_proj", "up_proj", "gate_up") else "hidden"
        width = d.width if source == "down" else sizes[0]
        if own_copy:
            total += (kept + dropout) * width
        elif source not in seen and source != "attention":  # the attention's output is kept anyway
            total += kept * width
        seen.add(source)
    if lit and "down" in seen:
        total += wide * d.width
    return total


def _rerun(s: Setting) -> list[Term]:
    """One layer's activations and their gradients while its part of the backward pass runs."""
    d, tokens = s.dims, s.tokens
    scale = 2.0 if s.weight_bytes == 4 and s.spec.precision != "mixed" else 1.0
    if s.checkpointing == "none":
        size = tokens * (6 * d.hidden + 4 * d.width) * scale
        return [_term("gradients of activations", size, "of the layer being passed", src.ACTIVATIONS)]
    per_token: float = (RERUN_MLP * d.width + RERUN_HIDDEN * d.hidden) * scale
    if s.spec.attention == "eager":
        per_token += 5 * d.heads * s.spec.seq_len * scale
    return [_term("one layer run again", tokens * per_token, f"{tokens:,} tokens x {per_token:,.0f} B: the layer's activations and their gradients", src.ACTIVATIONS)]


def _loss(s: Setting) -> list[Term]:
    """Logits and the loss on them, at the start of the backward pass."""
    d, tokens = s.dims, s.tokens
    hidden = tokens * LOSS_HIDDEN_BYTES * d.hidden
    if d.encoder or s.spec.objective == "rm":
        return [_term("logits and loss", hidden, "a few classes per row: only the last hidden states count", src.LOSS)]
    if s.loss == "chunked" and s.framework.startswith("lit"):
        size = hidden + tokens * d.vocab * LIT_LOSS_BYTES
        return [_term("logits and loss", size, "litgpt computes logits in chunks and keeps every chunk", src.LOSS)]
    if s.loss == "chunked":
        tile = min(tokens, TILE_TOKENS) * min(d.vocab, TILE_WORDS)
        copies = 3 * 4 if s.cpu else 2 * 2
        size = hidden + tile * copies + (4 * d.head_params if s.spec.update == "full" else 0)
        because = (
            f"tiles of {TILE_TOKENS:,} tokens x {TILE_WORDS:,} words instead of whole logits{', and a float32 gradient of the output matrix' if s.spec.update == 'full' else ''}"
        )
        return [_term("logits and loss", size, because, src.TRL_LOSS)]
    per = LOSS_FUSED_BYTES if s.loss == "fused" else LOSS_FLOAT32_BYTES if s.cpu else LOSS_FULL_BYTES
    return [_term("logits and loss", hidden + tokens * d.vocab * per, f"{tokens:,} tokens x {d.vocab:,} words x {per:g} B ({s.loss} logits)", src.LOSS)]


def _evaluation(s: Setting) -> list[Term]:
    """An evaluation batch of the training batch's size that keeps the loss alone."""
    d, tokens = s.dims, s.tokens
    terms = [_term("one layer", tokens * (4 * d.width + 8 * d.hidden), "no activations are kept", src.ACTIVATIONS)]
    if not d.encoder and s.spec.objective != "rm":
        per = 0.0 if s.loss == "chunked" else 10.0
        size = tokens * d.vocab * per if per else min(tokens, TILE_TOKENS) * min(d.vocab, TILE_WORDS) * 4
        terms.append(_term("logits and loss", size, "the loss alone is kept, never the logits", src.LOSS))
    return terms


def _rollout(s: Setting) -> list[Term]:
    """Keys and values of the answers being generated."""
    d, spec = s.dims, s.spec
    answers = spec.micro_batch_size * int(spec.options.get("generations") or (8 if spec.objective == "grpo" else 1))
    size = answers * spec.seq_len * d.layers * 2 * d.kv_size * 2
    return [_term("keys and values of answers", size, f"{answers} answers x {spec.seq_len:,} tokens x {d.layers} layers x 2 x {d.kv_size} x 2 B", src.COUNT)]


# --------------------------------------------------------------------------- what the counter adds


def _moment(name: str, s: Setting, terms: Sequence[Term]) -> Moment:
    """The terms with what the chosen counter shows beyond them."""
    extra: list[Term] = []
    dynamic = sum(term.size_bytes for term in terms if term.source in (src.ACTIVATIONS, src.LOSS, src.TRL_LOSS))
    static = sum(term.size_bytes for term in terms) - dynamic
    if s.cpu:
        extra.append(_term("Python and libraries", 0.7 * GIB, "interpreter, torch and tokenizer in RAM", src.ALLOCATOR))
    else:
        counter = s.spec.counter if s.spec.counter in DYNAMIC_CACHE else "unknown"
        share = DYNAMIC_CACHE[counter]
        ragged = counter in ("reserved", "nvidia-smi") and not s.spec.packing and s.rows and any(name in s.framework for name in RAGGED_LOOPS)
        size = static * STATIC_CACHE[counter] + dynamic * (share + (RAGGED_CACHE if ragged else 0.0))
        because = f"{STATIC_CACHE[counter]:.0%} of what stays, {share:.0%} of what comes and goes" + (", and as much again since every batch has another length" if ragged else "")
        extra.append(_term("allocator cache", size, because, src.ALLOCATOR))
        if counter in ("nvidia-smi", "unknown"):
            size = CONTEXT_BYTES + (NCCL_BYTES if s.gpus > 1 else 0)
            extra.append(_term("CUDA context", size, "driver, kernels" + (" and NCCL" if s.gpus > 1 else ""), src.CONTEXT))
    return Moment(name=name, terms=tuple(term for term in (*terms, *extra) if term.size_bytes > 0))
