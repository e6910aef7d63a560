"""What an optimizer keeps for the weights that train, tensor by tensor, from the table of
optimizers (rules/optimizers.yaml).

Not counted: step counters, and the look-up tables of 8-bit states, at most 2 KiB a
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from advisor.estimate.model.dims import Dims
from advisor.estimate.run import Run
from advisor.methods.optimizers import OPTIMIZERS, Optimizer, optimizer, read_arguments

# linear: a matrix of a hidden layer, or one half of a module's; experts: one of a tensor of many.
Kind = Literal["linear", "experts", "embedding", "output", "vector"]
# Names that descriptions of published runs use beside those of the table.
OTHERS = {
    "adamw_cpu": OPTIMIZERS["adamw"], "adam_cpu": OPTIMIZERS["adamw"],
    "cpu_adam": OPTIMIZERS["adamw"],
    # transformers' own AdamW until 4.49, and torch's with foreach=False: one parameter at a time.
    "adamw_hf": replace(OPTIMIZERS["adamw"], holds="largest weight"),
    "sgd_momentum": replace(OPTIMIZERS["sgd"], numbers=1),
}  # fmt: skip


class Tensors(Struct, frozen=True):
    """Trained tensors of one shape."""

    kind: Kind
    rows: int
    columns: int
    count: float  # a share of one where a shape is known only roughly
    width: int  # bytes of a weight

    @property
    def each(self) -> int:
        """Weights of one."""
        return self.rows * self.columns

    @property
    def weights(self) -> float:
        """Weights of all."""
        return self.each * self.count


def entry_of(name: str) -> Optimizer:
    """The optimizer of a run spec."""
    return OTHERS.get(name) or optimizer(name)


def _arguments(run: Run) -> dict[str, Any]:
    """The optimizer's arguments: those of the spec that it reads, else its defaults."""
    name = run.optimizer
    if name in OTHERS:
        return {}
    try:
        return read_arguments(name, run.stage.trl.get("optim_args"))
    except ValueError:  # the trainers refuse it
        return dict(optimizer(name).arguments)


def state_size(run: Run) -> float:
    """Bytes that the optimizer keeps for everything that trains, before sharding."""
    entry, arguments = entry_of(run.optimizer), _arguments(run)
    return sum([_size(run, tensors, entry, arguments) for tensors in _tensors(run)])


def state_words(run: Run) -> str:
    """What it keeps, in words."""
    entry = entry_of(run.optimizer)
    if entry.keeps != "each weight":
        total = sum(count for count, _ in run.trained)
        per = state_size(run) / total if total else 0.0
        return f"{_KEPT[entry.keeps]}: {per:.2g} B for each of {total:,} trainable parameters"
    numbers, parts = _kept_numbers(entry, _arguments(run)), []
    for count, width in run.trained:
        wide = 4 if run.master else width
        held = wide if entry.width is None else entry.width
        beside = f" and {entry.beside_bfloat16:g} B" if entry.beside_bfloat16 and wide == 2 else ""
        words = f"{numbers:g} moments" if numbers != 1 else "one moment"
        words = f"{words} of {held:.3g} B{beside}" if numbers else "no moments"
        parts.append(f"{words} x {count:,} trainable parameters")
    return " + ".join(parts)


_KEPT = {
    "rows and columns": "means of rows and columns",
    "momentum of matrices": "one momentum for matrices, two moments for the rest",
}


def _kept_numbers(entry: Optimizer, arguments: dict[str, Any]) -> float:
    return 1 if entry.name == "sgd" and arguments.get("momentum") else entry.numbers


def _built_by_transformers(run: Run) -> bool:
    """Whether transformers' Trainer, or ours, builds the optimizer: embeddings keep wide states."""
    return bool(run.is_ours or run.trainer["accelerate"])


def _size(run: Run, one: Tensors, entry: Optimizer, arguments: dict[str, Any]) -> float:
    numbers, wide = _kept_numbers(entry, arguments), _width(entry, one)
    if entry.keeps == "rows and columns":
        return (one.each if one.kind == "vector" else one.rows + one.columns) * wide * one.count
    if entry.keeps == "momentum of matrices":
        numbers = 1 if one.kind == "linear" else 2
    if (
        entry.embeddings_width is not None
        and one.kind == "embedding"
        and _built_by_transformers(run)
    ):
        wide = entry.embeddings_width
    beside = entry.beside_bfloat16 if one.width == 2 else 0
    return (numbers * wide + beside) * one.weights


def _width(entry: Optimizer, one: Tensors) -> float:
    if one.each < entry.small_from:
        return entry.small_width or one.width
    return one.width if entry.width is None else entry.width


def largest_weight(run: Run) -> int:
    """Weights of the largest trained tensor that is worked on alone."""
    entry = entry_of(run.optimizer)
    every = entry.keeps == "rows and columns" or entry.name.startswith("adamw")
    apart = () if every else ("embedding", "output")
    return max((one.each for one in _tensors(run) if one.kind not in apart), default=0)


def orthogonal_flop(run: Run) -> float:
    """Floating-point operations of a step that make matrices orthogonal; 0 under every optimizer
    but Muon.

    A Newton-Schulz step on m x n, n the shorter side, is three products: 4 m n^2 + 2 n^3
    (torch/optim/_muon.py).
    """
    if entry_of(run.optimizer).keeps != "momentum of matrices":
        return 0.0
    total = 0.0
    for one in _tensors(run):
        if one.kind == "linear":
            short, long = sorted((one.rows, one.columns))
            total += one.count * (4 * long * short**2 + 2 * short**3)
    return float(_arguments(run)["ns_steps"] * total)


def _tensors(run: Run) -> Iterator[Tensors]:
    """All tensors that get a gradient, by shape: those of a dense decoder exactly, those of other
    models scaled to the number of weights they have.
    """
    d, (count, width) = run.dims, run.trained[0]
    wide = 4 if run.master else width
    if run.is_module:
        # All halves of its matrices as one: their small sides, rank or bottleneck, are the same.
        side = _small_side(run)
        kind: Kind = "linear" if side else "vector"
        yield Tensors(kind, side or 1, max(1, count // (side or 1)), 1, wide)
    else:
        yield from _hidden_layers(d, wide)
        matrices = d.embedding_params / d.head_params if d.head_params else 0
        yield Tensors("embedding", d.vocab, d.hidden, min(1.0, matrices), wide)
        if matrices > 1:
            yield Tensors("output", d.vocab, d.hidden, matrices - 1, wide)
        yield Tensors("vector", 1, d.hidden, d.other_params / d.hidden, wide)
    for copies, copied_width in run.trained[1:]:
        yield Tensors("embedding", d.vocab, max(1, copies // d.vocab), 1, copied_width)


def _small_side(run: Run) -> int | None:
    keys = run.update.keys
    if "rank" in keys:
        return run.rank or int(keys["rank"].default)
    if "bottleneck" in keys:
        return int(run.options.get("bottleneck") or keys["bottleneck"].default)
    return None


def _hidden_layers(d: Dims, width: int) -> Iterator[Tensors]:
    linears = list(d.structure.all_linears)
    counted = sum(linear.weights * count for linear, count in linears)
    share = d.linear_params / counted if counted else 0.0
    for linear, count in linears:
        yield Tensors("linear", linear.outputs, linear.inputs, count * share, width)
    experts = next((kind.experts for kind in d.kinds if kind.experts), None)
    if experts is not None:
        rows, columns = experts.width, experts.inputs
        yield Tensors("experts", rows, columns, d.routed_params / (rows * columns), width)
