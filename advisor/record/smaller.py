"""What makes a stage need less memory: the changes of its keys, those that change the result least
first.

A smaller micro-batch with more accumulation trains on the same rows in the same order with the same
loss; it is what a run does by itself when memory runs out. Every other change is a person's to
make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.methods import objective, update
from advisor.plan.entries import Entry
from advisor.plan.model import Stage
from advisor.record.stage import Adjusted, Adjustment

SHORTEST_SEQ_LEN = 256  # shorter sequences cut most conversations
NOTHING_SMALLER = "take a smaller model, or a device with more memory"
# An estimate is an estimate: a change that lowers it by less may not be felt.
LEAST_GAIN = 0.02

WORDS = ("why", "costs")

PeakOf = Callable[[Stage], int | None]


class Change(Struct, frozen=True):
    """Keys of a stage with their new values, what that does, and what it costs."""

    values: Mapping[str, Any]
    why: str
    costs: str = "the same result"

    def applied(self, stage: Stage) -> Stage:
        """The stage with these values."""
        return replace(stage, **self.values)


QUANTIZED = Change(
    {"quantization": "nf4"},
    "stores the frozen base in 4 bits",
    "slower steps, and answers may get slightly worse",
)


def smaller_micro_batch(size: int, *, least: int = 1) -> int | None:
    """The largest divisor of a micro-batch that is at most half of it; None if that is below
    `least`.

    A divisor, so that every micro-batch splits into equal parts.
    """
    found = next((part for part in range(size // 2, 0, -1) if size % part == 0), 0)
    return found if found >= max(1, least) else None


def fewest_rows(stage: Stage) -> int:
    """The smallest micro-batch of the objective: KTO estimates KL from the rows of one."""
    refused = {
        value
        for refusal in objective(stage.objective).refuses
        if refusal.key == "micro_batch_size"
        for value in refusal.values
    }
    return next(size for size in range(1, len(refused) + 2) if size not in refused)


def smaller_batches(stage: Stage) -> Iterator[Change]:
    """Every smaller micro-batch with the same effective batch size, the largest first."""
    size: int | None = stage.micro_batch_size
    while size is not None:
        size = smaller_micro_batch(size, least=fewest_rows(stage))
        if size is not None:
            yield Change(
                {"micro_batch_size": size, "grad_accum": stage.effective_batch_size // size},
                "takes fewer rows at a time (the same effective batch size)",
                "the same result, in somewhat more time",
            )


def next_batch(stage: Stage, rows: int) -> Change | None:
    """The largest micro-batch of fewer rows; None: there is none."""
    return next(
        (one for one in smaller_batches(stage) if one.values["micro_batch_size"] < rows), None
    )


def valid_adjustments(stage: Stage, kept: Adjusted | None) -> list[Adjustment]:
    """The changes that an earlier attempt kept, as far as they are changes of this stage."""
    known = {change.values["micro_batch_size"] for change in smaller_batches(stage)}
    return [
        one
        for one in (kept.adjusted if kept is not None else ())
        if one.micro_batch_size in known
        and one.micro_batch_size * one.grad_accum == stage.effective_batch_size
    ]


def adjustment_of(entry: Entry, change: Change, why: str, *, at_step: int | None) -> Adjustment:
    """A smaller micro-batch as it is recorded."""
    return Adjustment(
        stage=entry.name,
        at_step=at_step,
        micro_batch_size=change.values["micro_batch_size"],
        grad_accum=change.values["grad_accum"],
        why=why,
        setting=as_settings(entry, change).replace("--set ", ""),
    )


def _other_changes(stage: Stage, *kinds: str) -> list[Change]:
    """The changes of these kinds that the stage has left, in their order."""
    is_module, found = update(stage.update).is_module, dict[str, Change]()
    if is_module and stage.quantization != "nf4":
        found["quantize"] = QUANTIZED
    if stage.weights_dtype == "float32":
        found["weights"] = Change({"weights_dtype": "bfloat16"}, "stores the weights in 16 bits")
    if stage.weights_dtype == "float32" and is_module:  # what is trained stays in float32
        values = {"weights_dtype": "bfloat16", "precision": "mixed"}
        found["frozen weights"] = Change(values, "holds the frozen base in 16 bits")
    # Modules have small states. AdamW with 8-bit moments trains like AdamW (Dettmers et al. 2022,
    # arXiv:2110.02861).
    if stage.optimizer in ("adamw", "adamw_fused") and not is_module:
        why = "keeps AdamW's two moments in 8 bits"
        found["optimizer"] = Change({"optimizer": "adamw_8bit"}, why, "nearly the same result")
    if stage.optimizer == "adamw_split" and not is_module:
        why = "rounds bfloat16 weights at random, in place of 2 bytes more for each"
        costs = "nearly the same result"
        found["optimizer"] = Change({"optimizer": "adamw_stochastic"}, why, costs)
    if not stage.gradient_checkpointing:
        why = "recomputes activations instead of keeping them"
        costs = "the same result, in about a third more time"
        found["recompute"] = Change({"gradient_checkpointing": True}, why, costs)
    if shorter := _shorter(stage):
        found["shorter"] = shorter[0]
    if not is_module:
        why = "trains a small module instead of every weight"
        costs = "it learns less that is new"
        found["module"] = Change({"update": "lora", "learning_rate": None}, why, costs)
    return [found[kind] for kind in kinds if kind in found]


def weight_changes(stage: Stage) -> list[Change]:
    """The changes that make the model itself smaller, for a stage that ran out as it was loaded."""
    return _other_changes(stage, "quantize", "weights")


def harmless_changes(stage: Stage, more: Sequence[Sequence[Change]] = ()) -> Iterator[Change]:
    """Changes that leave what is learned as it is, and sets of them, the fewest first; of `more`
    kinds, too, of each at most one.
    """
    kinds = (
        _other_changes(stage, "recompute"), _other_changes(stage, "frozen weights"), *more,
        smaller_batches(stage),
    )  # fmt: skip
    sets = [[one for one in some if one] for some in product(*((None, *kind) for kind in kinds))]
    yield from (combine(some[::-1]) for some in sorted(sets, key=len) if some)


def combine(some: Sequence[Change]) -> Change:
    """Several changes as one; a later one wins."""
    values = {key: value for one in some for key, value in one.values.items()}
    why, costs = ("; ".join(dict.fromkeys(getattr(one, name) for one in some)) for name in WORDS)
    return Change(values, why, costs)


def costly_changes(stage: Stage) -> list[Change]:
    """Changes of what is learned, alone and together, those that lose least first."""
    # What each kind loses, against the others: 4 bit or 8-bit moments little, every halving of the
    # rows more, and a small module in place of every weight as much as one and a half of those.
    kinds: list[list[tuple[int, Change]]] = [
        [(2 * times, one) for times, one in enumerate(_shorter(stage), start=1)],
        [(1, one) for one in _other_changes(stage, "quantize", "optimizer")],
    ]
    for module in _other_changes(stage, "module"):
        kinds[1] += [(3, module), (4, combine([module, QUANTIZED]))]
    sets = [
        (sum(lost for lost, _ in some), combine([one for _, one in reversed(some)]))
        for pick in product(*([None, *kind] for kind in kinds))
        if (some := [one for one in pick if one is not None])
    ]
    return [change for _, change in sorted(sets, key=lambda one: one[0])]


def _shorter(stage: Stage) -> list[Change]:
    """Shorter rows, by half and half again."""
    lengths, found = stage.seq_len // 2, list[Change]()
    while lengths >= SHORTEST_SEQ_LEN:
        why = f"{'halves the length' if not found else f'shortens rows to {lengths:,} tokens'}"
        why += " (`truncation` says what happens to longer rows)"
        costs = f"rows over {lengths:,} tokens are cut or left out"
        found.append(Change({"seq_len": lengths}, why, costs))
        lengths //= 2
    return found


def single_changes(stage: Stage, more: Sequence[Sequence[Change]] = ()) -> list[Change]:
    """Of each kind the change that saves most, and the first that shortens rows; those that cost
    least first.
    """
    harmless = [list(smaller_batches(stage))[-1:], *(kind[-1:] for kind in more)]
    kinds = ("frozen weights", "recompute", "optimizer", "quantize", "shorter", "module")
    return [*chain.from_iterable(harmless), *_other_changes(stage, *kinds)]


def least_hungry(stage: Stage, harmless: Sequence[Sequence[Change]] = ()) -> Change:
    """All changes together, of each kind the one that saves most."""
    shorter, others = _shorter(stage)[-1:], _other_changes(stage, "quantize", "optimizer")
    module = [combine([one, QUANTIZED]) for one in _other_changes(stage, "module")]
    change = combine([*(module or others), *shorter])
    more = list(harmless_changes(change.applied(stage), _apart(harmless, change)))[-1:]
    return combine([change, *more])


def _apart(kinds: Sequence[Sequence[Change]], change: Change) -> list[Sequence[Change]]:
    """The kinds that change other keys."""
    return [kind for kind in kinds if not kind[0].values.keys() & change.values.keys()]


def smallest_that_fits(
    stage: Stage, fits: Callable[[Stage], bool], harmless: Sequence[Sequence[Change]] = ()
) -> Change | None:
    """The change of the stage that alters its result least and fits; None: none does.

    Args:
        stage: What does not fit.
        fits: Whether a changed stage does.
        harmless: Kinds of changes that alter no result, beside ours.
    """
    for change in harmless_changes(stage, harmless):
        if fits(change.applied(stage)):
            return change
    if not fits(least_hungry(stage, harmless).applied(stage)):
        return None
    for change in costly_changes(stage):
        changed = change.applied(stage)
        if fits(changed):
            return change
        left = _apart(harmless, change)
        least = list(harmless_changes(changed, left))[-1:]  # all of them together
        if not least or not fits(least[0].applied(changed)):
            continue
        for more in harmless_changes(changed, left):
            if fits(more.applied(changed)):
                return combine([change, more])
    return None


def changes(stage: Stage) -> list[Change]:
    """Every change that lowers memory, those that change the result least first."""
    kinds = ("recompute", "quantize", "optimizer", "shorter", "module")
    return [*smaller_batches(stage), *_other_changes(stage, *kinds)]


def next_change(
    stage: Stage,
    *,
    peak_of: PeakOf | None = None,
    limit_bytes: int | None = None,
    loading: bool = False,
) -> Change | None:
    """The first change that the estimate says is enough: it lowers the peak of the stage as it is,
    to what there is if that is known. Without an estimate, the first of all; None if there is none.

    Args:
        stage: With the keys that ran out of memory.
        peak_of: The estimated peak of a stage, in bytes; None of it: not known.
        limit_bytes: What the device had.
        loading: It ran out as the model was loaded, which fewer rows do not change.
    """
    found = weight_changes(stage) if loading else changes(stage)
    now = peak_of(stage) if peak_of is not None else None
    if peak_of is None or now is None:
        return found[0] if found else None
    # Where it ran out although the estimate fits, the estimate is too low by at least so much.
    most = now if limit_bytes is None else min(now, limit_bytes)
    lower = [
        (peak, change)
        for change in found
        if (peak := peak_of(change.applied(stage))) is not None and peak < now
    ]
    felt = now * (1 - LEAST_GAIN)
    enough = next((change for peak, change in lower if peak <= min(felt, most)), None)
    # Nothing is enough alone: the one that lowers it most is the first step.
    return enough or (min(lower, key=lambda item: item[0])[1] if lower else None)


def as_settings(entry: Entry, change: Change) -> str:
    """The change as words of a command line: '--set stages.sft.micro_batch_size=2 ...'."""
    return " ".join(
        f"--set {key_path(entry, key)}={yaml_value(value)}" for key, value in change.values.items()
    )


def yaml_value(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(yaml_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def key_path(entry: Entry, key: str) -> str:
    """Where a key of the stage stands in the plan, as --set names it."""
    if entry.task is not None and key in entry.task.overrides:
        return f"tasks.{entry.task.name}.overrides.{key}"
    return f"stages.{entry.stage.name}.{key}"
