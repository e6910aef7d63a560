"""Plan: the whole launch file as a value. The same plan, seed and versions repeat the run.

Stage keys that every stage has are fields here. Keys that belong to one update scheme or one
objective (rank, beta, ...) are declared under `keys:` in rules/updates/<name>.yaml and
rules/objectives/<name>.yaml and travel in `Stage.options`; in the file they stand beside the
others. So a new method adds its keys in its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from advisor.ground.types import DDP
from advisor.methods import objectives, updates

PLAN_VERSION = 1
Positive = Annotated[int, Ge(1)]
# Plain dataclasses, since advice builds plans without paying for pydantic's import; read.py
# validates files against them with pydantic, which takes its configuration from here: unknown keys
# are refused, text is never turned into a number.
STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


def help_(text: str) -> dict[str, str]:
    """Field metadata: one line for the JSON Schema and the manual."""
    return {"description": text}


@dataclass(frozen=True, slots=True)
class OneOf:
    """A text that is one of the names that a function gives: the methods are read from files."""

    names: Callable[[], tuple[str, ...]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.literal_schema(list(self.names()))


@dataclass(frozen=True, kw_only=True)
class PlanData:
    """The training data of a plan or of one task."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    path: str = field(metadata=help_("a file or folder, relative to the plan file, or a hub id"))
    format: str | None = field(
        default=None, metadata=help_("what `advise check` recognised; null: recognise again")
    )
    mapping: dict[str, str] | None = field(
        default=None, metadata=help_("role -> column, where the names do not say it")
    )


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the stages are started."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    device: Literal["cuda", "cpu", "mps", "rocm"] = field(
        default="cpu", metadata=help_("what the plan was made for; another one is refused")
    )
    processes: Positive = field(default=1, metadata=help_("one process a GPU"))
    strategy: Literal["ddp", "zero2", "zero3", "fsdp"] | None = field(
        default=None, metadata=help_("how several processes share the model")
    )

    @property
    def startable(self) -> bool:
        """Whether `advise run` starts it: one process, or several that hold the whole model
        each.
        """
        return self.strategy in (None, DDP)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the plan came from: enough to ask the same question again."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    composition: str | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    hardware: str | None = None
    rules: str | None = field(
        default=None, metadata=help_("layers and digest of the rules that decided")
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training stage. `options` holds the keys of its update scheme and objective; in the file
    they stand beside the rest.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    objective: Annotated[str, OneOf(objectives)]
    update: Annotated[str, OneOf(updates)]
    quantization: Literal["nf4", "int8"] | None = None
    double_quantization: bool | None = field(
        default=None, metadata=help_("nf4 only: quantise the scales too (default true)")
    )
    start_from: str | None = field(
        default=None,
        metadata=help_(
            "a stage's name or a folder; default: the stage before that is no reward model, else"
            " the base model"
        ),
    )
    data: str | None = field(default=None, metadata=help_("another data file for this stage alone"))
    weights_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata=help_("dtype the base is loaded in")
    )
    precision: Literal["pure", "mixed"] = field(
        default="pure", metadata=help_("mixed: autocast over weights_dtype")
    )
    learning_rate: Annotated[float, Gt(0), Le(1)]
    epochs: Annotated[float, Gt(0)] = 1.0
    max_steps: Positive | None = field(
        default=None, metadata=help_("optimizer steps; overrides epochs")
    )
    warmup: Annotated[float, Ge(0), Lt(1)] = field(
        default=0.03, metadata=help_("share of the steps")
    )
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: Annotated[float, Ge(0)] = 0.0
    optimizer: Literal[
        "adamw", "adamw_fused", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"
    ] = "adamw_fused"
    micro_batch_size: Positive = 1
    grad_accum: Positive = 1
    seq_len: Annotated[int, Ge(8)] = 1024
    packing: bool = False
    gradient_checkpointing: bool = False
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    truncation: Literal["stop", "drop", "truncate"] = field(
        default="stop",
        metadata=help_(
            "rows over seq_len: stop if more than 5 % of the rows, else drop; drop; truncate"
        ),
    )
    holdout: Annotated[float, Ge(0), Lt(0.9)] = field(
        default=0.05, metadata=help_("share of the rows kept for evaluation")
    )
    save_steps: Positive | None = field(
        default=None,
        metadata=help_(
            "optimizer steps between checkpoints; default: ten in a run, at least every 500"
        ),
    )
    seed: Annotated[int, Ge(0), Lt(2**32)] = 42
    trl: dict[str, Any] = field(
        default_factory=dict, metadata=help_("passed to TRL's config class as they are")
    )
    peft: dict[str, Any] = field(
        default_factory=dict, metadata=help_("passed to PEFT's config class as they are")
    )
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step on one device."""
        return self.micro_batch_size * self.grad_accum


@dataclass(frozen=True, kw_only=True)
class Task:
    """One module of a plan with `tasks`: its own data on the shared base."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    name: str
    data: PlanData
    overrides: dict[str, Any] = field(
        default_factory=dict, metadata=help_("stage keys that differ for this task")
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole launch file."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    version: Literal[1] = 1
    name: str = field(default="finetune")
    model: str = field(metadata=help_("hub id, or a folder relative to the plan file"))
    revision: str | None = None
    trust_remote_code: bool = field(
        default=False,
        metadata=help_("run code that comes with the model; off unless you write true here"),
    )
    data: PlanData | None = None
    tasks: tuple[Task, ...] = ()
    stages: Annotated[tuple[Stage, ...], MinLen(1)]
    launch: Launch = Launch()
    origin: Origin = Origin()

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError; read.py has checked the names."""
        return {stage.name: stage for stage in self.stages}[name]


Comments = Mapping[
    tuple[str | int, ...], str
]  # path of a value in the plan -> the comment written beside it
