"""A model's name -> its shape: local folder, catalogue, hub cache, hub, else a guess from the size
its name states.

Reads files and, when asked, the hub's config.json. Never imports torch or transformers.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.estimate.model.architecture import ABOUT_SEQ2SEQ, ConfigError, shape_from_config
from advisor.ground.annotated import parse_json
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import MOST_CONFIG_BYTES, text_of
from advisor.ground.types import ModelShape
from advisor.ground.units import format_count
from advisor.methods.families import NAMED, SEQ2SEQ, Family, family_of_name
from advisor.model_files.config import NAMES, read
from advisor.model_files.folder import PLAIN, DamagedFile, read_header
from advisor.model_files.hub_cache import cached_config, cached_models, download_config, is_offline
from advisor.situation.catalogue import (
    ROUNDED,
    bare,
    beginning_with,
    catalogue_entry,
    catalogue_ids,
    derived_from,
    has_numbers_of,
    is_instruct,
    known_ids,
    named_file,
    named_models,
    nearest,
    organisation_models,
    same_words,
    size_of,
    spoken,
    squashed,
    stored_by_name,
    tail_of,
    typical_sizes,
    without_storage,
    words_of,
)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+$")
ALIKE = 0.01  # how far sizes are apart that one name may stand for
SAME_SIZE = 0.15  # a model of "7B" has 6.7 or 7.6


def model_shape(
    name: str, *, params_b: float | None = None, online: bool = False
) -> tuple[ModelShape | None, list[str]]:
    """What is known of the model's dimensions and how its checkpoint is stored, with warnings for
    everything that was guessed or corrected.

    None if nothing gives a size. Raises InputError for a folder or path that is not a usable model.
    """
    shape, warnings = _find_shape(name.strip(), params_b, online=online)
    if shape is not None and shape.stored is None and shape.origin in ("catalogue", "size"):
        shape = replace(shape, stored=stored_by_name(shape.id))
    return shape, warnings


def usable_shape(name: str) -> ModelShape | None:
    """The same without asking the network; None for a folder that is no usable model, too."""
    try:
        return model_shape(name)[0]
    except AdviseError:
        return None


def _find_shape(
    name: str, params_b: float | None, *, online: bool
) -> tuple[ModelShape | None, list[str]]:
    if not name and params_b is None:
        return None, ["no model was named"]
    if name and is_path(name):
        # expanduser leaves ~nobody as it is
        of_folder = shape_from_folder(Path(os.path.expanduser(name)), name)
        return of_folder, _sizes_apart(of_folder, params_b)
    found, warnings = _from_catalogue(name)
    if found is None and HUB_ID.match(name):
        found, warnings = _from_hub(name, online=online)
        if found is None and (named := _by_name(name)) is not None:
            found, warnings = named, [f"{named.id}: {named.note}"]
    if found is not None:
        return found, [*warnings, *_sizes_apart(found, params_b)]
    alike = _copy_of(name) or _described(spoken(name)[0], name)
    if alike is not None and not _sizes_apart(alike, params_b):
        known_as = alike.note.removeprefix("shape of ")
        return alike, [
            *warnings,
            f"'{name}' is not a model we know by that name; taken as {known_as}",
        ]
    shape, guessed = _by_size(name, params_b)
    return shape, [*warnings, guessed]


def _by_size(name: str, params_b: float | None) -> tuple[ModelShape | None, str]:
    """The shape of the family that the name says, or the typical one of the size that was stated or
    that the name says; None without either. And a warning that says so.
    """
    size = size_of(spoken(name)[0], params_b)
    family = family_of_name(name)
    if family is not None and family.sizes:
        shape = _shape_of_family(family, name, size.params)
        usual = "" if size.params or family.says_size(name) else ", the usual size of its family"
        return shape, (
            f"'{name}': taken as {NAMED[family.kind]} of the {family.id} family by its name, with"
            f" {format_count(shape.params)} parameters{usual}"
        )
    # A name that models of the catalogue begin with is not misspelt: they are named elsewhere.
    begins = size.params is None and bool(beginning_with(name))
    known = nearest(name, cached_models()) if name and not begins else None
    meant = f"; did you mean {known}?" if known is not None else ""
    if size.params is None:
        states_none = "unknown model, and its name states no size; say --model-params-b"
        return None, f"'{name}': {states_none}{meant}"
    id_ = name or format_count(size.params)
    shape = shape_from_size(size.params, id_, active_params=size.active, note=size.note)
    return shape, f"'{id_}': {shape.note}{meant}"


def _shape_of_family(family: Family, name: str, params: int | None) -> ModelShape:
    """The dimensions of the size that was stated, or that the name says, or that is usual; marked
    as a guess by its origin.
    """
    size = family.size_of(name, params)
    assert size is not None
    return ModelShape(
        id=name, origin="size", params=params or size.params, architecture=family.model_types[0],
        hidden_size=size.hidden_size, layers=size.layers, heads=size.heads, kv_heads=size.heads,
        head_dim=size.hidden_size // size.heads, intermediate_size=size.intermediate_size,
        vocab_size=size.vocab_size, tied_embeddings=True,
        source=f"rules/families.yaml ({family.source})",
        note=ABOUT_SEQ2SEQ if family.kind == SEQ2SEQ else "",
    )  # fmt: skip


def _sizes_apart(shape: ModelShape, params_b: float | None) -> list[str]:
    """A warning if the size that was stated is not the model's own."""
    if params_b is None or abs(shape.params / 1e9 / params_b - 1) < SAME_SIZE:
        return []
    return [
        f"model: stated as {format_count(params_b * 1e9)} parameters, but {shape.id} has"
        f" {format_count(shape.params)}; the model counts"
    ]


# --------------------------------------------------------------------------- local folders


def is_path(name: str) -> bool:
    """Whether the name is a folder that exists, or is written as a path."""
    return (
        name.startswith(("./", "../", "/", "~"))
        or name.lower().endswith(".gguf")
        or Path(name).exists()
    )


def shape_from_folder(path: Path, name: str) -> ModelShape:
    """The shape of a model in a local folder.

    Raises InputError that says what is missing and what to do.
    """
    if path.is_file() or (not path.exists() and path.suffix.lower() == ".gguf"):
        raise InputError(
            "is a file, a model folder is expected",
            where=name,
            hint="give the folder with config.json and safetensors weights, or the hub id that a"
            " GGUF file was converted from",
        )
    if not path.exists():
        hint = "a hub id has the form organisation/name, without a leading dot or slash"
        raise InputError("no such folder", where=name, hint=hint)
    if not (path / "config.json").is_file():
        raise InputError(
            "no config.json in this folder",
            "a model folder holds config.json, tokenizer files and safetensors weights",
            _why_no_config(path),
            where=name,
        )
    source = f"{name}/config.json"
    config = _read_json(path / "config.json", source)
    if not isinstance(config, dict):
        raise InputError(f"an object is expected, found {type(config).__name__}", where=source)
    is_counted = not config.get("text_config") and not config.get("quantization_config")
    params = _count_weights(path) if is_counted else None
    try:
        shape = shape_from_config(config, name, origin="folder", source=source, params=params)
    except ConfigError as error:
        raise InputError(
            str(error),
            where=source,
            hint="this is not the configuration of a language model in transformers' format",
        ) from None
    return replace(shape, license=None)


def _why_no_config(path: Path) -> str:
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        base = _read_json(adapter, str(adapter))
        of = base.get("base_model_name_or_path") if isinstance(base, dict) else None
        return f"this is an adapter; name the model it belongs to{f': {of}' if of else ''}"
    if any(path.glob("*.gguf")):
        return "this folder holds GGUF files only: name the model they were converted from"
    return "is this the right folder?"


def _read_json(path: Path, name: str) -> Any:
    try:
        return parse_json(text_of(path, most_bytes=MOST_CONFIG_BYTES))
    except json.JSONDecodeError as error:
        where = f"{name}:{error.lineno}:{error.colno}"
        hint = "download the file again"
        raise InputError(f"not valid JSON: {error.msg}", where=where, hint=hint) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=name) from None


def _count_weights(path: Path) -> int | None:
    """Parameters in the folder's safetensors files, read from their headers; None without readable
    floating-point ones.
    """
    total = 0
    for file in sorted(path.glob("*.safetensors")):
        try:
            tensors = read_header(file).values()
        except DamagedFile:
            return None
        if any(tensor.dtype not in PLAIN for tensor in tensors):
            return None  # packed or quantised: elements are not parameters
        total += sum(math.prod(tensor.shape) for tensor in tensors)
    return total or None


# --------------------------------------------------------------------------- the catalogue


def _from_catalogue(name: str) -> tuple[ModelShape | None, list[str]]:
    """The shape of the one catalogue model of this name, in any spelling, and what is said of it;
    None if there is none.
    """
    wanted, short = name.lower(), squashed(name)
    if "/" in wanted:
        ids: Iterable[str] = organisation_models(wanted.split("/", 1)[0])
        found = [hub_id for hub_id in ids if hub_id.lower() == wanted]
        warnings = []
    else:
        ids = (one for one in catalogue_ids() if squashed(one) == short)
        found = [hub_id for hub_id in ids if has_numbers_of(name, hub_id)]
        warnings = [f"'{name}' read as {found[0]}"] if found else []
    if len(found) != 1:
        return None, []
    shape = _catalogue_shape(found[0])
    guessed = [f"{shape.id}: {shape.note}"] if "typical values" in shape.note else []
    return shape, [*warnings, *guessed]


def _catalogue_shape(hub_id: str) -> ModelShape:
    """The shape of one catalogue entry; what the entry leaves out is taken from a typical decoder
    of its size, and said.
    """
    entry = catalogue_entry(hub_id)
    source = f"rules/models/{hub_id.split('/')[0].lower()}.yaml ({entry.get('source', '')})"
    params = entry.get("params")
    try:
        shape = shape_from_config(entry, hub_id, origin="catalogue", source=source, params=params)
    except ConfigError:
        shape = _filled_shape(hub_id, entry, source)
    active = entry.get("active_params")
    return replace(
        shape,
        license=entry.get("license"),
        thinks=entry.get("thinks"),
        gated=entry.get("gated"),
        stored=entry.get("stored"),
        avoid_4_bit=bool(entry.get("avoid_4_bit")),
        active_params=active if active is not None else shape.active_params,
        note="; ".join(part for part in (shape.note, str(entry.get("notes") or "")) if part),
    )


def _filled_shape(hub_id: str, entry: Mapping[str, Any], source: str) -> ModelShape:
    params = entry.get("params")
    held = size_of(hub_id, (params or 0) / 1e9 or None).params or params or 12_000_000_000
    typical = shape_from_size(held, hub_id, active_params=entry.get("active_params"))
    guesses = {
        "vocab_size": typical.vocab_size,
        "hidden_size": typical.hidden_size,
        "layers": typical.layers,
    }
    missing = [field for field in guesses if read(entry, field) is None]
    if len(missing) == len(guesses):
        return replace(
            typical, origin="catalogue", source=source, architecture=entry.get("model_type"),
            context_tokens=entry.get("context_length"),
            note="its size is known and its dimensions are not, so typical values were taken",
        )  # fmt: skip
    filled = {**entry, **{NAMES[field][0]: guesses[field] for field in missing}}
    shape = shape_from_config(filled, hub_id, origin="catalogue", source=source, params=params)
    named = ", ".join(field.replace("_", " ") for field in missing)
    typical_values = f"not in the catalogue, so typical values were taken: {named}"
    return replace(shape, note="; ".join(filter(None, (typical_values, shape.note))))


def _by_name(hub_id: str) -> ModelShape | None:
    """The shape of a model that is known by name alone: of the model that it is like, else a
    typical one of its size; None for all others.
    """
    known = {one.lower(): one for one in named_models()}.get(hub_id.lower())
    if known is None:
        return None
    group = named_models()[known]
    source = f"rules/models/named.yaml ({named_file()['sources'][group['source']]})"
    if like := group.get("like"):
        shape = _named(_catalogue_shape(like), known, note=f"it has the dimensions of {like}")
        return replace(shape, source=source, thinks=None)
    size, active = size_of(known, group.get("params_b")), group.get("active_b")
    shape = shape_from_size(
        size.params or 0, known, active_params=round(active * 1e9) if active else size.active
    )
    note = "its size is known and its dimensions are not, so typical values were taken"
    return replace(shape, origin="catalogue", source=source, note=note)


def _known_shape(hub_id: str) -> ModelShape:
    """The shape of a model of `known_ids`."""
    return _by_name(hub_id) or _catalogue_shape(hub_id)


def original_by_name(name: str) -> str:
    """The known model that a copy was made from whose name differs in how it is stored alone."""
    wanted = {squashed(name).removeprefix("meta"), bare(name)}
    plain = tail_of(without_storage(name))
    found = [
        one
        for one in known_ids()
        if bare(one) in wanted and not stored_by_name(one) and has_numbers_of(plain, one)
    ]
    return min(found, key=len, default="")


def _copy_of(name: str) -> ModelShape | None:
    """The shape of the model that a name is a copy of, stored in another way or by somebody else
    ("unsloth/Qwen3-8B-bnb-4bit").
    """
    is_copy = "/" in name or ROUNDED.search(name)
    original = original_by_name(name) if is_copy else ""
    shape = _known_shape(original) if original else None
    return None if shape is None else _named(shape, name, note=f"a copy of {original}")


def _described(said: str, name: str) -> ModelShape | None:
    """A catalogue model that the words of a description single out ("Llama 3 8B"), or that a
    fine-tuned copy is named after, unless candidates differ in shape.
    """
    more = beginning_with(said)
    # What a tag "latest" stands for moves between the sizes of a family.
    same = [*same_words(said), *(more if said.lower().endswith(":latest") else ())]
    shape = _plainest(same or derived_from(said), said) or _plainest(more, said, alike=ALIKE)
    if shape is None:
        return None
    return replace(_named(shape, name, note=f"shape of {shape.id}"), origin="size")


def _named(shape: ModelShape, name: str, *, note: str) -> ModelShape:
    return replace(shape, id=name, license=None, gated=None, stored=None, note=note)


def _plainest(ids: Iterable[str], name: str, *, alike: float | None = None) -> ModelShape | None:
    """One of these catalogue models: in 16 bit before quantised ones, one that follows instructions
    only if the name says so, then the one with the shortest name; None if they differ in shape.

    Args:
        name: What they were found for.
        alike: How far their sizes may be apart, as a share; None: as far as they are.
    """
    shapes = [_known_shape(hub_id) for hub_id in ids]
    kinds = {
        (shape.layers, shape.hidden_size, shape.intermediate_size, shape.kv_heads, shape.experts)
        for shape in shapes
    }
    if len(kinds) != 1:
        return None
    counts = [shape.params for shape in shapes]
    if alike is not None and max(counts) > (1 + alike) * min(counts):
        return None
    # "llama 8b" is Llama-3.1-8B rather than a model distilled into it, which thinks.
    instruct = is_instruct(name) is True
    return min(
        shapes,
        key=lambda shape: (
            shape.stored is not None,
            (is_instruct(shape.id) is True) is not instruct,
            len(words_of(shape.id)),
        ),
    )


# --------------------------------------------------------------------------- the hub


def _from_hub(hub_id: str, *, online: bool) -> tuple[ModelShape | None, list[str]]:
    """The shape in the hub cache's config.json, else in the hub's own if that was asked for and is
    allowed; and what kept it from being read.
    """
    path, problem = cached_config(hub_id), ""
    if path is None and online and not is_offline():
        path, problem = download_config(hub_id)
    if path is None:
        return None, [problem] if problem else []
    source = f"huggingface.co/{hub_id} config.json"
    try:
        config = parse_json(text_of(path, most_bytes=MOST_CONFIG_BYTES))
        return shape_from_config(config, hub_id, origin="hub", source=source), []
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # or a ConfigError
        return None, [f"{hub_id}: its config.json does not say the shape: {error}"]


# --------------------------------------------------------------------------- sizes


def shape_from_size(
    params: int, id_: str, *, active_params: int | None = None, note: str = "size as stated"
) -> ModelShape:
    """A typical decoder of this size, interpolated between widely used ones.

    Marked as a guess by its origin.
    """
    # A mixture's width and depth go with what one token passes through, not with what all experts
    # hold together.
    held, params = params, min(params, active_params or params)
    size, rows = max(params, 1), typical_sizes()
    place = min(max(sum(row[0] <= params for row in rows), 1), len(rows) - 1)
    (low_size, low, _), (high_size, high, _) = rows[place - 1], rows[place]
    share = (math.log(size) - math.log(low_size)) / (math.log(high_size) - math.log(low_size))
    closest = min(rows[place - 1], rows[place], key=lambda row: abs(math.log(size / row[0])))

    def between(index: int, step: int) -> int:
        bottom, top = math.log(low[index]), math.log(high[index])
        return max(step, round(math.exp(bottom + share * (top - bottom)) / step) * step)

    _, _, _, kv_heads, head_dim, _, vocab_size = closest[1]
    hidden = between(1, head_dim * kv_heads)  # so that the heads share keys and values evenly
    what = f"{format_count(params)}{' active' if held > params else ''}"
    return ModelShape(
        id=id_, origin="size", params=held, active_params=active_params, hidden_size=hidden,
        layers=between(0, 1), heads=hidden // head_dim, kv_heads=kv_heads, head_dim=head_dim,
        intermediate_size=between(5, 64), vocab_size=vocab_size, tied_embeddings=closest[2],
        source="rules/models/typical_sizes.yaml",
        note=f"shape guessed: a typical decoder of {what} parameters; {note}",
    )  # fmt: skip
