"""Stage: one training stage of a plan, and the keys that every stage may have.

The fields are the keys: each with its type, its bounds, its default and what it means. Keys that
belong to one update or one objective (rank, beta, ...) are declared under `keys:` in its own file
and travel in `Stage.options`; in a plan they stand beside the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal

from advisor.ground.annotated import default_of, shape_of
from advisor.ground.errors import Fault
from advisor.ground.files import FOLDER_NAME, NAME_PATTERN, is_folder_name, such_as
from advisor.ground.shape import Choice, Integer, Located, Number, Path_, Text
from advisor.methods.kernels import ATTENTIONS, LAYER_KERNELS
from advisor.methods.keys import Key
from advisor.methods.model import QUANTIZATIONS
from advisor.methods.optimizers import OptimizerName, plan_name

EVERY_STAGE = "every stage"  # the owner of its keys


class FolderName(Text):
    """The name of a plan, a stage or a task, which becomes the name of a folder."""

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        if not isinstance(value, str) or not is_folder_name(value):
            near = such_as(value) if isinstance(value, str) else ""
            yield self.refuse(value, document, path, hint=near)

    def words(self) -> str:
        return FOLDER_NAME


Name = Annotated[str, FolderName(pattern=NAME_PATTERN)]
Positive = Annotated[int, Integer(min=1)]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage. `options` holds the keys of its update and its objective; in the file
    they stand beside the rest.
    """

    name: Annotated[Name, "names its folder in the run"]
    # The names of all methods are known to whoever reads their files.
    objective: Annotated[str, "what it learns from"]
    update: Annotated[str, "which weights are trained"]
    quantization: Annotated[
        Annotated[str, Choice(values=QUANTIZATIONS)] | None, "number format of the frozen base"
    ] = None
    double_quantization: Annotated[
        bool | None, "nf4 only: quantise the scales too (default true)"
    ] = None
    start_from: Annotated[
        str | None,
        "a stage's name or a folder; default: the stage before that is no reward model, else the"
        " base model",
    ] = None
    data: Annotated[str | None, "another data file for this stage alone"] = None
    weights_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], "dtype the base is loaded in"
    ] = "float32"
    precision: Annotated[Literal["pure", "mixed"], "mixed: autocast over weights_dtype"] = "pure"
    learning_rate: Annotated[
        float, Number(above=0, max=1), "may be left out if objective or update has a default"
    ]
    epochs: Annotated[float, Number(above=0), "passes over the training rows"] = 1.0
    max_steps: Annotated[Positive | None, "optimizer steps; overrides epochs"] = None
    warmup: Annotated[float, Number(min=0, below=1), "share of the steps"] = 0.03
    scheduler: Annotated[
        Literal["linear", "cosine", "constant", "constant_with_warmup"],
        "how the learning rate changes after the warm-up",
    ] = "linear"
    weight_decay: Annotated[float, Number(min=0), "AdamW's pull towards zero"] = 0.0
    optimizer: Annotated[
        str,
        OptimizerName(),
        "docs/optimizers.md says what each keeps and needs; names of transformers are taken, too",
    ] = "adamw_fused"
    micro_batch_size: Annotated[Positive, "rows that go through one device at once"] = 1
    grad_accum: Annotated[Positive, "micro-batches behind one optimizer step"] = 1
    seq_len: Annotated[int, Integer(min=8), "longest sequence, in tokens"] = 1024
    packing: Annotated[bool, "several rows in one sequence, without attention between them"] = False
    group_by_length: Annotated[
        bool,
        "rows of similar length share a micro-batch, so that little of it is padding; beside"
        " `packing: true`: what is done if the model lets packed rows see each other",
    ] = False
    gradient_checkpointing: Annotated[
        bool, "compute activations again in the backward pass: less memory, slower steps"
    ] = False
    attention: Annotated[
        str,
        Choice(values=ATTENTIONS),
        "which code computes attention; auto: for packed rows the flash attention that this"
        " machine has, else sdpa",
    ] = "sdpa"
    kernels: Annotated[
        str,
        Choice(values=LAYER_KERNELS),
        "fused kernels for norms, rotary embeddings and gated MLPs; auto: liger if it is installed"
        " and gives the same numbers; hub: through the package kernels",
    ] = "none"
    compile: Annotated[
        bool, "torch.compile each layer: the first steps take minutes, later ones are faster"
    ] = False
    truncation: Annotated[
        Literal["stop", "drop", "truncate"],
        "rows over seq_len: stop if more than 5 % of the rows, else drop; drop; truncate",
    ] = "stop"
    holdout: Annotated[float, Number(min=0, below=0.9), "share of the rows kept for evaluation"] = (
        0.05
    )
    keep: Annotated[
        Literal["best", "last"],
        "whose weights are the result: those of the lowest held-out loss during training, or the"
        " last",
    ] = "last"
    early_stopping: Annotated[
        Positive | None,
        "stop after so many evaluations (about ten a run) without a lower held-out loss; the"
        " learning rate follows the whole plan; default: never",
    ] = None
    save_steps: Annotated[
        Positive | None,
        "optimizer steps between checkpoints; default: ten in a run, at least every 500, unless"
        " saving would take more than 5 % of the time",
    ] = None
    save_minutes: Annotated[
        Annotated[float, Number(above=0)] | None,
        "minutes between checkpoints, if `save_steps` takes longer; more where saving would take"
        " over 5 % of the time; null: steps alone count",
    ] = 10.0
    seed: Annotated[int, Integer(min=0, below=2**32), "of every random choice"] = 42
    trl: Annotated[dict[str, Any], "passed to TRL's config class unchanged"] = field(
        default_factory=dict
    )
    peft: Annotated[dict[str, Any], "passed to PEFT's config class unchanged"] = field(
        default_factory=dict
    )
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer", plan_name(self.optimizer))

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on one device."""
        return self.micro_batch_size * self.grad_accum


@cache
def stage_keys() -> Mapping[str, Key]:
    """The keys that every stage may have, in the order of a plan."""
    shapes = shape_of(Stage, without=("options",)).keys
    defaults = {item.name: default_of(item) for item in fields(Stage)}
    return {
        name: Key(
            name=name,
            owner=EVERY_STAGE,
            shape=shape,
            default=None if defaults[name] is MISSING else defaults[name],
            help=shape.help,
        )
        for name, shape in shapes.items()
    }
