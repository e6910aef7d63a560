"""The optimizers that a plan may name: one entry each, which everything else reads.

The plan's key, the estimate of the memory they hold, the trainers that build them, the faults told
before a model loads, the learning rate that the advice gives them and docs/optimizers.md: adding an
optimizer is adding its entry here, and where no library makes it in the usual way, a few lines in
trainers/frame/optimizers.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from advisor.ground.errors import Fault
from advisor.ground.shape import Choice, Located, Path_

SCALE = 4 / 256  # bytes a number of a float32 scale per block of 256
SMALL = 4096  # bitsandbytes and torchao store tensors of fewer weights as they are
ALL_LINEAR = "all-linear"

Keeps = Literal["each weight", "rows and columns", "low rank", "momentum of matrices"]
Holds = Literal["nothing", "all weights", "largest weight", "chunks"]
Trains = Literal["any weights", "matrices", "every weight"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """The package that makes an optimizer, and the versions that were tried."""

    name: str  # as pip knows it
    tested: str  # ">=1.0,<1.1"
    module: str
    note: str = ""  # what a user must know of it: its licence, how it is kept up


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How a learning rate relates to AdamW's."""

    factor: float | None = 1.0  # None: AdamW's rates do not apply
    because: str = "AdamW's own"
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """One optimizer."""

    name: str  # in a plan
    about: str
    source: str
    transformers: str | None  # its name in transformers' TrainingArguments; None: it has none
    library: Library | None = None  # None: torch, transformers or these trainers alone
    # What it keeps: so many numbers of so many bytes for each thing it keeps them for.
    numbers: float = 2
    width: float | None = None  # None: as wide as the weight
    keeps: Keeps = "each weight"
    small_from: int = 0  # tensors of fewer weights keep numbers of `small_width`
    small_width: float | None = None
    embeddings_width: float | None = None  # None: like other weights
    # Further bytes for each bfloat16 weight: what makes it exact.
    beside_bfloat16: float = 0
    keeps_small_updates: bool = False  # bfloat16 weights lose nothing to rounding
    holds: Holds = "nothing"  # beside its state while it steps
    devices: tuple[str, ...] = ("cuda", "cpu", "mps")
    trains: Trains = "any weights"
    betas: tuple[float, float] | None = (0.9, 0.999)  # None: it is no Adam
    rate: Rate = field(default_factory=Rate)
    scheduler: str | None = None  # the only one it goes with
    compiles: bool = False  # its step goes through torch.compile
    is_paged: bool = False  # its state may move to the host's memory
    processes: bool = True  # several processes hold the same weights after each step
    needs_whole: str = ""  # why it cannot step on parts of divided weights (fsdp); empty: it can
    # What `trl: {optim_args: "rank=64"}` may set, with the defaults.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    resumes: str = "bit for bit"

    @property
    def averages(self) -> bool:
        """Whether it trains at other weights than those it ends with, in place of a schedule."""
        return self.scheduler is not None

    @property
    def is_low_rank(self) -> bool:
        """Whether it projects gradients of chosen matrices."""
        return self.keeps == "low rank"


_BNB = Library(name="bitsandbytes", tested=">=0.50,<0.51", module="bitsandbytes")
_TORCHAO = Library(name="torchao", tested=">=0.18,<0.19", module="torchao.optim")
_GALORE = Library(
    name="galore-torch", tested=">=1.0,<1.1", module="galore_torch",
    note="its last version is of 2024",
)  # fmt: skip
_APOLLO = Library(
    name="apollo-torch", tested=">=1.0.3,<1.1", module="apollo_torch",
    note="its licence is CC-BY-NC: not for commercial use",
)  # fmt: skip
_FREE = Library(name="schedulefree", tested=">=1.4.1,<1.5", module="schedulefree")
_OPTIMI = Library(name="torch-optimi", tested=">=0.3.3,<0.4", module="optimi")

_ADAMW = "https://arxiv.org/abs/1711.05101"
_BITS = "https://arxiv.org/abs/2110.02861"
_LION = "https://arxiv.org/abs/2302.06675"
_ADEMAMIX = "https://arxiv.org/abs/2409.03137"
_MOONLIGHT = "https://arxiv.org/abs/2502.16982"
_GALORE_PAPER = "https://arxiv.org/abs/2403.03507"
_APOLLO_PAPER = "https://arxiv.org/abs/2412.05270"
_LION_RATE = Rate(
    factor=0.2,
    because="3 to 10 times smaller than AdamW's, since each step has the size of the sign",
    source=f"{_LION}, section 5",
)
_KERNELS = "its kernels take plain tensors, not parts of divided ones"
_MATRICES = "it works on whole matrices, of which each GPU holds a part"
_OWN = "it mixes divided weights with plain numbers, which torch refuses (tried)"
_UNTRIED = "it was never tried on divided weights"
_EIGHT_BITS: dict[str, Any] = {
    "width": 1 + SCALE, "small_from": SMALL, "small_width": 4.0, "library": _BNB,
}  # fmt: skip
# transformers registers embeddings for 32 bits with every 8-bit optimizer of bitsandbytes.
_EIGHT_BITS_BNB: dict[str, Any] = {**_EIGHT_BITS, "embeddings_width": 4.0}
_LOW_RANK: dict[str, Any] = {"keeps": "low rank", "trains": "every weight"}
_GALORE_ARGUMENTS = {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
_GALORE_RATE = Rate(
    because="AdamW's, and each step is multiplied by `scale`: 0.25 in pretraining, up to 4 in"
    " fine-tuning",
    source=f"{_GALORE_PAPER}, appendix",
)

_ENTRIES = (
    Optimizer(
        name="adamw", transformers="adamw_torch", source=_ADAMW, holds="all weights",
        about="AdamW of torch, one operation for all weights at once",
    ),
    Optimizer(
        name="adamw_fused", transformers="adamw_torch_fused", source=_ADAMW,
        about="AdamW of torch, one kernel for the whole step",
    ),
    Optimizer(
        name="adamw_split", transformers=None, source="https://arxiv.org/abs/2005.04680",
        about="AdamW over bfloat16 weights with 16 bits beside each that make it float32",
        beside_bfloat16=2, keeps_small_updates=True, holds="chunks", trains="every weight",
        needs_whole=_OWN,
    ),
    Optimizer(
        name="adamw_stochastic", transformers=None, source="https://arxiv.org/abs/2010.06192",
        about="AdamW over bfloat16 weights that are rounded up or down at random",
        keeps_small_updates=True, holds="chunks", trains="every weight",
        needs_whole=_OWN,
    ),
    Optimizer(
        name="adamw_8bit", transformers="adamw_bnb_8bit", source=_BITS, **_EIGHT_BITS_BNB,
        about="AdamW with moments in 8 bits",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="paged_adamw", transformers="paged_adamw_32bit", library=_BNB, width=4.0,
        source="https://arxiv.org/abs/2305.14314", devices=("cuda",), is_paged=True,
        about="AdamW whose float32 moments may move to the host's memory",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="paged_adamw_8bit", transformers="paged_adamw_8bit", **_EIGHT_BITS_BNB,
        source="https://arxiv.org/abs/2305.14314", devices=("cuda",), is_paged=True,
        about="AdamW with moments in 8 bits that may move to the host's memory",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="adamw_torch_8bit", transformers="adamw_torch_8bit", library=_TORCHAO,
        source="https://github.com/pytorch/ao/tree/main/torchao/optim", width=1 + SCALE,
        small_from=SMALL, devices=("cuda", "cpu"), compiles=True, keeps_small_updates=True,
        about="AdamW of torchao with moments in 8 bits; bfloat16 weights are rounded at random",
        arguments={"block_size": 256}, processes=False,
        needs_whole=_UNTRIED,
    ),
    Optimizer(
        name="adamw_torch_4bit", transformers="adamw_torch_4bit", library=_TORCHAO,
        source="https://arxiv.org/abs/2309.01507", width=0.5 + 4 / 128,
        small_from=SMALL, devices=("cuda", "cpu"), compiles=True, keeps_small_updates=True,
        about="AdamW of torchao with moments in 4 bits; bfloat16 weights are rounded at random",
        arguments={"block_size": 128}, processes=False,
        needs_whole=_UNTRIED,
    ),
    Optimizer(
        name="adafactor", transformers="adafactor", source="https://arxiv.org/abs/1804.04235",
        keeps="rows and columns", numbers=1, width=4.0, holds="largest weight", betas=None,
        about="the second moment of a matrix as the means of its rows and columns",
        needs_whole=_MATRICES,
    ),
    Optimizer(
        name="sgd", transformers="sgd", source="https://doi.org/10.1214/aoms/1177729586",
        numbers=0, betas=None, arguments={"momentum": 0.0, "nesterov": False},
        about="plain gradient descent",
        rate=Rate(
            factor=None,
            because="no rate of AdamW's can be taken over: a step is as large as the gradient",
        ),
    ),
    Optimizer(
        name="rmsprop", transformers="rmsprop", numbers=1, betas=None, holds="all weights",
        source="https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html",
        arguments={"alpha": 0.99, "eps": 1e-8},
        about="the gradient over the root of its mean square",
        needs_whole=_UNTRIED,
    ),
    Optimizer(
        name="adagrad", transformers="adagrad", numbers=1, betas=None, holds="all weights",
        source="https://jmlr.org/papers/v12/duchi11a.html",
        arguments={"lr_decay": 0.0, "eps": 1e-10},
        about="the gradient over the root of the sum of its squares",
        rate=Rate(
            factor=None,
            because="no rate of AdamW's can be taken over: steps shrink with every step",
        ),
        needs_whole=_UNTRIED,
    ),
    Optimizer(
        name="lion", transformers="lion_32bit", library=_BNB, source=_LION, numbers=1, width=4.0,
        betas=(0.9, 0.99), rate=_LION_RATE, about="the sign of a momentum: one number a weight",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="lion_8bit", transformers="lion_8bit", source=_LION, **_EIGHT_BITS_BNB, numbers=1,
        betas=(0.9, 0.99), rate=_LION_RATE, about="Lion with its momentum in 8 bits",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="paged_lion", transformers="paged_lion_32bit", library=_BNB, source=_LION, numbers=1,
        width=4.0, betas=(0.9, 0.99), rate=_LION_RATE, devices=("cuda",), is_paged=True,
        about="Lion whose momentum may move to the host's memory",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="paged_lion_8bit", transformers="paged_lion_8bit", source=_LION, **_EIGHT_BITS_BNB,
        numbers=1, betas=(0.9, 0.99), rate=_LION_RATE, devices=("cuda",), is_paged=True,
        about="Lion with its momentum in 8 bits that may move to the host's memory",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="ademamix", transformers="ademamix", library=_BNB, source=_ADEMAMIX, numbers=3,
        width=4.0, arguments={"beta3": 0.9999, "alpha": 5.0},
        about="AdamW with a second, slow momentum",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="ademamix_8bit", transformers="ademamix_8bit", source=_ADEMAMIX, **_EIGHT_BITS_BNB,
        numbers=3, arguments={"beta3": 0.9999, "alpha": 5.0},
        about="AdEMAMix with moments in 8 bits",
        needs_whole=_KERNELS,
    ),
    Optimizer(
        name="muon", transformers=None, source=_MOONLIGHT, keeps="momentum of matrices",
        holds="largest weight", trains="matrices", devices=("cuda", "cpu"),
        arguments={"momentum": 0.95, "ns_steps": 5},
        about="steps of matrices made orthogonal; embeddings, output, norms and biases by AdamW",
        rate=Rate(
            because="AdamW's: a step is scaled by 0.2 times the root of the longer side, to the"
            " size of AdamW's",
            source=f"{_MOONLIGHT}, section 2.2",
        ),
        needs_whole=_MATRICES,
    ),
    Optimizer(
        name="galore_adamw", transformers="galore_adamw", library=_GALORE, source=_GALORE_PAPER,
        **_LOW_RANK, holds="largest weight", arguments=_GALORE_ARGUMENTS, rate=_GALORE_RATE,
        devices=("cuda", "cpu"),
        about="AdamW on gradients of matrices projected to a low rank",
        needs_whole=_MATRICES,
    ),
    Optimizer(
        name="galore_adamw_8bit", transformers="galore_adamw_8bit", library=_GALORE,
        source=_GALORE_PAPER, **_LOW_RANK, holds="largest weight", width=1 + SCALE,
        small_from=SMALL, small_width=4.0, arguments=_GALORE_ARGUMENTS, rate=_GALORE_RATE,
        devices=("cuda",), resumes="not tested: it runs on CUDA alone",
        about="GaLore with moments in 8 bits",
        needs_whole=_MATRICES,
    ),
    Optimizer(
        name="apollo_adamw", transformers="apollo_adamw", library=_APOLLO, source=_APOLLO_PAPER,
        **_LOW_RANK, holds="largest weight", devices=("cuda", "cpu"),
        arguments={
            "rank": 128, "proj": "random", "scale_type": "channel", "update_proj_gap": 200,
            "scale": 1.0, "proj_type": "std",
        },
        about="gradients scaled by what AdamW does to a random projection of them",
        needs_whole=_MATRICES,
    ),
    Optimizer(
        name="schedule_free_adamw", transformers="schedule_free_adamw", library=_FREE,
        source="https://arxiv.org/abs/2405.15682", holds="all weights", scheduler="constant",
        arguments={"weight_lr_power": 2.0, "r": 0.0},
        about="AdamW that averages its weights in place of a falling learning rate",
        rate=Rate(
            because="1 to 10 times AdamW's",
            source="https://github.com/facebookresearch/schedule_free",
        ),
        needs_whole=_UNTRIED,
    ),
    Optimizer(
        name="stable_adamw", transformers="stable_adamw", library=_OPTIMI,
        source="https://arxiv.org/abs/2304.13013", holds="all weights", betas=(0.9, 0.99),
        beside_bfloat16=2, keeps_small_updates=True,
        about="AdamW with Adafactor's clipping of updates; a sum of rounding errors beside bfloat16"
        " weights",
        needs_whole=_UNTRIED,
    ),
)  # fmt: skip
OPTIMIZERS: Mapping[str, Optimizer] = {entry.name: entry for entry in _ENTRIES}
# Names of transformers -> the plan's short ones, where these are others.
ALIASES: Mapping[str, str] = {
    entry.transformers: entry.name
    for entry in _ENTRIES
    if entry.transformers is not None and entry.transformers not in OPTIMIZERS
}
# What transformers has beside them -> why a plan cannot name it.
_LAYERWISE = "steps inside the backward pass: no accumulation, and no state in a checkpoint"
_FREE_OTHER = "schedule_free_adamw is the one of its family that fine-tunes language models"
NOT_OFFERED: Mapping[str, str] = {
    "adamw_torch_xla": "these trainers do not run on TPUs",
    "adamw_torch_npu_fused": "these trainers do not run on Ascend NPUs",
    "adamw_anyprecision": "its library, torchdistx, is no longer kept up: take adamw_split",
    "rmsprop_bnb": "rmsprop is the same of torch",
    "rmsprop_bnb_8bit": "rmsprop is the same of torch",
    "rmsprop_bnb_32bit": "rmsprop is the same of torch",
    "paged_ademamix_32bit": "ademamix_8bit needs less memory",
    "paged_ademamix_8bit": "ademamix_8bit needs little more memory",
    "galore_adafactor": "galore_adamw is the one that its paper measures",
    "galore_adamw_layerwise": _LAYERWISE,
    "galore_adamw_8bit_layerwise": _LAYERWISE,
    "galore_adafactor_layerwise": _LAYERWISE,
    "apollo_adamw_layerwise": _LAYERWISE,
    "lomo": _LAYERWISE,
    "adalomo": _LAYERWISE,
    "grokadamw": "made to study late generalisation on small tasks",
    "schedule_free_radam": _FREE_OTHER,
    "schedule_free_sgd": _FREE_OTHER,
}
NAMES = (*OPTIMIZERS, *ALIASES)


@dataclass(kw_only=True, eq=False, repr=False)
class OptimizerName(Choice):
    """The name of an optimizer; one of transformers' that is not offered is told why."""

    values: tuple[Any, ...] = NAMES

    def faults(self, value: Any, document: Located, path: Path_) -> Iterator[Fault]:
        for fault in super().faults(value, document, path):
            why = NOT_OFFERED.get(value) if isinstance(value, str) else None
            yield replace(fault, hint=f"{value} is not offered: {why}") if why else fault


# Arguments that are one of some words.
WORDS: Mapping[str, tuple[str, ...]] = {
    "proj_type": ("std", "reverse_std", "left", "right"),
    "proj": ("random", "svd"),
    "scale_type": ("channel", "tensor"),
}


def optimizer(name: str) -> Optimizer:
    """The entry of a name of a plan or of transformers. Raises KeyError for any other."""
    return OPTIMIZERS[ALIASES.get(name, name)]


def plan_name(name: str) -> str:
    """The plan's own name for an optimizer; a name that is not known stays as it is."""
    return ALIASES.get(name, name)


def read_arguments(name: str, text: str | None) -> dict[str, Any]:
    """The arguments of an optimizer: its defaults, and what `optim_args` sets of them.

    Raises ValueError with everything that is wrong in the text.

    Args:
        name: Of a plan or of transformers.
        text: As transformers reads it: "rank=64,scale=0.5".
    """
    known = dict(optimizer(name).arguments)
    found, wrong = dict(known), []
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            wrong.append(f"'{part}' is no NAME=VALUE")
        elif key not in known:
            wrong.append(
                f"{name} reads no '{key}'"
                + (f": it reads {', '.join(known)}" if known else ", nor any other argument")
            )
        else:
            try:
                found[key] = _value(key, value, known[key])
            except ValueError:
                wrong.append(f"{key} is '{value}', expected {_kind(key, known[key])}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _value(key: str, text: str, default: Any) -> Any:
    """The text as a value of the default's type. Raises ValueError."""
    if key in WORDS and text not in WORDS[key]:
        raise ValueError(text)
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(default, int):
        number = int(text)
        if number < 1:
            raise ValueError(text)
        return number
    if isinstance(default, float):
        amount = float(text)
        if not 0 <= amount < float("inf"):
            raise ValueError(text)
        return amount
    return text


def _kind(key: str, default: Any) -> str:
    """What values take the place of a default."""
    if key in WORDS:
        return f"one of {', '.join(WORDS[key])}"
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int):
        return "a whole number of at least 1"
    return "a number of at least 0" if isinstance(default, float) else "a text"


def missing(entries: Iterable[Optimizer], versions: Mapping[str, str | None]) -> list[Fault]:
    """What has to be installed for the optimizers.

    Args:
        entries: Those that a run uses.
        versions: Package -> its installed version; None: not installed.
    """
    found = {}
    for entry in entries:
        library = entry.library
        if library is not None and versions.get(library.name) is None:
            found[library.name] = Fault(
                what=f"optimizer {entry.name} needs {library.name}, which is not installed",
                allowed=f"wanted: {library.name}{library.tested}",
                hint=f'pip install "{library.name}{library.tested}"'
                + (f" ({library.note})" if library.note else ""),
            )
    return list(found.values())
