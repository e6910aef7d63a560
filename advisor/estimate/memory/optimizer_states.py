"""What an optimizer keeps for the weights that train, tensor by tensor, from the table of
optimizers (rules/optimizers.yaml).

Not counted: step counters, and the look-up tables of 8-bit and 4-bit states, at most 2 KiB a
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from advisor.estimate.model.dims import Dims
from advisor.estimate.run import Run
from advisor.methods.optimizers import ALL_LINEAR, OPTIMIZERS, Optimizer, optimizer, read_arguments

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


@dataclass(frozen=True, slots=True)
class Tensors:
    """Trained tensors of one shape."""

    kind: Kind
    rows: int
    columns: int
    count: float  # a share of one where a shape is known only roughly
    width: int  # bytes of a weight
    path: str = ""  # of the module, as far as targets may name it: "self_attn.q_proj"

    @property
    def each(self) -> int:
        """Weights of one."""
        return self.rows * self.columns

    @property
    def weights(self) -> float:
        """Weights of all."""
        return self.each * self.count


class Trained(NamedTuple):
    """All that the states depend on of a run; hashable, and without its batch, so that what is
    counted once holds for every batch.
    """

    dims: Dims  # of the model
    trained: tuple[tuple[int, int], ...]  # (how many, bytes each) of what trains, by dtype
    master: bool  # the optimizer steps on float32 copies
    is_module: bool  # a module is trained beside a frozen base
    side: int | None  # the small side of a module's matrices; None: it has none
    optimizer: str  # its name
    optim_args: str | None  # as transformers reads them
    targets: tuple[str, ...]  # `optim_target_modules`
    by_transformers: bool  # transformers' Trainer, or ours, builds the optimizer


def trained_of(run: Run) -> Trained:
    """What of a run its optimizer's memory depends on."""
    passed = run.stage.trl
    targets = passed.get("optim_target_modules") or "all-linear"
    return Trained(
        dims=run.dims,
        trained=run.trained,
        master=run.master,
        is_module=run.is_module,
        side=_small_side(run) if run.is_module else None,
        optimizer=run.optimizer,
        optim_args=passed.get("optim_args"),
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        by_transformers=run.is_ours or run.trainer["accelerate"] or run.trainer["fused_adapters"],
    )


def entry_of(name: str) -> Optimizer:
    """The optimizer of a run spec."""
    return OTHERS.get(name) or optimizer(name)


def _arguments(s: Trained) -> dict[str, Any]:
    """The optimizer's arguments: those of the spec that it reads, else its defaults."""
    name = s.optimizer
    if name in OTHERS:
        return {}
    try:
        return read_arguments(name, s.optim_args)
    except ValueError:  # the trainers refuse it
        return dict(optimizer(name).arguments)


def state_size(run: Run) -> float:
    """Bytes that the optimizer keeps for everything that trains, before sharding."""
    return _state_size(trained_of(run))


def state_words(run: Run) -> str:
    """What it keeps, in words."""
    return _state_words(trained_of(run))


@lru_cache(maxsize=512)
def _state_size(s: Trained) -> float:
    entry, arguments = entry_of(s.optimizer), _arguments(s)
    return sum([_size(s, tensors, entry, arguments) for tensors in _tensors(s)])


@lru_cache(maxsize=512)
def _state_words(s: Trained) -> str:
    entry = entry_of(s.optimizer)
    total = sum(count for count, _ in s.trained)
    if entry.keeps != "each weight":
        per = _state_size(s) / total if total else 0.0
        found = f"{_KEPT[entry.keeps]}: {per:.2g} B for each of {total:,} trainable parameters"
        if entry.is_low_rank:
            rank = _arguments(s)["rank"]
            found = f"rank {rank}, {found}"
        return found
    parts = []
    for count, width in s.trained:
        wide = 4 if s.master else width
        words = _numbers(entry, wide, _arguments(s))
        parts.append(f"{words} x {count:,} trainable parameters")
    kept_whole = entry.embeddings_width is not None and s.by_transformers
    whole = [one for one in _tensors(s) if one.kind == "embedding"] if kept_whole else []
    note = f", {sum(one.weights for one in whole):,.0f} of embeddings in float32" if whole else ""
    return " + ".join(parts) + note


_KEPT = {
    "rows and columns": "means of rows and columns",
    "low rank": "two moments of projected gradients and the projections",
    "momentum of matrices": "one momentum for matrices, two moments for the rest",
}


def _numbers(entry: Optimizer, width: int, arguments: dict[str, Any]) -> str:
    """What is kept for a weight of `width` bytes."""
    numbers = _kept_numbers(entry, arguments)
    if not numbers:
        return "no moments"
    plural = f"{numbers:g} moments" if numbers != 1 else "one moment"
    if entry.width is not None and entry.width < 2:
        block = _block(entry, arguments)
        bits = "1 B" if entry.width >= 1 else "half a byte"
        return f"{plural} of {bits} with a scale per {block}"
    held = entry.width if entry.width is not None else width
    found = f"{plural} of {held:g} B"
    if entry.beside_bfloat16 and width == 2:
        what = "make a weight float32 again" if entry.name == "adamw_split" else "sum its rounding"
        found += f", and the {entry.beside_bfloat16:g} B that {what},"
    return found


def _kept_numbers(entry: Optimizer, arguments: dict[str, Any]) -> float:
    return 1 if entry.name == "sgd" and arguments.get("momentum") else entry.numbers


def _block(entry: Optimizer, arguments: dict[str, Any]) -> int:
    """Weights that share a scale."""
    return int(arguments.get("block_size") or 256)


def _size(s: Trained, one: Tensors, entry: Optimizer, arguments: dict[str, Any]) -> float:
    """Bytes that are kept for these tensors."""
    numbers, wide = _kept_numbers(entry, arguments), _width(entry, one, arguments)
    if entry.keeps == "rows and columns":
        kept = one.each if one.kind == "vector" else one.rows + one.columns
        return kept * wide * one.count
    if entry.keeps == "momentum of matrices":
        numbers = 1 if one.kind in ("linear", "experts") else 2
    if entry.is_low_rank and one.kind == "linear" and _is_target(s.targets, one.path):
        moments, projection = _projected(one, arguments)
        small = entry.small_width is not None and moments < entry.small_from
        per = (entry.small_width or wide) if small else wide
        return (numbers * per * moments + one.width * projection) * one.count
    if entry.embeddings_width is not None and one.kind == "embedding" and s.by_transformers:
        wide = entry.embeddings_width
    beside = entry.beside_bfloat16 if one.width == 2 else 0
    return (numbers * wide + beside) * one.weights


def _width(entry: Optimizer, one: Tensors, arguments: dict[str, Any]) -> float:
    """Bytes of one number that is kept."""
    if one.each < entry.small_from:
        return entry.small_width or one.width
    if entry.width is None:
        return one.width
    if "block_size" in arguments:
        default = entry.arguments["block_size"]
        return float(entry.width - 4 / default + 4 / _block(entry, arguments))
    return entry.width


def _projected(one: Tensors, arguments: dict[str, Any]) -> tuple[int, int]:
    """(numbers of each moment, numbers of the projection) of one matrix, by the rule of
    `GaLoreProjector.project`.
    """
    kind = arguments["proj_type"]
    right = one.rows >= one.columns
    if kind in ("left", "right"):
        right = kind == "right"
    elif kind == "reverse_std":
        right = not right
    rank = min(arguments["rank"], one.rows, one.columns)
    # right: the gradient times (rank, columns); left: (rows, rank) times the gradient.
    return (rank * one.rows, rank * one.columns) if right else (rank * one.columns, rank * one.rows)


def _is_target(names: tuple[str, ...], path: str) -> bool:
    """Whether `optim_target_modules` names a module: by a part of its path, as transformers does,
    or by a pattern that holds its name. No pattern of a user's is run here.
    """
    own = path.rpartition(".")[2]
    return any(
        name.replace("_", "-") == ALL_LINEAR or name in path or own in name for name in names
    )


def largest_weight(run: Run) -> int:
    """Weights of the largest trained tensor that is worked on alone."""
    return _largest_weight(trained_of(run))


@lru_cache(maxsize=512)
def _largest_weight(s: Trained) -> int:
    entry = entry_of(s.optimizer)
    every = entry.keeps == "rows and columns" or entry.name.startswith("adamw")
    apart = () if every else ("embedding", "output")
    return max((one.each for one in _tensors(s) if one.kind not in apart), default=0)


def orthogonal_flop(run: Run) -> float:
    """Floating-point operations of a step that make matrices orthogonal; 0 under every optimizer
    but Muon.

    A Newton-Schulz step on m x n, n the shorter side, is three products: 4 m n^2 + 2 n^3
    (torch/optim/_muon.py).
    """
    if entry_of(run.optimizer).keeps != "momentum of matrices":
        return 0.0
    trained = trained_of(run)
    steps = _arguments(trained)["ns_steps"]
    total = 0.0
    for one in _tensors(trained):
        if one.kind in ("linear", "experts"):
            short, long = sorted((one.rows, one.columns))
            total += one.count * (4 * long * short**2 + 2 * short**3)
    return float(steps * total)


def _tensors(s: Trained) -> Iterator[Tensors]:
    """All tensors that get a gradient, by shape: those of a dense decoder exactly, those of other
    models scaled to the number of weights they have.
    """
    d, (count, width) = s.dims, s.trained[0]
    wide = 4 if s.master else width
    if s.is_module:
        # All halves of its matrices as one: their small sides, rank or bottleneck, are the same.
        side = s.side
        kind: Kind = "linear" if side else "vector"
        yield Tensors(kind, side or 1, max(1, count // (side or 1)), 1, wide)
    else:
        yield from _hidden_layers(s, wide)
        matrices = d.embedding_params / d.head_params if d.head_params else 0
        yield Tensors("embedding", d.vocab, d.hidden, min(1.0, matrices), wide)
        if matrices > 1:
            yield Tensors("output", d.vocab, d.hidden, matrices - 1, wide)
        yield Tensors("vector", 1, d.hidden, d.other_params / d.hidden, wide)
    for copies, copied_width in s.trained[1:]:
        yield Tensors("embedding", d.vocab, max(1, copies // d.vocab), 1, copied_width)


def _small_side(run: Run) -> int | None:
    """The rank or the bottleneck of a module's matrices; None if it has vectors alone."""
    keys = run.update.keys
    if "rank" in keys:
        return run.rank or int(keys["rank"].default)
    if "bottleneck" in keys:
        return int(run.options.get("bottleneck") or keys["bottleneck"].default)
    return None


# The part of a layer -> the name of its module, as `optim_target_modules` may give it.
MODULES = {"mixer": "self_attn", "mlp": "mlp", "shared": "mlp"}


def _hidden_layers(s: Trained, width: int) -> Iterator[Tensors]:
    """The matrices of the hidden layers."""
    d = s.dims
    linears = list(d.structure.all_linears)
    counted = sum(linear.weights * count for linear, count in linears)
    share = d.linear_params / counted if counted else 0.0
    for linear, count in linears:
        path = f"{MODULES.get(linear.part, 'mlp')}.{linear.name}"
        yield Tensors("linear", linear.outputs, linear.inputs, count * share, width, path)
    experts = next((kind.experts for kind in d.kinds if kind.experts), None)
    if experts is not None:
        rows, columns = experts.width, experts.inputs
        yield Tensors("experts", rows, columns, d.routed_params / (rows * columns), width)
