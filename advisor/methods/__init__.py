"""Objectives, updates and schemes as values read from rules/, and the compositions made of them.

Nothing else spells the lists out: whoever needs them asks here.
"""

from __future__ import annotations

from functools import cache

from advisor.methods.load import methods
from advisor.methods.model import Objective, Scheme, Update
from advisor.methods.remedies import remedies, remedy

__all__ = [
    "Objective",
    "Scheme",
    "Update",
    "is_own",
    "methods",
    "objective",
    "objectives",
    "remedies",
    "remedy",
    "scheme_of",
    "schemes",
    "update",
    "updates",
]


def objective(name: str) -> Objective:
    """The objective of that name. Raises InputError if there is none."""
    return methods().objective(name)


def update(name: str) -> Update:
    """The update of that name. Raises InputError if there is none."""
    return methods().update(name)


def may_share_base(objective_name: str, update_name: str) -> bool:
    """Whether modules of several tasks are trained by one process, which loads their base once."""
    return objective(objective_name).learns_texts and update(update_name).is_module


def objectives() -> tuple[str, ...]:
    """The names of all objectives, in the order of their files' `order`."""
    return tuple(methods().objectives)


def updates() -> tuple[str, ...]:
    """The names of all updates, in the order of their files' `order`."""
    return tuple(methods().updates)


def is_own(name: str) -> bool:
    """Whether an objective, an update or a scheme comes from a folder of one's own."""
    found = methods()
    update_name = found.schemes[name].update if name in found.schemes else name
    method = found.objectives.get(name) or found.updates.get(update_name)
    return method is not None and not method.shipped


@cache
def schemes() -> dict[str, Scheme]:
    """Every scheme by its everyday name: full, lora, qlora, ..."""
    return methods().schemes


def scheme_of(update_name: str, quantization: str | None) -> str:
    """The everyday name of an update on a base: ('lora', 'nf4') is qlora.

    A quantization without a name of its own goes by the first name that the update has for any.
    """
    variants = methods().updates[update_name].variants if update_name in updates() else ()
    if quantization is None or not variants:
        return update_name
    return next((v.id for v in variants if v.quantization == quantization), None) or variants[0].id
