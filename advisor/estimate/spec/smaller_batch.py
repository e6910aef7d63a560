"""The same training with fewer rows at once: the least it needs, and the largest batch that fits.

The effective batch stays, since gradients are accumulated over as many micro-batches more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from advisor.estimate.memory.verdict import memory_fits
from advisor.estimate.types import MemoryEstimate, RunSpec
from advisor.methods import objective, update

NeedOf = Callable[[RunSpec], MemoryEstimate | None]


def smallest_batch(spec: RunSpec) -> RunSpec:
    """The spec with as few rows at once as its objective takes, and activations recomputed if its
    update can.
    """
    return list(_smaller(spec))[-1]


def fitting_batch(spec: RunSpec, need_of: NeedOf, limit_bytes: int) -> RunSpec | None:
    """The spec with the most rows at once that surely fit, recomputed activations last; else the
    smallest batch if that may fit; None if not.
    """
    found = list(_smaller(spec))
    for one in found:
        memory = need_of(one)
        if memory is not None and memory_fits(memory, limit_bytes) in ("fits", "tight"):
            return one
    memory = need_of(found[-1])
    may = memory is not None and memory_fits(memory, limit_bytes) == "may_fit"
    return found[-1] if may else None


def _smaller(spec: RunSpec) -> Iterator[RunSpec]:
    """The spec, then with half the rows at a time, at last with recomputed activations."""
    again = spec.gradient_checkpointing or not _refused(spec, "gradient_checkpointing", True)
    kinds = dict.fromkeys((spec.gradient_checkpointing, spec.gradient_checkpointing or again))
    for recompute in kinds:
        rows = spec.micro_batch_size
        while rows >= 1:
            accum = -(-spec.grad_accum * spec.micro_batch_size // rows)
            if rows == spec.micro_batch_size or not _refused(spec, "micro_batch_size", rows):
                yield replace(
                    spec,
                    micro_batch_size=rows,
                    grad_accum=accum,
                    gradient_checkpointing=recompute,
                )
            rows //= 2


def _refused(spec: RunSpec, key: str, value: Any) -> bool:
    methods = (objective(spec.objective), update(spec.update))
    return any(
        one.key == key and value in one.values for method in methods for one in method.refuses
    )
