"""A model's name -> its shape: local folder, catalogue, hub cache, hub, else a guess from the size
its name states.

Reads files and, when asked, the hub's config.json. Never imports torch or transformers.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.estimate.model.architecture import ABOUT_SEQ2SEQ, ConfigError, shape_from_config
from advisor.ground.annotated import parse_json
from advisor.ground.errors import InputError
from advisor.ground.files import MOST_CONFIG_BYTES, text_of
from advisor.ground.types import ModelShape
from advisor.ground.units import format_count
from advisor.methods.families import NAMED, SEQ2SEQ, Family, family_of_name
from advisor.model_files.config import NAMES, read
from advisor.model_files.hub_cache import hub_cache, hub_model_folder, is_offline
from advisor.model_files.safetensors_header import PLAIN, Damaged, read_header
from advisor.situation.catalogue import (
    catalogue_entry,
    catalogue_ids,
    organisation_models,
    typical_sizes,
)
from advisor.situation.model_names import (
    beginning_with,
    derived_from,
    nearest,
    same_words,
    size_of,
    squashed,
    stored_by_name,
    without_storage,
    words_of,
)

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+$")
BETWEEN = re.compile(r"\s+/\s*|\s*/\s+|\s*[,;|]\s*|\s+(?:or|and|vs\.?|und|oder)\s+", re.IGNORECASE)
ALIKE = 0.01  # how far sizes are apart that one name may stand for
SAME_SIZE = 0.15  # a model of "7B" has 6.7 or 7.6


def model_shape(
    name: str, *, params_b: float | None = None, online: bool = False
) -> tuple[ModelShape | None, list[str]]:
    """What is known of the model's dimensions and how its checkpoint is stored, with warnings for
    everything that was guessed or corrected.

    None where nothing gives a size. Raises InputError for a folder or path that is not a usable
    model.
    """
    shape, warnings = _find_shape(name, params_b=params_b, online=online)
    if shape is not None and shape.stored is None and shape.origin in ("catalogue", "size"):
        shape = replace(shape, stored=stored_by_name(shape.id))
    return shape, warnings


def _find_shape(
    name: str, *, params_b: float | None = None, online: bool = False
) -> tuple[ModelShape | None, list[str]]:
    name = name.strip()
    if not name and params_b is None:
        return None, ["no model was named"]
    path = Path(os.path.expanduser(name))  # which leaves ~nobody as it is
    if name and (path.is_dir() or _looks_like_a_path(name)):
        known = shape_from_folder(path, name)
        return known, _sizes_apart(known, params_b)
    found = _from_catalogue(name)
    if found is not None:
        guessed = [f"{found[0].id}: {found[0].note}"] if "typical values" in found[0].note else []
        return found[0], [*found[1], *guessed, *_sizes_apart(found[0], params_b)]
    warnings: list[str] = []
    if HUB_ID.match(name):
        shape, warnings = _from_hub(name, online=online)
        if shape is not None:
            return shape, [*warnings, *_sizes_apart(shape, params_b)]
    alike = _copy_of(name) or _described(name)
    if alike is not None and not _sizes_apart(alike, params_b):
        return alike, [
            *warnings,
            (
                f"'{name}' is not a model we know by that name; taken as"
                f" {alike.note.removeprefix('shape of ')}"
            ),
        ]
    return _by_size(name, params_b, warnings)


def _by_size(
    name: str, params_b: float | None, warnings: Sequence[str]
) -> tuple[ModelShape | None, list[str]]:
    """The shape of the family that the name says, or the typical one of the size that was stated or
    that the name says; None without either.
    """
    size = size_of(name, params_b)
    family = family_of_name(name)
    if family is not None and family.sizes:
        shape = _shape_of_family(family, name, size.params)
        usual = "" if size.params or family.says_size(name) else ", the usual size of its family"
        return shape, [
            *warnings,
            f"'{name}': taken as {NAMED[family.kind]} of the {family.id} family by its name, with"
            f" {format_count(shape.params)} parameters{usual}",
        ]
    # A name that models of the catalogue begin with is not misspelt: they are named elsewhere.
    begins = size.params is None and bool(beginning_with(name))
    known = nearest(name, cached_models()) if name and not begins else None
    meant = f"; did you mean {known}?" if known is not None else ""
    if size.params is None:
        return None, [
            *warnings,
            f"'{name}': unknown model, and its name states no size; say --model-params-b{meant}",
        ]
    id_ = name or format_count(size.params)
    shape = shape_from_size(size.params, id_, active_params=size.active, note=size.note)
    return shape, [*warnings, f"'{id_}': {shape.note}{meant}"]


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
    """A warning where the size that was stated is not the model's own."""
    if params_b is None or abs(shape.params / 1e9 / params_b - 1) < SAME_SIZE:
        return []
    return [
        f"model: stated as {format_count(params_b * 1e9)} parameters, but {shape.id} has"
        f" {format_count(shape.params)}; the model counts"
    ]


# --------------------------------------------------------------------------- local folders


def is_path(name: str) -> bool:
    """Whether the name is a folder that exists, or is written as a path."""
    return Path(name).expanduser().is_dir() or _looks_like_a_path(name)


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith(("./", "../", "/", "~"))
        or name.lower().endswith(".gguf")
        or Path(name).is_file()
    )


def names_in(text: str) -> tuple[str, ...]:
    """The models that a field names, in its order: one, unless at least two parts of it are known
    as models. A path is one name.
    """
    text = text.strip()
    parts = [] if is_path(text) else [part.strip() for part in BETWEEN.split(text)]
    known = [part for part in parts if HUB_ID.match(part) or family_of_name(part) is not None]
    return tuple(dict.fromkeys(known)) if len(known) > 1 else (text,)


def shape_from_folder(path: Path, name: str) -> ModelShape:
    """The shape of a model in a local folder.

    Raises InputError that says what is missing and what to do.
    """
    if path.is_file() or (not path.exists() and path.suffix.lower() == ".gguf"):
        kind = "a GGUF file" if path.suffix.lower() == ".gguf" else "a file"
        raise InputError(
            f"is {kind}, a model folder is expected",
            where=name,
            hint=(
                "give the folder with config.json and safetensors weights, or the hub id it was"
                " converted from"
            ),
        )
    if not path.exists():
        raise InputError(
            "no such folder",
            where=name,
            hint="a hub id has the form organisation/name, without a leading dot or slash",
        )
    config_path = path / "config.json"
    if not config_path.is_file():
        raise InputError(
            "no config.json in this folder",
            "a model folder holds config.json, tokenizer files and safetensors weights",
            _why_no_config(path),
            where=name,
        )
    config = _read_json(config_path, f"{name}/config.json")
    if not isinstance(config, dict):
        raise InputError(
            f"an object is expected, found {type(config).__name__}", where=f"{name}/config.json"
        )
    params = (
        None
        if config.get("text_config") or config.get("quantization_config")
        else _counted_weights(path)
    )
    try:
        shape = shape_from_config(
            config, name, origin="folder", source=f"{name}/config.json", params=params
        )
    except ConfigError as error:
        raise InputError(
            str(error),
            where=f"{name}/config.json",
            hint="this is not the configuration of a language model in transformers' format",
        ) from None
    return replace(shape, license=None)


def _why_no_config(path: Path) -> str:
    try:
        names = [entry.name for entry in path.iterdir()]
    except OSError as error:
        return f"it cannot be read as a folder ({error.strerror})"
    if "adapter_config.json" in names:
        base = _read_json(path / "adapter_config.json", str(path / "adapter_config.json"))
        of = base.get("base_model_name_or_path") if isinstance(base, dict) else None
        return f"this is an adapter; name the model it belongs to{f': {of}' if of else ''}"
    if any(item.lower().endswith(".gguf") for item in names):
        return (
            "this folder holds GGUF files only, which cannot be trained; name the model they were"
            " converted from"
        )
    if any((path / item / "config.json").is_file() for item in names):
        inside = next(
            path / name for name in sorted(names) if (path / name / "config.json").is_file()
        )
        return f"a folder inside has one: {inside}"
    return "is this the right folder?"


def _read_json(path: Path, name: str) -> Any:
    try:
        return parse_json(text_of(path, most_bytes=MOST_CONFIG_BYTES))
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON: {error.msg}",
            where=f"{name}:{error.lineno}:{error.colno}",
            hint="download the file again",
        ) from None
    except RecursionError:
        raise InputError("cannot be read: it is nested too deeply", where=name) from None
    except (OSError, ValueError) as error:  # no UTF-8, or a number of thousands of digits
        raise InputError(f"cannot be read: {error}", where=name) from None


def _counted_weights(path: Path) -> int | None:
    """Parameters in the folder's safetensors files, read from their headers; None without readable
    floating-point ones.
    """
    total = 0
    for file in sorted(path.glob("*.safetensors")):
        try:
            tensors = read_header(file).values()
        except Damaged:
            return None
        if any(tensor.dtype not in PLAIN for tensor in tensors):
            return None  # packed or quantised: elements are not parameters
        total += sum(math.prod(tensor.shape) for tensor in tensors)
    return total or None


# --------------------------------------------------------------------------- the catalogue


def _from_catalogue(name: str) -> tuple[ModelShape, list[str]] | None:
    wanted = name.lower()
    if "/" in wanted:
        stem = wanted.split("/", 1)[0]
        for hub_id in organisation_models(stem):
            if hub_id.lower() == wanted:
                return _entry_shape(hub_id, catalogue_entry(stem, hub_id)), []
        return None
    matches = [
        (stem, hub_id) for stem, hub_id in catalogue_ids() if squashed(hub_id) == squashed(name)
    ]
    if len(matches) != 1:
        return None
    stem, hub_id = matches[0]
    return _entry_shape(hub_id, catalogue_entry(stem, hub_id)), [f"'{name}' read as {hub_id}"]


def _entry_shape(hub_id: str, entry: Mapping[str, Any]) -> ModelShape:
    """The shape of one catalogue entry; what the entry leaves out is taken from a typical decoder
    of its size, and said.
    """
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


def _copy_of(name: str) -> ModelShape | None:
    """The shape of the catalogue model that a name is a copy of, stored in another way or by
    somebody else ("unsloth/Qwen3-8B-bnb-4bit").
    """
    wanted = {squashed(name), squashed(without_storage(name))}
    found = [
        (stem, hub_id)
        for stem, hub_id in catalogue_ids()
        if squashed(hub_id) in wanted or squashed(without_storage(hub_id)) in wanted
    ]
    shape = _plainest(found)
    if shape is None:
        return None
    origin = shape.id
    return replace(
        shape, id=name, license=None, gated=None, stored=None, note=f"a copy of {origin}"
    )


def _described(name: str) -> ModelShape | None:
    """A catalogue model that the words of a description single out ("Llama 3 8B"), or that a
    fine-tuned copy is named after, unless candidates differ in shape.
    """
    shape = _plainest(same_words(name) or derived_from(name))
    if shape is None:
        shape = _plainest(beginning_with(name), alike=ALIKE)
    if shape is None:
        return None
    return replace(
        shape, id=name, origin="size", note=f"shape of {shape.id}", license=None, gated=None,
        stored=None,
    )  # fmt: skip


def _filled_shape(hub_id: str, entry: Mapping[str, Any], source: str) -> ModelShape:
    """The shape of an entry that lacks dimensions, with those of a typical decoder of its size."""
    params = entry.get("params")
    size = size_of(hub_id, (params or 0) / 1e9 or None).params
    held = size or params or 12_000_000_000
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
    typical_values = (
        "not in the catalogue, so typical values were taken:"
        f" {', '.join(field.replace('_', ' ') for field in missing)}"
    )
    return replace(shape, note="; ".join(filter(None, (typical_values, shape.note))))


def _plainest(found: Sequence[tuple[str, str]], *, alike: float | None = None) -> ModelShape | None:
    """One of these catalogue models: in 16 bit before quantised ones, then the one with the
    shortest name; None where they differ in shape.

    Args:
        found: File and hub id of each.
        alike: How far their sizes may be apart, as a share; None: as far as they are.
    """
    shapes = [_entry_shape(hub_id, catalogue_entry(stem, hub_id)) for stem, hub_id in found]
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
    return min(shapes, key=lambda shape: (shape.stored is not None, len(words_of(shape.id))))


# --------------------------------------------------------------------------- the hub


def _from_hub(hub_id: str, *, online: bool) -> tuple[ModelShape | None, list[str]]:
    """The shape in the hub cache's config.json, else in the hub's own when that was asked for and
    is allowed.
    """
    path = cached_config(hub_id)
    if path is None and online and not is_offline():
        path, problem = download_config(hub_id)
        if path is None:
            return None, [problem]
    if path is None:
        return None, []
    try:
        config = parse_json(text_of(path, most_bytes=MOST_CONFIG_BYTES))
        return (
            shape_from_config(
                config, hub_id, origin="hub", source=f"huggingface.co/{hub_id} config.json"
            ),
            [],
        )
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
    rows = typical_sizes()
    sizes = [size for size, _, _ in rows]
    place = min(max(sum(size <= params for size in sizes), 1), len(rows) - 1)
    (low_size, low, _), (high_size, high, _) = rows[place - 1], rows[place]
    share = (math.log(max(params, 1)) - math.log(low_size)) / (
        math.log(high_size) - math.log(low_size)
    )
    nearest = (
        rows[place - 1]
        if abs(math.log(max(params, 1) / low_size)) <= abs(math.log(high_size / max(params, 1)))
        else rows[place]
    )

    def between(index: int, step: int) -> int:
        return max(
            step,
            round(
                math.exp(
                    math.log(low[index]) + share * (math.log(high[index]) - math.log(low[index]))
                )
                / step
            )
            * step,
        )

    head_dim, kv_heads = nearest[1][4], nearest[1][3]
    size = f"{format_count(params)}{' active' if held > params else ''}"
    hidden = between(1, head_dim * kv_heads)  # so that the heads share keys and values evenly
    return ModelShape(
        id=id_, origin="size", params=held, active_params=active_params, hidden_size=hidden,
        layers=between(0, 1), heads=hidden // head_dim,
        kv_heads=kv_heads, head_dim=head_dim, intermediate_size=between(5, 64),
        vocab_size=nearest[1][6], tied_embeddings=nearest[2],
        source="rules/models/typical_sizes.yaml",
        note=f"shape guessed: a typical decoder of {size} parameters; {note}",
    )  # fmt: skip


HUB_TIMEOUT_S = 5.0


def cached_config(hub_id: str) -> Path | None:
    """The newest config.json of a model in the cache, None if there is none."""
    snapshots = hub_model_folder(hub_id) / "snapshots"
    try:
        found = [path for path in snapshots.glob("*/config.json") if path.is_file()]
    except OSError:
        return None
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def cached_models() -> tuple[str, ...]:
    """The hub ids of the models in the cache."""
    try:
        folders = sorted(path.name for path in hub_cache().glob("models--*--*"))
    except OSError:
        return ()
    return tuple("/".join(name.removeprefix("models--").split("--", 1)) for name in folders)


def is_on_this_machine(hub_id: str) -> bool:
    """Whether the cache holds weights of the model, and not its configuration alone."""
    snapshots = hub_model_folder(hub_id) / "snapshots"
    try:
        return any(
            path.suffix in (".safetensors", ".bin") and path.is_file()
            for path in snapshots.glob("*/*")
        )
    except OSError:
        return False


def download_config(hub_id: str) -> tuple[Path | None, str]:
    """(the hub's config.json, "") or (None, why it could not be had)."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError:
        return (
            None,
            f"{hub_id}: not in the catalogue, and huggingface_hub is not installed to ask the hub",
        )
    try:
        # A download retries for half a minute without a network, and then says "not found".
        get_hf_file_metadata(hf_hub_url(hub_id, "config.json"), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(hub_id, "config.json", etag_timeout=HUB_TIMEOUT_S)), ""
    except Exception as error:  # the hub client raises many classes, some of them requests' own
        kind = type(error).__name__
        if "Gated" in kind or "Unauthorized" in kind:
            return None, f"{hub_id}: access must be requested on its hub page before it can be read"
        if "RepositoryNotFound" in kind or "Validation" in kind:
            return None, f"{hub_id}: not found on the hub (or private)"
        if "EntryNotFound" in kind and not kind.startswith("Local"):
            return None, f"{hub_id}: on the hub, but without a config.json: no model to train"
        return None, f"{hub_id}: the hub could not be reached ({kind})"
