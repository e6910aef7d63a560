"""Several models named in one field ("BERT-base / RoBERTa-large / Llama 8B"): each is judged by its
name, one of them sizes the estimate, and a warning says which and why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from advisor.ground.types import ModelShape
from advisor.ground.units import format_count
from advisor.methods.families import (
    DECODER,
    ENCODER,
    NAMED,
    SEQ2SEQ,
    family_of_name,
    kind_of_type,
)
from advisor.situation.scope import out_of_scope
from advisor.situation.shapes import HUB_ID, is_path, model_shape

BETWEEN = re.compile(r"\s+/\s*|\s*/\s+|\s*[,;|]\s*|\s+(?:or|and|vs\.?|versus|und|oder)\s+", re.I)
SORTS = ("classification",)  # tasks for which an encoder comes before a model that writes
WHY = {
    ENCODER: "texts are sorted, which an encoder does best",
    DECODER: "an encoder writes nothing, and a model that writes is needed",
    SEQ2SEQ: "an encoder writes nothing, and a model that writes is needed",
}


@dataclass(frozen=True, slots=True)
class Named:
    """One of several names."""

    name: str
    kind: str  # encoder | seq2seq | decoder
    shape: ModelShape | None


def names_in(text: str) -> tuple[str, ...]:
    """The models that a field names, in its order: one, unless at least two parts of it are known
    as models. A path is one name.
    """
    text = text.strip()
    if is_path(text):
        return (text,)
    parts = [part.strip() for part in BETWEEN.split(text) if part.strip()]
    if len(parts) == 1 and "/" in text:
        parts = _without_spaces(text)
    known = [part for part in parts if HUB_ID.match(part) or family_of_name(part) is not None]
    return tuple(dict.fromkeys(known)) if len(known) > 1 else (text,)


def _without_spaces(text: str) -> list[str]:
    """The parts of "BERT/RoBERTa/DeBERTa"; a hub id ("albert/albert-base-v2") is one name."""
    parts = text.split("/")
    found = [family_of_name(part) for part in parts]
    if len(parts) > 2:
        return parts if None not in found else [text]
    first, second = found
    whole_words = first is not None and first.pattern.fullmatch(parts[0].lower()) is not None
    if first is None or second is None or first.id == second.id or not whole_words:
        return [text]
    return [text] if first.kind == DECODER else parts  # "Qwen/..." is an organisation


def choose(
    names: Sequence[str], task: str, params_b: float | None, *, online: bool
) -> tuple[str, str]:
    """(the name that stands for all, what was assumed, for a person).

    Of one kind, or of the kind that the task needs, the one nearest to a stated size, else the
    smallest.
    """
    named = [_named(name, online=online) for name in names]
    # What cannot be trained here has been said in a warning of its own, unless it is all there is.
    found = [one for one in named if out_of_scope(one.name, task) is None] or named
    others = [one.name for one in named if one not in found]
    kinds = {one.kind for one in found}
    wanted = _wanted(kinds, task)
    fitting = [one for one in found if one.kind == wanted]
    sized = [one for one in fitting if one.shape is not None]
    chosen = min(sized, key=lambda one: _distance(one, params_b)) if sized else fitting[0]
    listed = ", ".join(
        f"{one.name} ({NAMED[one.kind] if one in found else 'not for this tool'})" for one in named
    )
    size = f", {format_count(chosen.shape.params)} parameters" if chosen.shape is not None else ""
    if others and len(found) == 1:
        because = f"sizes and times are those of {chosen.name}{size}"
    elif len(kinds) == 1 and others:
        because = f"the others are of one kind; sizes and times are those of {chosen.name}{size}"
    elif len(kinds) == 1:
        because = f"all are of one kind; sizes and times are those of {chosen.name}{size}"
    else:
        because = (
            f"{WHY[wanted]}: the answer is about that kind, with sizes and times of"
            f" {chosen.name}{size}"
        )
    nearest = "the one of the stated size" if params_b is not None else "the smallest of its kind"
    alone = "" if len(sized) < 2 else f" ({nearest})"
    return chosen.name, f"model: {len(named)} are named: {listed}; {because}{alone}"


def _named(name: str, *, online: bool) -> Named:
    shape, _ = model_shape(name, online=online)
    family = family_of_name(name)
    if shape is not None and shape.architecture is not None:
        return Named(name, kind_of_type(shape.architecture), shape)
    return Named(name, DECODER if family is None else family.kind, shape)


def _wanted(kinds: set[str], task: str) -> str:
    order = (ENCODER, DECODER, SEQ2SEQ) if task in SORTS else (DECODER, SEQ2SEQ, ENCODER)
    return next(kind for kind in order if kind in kinds)


def _distance(one: Named, params_b: float | None) -> float:
    params = one.shape.params if one.shape is not None else 0
    if params_b is None:
        return float(params)
    return max(params / (params_b * 1e9), params_b * 1e9 / max(params, 1))
