"""What somebody may mean by the name of a model: the models of the catalogue and of the hub's cache
that it fits, best first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import islice
from pathlib import Path

from advisor.ground.errors import InputError
from advisor.ground.units import format_count
from advisor.methods.families import DECODER, kind_of_type
from advisor.model_files.hub_cache import cached_models, has_weights, is_offline
from advisor.situation.catalogue import catalogue_ids, suggested_models
from advisor.situation.model_names import (
    is_instruct,
    put_right,
    size_of,
    squashed,
    states_size,
    stored_by_name,
    tail_of,
    words_of,
)
from advisor.situation.models import HUB_ID, SAME_SIZE, is_path, model_shape, shape_from_folder
from advisor.situation.scope import out_of_scope

MOST = 7  # of a list that is shown: it stays on a screen of 24 lines
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*", "tekken.json", "spiece.model")
FILES_OF = {"weights": WEIGHTS[:1], "a tokenizer": TOKENIZERS[:1]}
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
    path = Path(name).expanduser()
    try:
        shape = shape_from_folder(path, name)
    except InputError as error:
        return NameLookup(note=error.text(), wrong=True)
    files = {file.name for file in path.iterdir()}
    missing = [
        what
        for what, wanted in (("weights", WEIGHTS), ("a tokenizer", TOKENIZERS))
        if not any(fnmatch(file, pattern) for file in files for pattern in wanted)
    ]
    if missing:
        lacks = " and ".join(f"{what} ({' or '.join(FILES_OF[what])})" for what in missing)
        return NameLookup(
            note=f"{name}: this folder has a config.json, but lacks {lacks}", wrong=True
        )
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


class _Entry:
    """A model with what its name says."""

    def __init__(self, hub_id: str) -> None:
        self.id = hub_id
        self.words = words_of(hub_id)  # without those that make no difference
        self.all_words = self.words | _every_word(hub_id)  # with its organisation's
        self.sizes = states_size(self.words)

    def has(self, word: str) -> bool:
        """Whether the name has the word; "3" stands for version 3.1 too."""
        versions = (other for other in self.all_words if other.startswith(f"{word}."))
        return word in self.all_words or (word.isdigit() and any(versions))


@cache
def _entries(ids: tuple[str, ...]) -> tuple[_Entry, ...]:
    return tuple(map(_Entry, ids))


def _every_word(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+|[0-9.]+[bmt]?(?![a-z])", text.lower().replace("_", ".")))


def near_models(name: str, *, most: int = MOST) -> tuple[tuple[NamedModel, ...], bool]:
    """The models that a name fits, best first; and whether it had to be put right for that.

    Best is what lies in the cache, then what has the fewest words more, follows instructions, and
    is newest. Words that no model bears are left out before a size is.
    """
    cached = cached_models()
    entries = _entries(_every_id())
    known = frozenset(word for entry in entries for word in entry.all_words)
    typed = words_of(name) or _every_word(tail_of(name))
    right = frozenset(put_right(word, known, SHORTEST) for word in typed)
    tries = [typed, right]
    # What is left without words that no model bears: a description of one, or another name.
    known_typed, left = typed & known, right & known
    if known_typed & frozenset(_family_word(entry.id) for entry in entries):
        tries += [known_typed, known_typed - states_size(known_typed)]
    if 2 * len(_named(left)) > len(_named(right)):
        tries += [left, left - states_size(left)]
    found: list[_Entry] = []
    for words in filter(_named, tries):
        found = [entry for entry in entries if _fits(words, entry)]
        if found:
            break
    else:
        words = typed
        short = squashed(name)
        found = [
            entry for entry in entries if len(short) > SHORTEST and short in squashed(entry.id)
        ]
    trainable = (
        hub_id for hub_id in _ordered(found, words, name, cached) if out_of_scope(hub_id) is None
    )
    near = tuple(NamedModel(id=hub_id, about=about(hub_id)) for hub_id in islice(trainable, most))
    return near, bool(near) and words != typed


def _named(words: Collection[str]) -> list[str]:
    """The words that name a model, without sizes and versions."""
    return [word for word in words if word.isalpha()]


def _family_word(hub_id: str) -> str:
    """The word a name begins with: "llama", "qwen"."""
    found = re.search(r"[a-z]+", tail_of(hub_id).lower())
    return found[0] if found else ""


def _fits(words: frozenset[str], entry: _Entry) -> bool:
    """Whether a model's name has these words, and its name or its shape these sizes."""
    sizes = states_size(words)
    if not all(map(entry.has, words - sizes)):
        return False
    if sizes <= entry.sizes:
        return True
    if entry.sizes:
        return False
    shape, _ = model_shape(entry.id)  # the name says no size, the catalogue may
    wanted = size_of(" ".join(sizes), None).params
    return shape is not None and bool(wanted) and abs(shape.params / (wanted or 1) - 1) < SAME_SIZE


def _ordered(
    found: Sequence[_Entry], typed: Collection[str], name: str, cached: Collection[str]
) -> list[str]:
    """The hub ids of these models, what is meant most likely first."""
    wants_base = bool(re.search(r"(?i)\bbase\b", name))

    def rank(entry: _Entry) -> tuple[object, ...]:
        more = [word for word in entry.words - set(typed) if word.isalpha() and len(word) > 1]
        numbers = [float(word) for word in entry.words if re.fullmatch(r"\d+(?:\.\d+)?", word)]
        size = size_of(tail_of(entry.id), None).params
        if not size:
            shape, _ = model_shape(entry.id)
            size = 0 if shape is None else shape.params
        return (
            entry.id not in cached,
            stored_by_name(entry.id) is not None,
            size > HUGE,
            len(more),
            (is_instruct(entry.id) is True) is wants_base,
            sum(word not in entry.all_words for word in typed),
            -max((number for number in numbers if number <= VERSIONS), default=0.0),
            size,
        )

    latest_first = sorted(found, key=lambda entry: entry.id, reverse=True)
    kept: dict[tuple[object, ...], str] = {}
    for entry in sorted(latest_first, key=rank):
        # One of the names of a model that was renamed, the latest of its small versions.
        same = (entry.words, is_instruct(entry.id), stored_by_name(entry.id))
        if same not in kept or len(entry.id) < len(kept[same]):
            kept[same] = entry.id
    return list(kept.values())
