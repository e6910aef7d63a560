"""Run: what one estimate is about, and what follows from it for every formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from advisor.estimate.methods import special
from advisor.estimate.model.dims import Dims, dims_of
from advisor.estimate.padding import padded_tokens, row_lengths
from advisor.estimate.trainers import OURS, Trainer
from advisor.estimate.types import derived
from advisor.ground.types import GpuSpec, Hardware, ModelShape, TokenStats
from advisor.methods import Objective, Update, objective, update
from advisor.methods.kernels import AUTO, OWN
from advisor.methods.stage import Stage

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
CPU_OPTIMIZERS = ("adamw_cpu", "adam_cpu", "cpu_adam")
# Most trainers of adapters pad to the longest row of a batch: five of eight in rules/trainers.
GUESSED_RAGGED = 2 / 3
GUESSED_WHOLE_BYTES = 80e9 / 3  # of whole gradients: a third of a large GPU
# What each way of sharing divides.
DIVIDES: Mapping[str, tuple[str, ...]] = {
    "weights": ("fsdp", "zero3"),
    "gradients": ("fsdp", "zero3", "zero2"),
    "states": ("fsdp", "zero3", "zero2", "zero1"),
}
# Mixtures whose code in transformers (5.24) sends every token through every expert, times a score
# that is zero for most (Llama4TextMoe.forward), and all that run their experts themselves. By their
# names where no config.json is at hand.
ALL_EXPERTS = ("llama4", "llama-4", "llama 4")
OWN_EXPERTS = (*ALL_EXPERTS, "dbrx", "jetmoe", "longcat")
COUNTERS = ("allocated", "active", "reserved", "nvidia-smi", "unknown")
STAGE_KEYS = frozenset(Stage.__struct_fields__)


def stage_of(settings: Mapping[str, Any]) -> Stage:
    """The stage with these values of plan keys; what is no key of every stage becomes an option. A
    key that is missing or None takes the plan's default, or 16-bit weights.
    """
    given: dict[str, Any] = {"name": "", "learning_rate": 0.0, "weights_dtype": "bfloat16"}
    given |= {key: value for key, value in settings.items() if value is not None}
    options = {key: value for key, value in given.items() if key not in STAGE_KEYS}
    return Stage(**{key: given[key] for key in given if key not in options}, options=options)


class Device(Struct, frozen=True, kw_only=True):
    """What a run is trained on, and how several devices share the work."""

    is_cpu: bool = False
    gpu: GpuSpec | None = None
    memory_bytes: int | None = None  # if that is not the catalogue's
    gpus: int = 1
    machines: int = 1
    sharding: str | None = None  # ddp | zero1 | zero2 | zero3 | fsdp
    offloads: bool = False  # fsdp and zero3: weights, gradients and optimizer in host memory
    counter: str = "allocated"  # what reads the memory

    @classmethod
    def of(
        cls,
        hardware: Hardware,
        gpus: int = 1,
        sharding: str | None = None,
        *,
        offloads: bool = False,
    ) -> Device:
        """The device of this hardware; several share the work by DDP unless it is said how."""
        return cls(
            is_cpu=hardware.kind == "cpu",
            gpu=hardware.gpus[0].spec if hardware.gpus else None,
            memory_bytes=hardware.device_memory_bytes,
            gpus=gpus,
            machines=hardware.machines,
            sharding=sharding or ("ddp" if gpus > 1 else None),
            offloads=offloads,
        )

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU of NVIDIA's, which one is taken to be if nothing is known."""
        return self.gpu is None or self.gpu.vendor == "nvidia"

    @property
    def total_bytes(self) -> int | None:
        """Its memory; None if that is not known."""
        return self.memory_bytes or (None if self.gpu is None else self.gpu.memory_bytes)


class Rows(Struct, frozen=True, kw_only=True):
    """The rows that a run reads, as far as they are known."""

    # (longest of the bin in tokens, rows in it), ascending; empty: every row is seq_len long
    lengths: tuple[tuple[int, int], ...] = ()
    stats: TokenStats | None = None  # of the data, from which lengths follow
    share: float = 1.0  # of the data that is read
    in_epoch: int | None = None  # rows of the data, if time is to count their padding
    tokens_total: int | None = None  # real tokens of all epochs; of a pair both sequences
    rows_total: int | None = None  # the rows that they stand in
    differ: bool = False  # a description says that they are not packed, and no more


class Run(Struct, frozen=True, kw_only=True, eq=False, dict=True):
    """What one estimate is about. Equal only to itself, so that results can be cached by it."""

    stage: Stage
    model: ModelShape
    device: Device = Device()
    rows: Rows = Rows()
    trainer: Trainer = OURS
    # What a description of another tool's run says and no key of a stage: loss, evaluation,
    # checkpointing, compute_dtype, kbit_prepared, fp32_master_weights, optimizer_in_backward.
    stated: Mapping[str, Any] = field(default_factory=dict)
    left_open: frozenset[str] = frozenset()  # keys that it leaves to the trainer's own habit

    @property
    def options(self) -> Mapping[str, Any]:
        """The keys of its objective and its update."""
        return self.stage.options

    @derived
    def objective(self) -> Objective:
        return objective(self.stage.objective)

    @derived
    def update(self) -> Update:
        return update(self.stage.update)

    @derived
    def dims(self) -> Dims:
        """The model's dimensions, which have to be known."""
        found = dims_of(self.model)
        assert found is not None
        return found

    @derived
    def is_sized(self) -> bool:
        """Whether more is known of the model than how many parameters it has."""
        return dims_of(self.model) is not None

    @derived
    def is_module(self) -> bool:
        """Whether a module is trained beside a frozen base."""
        return self.update.is_module

    @property
    def is_ours(self) -> bool:
        """Whether the bundled trainers train it."""
        return not self.trainer.name

    @property
    def precision(self) -> str | None:
        """pure or mixed; None if a description leaves it open."""
        return None if "precision" in self.left_open else self.stage.precision

    @property
    def rank(self) -> int | None:
        found = self.options.get("rank")
        return None if found is None else int(found)

    @property
    def target_modules(self) -> str | tuple[str, ...]:
        """What LoRA adapts."""
        found = self.options.get("target_modules") or "all-linear"
        return found if isinstance(found, str) else tuple(found)

    @property
    def compute_dtype(self) -> str | None:
        """Of matrix products, if it is not that of the weights: fp8, mxfp8, nvfp4, ..."""
        return self.stated.get("compute_dtype")

    @property
    def optimizer_in_backward(self) -> bool:
        """Whether the step of each parameter runs inside the backward pass."""
        return bool(self.stated.get("optimizer_in_backward"))

    @derived
    def checkpointing(self) -> str:
        """Which activations are computed again: none, selective, full or offload (moved away)."""
        if not self.stage.gradient_checkpointing:
            return "none"
        return str(self.stated.get("checkpointing", "full"))

    @derived
    def counter(self) -> str:
        """What read the memory, as far as that is known."""
        stated = self.device.counter
        if stated == "unknown" and self.trainer["logs_allocated"]:
            return "allocated"
        return stated if stated in COUNTERS else "unknown"

    @derived
    def _knows_data(self) -> bool:
        """Whether lengths follow from the data. A stage that writes answers keeps its seq_len,
        which holds request and answer.
        """
        stats = self.rows.stats
        return stats is not None and bool(stats.histogram) and not self.objective.generates

    @derived
    def lengths(self) -> tuple[tuple[int, int], ...]:
        """The lengths of its rows: no micro-batch is wider than the longest of them."""
        rows = self.rows
        if rows.stats is None or not self._knows_data:
            return rows.lengths
        return row_lengths(rows.stats, seq_len=self.stage.seq_len, share=rows.share)

    @property
    def padded_length(self) -> float | None:
        """Tokens of a sequence of a micro-batch on average, with padding; None if not known."""
        stage, rows = self.stage, self.rows
        if rows.stats is None or rows.in_epoch is None or self.objective.generates:
            return None
        return padded_tokens(
            rows.stats, seq_len=stage.seq_len, micro=stage.micro_batch_size,
            per_step=stage.effective_batch_size * self.gpus, rows=rows.in_epoch,
            grouped=stage.group_by_length,
        )  # fmt: skip

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest row that a micro-batch may hold: no batch is wider."""
        stage, lengths = self.stage, self.lengths
        if stage.packing or not lengths:
            return stage.seq_len
        return max(1, min(stage.seq_len, lengths[-1][0]))

    @derived
    def sequences(self) -> int:
        """Sequences of a micro-batch: two for each pair, unless others pack both into one."""
        each = 1 if self.stage.packing else self.objective.sequences_per_row
        return self.stage.micro_batch_size * each

    @derived
    def tokens(self) -> int:
        """Tokens of the largest micro-batch: each sequence as long as the longest row."""
        return self.sequences * self.longest_tokens

    @property
    def learned_tokens(self) -> int:
        """Those of them that are learned: of answers written meanwhile, not of their requests."""
        written = self.options.get("response_tokens") if self.objective.answers else None
        longest = self.longest_tokens
        return self.sequences * min(longest, int(written or longest))

    @property
    def logit_tokens(self) -> int:
        """Those of them that have logits."""
        return self.learned_tokens if self.trainer["answer_logits"] else self.tokens

    @derived
    def ragged(self) -> float:
        """How far batches differ in length: 1 as the trainer pads, 0 if all rows are alike. For an
        unknown trainer two thirds, and only if adapters are trained on unpacked rows, which are
        mostly instructions; whole models are as often measured on rows of one length.
        """
        if not self.trainer["ragged"] or len(self.lengths) == 1:
            return 0.0
        if "ragged" in self.trainer.guessed:
            return GUESSED_RAGGED if self.is_module and not self.stage.packing else 0.0
        # A batch's longest answer stops at the cap (each step of play-verl's logs, 2025-05).
        return 1 - self.learned_tokens / self.tokens if self.objective.generates else 1.0

    @derived
    def answers_each(self) -> int:
        """Answers to one prompt that a step learns from."""
        answers = self.objective.answers
        return int(self.options.get("generations") or answers) if answers else 1

    @property
    def answers_a_row(self) -> int:
        """Answers that a row of a micro-batch stands for: a micro-batch of ours counts requests,
        one of TRL's and its kind answers (`per_device_train_batch_size`).
        """
        return self.answers_each if self.is_ours else 1

    @derived
    def answers_at_once(self) -> int:
        """Answers that are written together."""
        own = special(self.objective, "answers_at_once")
        if own:
            return int(own(self))
        # TRL writes those of `steps_per_generation` micro-batches, a step's, at once.
        again = self.answers_each if self.is_ours else self.stage.grad_accum
        return self.stage.micro_batch_size * again

    @derived
    def sharding(self) -> str | None:
        """How devices share the work; on one DeepSpeed counts, with its buckets and copies."""
        stated = self.device.sharding
        if self.device.gpus > 1:
            return stated or "ddp"
        return stated if (stated or "").startswith("zero") else None

    @property
    def is_fsdp(self) -> bool:
        return self.sharding == "fsdp"

    @derived
    def gpus(self) -> int:
        return max(1, self.device.gpus)

    def sharing(self, what: str) -> int:
        """Over how many devices weights, gradients or the optimizer's states are divided."""
        return self.gpus if self.sharding in DIVIDES[what] else 1

    @derived
    def offloaded(self) -> bool:
        """Whether weights live in host memory, and gradients and optimizer with them. FSDP's CPU
        offload brings the optimizer to the host too, so an optimizer there tells of it.
        """
        if self.device.gpus < 2:
            return False
        if self.device.offloads:
            return self.device.sharding in ("fsdp", "zero3")
        return self.device.sharding == "fsdp" and self.stage.optimizer in CPU_OPTIMIZERS

    @property
    def optimizer(self) -> str:
        return "adamw_cpu" if self.offloaded else self.stage.optimizer

    @derived
    def adds_up_whole(self) -> bool:
        """Whether gradients of earlier micro-batches are whole on every device. Where that is a
        guess, not if weights are in host memory, nor if they would take so much that somebody would
        have divided them.
        """
        is_guess = "adds_up_whole_gradients" in self.trainer.guessed
        has_room = not self.offloaded and 2 * self.dims.params <= GUESSED_WHOLE_BYTES
        return bool(self.trainer["adds_up_whole_gradients"]) and (has_room or not is_guess)

    @derived
    def flat_adapters(self) -> bool:
        """Whether adapters and the frozen weights of a layer are one flat parameter (FSDP 1 with
        use_orig_params), and so is their gradient; FSDP warns of it.
        """
        is_flat = self.trainer["flat_adapters"] and self.trainer["fsdp"] == 1
        is_sure = "flat_adapters" not in self.trainer.guessed or self.adds_up_whole
        return self.is_fsdp and self.is_module and bool(is_flat) and is_sure

    @property
    def stated_bytes(self) -> int:
        """Bytes of a weight in the dtype that the stage names."""
        return DTYPE_BYTES.get(self.stage.weights_dtype, 2)

    @derived
    def weight_bytes(self) -> int:
        """Bytes of an unquantised weight."""
        mixed = self.is_fsdp and self.precision == "mixed" and not self.is_module
        return 4 if mixed and self.trainer["upcasts_trained"] else self.frozen_bytes

    @property
    def frozen_bytes(self) -> int:
        """Bytes of an unquantised weight that nothing trains."""
        return 4 if self.device.is_cpu else self.stated_bytes

    @derived
    def train_bytes(self) -> int:
        """Bytes of a trainable parameter. PEFT keeps adapters in float32, as ours do."""
        if not self.is_module:
            return self.weight_bytes
        narrow = self.trainer["adapters_in_16_bit"] or (
            self.trainer["quantised_adapters_in_16_bit"] and self.stage.quantization is not None
        )
        return 2 if narrow and not self.device.is_cpu else 4

    @derived
    def master(self) -> bool:
        """Whether float32 weights stand beside 16-bit ones, which the optimizer steps on.
        DeepSpeed's optimizers always keep them (zero/stage_1_and_2.py, stage3.py).
        """
        deepspeed = (self.device.sharding or "").startswith("zero")
        kept = deepspeed and not self.is_module and not self.device.is_cpu
        return (bool(self.stated.get("fp32_master_weights")) or kept) and self.weight_bytes < 4

    @derived
    def prepared(self) -> bool:
        """Whether embeddings, output and norms of a quantised base are float32."""
        return self.stage.quantization is not None and bool(self.stated.get("kbit_prepared"))

    @derived
    def casts(self) -> bool:
        """Whether FSDP casts what it gathers to 16 bit; ours casts weights that train in place
        alone (trainers/step/sharding.py, casts_weights).
        """
        if not self.is_fsdp or self.device.is_cpu:
            return False
        if not self.is_module and self.precision == "mixed":
            return True
        return not self.is_ours and (self.is_module or self.stage.weights_dtype != "float32")

    @derived
    def hidden_bytes(self) -> int:
        """Bytes of an element of the residual stream, which follows the embedding's dtype: float32
        after prepare_model_for_kbit_training, 16 bit where FSDP casts.
        """
        return 4 if not self.casts and (self.prepared or self.weight_bytes == 4) else 2

    @derived
    def trainable(self) -> int:
        """Parameters that get a gradient.

        Raises InputError if the update's file does not say how to count them.
        """
        count = special(self.update, "trainable_params")
        assert count is not None  # `special` raises for an update without it
        return int(count(self))

    @derived
    def embeddings(self) -> int:
        """Parameters that are trained whole beside a module, as copies."""
        copies = special(self.update, "embedding_copies")
        return int(copies(self)) if copies else 0

    @property
    def embedding_bytes(self) -> int:
        """Bytes of one of them: PEFT copies in the dtype of the base, our trainers in float32."""
        return 4 if self.is_ours else self.weight_bytes

    @derived
    def trained(self) -> tuple[tuple[int, int], ...]:
        """(how many, bytes each) of the parameters that get a gradient, by dtype."""
        copies = ((self.embeddings, self.embedding_bytes),) if self.embeddings else ()
        return ((self.trainable, self.train_bytes), *copies)

    @property
    def trained_bytes(self) -> int:
        """Bytes of all parameters that get a gradient, and so of one set of gradients."""
        return sum(count * width for count, width in self.trained)

    @property
    def quantisable(self) -> int:
        """Weights that nf4 and int8 quantise."""
        return self.dims.linear_params + self.dims.routed_params - self.left_experts

    @property
    def left_experts(self) -> int:
        """Routed experts and routers that stay as they are on a quantised base."""
        return 0 if self.quantises_experts else self.dims.routed_params

    @property
    def quantises_experts(self) -> bool:
        """Whether a quantised base has its routed experts quantised too."""
        others = self.trainer["linear_experts"] or self.trainer["quantises_experts"]
        return bool(others) or self.packs_experts

    @derived
    def packs_experts(self) -> bool:
        """Whether the bundled trainers keep the experts in 4 bits and run one after the other
        (trainers/start/packed_experts.py): on a base that is not divided, or while it loads, of a
        model whose code in transformers lets its experts be run so.
        """
        name = f"{self.model.architecture or ''} {self.model.id}".lower()
        return (
            self.is_ours
            and self.stage.quantization == "nf4"
            and self.dims.experts > 1
            and (self.stage.divides_base or not self.is_fsdp)
            and not any(word in name for word in OWN_EXPERTS)
        )

    @property
    def quantised_head(self) -> bool:
        """Whether the output matrix is quantised like any other."""
        is_quantised = self.stage.quantization is not None and not self.dims.encoder
        return is_quantised and bool(self.trainer["quantises_head"])

    @derived
    def written_out_bytes(self) -> int:
        """Bytes of weights that each forward pass computes anew in one layer."""
        own = special(self.update, "written_out")
        return int(own(self)) * self.weight_bytes if own else 0

    @derived
    def has_logits(self) -> bool:
        """Whether there are logits over a vocabulary."""
        return not self.dims.encoder and self.objective.logits != "none"

    @derived
    def loss(self) -> str:
        """How logits become a loss: full, fused, chunked, or parts (ours on the CPU, and our PPO: a
        few tokens at a time).

        The bundled trainers score in tiles of TRL's kernel on a GPU, and elsewhere in parts
        (trainers/step/answer_loss.py). PPO is our own.
        """
        logits = self.objective.logits
        whole_on_cpu = self.device.is_cpu and logits == "tiles_on_gpu"
        # Others mostly score answers, and pairs beside a reference, by whole logits.
        others = not self.is_ours and (
            self.objective.answers or self.objective.reference != "never"
        )
        whole = logits in ("whole", "parts") or whole_on_cpu or others
        if stated := self.stated.get("loss"):
            # Liger's switch for a fused loss takes the output matrix in, too (monkey_patch.py).
            liger = stated == "fused" and self.stage.kernels == "liger"
            return "chunked" if liger else str(stated)
        if self.is_ours and (logits == "parts" or whole_on_cpu):
            return "parts"
        return "full" if whole and not self.tiles_loss else "chunked"

    @property
    def tiles_loss(self) -> bool:
        """Whether another trainer never makes whole logits for this objective."""
        return self.stage.objective in self.trainer["tiled_loss"]

    @property
    def compiled_loss(self) -> bool:
        """Whether softmax and cast are one kernel: logits and their gradient alone."""
        return self.stage.compile and bool(self.trainer["compiles_loss"])

    @derived
    def has_fused_layers(self) -> bool:
        """Whether norms and gates of MLPs are kernels that keep their inputs alone."""
        # A guess may save in the one layer that runs again, not in all layers.
        is_guess = "fused_with_loss" in self.trainer.guessed and self.checkpointing == "none"
        with_loss = self.trainer["fused_with_loss"] and self.loss == "chunked" and not is_guess
        return bool(with_loss) or self.stage.kernels == "liger"

    @property
    def eager(self) -> bool:
        """Whether attention scores exist whole."""
        return self.stage.attention == "eager" or self.dims.eager_only

    @derived
    def has_kernel(self) -> bool:
        """Whether a library's kernel computes attention. Where that is left open: in stacks beside
        transformers, and where no device has room for a layer's scores, 16-bit and float32.
        """
        if "attention" not in self.left_open or self.is_ours:
            return self.stage.attention not in (AUTO, *OWN)
        room = self.device.total_bytes or 3 * GUESSED_WHOLE_BYTES
        whole = 6 * self.dims.heads * self.tokens * self.longest_tokens > room
        return whole or not self.trainer["accelerate"]

    @derived
    def layer_gathered(self) -> int:
        """Weights of a layer that are gathered whole where devices divide them."""
        d = self.dims
        return d.layer_params - self.shards_experts * d.routed_params // d.layers

    @property
    def shards_experts(self) -> bool:
        """Whether each device has routed experts of its own, to which tokens travel."""
        return self.is_fsdp and bool(self.trainer["shards_experts"]) and self.dims.experts > 1
