"""The optimizers that a plan may name: rules/optimizers.yaml, one entry each, which the plan's key,
the estimate of memory, the trainers, the advice and docs/gpu.md read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from msgspec import Struct, field

from advisor.ground.annotated import build, shape_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Keys, ListOf, MapOf, Number
from advisor.ground.yaml_files import read_shipped

Keeps = Literal["each weight", "rows and columns", "momentum of matrices"]
Holds = Literal["nothing", "all weights", "largest weight", "chunks"]
Trains = Literal["any weights", "matrices", "every weight"]
Betas = Annotated[tuple[float, ...], ListOf(of=Number(min=0, below=1), least=2, most=2)]


class Optimizer(Struct, frozen=True, kw_only=True):
    """One optimizer. It keeps so many numbers of so many bytes for each thing it keeps them for."""

    name: str  # in a plan
    title: Annotated[str, "what a sentence calls it"]
    about: str
    source: str
    transformers: Annotated[str | None, "its name in TrainingArguments; null: it has none"] = None
    library: Annotated[str | None, "the package that makes it beside torch's own"] = None
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
    own_rate: Annotated[str, "why AdamW's learning rates do not apply to it"] = ""
    is_paged: Annotated[bool, "its state may move to the host's memory"] = False
    needs_whole: Annotated[str, "why it cannot step on parts of divided weights (fsdp)"] = ""
    arguments: Annotated[
        Mapping[str, Any], "what `trl: {optim_args: ...}` may set, with the defaults"
    ] = field(default_factory=dict)


OPTIMIZERS_FILE = Keys(
    help="The optimizers that a plan may name",
    keys={"version": VERSION, "optimizers": MapOf(of=shape_of(Optimizer, without=("name",)))},
    required=("version", "optimizers"),
)


@cache
def optimizer_file() -> Mapping[str, Any]:
    """The entries as they stand in the file."""
    return dict(read_shipped(rules_dir() / "optimizers.yaml", shape=OPTIMIZERS_FILE).data)


OPTIMIZERS: Mapping[str, Optimizer] = {
    name: build(Optimizer, said, {"name": name})
    for name, said in optimizer_file()["optimizers"].items()
}
# Names of transformers -> the plan's short ones, where these are others.
ALIASES: Mapping[str, str] = {
    entry.transformers: entry.name
    for entry in OPTIMIZERS.values()
    if entry.transformers is not None and entry.transformers not in OPTIMIZERS
}
NAMES = (*OPTIMIZERS, *ALIASES)


def optimizer(name: str) -> Optimizer:
    """The entry of a name of a plan or of transformers. Raises KeyError for any other."""
    return OPTIMIZERS[ALIASES.get(name, name)]


def optimizer_words(name: str, weights_dtype: str | None) -> str:
    """'16-bit AdamW': how many bits its numbers have decides how much memory training takes."""
    entry = optimizer(name)
    if entry.keeps != "each weight" or not entry.numbers:
        return entry.title
    width = entry.width or (4.0 if weights_dtype in (None, "float32") else 2.0)
    return f"{8 * int(width)}-bit {entry.title}"


def plan_name(name: str) -> str:
    """The plan's own name for an optimizer; a name that is not known stays as it is."""
    return ALIASES.get(name, name)


def read_arguments(name: str, text: str | None) -> dict[str, Any]:
    """The arguments of an optimizer: its defaults, and what `optim_args` sets of them.

    Raises ValueError with everything that is wrong in the text.

    Args:
        name: Of a plan or of transformers.
        text: As transformers reads it: "momentum=0.9,ns_steps=6".
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
                found[key] = _value(value, known[key])
            except ValueError:
                words = ("true", "false") if isinstance(known[key], bool) else ()
                whole = isinstance(known[key], int)
                number = "a whole number of at least 1" if whole else "a number of at least 0"
                like = " or ".join(words) or number
                wrong.append(f"{key} is '{value}', expected {like}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _value(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return bool(("false", "true").index(text.lower()))
    number = type(default)(text)
    if not int(isinstance(default, int)) <= number < float("inf"):  # a whole one is a size
        raise ValueError(text)
    return number
