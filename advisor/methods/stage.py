"""Stage: one training stage of a plan, and the keys that every stage may have.

The fields are the keys: each with its type, its bounds, its default, what it means and what others
need to know of it (`Uses`). Keys that belong to one update or one objective (rank, beta, ...) are
declared under `keys:` in its own file and travel in `Stage.options`; in a plan they stand beside
the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import NODEFAULT, Struct, field
from msgspec.structs import force_setattr

from advisor.ground.annotated import defaults_of, shape_of
from advisor.ground.errors import Fault
from advisor.ground.files import FOLDER_NAME, NAME_PATTERN, is_folder_name, name_hint
from advisor.ground.shape import Choice, Integer, Located, Number, Path_, Text
from advisor.methods.kernels import ATTENTIONS, LAYER_KERNELS
from advisor.methods.keys import Key, Uses
from advisor.methods.model import QUANTIZATIONS
from advisor.methods.optimizers import NAMES as OPTIMIZER_NAMES
from advisor.methods.optimizers import plan_name

EVERY_STAGE = "every stage"  # the owner of its keys


class FolderName(Text):
    """The name of a plan, a stage or a task, which becomes the name of a folder."""

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, str) or not is_folder_name(value):
            near = name_hint(value) if isinstance(value, str) else ""
            yield self.refuse(value, document, path, hint=near)

    def words(self) -> str:
        return FOLDER_NAME


Name = Annotated[str, FolderName(pattern=NAME_PATTERN)]
Positive = Annotated[int, Integer(min=1)]


class Stage(Struct, frozen=True, kw_only=True):
    """One training stage. `options` holds the keys of its update and its objective; in the file
    they stand beside the rest.
    """

    name: Annotated[Name, "names its folder in the run", Uses(memory=False, result=False)]
    # The names of all methods are known to whoever reads their files.
    objective: Annotated[str, "what it learns from"]
    update: Annotated[str, "which weights are trained"]
    quantization: Annotated[
        Annotated[str, Choice(values=QUANTIZATIONS)] | None,
        "number format of the frozen base",
        Uses(recorded="of the frozen base"),
    ] = None
    double_quantization: Annotated[
        bool | None,
        "nf4 only: quantise the scales too (default true)",
        Uses(recorded="nf4 only: whether the scales are quantised too"),
    ] = None
    start_from: Annotated[
        str | None,
        "a stage's name or a folder; default: the stage before that is no reward model, else the"
        " base model",
        Uses(memory=False, result=False),
    ] = None
    data: Annotated[str | None, "another data file for this stage alone", Uses(result=False)] = None
    weights_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        "dtype the base is loaded in",
        Uses(recorded="dtype the base is loaded in"),
    ] = "float32"
    precision: Annotated[Literal["pure", "mixed"], "mixed: autocast over weights_dtype"] = "pure"
    learning_rate: Annotated[
        float,
        Number(above=0, max=1),
        "may be left out if objective or update has a default",
        Uses(trl=("learning_rate",), memory=False),
    ]
    epochs: Annotated[
        float,
        Number(above=0),
        "passes over the training rows",
        Uses(decides=("num_train_epochs",), memory=False),
    ] = 1.0
    max_steps: Annotated[
        Positive | None,
        "optimizer steps; overrides epochs",
        Uses(decides=("max_steps",), memory=False),
    ] = None
    warmup: Annotated[
        float,
        Number(min=0, below=1),
        "share of the steps",
        Uses(trl=("warmup_steps",), decides=("warmup_ratio",), memory=False),
    ] = 0.03
    scheduler: Annotated[
        Literal["linear", "cosine", "constant", "constant_with_warmup"],
        "how the learning rate changes after the warm-up",
        Uses(trl=("lr_scheduler_type",), memory=False),
    ] = "linear"
    weight_decay: Annotated[
        float, Number(min=0), "AdamW's pull towards zero", Uses(trl=("weight_decay",), memory=False)
    ] = 0.0
    optimizer: Annotated[
        str,
        Choice(values=OPTIMIZER_NAMES),
        "docs/gpu.md#optimizers says what each keeps and needs; transformers' names are taken, too",
        Uses(decides=("optim",)),
    ] = "adamw_fused"
    micro_batch_size: Annotated[
        Positive,
        "rows that go through one device at once",
        Uses(trl=("per_device_train_batch_size", "per_device_eval_batch_size"), result=False),
    ] = 1
    grad_accum: Annotated[
        Positive,
        "micro-batches behind one optimizer step",
        Uses(trl=("gradient_accumulation_steps",), result=False),
    ] = 1
    seq_len: Annotated[
        int,
        Integer(min=8),
        "longest sequence, in tokens",
        Uses(decides=("max_length",), recorded="tokens of the longest sequence"),
    ] = 1024
    packing: Annotated[
        bool,
        "several rows in one sequence, without attention between them",
        Uses(
            decides=("packing", "packing_strategy", "eval_packing", "padding_free"),
            recorded="whether several rows share a sequence",
        ),
    ] = False
    group_by_length: Annotated[
        bool,
        "rows of similar length share a micro-batch, so that little of it is padding; beside"
        " `packing: true`: what is done if the model lets packed rows see each other",
        Uses(
            decides=("train_sampling_strategy", "group_by_length", "length_column_name"),
            recorded="whether rows of similar length share a micro-batch",
            result=False,
        ),
    ] = False
    gradient_checkpointing: Annotated[
        bool,
        "compute activations again in the backward pass: less memory, slower steps",
        Uses(trl=("gradient_checkpointing",), decides=("activation_checkpointing",)),
    ] = False
    attention: Annotated[
        str,
        Choice(values=ATTENTIONS),
        "which code computes attention; auto: for packed rows the flash attention that this"
        " machine has, else sdpa",
        Uses(recorded="the attention implementation"),
    ] = "sdpa"
    kernels: Annotated[
        str,
        Choice(values=LAYER_KERNELS),
        "fused kernels for norms, rotary embeddings and gated MLPs; auto: liger if it is installed"
        " and gives the same numbers; hub: through the package kernels",
        Uses(
            decides=("use_liger_kernel",),
            recorded="fused kernels of the layers: liger, hub or none",
            result=False,
        ),
    ] = "none"
    compile: Annotated[
        bool,
        "torch.compile each layer: the first steps take minutes, later ones are faster",
        Uses(
            decides=("torch_compile", "torch_compile_backend", "torch_compile_mode"),
            recorded="whether layers were compiled",
            result=False,
        ),
    ] = False
    truncation: Annotated[
        Literal["stop", "drop", "truncate"],
        "rows over seq_len: stop if more than 5 % of the rows, else drop; drop; truncate",
        Uses(
            decides=("truncation_mode",),
            recorded="what happens to longer rows: stop, drop or truncate",
            memory=False,
        ),
    ] = "stop"
    holdout: Annotated[
        float,
        Number(min=0, below=0.9),
        "share of the rows kept for evaluation",
        Uses(recorded="share of the rows held out", memory=False),
    ] = 0.05
    keep: Annotated[
        Literal["best", "last"],
        "whose weights are the result: those of the lowest held-out loss during training, or the"
        " last",
        Uses(recorded="best or last: whose weights are the result", omits_null=True),
    ] = "last"
    early_stopping: Annotated[
        Positive | None,
        "stop after so many evaluations (about ten a run) without a lower held-out loss; the"
        " learning rate follows the whole plan; default: never",
        Uses(
            recorded="evaluations without improvement after which training stops", omits_null=True
        ),
    ] = None
    save_steps: Annotated[
        Positive | None,
        "optimizer steps between checkpoints; default: ten in a run, at least every 500, unless"
        " saving would take more than 5 % of the time",
        Uses(decides=("save_steps", "save_strategy"), memory=False, result=False),
    ] = None
    save_minutes: Annotated[
        Annotated[float, Number(above=0)] | None,
        "minutes between checkpoints, if `save_steps` takes longer; more where saving would take"
        " over 5 % of the time; null: steps alone count",
        Uses(memory=False, result=False),
    ] = 10.0
    seed: Annotated[
        int,
        Integer(min=0, below=2**32),
        "of every random choice",
        Uses(trl=("seed",), decides=("data_seed",), memory=False),
    ] = 42
    trl: Annotated[dict[str, Any], "passed to TRL's config class unchanged"] = field(
        default_factory=dict
    )
    peft: Annotated[dict[str, Any], "passed to PEFT's config class unchanged"] = field(
        default_factory=dict
    )
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        force_setattr(self, "optimizer", plan_name(self.optimizer))

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on one device."""
        return self.micro_batch_size * self.grad_accum

    @property
    def divides_base(self) -> bool:
        """Whether processes that share a model divide its 4-bit base while it loads, and compute
        nothing with it before. A prefix starts from what it computes, DoRA from its columns.
        """
        computes = self.update == "prefix" or self.peft.get("use_dora")
        return self.quantization == "nf4" and not computes


@cache
def stage_keys() -> Mapping[str, Key]:
    """The keys that every stage may have, in the order of a plan."""
    shapes = shape_of(Stage, without=("options",)).keys
    defaults = defaults_of(Stage)
    hints = get_type_hints(Stage, include_extras=True)
    notes = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {
        name: Key(
            name=name,
            owner=EVERY_STAGE,
            shape=shape,
            default=None if defaults[name] is NODEFAULT else defaults[name],
            help=shape.help,
            uses=next((note for note in notes[name] if isinstance(note, Uses)), Uses()),
        )
        for name, shape in shapes.items()
    }


def trl_arguments(stage: Stage) -> dict[str, Any]:
    """The arguments of TRL's config class that take the value of a key as it is."""
    return {
        argument: getattr(stage, name)
        for name, key in stage_keys().items()
        for argument in key.uses.trl
        if getattr(stage, name) is not None
    }


def recorded_values(stage: Stage) -> dict[str, Any]:
    """The keys that run.json has of a stage, with their values."""
    return {name: getattr(stage, name) for name, key in stage_keys().items() if key.uses.recorded}
