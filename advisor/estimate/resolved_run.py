"""A RunSpec with every default filled in, as the memory formulas want it."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.estimate.frameworks import Framework, framework_of
from advisor.estimate.methods import special
from advisor.estimate.model.dims import Dims
from advisor.estimate.padding import largest_line
from advisor.estimate.types import RunSpec, Term
from advisor.ground.types import Source
from advisor.methods import objective, update

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
CPU_OPTIMIZERS = ("adamw_cpu", "adam_cpu", "cpu_adam")
# Most trainers of adapters pad to the longest row of a batch: five of eight in rules/trainers.
GUESSED_RAGGED = 2 / 3
GUESSED_WHOLE_BYTES = 80e9 / 3  # of whole gradients: a third of a large GPU
COUNTERS = ("allocated", "active", "reserved", "nvidia-smi", "unknown")


def answers_each(spec: RunSpec) -> int:
    """How many answers to one prompt a step learns from."""
    answers = objective(spec.objective).answers
    return int(spec.options.get("generations") or answers) if answers else 1


def answers_at_once(spec: RunSpec) -> int:
    """How many answers are written together."""
    own = special(objective(spec.objective), "answers_at_once")
    return int(own(spec)) if own else spec.micro_batch_size * answers_each(spec)


def rollouts(spec: RunSpec) -> int:
    """How many times a step writes answers."""
    return -(-spec.micro_batch_size * spec.grad_accum * answers_each(spec) // answers_at_once(spec))


def trainable_params(dims: Dims, spec: RunSpec) -> int:
    """Parameters that get a gradient.

    Raises InputError where the update's file does not say how to count them.
    """
    count = special(update(spec.update), "trainable_params")
    assert count is not None  # `special` raises for an update without it
    return int(count(dims, spec))


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """One run on one device."""

    spec: RunSpec
    dims: Dims
    stack: Framework
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
    casts: bool  # FSDP casts to 16 bit what it gathers
    train_bytes: int  # of one trainable parameter
    trainable: int
    quantisable: int  # weights that nf4 and int8 quantise
    left_experts: int  # routed experts and routers that stay as they are on a quantised base
    embeddings: int  # trained whole beside a module, as copies
    embedding_bytes: int  # of one of them
    checkpointing: str  # "none" | "full" | "selective" | "offload"
    master: bool  # float32 weights beside 16-bit ones, which the optimizer steps on
    optimizer: str
    # "full" | "fused" | "chunked" | "parts" (our PPO: a few tokens at a time) | "tiled" (ours on
    # the CPU: gradients are made with the logits)
    loss: str
    prepared: bool  # embeddings, output and norms of a quantised base in float32
    eager: bool  # attention scores exist whole
    counter: str
    offloaded: bool  # weights live in host memory, and gradients and optimizer with them
    fused_norms: bool
    fused_mlp: bool
    quantised_head: bool  # the output matrix is quantised like any other
    keeps_inputs: (
        bool  # FSDP of frozen units under accelerate: inputs stay to the end of the backward pass
    )
    ragged: float  # 1 where every batch has another length, GUESSED_RAGGED if that is a guess
    adds_up_whole: bool  # gradients of earlier micro-batches are whole on every device
    compiled_loss: bool  # softmax and cast in one kernel: logits and their gradient alone
    evaluates: bool
    is_module: bool  # a module is trained beside a frozen base

    @property
    def flat_adapters(self) -> bool:
        """Whether adapters and the frozen weights of a layer are one flat parameter (FSDP 1 with
        use_orig_params), and so is their gradient; FSDP warns of it.
        """
        return (
            self.sharding == "fsdp"
            and self.is_module
            and self.stack.flat_adapters
            and self.stack.fsdp == 1
            and ("flat_adapters" not in self.stack.guessed or self.adds_up_whole)
        )

    @property
    def fully_sharded(self) -> bool:
        """Whether FSDP divides each parameter for itself (FSDP 2, fully_shard)."""
        return self.sharding == "fsdp" and self.stack.fsdp == 2 and bool(self.stack.name)

    @property
    def picked_experts(self) -> int:
        """Numbers of the largest tensor of one layer's experts, gate and up, where each expert is
        picked from it by its place: autograd makes a gradient of the whole tensor for each expert
        (select_backward), beside the sum so far.
        """
        if not self.stack.picks_experts or self.is_module:
            return 0
        picked = (
            kind.experts.weights * 2 // 3
            for kind in self.dims.kinds
            if kind.experts and kind.experts.biased
        )
        return max(picked, default=0)

    @property
    def written_out_bytes(self) -> int:
        """Of weights that each forward pass computes anew in one layer."""
        own = special(update(self.spec.update), "written_out")
        return int(own(self.dims, self.spec)) * self.weight_bytes if own else 0

    @property
    def trained(self) -> tuple[tuple[int, int], ...]:
        """(how many, bytes each) of the parameters that get a gradient, by dtype."""
        return (
            (self.trainable, self.train_bytes),
            *(((self.embeddings, self.embedding_bytes),) if self.embeddings else ()),
        )

    @property
    def trained_bytes(self) -> int:
        """Of all parameters that get a gradient, and so of one set of gradients."""
        return sum(count * width for count, width in self.trained)

    @property
    def trained_words(self) -> str:
        """The parameters that get a gradient, as a product in words."""
        return " + ".join(
            f"{count:,} trainable parameters x {width} B" for count, width in self.trained
        )


def resolve(spec: RunSpec, dims: Dims, *, cpu: bool = False) -> ResolvedRun:
    """The spec with what the bundled trainers would use where it is silent."""
    stack = framework_of(spec)
    # FSDP's CPU offload brings the optimizer to the host too, so an optimizer there tells of it.
    offloaded = (
        spec.sharding == "fsdp" and spec.optimizer in CPU_OPTIMIZERS
        if not spec.offload_weights
        else spec.sharding in ("fsdp", "zero3")
    )
    offloaded = offloaded and spec.gpus > 1
    gpus = max(1, spec.gpus)
    deepspeed = (spec.sharding or "").startswith(
        "zero"
    )  # on one device, too: with its buckets and float32 copies, and nothing to divide
    sharding = spec.sharding or ("ddp" if gpus > 1 else None) if gpus > 1 or deepspeed else None
    weight_bytes = 4 if cpu else DTYPE_BYTES.get(spec.weights_dtype, 2)
    what, how = objective(spec.objective), update(spec.update)
    full = not how.is_module
    # DeepSpeed's optimizers keep float32 weights beside 16-bit ones. Over several devices a spec
    # says so itself; on one, naming it says it.
    master = spec.fp32_master_weights or (deepspeed and gpus == 1 and full and not cpu)
    if full:
        train_bytes = weight_bytes
        if sharding == "fsdp" and spec.precision == "mixed":
            train_bytes = weight_bytes = 4  # accelerate upcasts the flat parameters
    else:
        # PEFT keeps adapters in float32, and so do the bundled trainers; some frameworks do not.
        narrow = stack.adapters_in_16_bit or (
            stack.quantised_adapters_in_16_bit and spec.quantization is not None
        )
        train_bytes = 2 if narrow and not cpu else 4
    prepared = spec.quantization is not None and (
        bool(spec.kbit_prepared) or stack.prepares_quantised
    )
    # The residual stream follows the embedding's dtype; float32 after
    # prepare_model_for_kbit_training, which upcasts norms and embeddings. FSDP casts what it
    # gathers, so the layers compute and keep 16 bit; ours casts weights that train in place alone
    # (trainers/frame/sharding.py, casts_weights).
    cast = (
        sharding == "fsdp"
        and not cpu
        and (
            (full and spec.precision == "mixed")
            or (bool(stack.name) and (not full or spec.weights_dtype != "float32"))
        )
    )
    hidden_bytes = 2 if cast else 4 if prepared or weight_bytes == 4 else 2
    checkpointing = (
        "none"
        if not spec.gradient_checkpointing
        else (
            spec.gradient_checkpointing if isinstance(spec.gradient_checkpointing, str) else "full"
        )
    )
    if checkpointing not in ("none", "full", "selective", "offload"):
        checkpointing = "full"
    copies = special(how, "embedding_copies")
    embeddings = copies(dims, spec) if copies else 0
    # The bundled trainers score in tiles on a card. On the CPU they do so where the output matrix
    # is frozen (trainers/frame/answer_loss.py), and hold the learned tokens' logits whole where it
    # trains. PPO is our own.
    on_cpu = cpu and what.logits == "tiles_on_gpu" and not stack.name
    tiled = on_cpu and not full and not embeddings
    whole = what.logits in ("whole", "parts") or (cpu and what.logits == "tiles_on_gpu")
    own = (
        "parts"
        if what.logits == "parts" and not stack.name
        else "tiled"
        if tiled
        else "full"
        if whole
        else "chunked"
    )
    loss = spec.loss or own
    if stack.chunks_plain_loss and loss == "full" and not whole:
        loss = "chunked"
    # A guess may save in the one layer that runs again, not in all layers.
    guessed = "fused_with_loss" in stack.guessed and checkpointing == "none"
    with_loss = stack.fused_with_loss and loss == "chunked" and not guessed
    kernels = with_loss or spec.kernels == "liger"
    counter = (
        "allocated"
        if spec.counter == "unknown" and stack.logs_allocated
        else spec.counter
        if spec.counter in COUNTERS
        else "unknown"
    )
    rows = spec.micro_batch_size * what.sequences_per_row
    return ResolvedRun(
        spec=spec, dims=dims, stack=stack, tokens=batch_tokens(spec, rows), rows=rows, gpus=gpus,
        cpu=cpu, sharding=sharding,
        shard_all=gpus if sharding in ("fsdp", "zero3") else 1,
        shard_states=gpus if sharding in ("fsdp", "zero3", "zero2", "zero1") else 1,
        shard_grads=gpus if sharding in ("fsdp", "zero3", "zero2") else 1,
        weight_bytes=weight_bytes, hidden_bytes=hidden_bytes, casts=cast,
        train_bytes=train_bytes,
        trainable=trainable_params(dims, spec),
        quantisable=dims.linear_params + (dims.routed_params if stack.linear_experts else 0),
        left_experts=0 if stack.linear_experts else dims.routed_params,
        embeddings=embeddings,
        # PEFT copies in the dtype of the base; the bundled trainers train the copies in float32.
        embedding_bytes=weight_bytes if stack.name else 4,
        checkpointing=checkpointing,
        master=master and weight_bytes < 4,
        optimizer="adamw_cpu" if offloaded else spec.optimizer or "adamw_fused", loss=loss,
        counter=counter,
        prepared=prepared, eager=spec.attention == "eager" or dims.eager_only,
        fused_norms=stack.fused_norms or kernels, fused_mlp=stack.fused_mlp or kernels,
        quantised_head=stack.quantises_head and spec.quantization is not None and not dims.encoder,
        offloaded=offloaded,
        keeps_inputs=sharding == "fsdp" and stack.fsdp == 1 and not full and stack.accelerate,
        ragged=_ragged(spec, stack, full=full),
        adds_up_whole=stack.adds_up_whole_gradients
        and ("adds_up_whole_gradients" not in stack.guessed or _has_room(dims, offloaded)),
        compiled_loss=spec.compile and stack.compiles_loss,
        evaluates=stack.evaluates if spec.evaluation is None else spec.evaluation,
        is_module=not full,
    )  # fmt: skip


def batch_tokens(spec: RunSpec, rows: int) -> int:
    """Tokens of the largest micro-batch of so many sequences: each as long as the longest row, or
    laid end to end.
    """
    if spec.unpadded and spec.lengths and not spec.packing:
        return largest_line(spec.lengths, spec.seq_len, rows)
    return rows * spec.longest_tokens


def _has_room(dims: Dims, offloaded: bool) -> bool:
    """Whether whole gradients may be guessed: not where weights are kept in host memory, nor where
    they would take so much that somebody would have divided them.
    """
    return not offloaded and 2 * dims.params <= GUESSED_WHOLE_BYTES


def _ragged(spec: RunSpec, stack: Framework, *, full: bool) -> float:
    """How far batches differ in length: as the trainer pads, unless the spec says that all rows are
    alike. Of a trainer that is not known, by two thirds, and only where adapters are trained on
    unpacked rows, which are mostly instructions; whole models are as often measured on rows of one
    length.
    """
    if not stack.ragged or len(spec.lengths) == 1:
        return 0.0
    if "ragged" in stack.guessed:
        return 0.0 if spec.packing or full else GUESSED_RAGGED
    return 1.0


def term_of(name: str, size_bytes: float, because: str, source: Source) -> Term:
    """A line of an estimate; never below zero."""
    size = round(size_bytes)
    return Term(name=name, size_bytes=size if size > 0 else 0, because=because, source=source)


def per_device(share: int) -> str:
    """The words for a size divided over devices."""
    return f" / {share} devices" if share > 1 else ""
