"""The optimizers that a plan may name: rules/optimizers.yaml, one entry each, which the plan's key,
the estimate of memory, the trainers, the advice and docs/optimizers.md read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal

from advisor.ground.annotated import build, shape_of
from advisor.ground.errors import Fault
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, Located, MapOf, Number, Path_, Text
from advisor.ground.yaml_files import read_shipped

ALL_LINEAR = "all-linear"

Keeps = Literal["each weight", "rows and columns", "low rank", "momentum of matrices"]
Holds = Literal["nothing", "all weights", "largest weight", "chunks"]
Trains = Literal["any weights", "matrices", "every weight"]
Betas = Annotated[tuple[float, ...], ListOf(of=Number(min=0, below=1), least=2, most=2)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """The package that makes an optimizer, and the versions that were tried."""

    name: str  # as pip knows it
    tested: Annotated[str, 'such as ">=1.0,<1.1"']
    module: Annotated[str, "that is imported"]
    note: Annotated[str, "what a user must know of it: its licence, how it is kept up"] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How a learning rate relates to AdamW's."""

    factor: Annotated[float | None, "null: AdamW's rates do not apply"] = 1.0
    because: str = "AdamW's own"
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """One optimizer. It keeps so many numbers of so many bytes for each thing it keeps them for."""

    name: str  # in a plan
    about: str
    source: str
    transformers: Annotated[str | None, "its name in TrainingArguments; null: it has none"] = None
    library: Library | None = None  # None: torch, transformers or these trainers alone
    numbers: float = 2
    width: Annotated[float | None, "bytes of a number; null: as wide as the weight"] = None
    keeps: Annotated[Keeps, "what it keeps numbers for"] = "each weight"
    small_from: Annotated[int, "tensors of fewer weights keep numbers of `small_width`"] = 0
    small_width: float | None = None
    embeddings_width: Annotated[float | None, "null: like other weights"] = None
    beside_bfloat16: Annotated[float, "bytes for a bfloat16 weight that make it exact"] = 0
    keeps_small_updates: Annotated[bool, "bfloat16 weights lose nothing to rounding"] = False
    holds: Annotated[Holds, "beside its state while it steps"] = "nothing"
    devices: tuple[Literal["cuda", "cpu", "mps"], ...] = ("cuda", "cpu", "mps")
    trains: Trains = "any weights"
    betas: Annotated[Betas | None, "null: it is no Adam"] = (0.9, 0.999)
    rate: Rate = field(default_factory=Rate)
    scheduler: Annotated[str | None, "the only one it goes with"] = None
    compiles: Annotated[bool, "its step goes through torch.compile"] = False
    is_paged: Annotated[bool, "its state may move to the host's memory"] = False
    processes: Annotated[bool, "several hold the same weights after each step"] = True
    needs_whole: Annotated[str, "why it cannot step on parts of divided weights (fsdp)"] = ""
    arguments: Annotated[
        Mapping[str, Any], "what `trl: {optim_args: ...}` may set, with the defaults"
    ] = field(default_factory=dict)
    resumes: str = "bit for bit"

    @property
    def averages(self) -> bool:
        """Whether it trains at other weights than those it ends with, in place of a schedule."""
        return self.scheduler is not None

    @property
    def is_low_rank(self) -> bool:
        """Whether it projects gradients of chosen matrices."""
        return self.keeps == "low rank"


OPTIMIZERS_FILE = Keys(
    help="The optimizers that a plan may name",
    keys={
        "version": Choice(values=(1,)),
        "libraries": MapOf(of=shape_of(Library, without=("name",))),
        "optimizers": MapOf(
            of=Keys(
                keys={**shape_of(Optimizer, without=("name", "library")).keys, "library": Text()},
                required=("about", "source"),
            )
        ),
        "not_offered": MapOf(of=Text(), help="a name of transformers -> why a plan cannot have it"),
    },
    required=("version", "libraries", "optimizers", "not_offered"),
)


@cache
def optimizer_file() -> Mapping[str, Any]:
    """The entries as they stand in the file."""
    data: Mapping[str, Any] = read_shipped(
        rules_dir() / "optimizers.yaml", shape=OPTIMIZERS_FILE
    ).data
    return data


def _entries() -> Iterator[Optimizer]:
    libraries = {
        name: Library(name=name, **said) for name, said in optimizer_file()["libraries"].items()
    }
    for name, said in optimizer_file()["optimizers"].items():
        own = {key: value for key, value in said.items() if key != "library"}
        made = {"name": name, "library": libraries[said["library"]] if "library" in said else None}
        yield build(Optimizer, own, made)


OPTIMIZERS: Mapping[str, Optimizer] = {entry.name: entry for entry in _entries()}
# Names of transformers -> the plan's short ones, where these are others.
ALIASES: Mapping[str, str] = {
    entry.transformers: entry.name
    for entry in OPTIMIZERS.values()
    if entry.transformers is not None and entry.transformers not in OPTIMIZERS
}
NOT_OFFERED: Mapping[str, str] = optimizer_file()["not_offered"]
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
                words = WORDS.get(key, ("true", "false") if isinstance(known[key], bool) else ())
                whole = isinstance(known[key], int)
                number = "a whole number of at least 1" if whole else "a number of at least 0"
                like = " or ".join(words) or number
                wrong.append(f"{key} is '{value}', expected {like}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _value(key: str, text: str, default: Any) -> Any:
    if key in WORDS:
        return WORDS[key][WORDS[key].index(text)]
    if isinstance(default, bool):
        return bool(("false", "true").index(text.lower()))
    number = type(default)(text)
    if not int(isinstance(default, int)) <= number < float("inf"):  # a whole one is a size
        raise ValueError(text)
    return number


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
