"""What a typed name of a model means: a model of the catalogue or of the hub's cache, several that
it fits, best first, or a kind that this tool does not train (rules/scope.yaml).

Names decide, not words: "whisper-large-v3" is a speech model, "a model that answers whisper-quiet"
is not. A description that also names a text model means that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.errors import InputError
from advisor.ground.files import MOST_CONFIG_BYTES, text_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import VERSION, Date, Keys, ListOf, Text
from advisor.ground.types import Hardware, ModelShape
from advisor.ground.units import format_count
from advisor.ground.yaml_files import SOURCE, read_shipped, source_from
from advisor.methods.families import DECODER, ENCODER, kind_of_type
from advisor.model_files.hub_cache import cached_config, cached_models, is_offline
from advisor.situation.catalogue import (
    ROUNDED,
    SHORTEST,
    has_numbers_of,
    is_instruct,
    known_ids,
    named_models,
    organisation_models,
    put_right,
    size_of,
    spoken,
    squashed,
    states_size,
    stored_by_name,
    suggested_models,
    tail_of,
    without_storage,
    words_of,
)
from advisor.situation.models import (
    HUB_ID,
    SAME_SIZE,
    is_path,
    model_shape,
    original_by_name,
    shape_from_folder,
)
from advisor.situation.types import OutOfScope

HARDWARE = "unsupported_hardware"  # the kind of what rules/hardware/not-supported.yaml lists
PATTERNS = ("names", "generic", "whole", "alone", "phrases")
SCOPE_FILE = Keys(
    help="Models that this tool does not train, and where to go with them",
    keys={
        "version": VERSION,
        "review_by": Date(),
        "text_models": ListOf(of=Text(), least=1, help="families that are in scope, as patterns"),
        "kinds": ListOf(
            of=Keys(
                keys={
                    "kind": Text(help="a value of the fact out_of_scope"),
                    "names": ListOf(of=Text(), help="patterns of names, found anywhere"),
                    "generic": ListOf(of=Text(), help="the same, if the name holds a digit or /"),
                    "whole": ListOf(of=Text(), help="the same, between blanks"),
                    "alone": ListOf(of=Text(), help="the same, if nothing else is named"),
                    "phrases": ListOf(of=Text(), help="descriptions that name no model"),
                    "model_types": ListOf(of=Text(), help="model_type of a config.json"),
                    "files": ListOf(of=Text(), help="a file in the folder of such a model"),
                    "but_for": ListOf(of=Text(), help="tasks for which it is in scope"),
                    "what": Text(help="what it is, after '... is'"),
                    "where": Text(help="where to go with it"),
                    "instead": ListOf(of=Text(), help="models of the catalogue to train instead"),
                    "first": ListOf(of=Text(), help="commands to paste"),
                    "sources": ListOf(of=SOURCE, least=1),
                },
                required=("kind", "what", "where", "first", "sources"),
            ),
            least=1,
        ),
    },
    required=("version", "text_models", "kinds"),
)
# What stands before a name that is only compared with: "a model like GPT-4".
COMPARED = re.compile(
    r"(?:\b(?:like|as good as|as|than|instead of|replac\w+|not|without|unlike|beats?|no longer)"
    r"|\b(?:outputs?|answers?|labels?|data) (?:of|from|by)|\b(?:distill?ed|generated) (?:from|by))"
    r"\s+(?:an?\s+|the\s+)?$",
    re.IGNORECASE,
)
LEAD = r"(?:(?:fine-?)?tun(?:e|ing)|train(?:ing)?|us(?:e|ing))?\s*(?:an?|the|our|my)?\s*"
TAIL = r"(?:\s+(?:models?|checkpoints?|api))?(?:\s+(?:for|on|to|in|with|from|by|via|through)\b.*)?"
Entry = Mapping[str, Any]  # one of the kinds in the file


class _Kind(NamedTuple):
    """One entry of the file, with its patterns compiled."""

    entry: Entry
    patterns: Mapping[str, re.Pattern[str]]


def out_of_scope(name: str, task: str | None = None) -> OutOfScope | None:
    """What a model is that this tool does not train; None for all others.

    Args:
        name: As it was stated: a hub id, a folder, a file or a description.
        task: The stated task: a small embedding model is in scope if texts are only sorted.
    """
    entry, named = _mentioned(name.strip())
    if entry is None or task in entry.get("but_for", ()):
        return None
    where, instead = str(entry["where"]), tuple(entry.get("instead", ()))
    if entry["kind"] == "packed_file":
        original = original_of(name)
        instead = (original,) if original else ()
        where += f": here {original}" if original else ""
    elif instead:
        where = f"{where}, such as {' or '.join(instead)}"
    return OutOfScope(
        kind=str(entry["kind"]),
        named=named,
        what=f"'{named}' is {entry['what']}",
        where=where,
        instead=instead,
        first=tuple(entry["first"]),
        sources=tuple(source_from(source) for source in entry["sources"]),
    )


def hardware_out_of_scope(hardware: Hardware) -> OutOfScope | None:
    """The same for a device that the trainers do not run on."""
    device = hardware.not_supported
    if device is None:
        return None
    return OutOfScope(
        kind=HARDWARE,
        named=device.what,
        what=f"{device.what} {device.why}",
        where="; ".join(source.title for source in device.where),
        sources=device.where,
        is_model=False,
    )


def _mentioned(name: str) -> tuple[Entry | None, str]:
    """The kind of model that a name tells, and the part of the name that tells it; no kind if a
    description names a model of text as well, which then is meant.
    """
    if not name:
        return None, name
    if (model_type := _catalogued(name)) is not None:
        return _by_type(model_type), name  # no pattern has to be compiled
    matches = [
        (start, order, end, kind)
        for order, kind in enumerate(_kinds())
        for start, end in _matches(kind, name)
    ]
    if not matches:
        return _by_files(name), name
    if _names_text_model(name, [(start, end) for start, _, end, _ in matches]):
        return None, name
    start, _, end, kind = min(matches, key=lambda match: match[:2])
    return kind.entry, name[start:end]


def _matches(kind: _Kind, text: str) -> Iterator[tuple[int, int]]:
    one_name = " " not in text
    for form, pattern in kind.patterns.items():
        if form == "alone":
            if found := pattern.fullmatch(text):
                yield found.span("name")
            continue
        for found in pattern.finditer(text):
            ordinary = form == "generic" and not one_name and not re.search(r"[\d/]", found[0])
            if not ordinary and not COMPARED.search(text[: found.start()]):
                yield found.span()


def _names_text_model(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    if not re.search(r"\s", text):
        return False
    rest = [
        word.group()
        for word in re.finditer(r"[^\s,;()]+", text)
        if not any(word.start() < end and start < word.end() for start, end in spans)
    ]
    return any(_text_models().match(word.rsplit("/", 1)[-1]) for word in rest)


def _by_files(name: str) -> Entry | None:
    """The kind that the files of a folder tell, or a configuration in the hub's cache."""
    folder = Path(name).expanduser()
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError):
        return None
    if is_folder:
        for kind in _kinds():
            if any((folder / file).is_file() for file in kind.entry.get("files", ())):
                return kind.entry
    config = folder / "config.json" if is_folder else cached_config(name)
    return None if config is None else _by_type(_model_type(config))


def _by_type(model_type: str | None) -> Entry | None:
    """The kind of a `model_type`; None if it is in scope, or not known."""
    entries: list[Entry] = scope_file()["kinds"]
    return next((one for one in entries if model_type in one.get("model_types", ())), None)


def _catalogued(name: str) -> str | None:
    """`model_type` of a model of the catalogue that writes; None for all others.

    An encoder may be an embedding model: its name tells, not its type.
    """
    if "/" not in name:
        return None
    entry = organisation_models(name.split("/", 1)[0].lower()).get(name, {})
    model_type = entry.get("model_type")
    if model_type is None or kind_of_type(str(model_type)) == ENCODER:
        return None
    return str(model_type)


def _model_type(path: Path) -> str | None:
    """`model_type` of a configuration; None if it cannot be read, which another step reports."""
    try:
        config = json.loads(text_of(path, most_bytes=MOST_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def original_of(name: str) -> str:
    """The known model that a packed copy was made from, as far as its name tells."""
    plain = without_storage(name.strip())
    return original_by_name(name) or ("" if plain == name else model_meant(tail_of(plain)) or "")


# --------------------------------------------------------------------------- the file


@cache
def _kinds() -> tuple[_Kind, ...]:
    return tuple(
        _Kind(entry, {form: _compiled(form, entry[form]) for form in PATTERNS if entry.get(form)})
        for entry in scope_file()["kinds"]
    )


def _compiled(form: str, patterns: list[str]) -> re.Pattern[str]:
    either = "|".join(f"(?:{pattern})" for pattern in patterns)
    around = {
        "alone": rf"{LEAD}(?P<name>{either}){TAIL}",
        "whole": rf"(?<![^\s,;(\"'])(?:{either})(?![^\s,;:.!?)\"'])",
        "phrases": rf"(?<![\w/-])(?:{either})(?![\w/-])",
    }
    return re.compile(
        around.get(form, rf"(?<![A-Za-z0-9])(?:{either})(?![A-Za-z0-9])"), re.IGNORECASE
    )


@cache
def _text_models() -> re.Pattern[str]:
    either = "|".join(scope_file()["text_models"])
    return re.compile(rf"(?:meta-|google-|smaug-|open)?(?:{either})(?![a-z])", re.IGNORECASE)


@cache
def scope_file() -> Mapping[str, Any]:
    """What rules/scope.yaml holds."""
    return dict(read_shipped(rules_dir() / "scope.yaml", shape=SCOPE_FILE).data)


MOST = 7  # of a list that is shown: it stays on a screen of 24 lines
VERSIONS = 20  # a number above it in a name is a date
# What stands between two names in one field: "20b/120b", "Scout/Maverick", "one and another".
SEVERAL = re.compile(
    r"\s*[,;|]\s*|\s+(?:/|&|\+|or|and|vs\.?)\s+|/(?=\d[\d.]*[bkm]\b)|(?<=[a-z])/(?=[a-z]+$)",
    re.IGNORECASE,
)
HUGE = 200e9  # parameters: what nobody means who names a family alone


class NamedModel(Struct, frozen=True, kw_only=True):
    """One model to choose from."""

    id: str
    about: str  # "8.19B parameters, licence apache-2.0, on this machine"


class NameLookup(Struct, frozen=True, kw_only=True):
    """What a typed name means: one model, some to choose from, or none."""

    id: str | None = None  # the model, as the hub or the file system writes it
    note: str = ""  # what there is to say of it, or why it is none
    near: tuple[NamedModel, ...] = ()
    misspelt: bool = False  # `near` holds names that are like it, not names that it fits
    usual: bool = False  # whether it is read as the first of `near` where nobody is asked
    wrong: bool = False  # a path that is no model: to be corrected


def look_up_name(name: str) -> NameLookup:
    """The model that a typed name means, or those it may mean: a hub id, which the hub is asked for
    if nothing here knows it, a folder, or a name as people say it: "llama 8b".
    """
    name = name.strip()
    if (outside := out_of_scope(name)) is not None:
        return NameLookup(id=name, note=f"{outside.what}; the answer says where to go with it")
    if is_path(name):
        return _folder(name)
    known = None if models_named(name) else _known(spoken(name)[0])
    if known is not None and not also_meant(name, known):
        read = "" if known == name else f"read as {known}; "
        return NameLookup(id=known, note=read + about(known))
    problem = ""
    if HUB_ID.match(name):
        shape, notes = model_shape(name, online=not is_offline())
        if shape is not None and shape.origin in ("hub", "catalogue"):
            return NameLookup(id=name, note=about(name))
        problem = next((note for note in notes if note.startswith(f"{name}: ")), "")
        problem = problem or f"{name}: not known here, and the hub was not asked (offline)"
    near, misspelt = near_models(name)
    usual = model_meant(name)
    if usual is not None and near and near[0].id != usual:
        near = (NamedModel(id=usual, about=about(usual)), *(one for one in near if one.id != usual))
    return NameLookup(near=near, misspelt=misspelt, note=problem, usual=usual is not None)


def model_meant(name: str, params_b: float | None = None) -> str | None:
    """The model that a name as people say it is read as where nobody can be asked: "qwen 7b" is the
    first of those that the wizard offers.

    None for an id or a path, for a name that fits no model as it is written, for one that fits
    models of several sizes, and for two names: such a description stays one.

    Args:
        name: As it was stated.
        params_b: The size that was stated beside it, which the model must have.
    """
    name = name.strip()
    if not name or "/" in name or is_path(name) or out_of_scope(name) is not None:
        return None
    said, guessed = spoken(name)
    if guessed or models_named(name):
        return None
    found = [known] if (known := _known(said)) is not None else _candidates(said)
    size = size_of(said, params_b).params or (_params(found[0]) if found else 0)
    alike = size and all(abs(_params(one) / size - 1) < SAME_SIZE for one in found)
    return found[0] if found and alike else None


def _candidates(said: str) -> list[str]:
    """The models that a name fits as it is written, best first, with the version that it says."""
    ordered, wanted = _ordered(said)
    found = [hub_id for hub_id in ordered if _has_size(hub_id, said)]
    words = {one: _all_words(one) for one in found}
    if wanted != words_of(_joined(said)):
        return []
    if all(_begins(said, one) or _fits(wanted, words[one], one) for one in found):
        return [
            one for one in found if _begins(said, one) or wanted - states_size(wanted) <= words[one]
        ]
    return []


def also_meant(name: str, meant: str) -> tuple[str, ...]:
    """Models of the same size that a name may stand for as well as for the one that it is read as:
    other versions of the family where it says none, and others that have as many words more.
    """
    said = spoken(name.strip())[0]
    if name.strip().lower() == tail_of(meant).lower():
        return ()
    wanted = words_of(_joined(said))
    told = {meant: _apart(meant, wanted)}
    for one in _candidates(said):
        known, here = told[meant], _apart(one, wanted)
        if len(here[0]) == len(known[0]) and here not in told.values():
            told[one] = here
    return tuple(told)[1:]


def _apart(hub_id: str, wanted: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The words and the versions that a model's name has beside the wanted ones."""
    more = words_of(hub_id) - wanted - states_size(words_of(hub_id))
    versions = {word for word in more if re.fullmatch(r"\d{1,2}(?:\.\d+)?|\d+k", word)}
    return frozenset(word for word in more if word.isalpha() and len(word) > 1), frozenset(versions)


def models_named(name: str) -> tuple[str, ...]:
    """The first of what each of several names in one field means; none if there is but one name."""
    parts = [part for part in SEVERAL.split(name.strip()) if part]
    if len(parts) < 2 or (HUB_ID.fullmatch(name) and not re.search(r"/\d[\d.]*[bkm]$", name, re.I)):
        return ()
    if unit := re.search(r"(?i)\d\s*/\s*[\d.]+([bkm])$", name):  # "7/32B"
        parts[0] = re.sub(r"(?<![\w.])(\d[\d.]*)$", rf"\1{unit[1]}", parts[0])
    found: dict[str, None] = {}
    for part in parts:
        # "Scout/Maverick", "20b/120b": what is before the first holds for the others.
        whole = (
            part if _says_family(part) else re.sub(r"[^\s_-]+$", lambda _, to=part: to, parts[0])
        )
        if _says_family(whole):
            ordered, right = _ordered(spoken(whole)[0])
            found |= dict.fromkeys([one for one in ordered if right & words_of(one)][:1])
    return tuple(found) if len(found) > 1 else ()


def _says_family(name: str) -> bool:
    return bool(words_of(_joined(name)) & _families())


def shape_meant(
    name: str, *, params_b: float | None = None, online: bool = False
) -> tuple[ModelShape | None, list[str]]:
    """The shape of the model that a name means, and what is said of it."""
    meant = model_meant(name, params_b)
    shape, warnings = named_shape(meant or name, params_b=params_b, online=online)
    return shape, [*(about_reading(name, meant) if meant else []), *warnings]


def named_shape(
    name: str, *, params_b: float | None = None, online: bool = False
) -> tuple[ModelShape | None, list[str]]:
    """The shape of a model, and warnings; one of them names the models that a name may mean which
    is none by itself ("mistral"), or the several that it names.
    """
    if several := models_named(name):
        ids = ", ".join(several)
        shape, _ = model_shape(several[0])
        one = f"model: '{name}' names {ids}, and an answer is about one model: name one of them"
        return shape and replace(shape, id=name, origin="size"), [f"{one}; taken as {several[0]}"]
    shape, warnings = model_shape(name, params_b=params_b, online=online)
    if shape is not None and (shape.origin != "size" or is_path(name)):
        instruct = is_instruct(name)
        if instruct is None and shape.origin == "folder":  # its name is anybody's
            from advisor.data.templates.chat_text import template_source  # few answers need it

            instruct = template_source(Path(name).expanduser()) is not None or None
        return replace(shape, instruct=instruct), warnings
    is_tuned = shape is not None and "/" in name and shape.note.startswith("shape of ")
    near = () if is_tuned or out_of_scope(name) is not None else near_models(name, most=3)[0]
    ids = ", ".join(model.id for model in near)
    may_mean = [f"model: '{name}' may mean {ids}: name one of them"] if near else []
    return shape and replace(shape, instruct=is_instruct(name)), [*warnings, *may_mean]


def about_reading(name: str, meant: str, flag: str = "--model") -> list[str]:
    """Which model a name was read as, what else it may mean, and that a copy was named."""
    notes = [f"'{name}' read as {meant}; {flag} names another"]
    if others := ", ".join(also_meant(name, meant)[:3]):
        notes.append(f"model: '{name}' may also mean {others}: name the one that is meant")
    if ROUNDED.search(name):
        rounds = f"training starts from {meant}, which QLoRA rounds as it loads"
        notes.append(f"model: '{name}' says rounded weights; {rounds}")
    return notes


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
    from advisor.model_files.made import is_here

    shape, _ = model_shape(hub_id)
    words: list[str | None] = ["on this machine"] if is_here(hub_id) else []
    if shape is not None and shape.origin != "size":
        licences = {row["model"]: row["license"] for row in suggested_models()["models"]}
        is_base = is_instruct(shape.id) is False and kind_of_type(shape.architecture) == DECODER
        words = [
            f"{format_count(shape.params)} parameters",
            "does not follow instructions yet" if is_base else None,
            f"licence {named}" if (named := shape.license or licences.get(shape.id)) else None,
            "access on request" if shape.gated else None,
            f"stored in {shape.stored}" if shape.stored else None,
            *words,
        ]
    return ", ".join(filter(None, words))


_ADDED = re.compile("^meta-|-hf$")  # by the hub to names that people write without it


def _known(name: str) -> str | None:
    """The one model of catalogue or cache whose name this is, however it is written; None if
    one that follows instructions and one that does not are called so alike.
    """
    ids = _every_id()
    wanted = name.lower()
    if wanted.endswith(":latest"):
        return None
    whole = [hub_id for hub_id in ids if wanted in (hub_id.lower(), tail_of(hub_id).lower())]
    bare = _ADDED.sub("", wanted)
    whole = whole or [hub_id for hub_id in ids if bare == _ADDED.sub("", tail_of(hub_id).lower())]
    alike = whole or [hub_id for hub_id in ids if words_of(hub_id) == words_of(name)]
    if whole or any(squashed(hub_id) == squashed(name) for hub_id in alike):
        return alike[0] if len(alike) == 1 else None
    return None


def _every_id() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known_ids(), *cached_models())))


@cache
def _families() -> frozenset[str]:
    """The words that names of known models begin with."""
    firsts = (re.match(r"[a-z]+", tail_of(hub_id).lower()) for hub_id in known_ids())
    return frozenset(found[0] for found in firsts if found)


def _joined(name: str) -> str:
    """A name with the parts of a family put together: "smol lm 2" is "smollm 2"."""
    found = re.sub(r"\d+", " ", tail_of(name).lower())
    for one, two in pairwise(re.findall(r"[a-z]+", found)):
        if one + two in _families():
            name = re.sub(rf"(?i)\b{one}[-_ ]+{two}", one + two, name)
    return name


def _begins(name: str, hub_id: str) -> bool:
    """Whether a model's name begins with this one, but for what stands between words and numbers,
    and holds its numbers as they are: "openllama-7b", not "llama370b".
    """
    begun, whole = squashed(name), squashed(hub_id)
    cut = re.match(r"\d[\d.]", begun[-1:] + whole[len(begun) :])  # 20 is no 20.5, nor 200
    return whole.startswith(begun) and cut is None and has_numbers_of(name, hub_id)


# --------------------------------------------------------------------------- which ones it may be


def near_models(name: str, *, most: int = MOST) -> tuple[tuple[NamedModel, ...], bool]:
    """The models that a name fits, best first; and whether it had to be put right for that.

    Words that no model bears are left out of a name that says a family, before its size is.
    """
    if several := models_named(name):
        return tuple(NamedModel(id=one, about=about(one)) for one in several[:most]), False
    ordered, right = _ordered(said := spoken(without_storage(name) or name)[0])
    near = [NamedModel(id=hub_id, about=about(hub_id)) for hub_id in islice(ordered, most)]
    return tuple(near), bool(near) and right != words_of(_joined(said))


def _ordered(name: str) -> tuple[Iterator[str], frozenset[str]]:
    """The models that a name fits, best first; and the words that they fit."""
    words = {hub_id: _all_words(hub_id) for hub_id in _every_id()}
    known = frozenset().union(*words.values())
    name = _joined(name)
    typed, short = words_of(name), squashed(name)
    right = frozenset(put_right(word, known) for word in typed)
    tries, left = [right], right & known
    firsts = {
        *_families(),
        *(re.split(r"[^a-z]", tail_of(one).lower())[0] for one in cached_models()),
    }
    if not right & firsts:  # a word that is nearly one of theirs makes no model's name of it
        tries = [right := typed]
    if left & firsts:  # it says a family
        tries += [left, left - states_size(left)]
    found: list[str] = []
    if len(short) > SHORTEST and not typed <= known:
        found = [one for one in words if _begins(name, one)]
        right = typed if found else right
    for wanted in tries:
        if not found and any(map(str.isalpha, wanted)):
            found, right = [one for one in words if _fits(wanted, words[one], one)], wanted
        if not found and len(short) > SHORTEST:
            found, right = [one for one in words if short in squashed(one)], typed
    # Of equal ones the latest comes first.
    ordered = sorted(sorted(found, reverse=True), key=partial(_rank, wanted=right, name=name))
    return (hub_id for hub_id in ordered if out_of_scope(hub_id) is None), right


@cache
def _all_words(hub_id: str) -> frozenset[str]:
    return words_of(hub_id.replace("/", "-"))


def _params(hub_id: str) -> int:
    """How many parameters a model has by its name, else by its shape; 0 if neither tells."""
    size = size_of(tail_of(hub_id), None).params
    shape = None if size else model_shape(hub_id)[0]
    return size or (0 if shape is None else shape.params)


def _has_size(hub_id: str, name: str) -> bool:
    """Whether a model is as large as a name says: Gemma E4B is not 4B, with 8B in all."""
    size = size_of(name, None).params
    return not size or abs(_params(hub_id) / size - 1) < SAME_SIZE


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
    size = _params(hub_id)
    return (
        hub_id not in cached_models(),
        stored_by_name(hub_id) is not None,
        size > HUGE,
        not _has_size(hub_id, name),
        # As the hub writes it, "Qwen-7B" is the first Qwen; but "mistral-7b" no sft-beta of it.
        any(map(str.isalpha, own - wanted)) or not tail_of(hub_id).startswith(name),
        sum(word.isalpha() and len(word) > 1 for word in own - wanted),
        (is_instruct(hub_id) is True) is bool(re.search(r"(?i)\bbase\b", name)),
        sum(word not in own for word in wanted),
        hub_id in named_models(),
        -max((number for number in numbers if number <= VERSIONS), default=0.0),
        size,
        len(hub_id),
    )
