"""What somebody may mean by the name of a model: the models of the catalogue and of the hub's cache
that it fits, best first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.ground.units import format_count
from advisor.methods.families import DECODER, kind_of_type
from advisor.model_files.hub_cache import cached_models, has_weights, is_offline
from advisor.situation.catalogue import (
    catalogue_ids,
    is_instruct,
    put_right,
    size_of,
    squashed,
    states_size,
    stored_by_name,
    suggested_models,
    tail_of,
    words_of,
)
from advisor.situation.models import HUB_ID, SAME_SIZE, is_path, model_shape, shape_from_folder
from advisor.situation.scope import out_of_scope

MOST = 7  # of a list that is shown: it stays on a screen of 24 lines
SHORTEST = 3  # letters of a word that may be misspelt
VERSIONS = 20  # a number above it in a name is a date
HUGE = 200e9  # parameters: what nobody means who names a family alone


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedModel:
    """One model to choose from."""

    id: str
    about: str  # "8.19B parameters, apache-2.0, on this machine"


@dataclass(frozen=True, kw_only=True, slots=True)
class NameLookup:
    """What a typed name means: one model, some to choose from, or none."""

    id: str | None = None  # the model, as the hub or the file system writes it
    note: str = ""  # what there is to say of it, or why it is none
    near: tuple[NamedModel, ...] = ()
    misspelt: bool = False  # `near` holds names that are like it, not names that it fits
    wrong: bool = False  # a path that is no model: to be corrected


def look_up_name(name: str, *, online: bool = True) -> NameLookup:
    """The model that a typed name means, or those it may mean.

    Args:
        name: A hub id, a folder, or a name as people say it: "llama 8b".
        online: Whether a hub id that nothing here knows may be looked up on the hub.
    """
    name = name.strip()
    if (outside := out_of_scope(name)) is not None:
        return NameLookup(id=name, note=f"{outside.what}; the answer says where to go with it")
    if is_path(name):
        return _folder(name)
    if (known := _known(name)) is not None:
        read = "" if known == name else f"read as {known}; "
        return NameLookup(id=known, note=read + about(known))
    problem = ""
    if HUB_ID.match(name):
        shape, notes = model_shape(name, online=online and not is_offline())
        if shape is not None and shape.origin in ("hub", "catalogue"):
            return NameLookup(id=name, note=about(name))
        problem = next((note for note in notes if note.startswith(f"{name}: ")), "")
        problem = problem or f"{name}: not known here, and the hub was not asked (offline)"
    near, misspelt = near_models(name)
    return NameLookup(near=near, misspelt=misspelt, note=problem)


def _folder(name: str) -> NameLookup:
    try:
        shape = shape_from_folder(Path(name).expanduser(), name)
    except InputError as error:
        return NameLookup(note=error.text(), wrong=True)
    return NameLookup(id=name, note=f"{format_count(shape.params)} parameters, in a folder")


def about(hub_id: str) -> str:
    """What a person chooses by: size, licence if it is known, whether access has to be asked for,
    whether it is a base model, whether it is here already.
    """
    shape, _ = model_shape(hub_id)
    words: list[str | None] = ["on this machine"] if has_weights(hub_id) else []
    if shape is not None and shape.origin != "size":
        licences = {row["model"]: row["license"] for row in suggested_models()["models"]}
        is_base = is_instruct(shape.id) is False and kind_of_type(shape.architecture) == DECODER
        words = [
            f"{format_count(shape.params)} parameters",
            "does not follow instructions yet" if is_base else None,
            shape.license or licences.get(shape.id),
            "access on request" if shape.gated else None,
            f"stored in {shape.stored}" if shape.stored else None,
            *words,
        ]
    return ", ".join(filter(None, words))


def _known(name: str) -> str | None:
    """The one model of catalogue or cache whose name this is, however it is written; None if
    one that follows instructions and one that does not are called so alike.
    """
    ids = _every_id()
    wanted = name.lower()
    whole = [hub_id for hub_id in ids if wanted in (hub_id.lower(), tail_of(hub_id).lower())]
    alike = whole or [hub_id for hub_id in ids if words_of(hub_id) == words_of(name)]
    if whole or any(squashed(hub_id) == squashed(name) for hub_id in alike):
        return alike[0] if len(alike) == 1 else None
    return None


def _every_id() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*catalogue_ids(), *cached_models())))


# --------------------------------------------------------------------------- which ones it may be


def near_models(name: str, *, most: int = MOST) -> tuple[tuple[NamedModel, ...], bool]:
    """The models that a name fits, best first; and whether it had to be put right for that.

    Words that no model bears are left out of a name that says a family, before its size is.
    """
    words = {hub_id: words_of(hub_id.replace("/", "-")) for hub_id in _every_id()}
    known = frozenset().union(*words.values())
    typed, short = words_of(name), squashed(name)
    right = frozenset(put_right(word, known) for word in typed)
    tries, left = [right], right & known
    if left & {_family_word(hub_id) for hub_id in words}:
        tries += [left, left - states_size(left)]
    found: list[str] = []
    for wanted in tries:
        if not found and any(map(str.isalpha, wanted)):
            found, right = [one for one in words if _fits(wanted, words[one], one)], wanted
        if not found and len(short) > SHORTEST:
            found, right = [one for one in words if short in squashed(one)], typed
    latest_first = sorted(found, reverse=True)
    ordered = sorted(latest_first, key=partial(_rank, wanted=right, name=name))
    trainable = (hub_id for hub_id in ordered if out_of_scope(hub_id) is None)
    near = [NamedModel(id=hub_id, about=about(hub_id)) for hub_id in islice(trainable, most)]
    return tuple(near), bool(near) and right != typed


def _family_word(hub_id: str) -> str:
    found = re.search(r"[a-z]+", tail_of(hub_id).lower())
    return found[0] if found else ""


def _fits(wanted: frozenset[str], own: frozenset[str], hub_id: str) -> bool:
    """Whether a model's name has these words, and its name or its shape these sizes; "3" stands
    for version 3.1 too.
    """
    sizes, stated = states_size(wanted), states_size(own)
    for word in wanted - sizes:
        versions = (other for other in own if other.startswith(f"{word}."))
        if word not in own and not (word.isdigit() and any(versions)):
            return False
    if sizes <= stated or stated:
        return sizes <= stated
    shape, _ = model_shape(hub_id)  # the name says no size, the catalogue may
    size = size_of(" ".join(sizes), None).params
    return shape is not None and bool(size) and abs(shape.params / (size or 1) - 1) < SAME_SIZE


def _rank(hub_id: str, *, wanted: frozenset[str], name: str) -> tuple[object, ...]:
    """What is meant most likely comes first: a model at hand, in 16 bit, of a usual size, with few
    words more, which follows instructions, of the latest version.
    """
    own = words_of(hub_id)
    numbers = [float(word) for word in own if re.fullmatch(r"\d+(?:\.\d+)?", word)]
    size = size_of(tail_of(hub_id), None).params
    if not size:
        shape, _ = model_shape(hub_id)
        size = 0 if shape is None else shape.params
    return (
        hub_id not in cached_models(),
        stored_by_name(hub_id) is not None,
        size > HUGE,
        sum(word.isalpha() and len(word) > 1 for word in own - wanted),
        (is_instruct(hub_id) is True) is bool(re.search(r"(?i)\bbase\b", name)),
        sum(word not in own for word in wanted),
        -max((number for number in numbers if number <= VERSIONS), default=0.0),
        size,
        len(hub_id),
    )
