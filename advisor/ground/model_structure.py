"""Whether the tensors of a model's files are those that its config.json describes.

It knows the names that most families share, and judges only what it knows: a family with other
names is left to the trainer, which compares with the model that transformers builds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.model_config import NAMES, REQUIRED, read, text_config
from advisor.ground.safetensors_header import PLAIN, Tensor


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Where the layers of the part that writes text are, in the order in which they are looked for.
PLACES = (
    "model.language_model.layers", "language_model.model.layers", "model.layers",
    "model.decoder.layers", "decoder.layers", "transformer.h", "gpt_neox.layers",
    "backbone.layers", "layers", "h",
    "bert.encoder.layer", "roberta.encoder.layer", "distilbert.transformer.layer",
    "encoder.layer", "transformer.layer",
)  # fmt: skip
LAYER = re.compile(r"(.+?\.)??(layers|layer|h)\.(\d{1,9})\.(.+)")
# Families in which each layer has the same tensors, with these names for them:
# q_proj, k_proj, v_proj, o_proj; gate_proj, up_proj, down_proj; input_layernorm.
ALIKE = _set(
    "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text olmo2 olmo3 smollm3 granite stablelm cohere"
)
# Families whose heads divide the hidden size where config.json has no head_dim.
DIVIDING = _set("llama mistral mixtral qwen2 qwen2_moe olmo2 olmo3 smollm3 granite stablelm olmoe")
GROUPED = DIVIDING | ALIKE | _set("qwen3_moe gpt_oss granitemoe")  # heads share keys and values
# Families whose embeddings have these names and are as wide as the model.
EMBEDDED = GROUPED | _set("phi phi3 gpt_neox")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
ENDS = (*EMBEDDINGS, *HEADS)
# In a layer's file without being a weight: computed from the configuration.
COMPUTED = ("inv_freq", "masked_bias", "attn.bias", "attention.bias", "position_ids")
LARGEST, MOST_LAYERS = 10**9, 10**4  # no model has a larger dimension, or more layers
SHOWN = 4
MOST_SIZES = 3  # wrong shapes that are told: one wrong number changes most tensors


def config_faults(config: Mapping[str, Any], path: str) -> list[Fault]:
    """Numbers of config.json that no model can have.

    Args:
        path: Of the file, for the message.
    """
    found = []
    family = config.get("model_type")
    if family is not None and not isinstance(family, str):
        found.append(_number_fault(path, "model_type", family, "the name of a model family"))
    quantised = config.get("quantization_config")
    if quantised is not None and not _names_a_method(quantised):
        found.append(
            _number_fault(
                path, "quantization_config", quantised, "a map that names its quant_method"
            )
        )
    inner = text_config(config)
    for field, names in NAMES.items():
        name = next((name for name in names if name in inner), None)
        value = inner.get(name) if name is not None else None
        if name is None or isinstance(value, list | dict):
            continue  # left out, or another number for each layer
        if value is None and field not in (*REQUIRED, "heads"):
            continue
        least = 1 if field in (*REQUIRED, "heads") else 0
        if _is_float_count(value):
            continue
        most = MOST_LAYERS if field == "layers" else LARGEST
        if type(value) is not int or not least <= value <= most:
            found.append(_number_fault(path, name, value, "a positive whole number"))
    return found or _head_faults(inner, path)


def _is_float_count(value: Any) -> bool:
    return isinstance(value, float) and value == value // 1 and 0 < value <= LARGEST


def _names_a_method(value: Any) -> bool:
    if not value or not isinstance(value, Mapping):
        return isinstance(value, Mapping)
    method = value.get("quant_method")
    return isinstance(method, str) or (
        method is None and any(key in value for key in ("load_in_4bit", "load_in_8bit", "bits"))
    )


def _number_fault(path: str, name: str, value: Any, allowed: str) -> Fault:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return Fault(where=path, what=f"{name} is {shown}", allowed=allowed, hint="download it again")


def _head_faults(config: Mapping[str, Any], path: str) -> list[Fault]:
    """Numbers of heads that do not divide what they share."""
    family = str(config.get("model_type"))  # a damaged file may hold anything
    hidden, heads, groups = (read(config, field) for field in ("hidden_size", "heads", "kv_heads"))
    found = []
    own_size = read(config, "head_dim") is not None
    if family in DIVIDING and not own_size and hidden and heads and hidden % heads:
        found.append(
            Fault(
                where=path,
                what=(
                    f"{heads} attention heads (num_attention_heads) do not divide a"
                    f" hidden_size of {hidden}"
                ),
                hint="download it again",
            )
        )
    if family in GROUPED and heads and groups and heads % groups:
        found.append(
            Fault(
                where=path,
                what=(
                    f"{groups} key and value heads (num_key_value_heads) do not divide"
                    f" {heads} attention heads"
                ),
                hint="download it again",
            )
        )
    return found


def structure_faults(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    at: str,
    where: str,
    complete: bool = True,
    writes: bool = True,
    tokens: int | None = None,
) -> list[Fault]:
    """What the tensors lack of the model that config.json describes, or have otherwise.

    Args:
        at: The model, for the messages: "model ./base".
        where: Its files: "model.safetensors".
        complete: The tensors are all that there are.
        writes: The model generates text, so that it needs an output matrix.
        tokens: The tokenizer's highest token id, if it is known.
    """
    inner = text_config(config)
    family = str(inner.get("model_type") or config.get("model_type") or "")
    plain = not config.get("quantization_config")
    place, layers = _layers(tensors)
    found: list[Fault] = []
    if complete and layers:
        found += _layer_faults(inner, layers, family, at=at, where=where)
    if complete and not found and plain and family in ALIKE:
        found += _gap_faults(place, layers, at=at, where=where)
    if complete and family in EMBEDDED and inner is config:
        found += _end_faults(inner, tensors, family, at=at, where=where, writes=writes)
    inside = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{place}.") or (inner is config and name.endswith(ENDS))
    }
    found += _size_faults(_expected_sizes(inner, family), inside, at=at, where=where)
    vocabulary = read(inner, "vocab_size")
    if (
        tokens is not None
        and vocabulary is not None
        and tokens >= vocabulary
        and family in EMBEDDED
    ):
        found.append(
            Fault(
                where=at,
                what=(
                    f"the tokenizer has token ids up to {tokens:,}, the model only"
                    f" {vocabulary:,} embeddings (vocab_size in config.json)"
                ),
                hint=(
                    "tokenizer and model do not belong together, or tokens were added without"
                    " resizing the model"
                ),
            )
        )
    return found


# --------------------------------------------------------------------------- layers


def _layers(tensors: Iterable[str]) -> tuple[str, dict[int, set[str]]]:
    """(where the layers are: "model.layers", layer -> the names of its tensors inside it); empty if
    the names are not known.
    """
    found: dict[str, dict[int, set[str]]] = {}
    for name in tensors:
        match = LAYER.match(name)
        if match is not None:
            place = f"{match[1] or ''}{match[2]}"
            found.setdefault(place, {}).setdefault(int(match[3]), set()).add(match[4])
    place = next((place for place in PLACES if place in found), "")
    return place, found.get(place, {})


def _layer_faults(
    config: Mapping[str, Any],
    layers: Mapping[int, set[str]],
    family: str,
    *,
    at: str,
    where: str,
) -> Iterator[Fault]:
    count = read(config, "layers")
    if count is None or config.get("is_encoder_decoder"):
        return
    spans = _missing_spans(layers, count)
    if spans:
        words = spans_words(spans)
        are = "is" if words.startswith("layer ") else "are"
        yield Fault(
            where=at,
            what=(
                f"the base model is incomplete: {words} of {count} (counted from 0) {are} not"
                f" in {where}"
            ),
            allowed=f"config.json says {count} layers (num_hidden_layers)",
            hint="download the whole model again",
        )
    elif family in ALIKE and max(layers) >= count and not config.get("num_nextn_predict_layers"):
        yield Fault(
            where=at,
            what=(
                f"config.json says {count} layers (num_hidden_layers), and {where} has"
                f" {max(layers) + 1}"
            ),
            hint="weights and config.json are of different models: download the whole model again",
        )


def _missing_spans(layers: Iterable[int], count: int) -> list[tuple[int, int]]:
    """The stretches (first, last) of 0 to count - 1 that are not there; `count` may be huge."""
    there = [-1, *sorted(layer for layer in layers if layer < count), count]
    return [(one + 1, other - 1) for one, other in pairwise(there) if other - one > 1]


def spans_words(spans: Sequence[tuple[int, int]]) -> str:
    """'layers 2 to 5 and 8' for stretches (first, last)."""
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in spans]
    more = len(texts) - SHOWN
    if more > 0:
        texts = [*texts[:SHOWN], f"{more} more stretches"]
    joined = " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
    one = len(spans) == 1 and spans[0][0] == spans[0][1]
    return f"{'layer' if one else 'layers'} {joined}"


def _gap_faults(
    place: str, layers: Mapping[int, set[str]], *, at: str, where: str
) -> Iterator[Fault]:
    """Tensors that some layers have and others lack, where all layers are alike."""
    every = {name for names in layers.values() for name in names if not name.endswith(COMPUTED)}
    lacking = [
        f"{place}.{layer}.{name}"
        for layer, names in sorted(layers.items())
        for name in sorted(every - names)
    ]
    if lacking:
        yield incomplete(lacking, at=at, where=where)


def incomplete(names: Sequence[str], *, at: str, where: str) -> Fault:
    """The fault of a model that lacks these tensors."""
    more = len(names) - SHOWN
    listed = ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
    are = "is" if len(names) == 1 and not names[0].endswith("embeddings") else "are"
    return Fault(
        where=at,
        what=f"the base model is incomplete: {listed} {are} not in {where}",
        hint="download the whole model again",
    )


# --------------------------------------------------------------------------- ends and sizes


def _end_faults(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    family: str,
    *,
    at: str,
    where: str,
    writes: bool,
) -> Iterator[Fault]:
    """Embeddings and output matrix that have to be there."""
    has_input = _named(tensors, EMBEDDINGS) is not None
    has_output = _named(tensors, HEADS) is not None
    tied = config.get("tie_word_embeddings")
    if not has_input and not (has_output and tied is not False):
        yield incomplete(["the token embeddings"], at=at, where=where)
    elif not has_output and tied is False and writes:
        fault = incomplete(["the output matrix (lm_head)"], at=at, where=where)
        yield replace(
            fault, allowed="it may be absent only with tie_word_embeddings: true in config.json"
        )
    named = family in ALIKE and "model.embed_tokens.weight" in tensors
    if named and "model.norm.weight" not in tensors:
        yield incomplete(["model.norm.weight"], at=at, where=where)


def _named(tensors: Iterable[str], endings: tuple[str, ...]) -> str | None:
    return next((name for name in tensors if name.endswith(endings)), None)


Sizes = Mapping[str, tuple[tuple[int, ...], str]]


def _expected_sizes(config: Mapping[str, Any], family: str) -> Sizes:
    """Ending of a tensor's name -> (its shape, the keys of config.json that say so)."""
    hidden, vocabulary = read(config, "hidden_size"), read(config, "vocab_size")
    sizes: dict[str, tuple[tuple[int, ...], str]] = {}
    if hidden is None or vocabulary is None:
        return sizes
    if family in EMBEDDED:
        for ending in ENDS:
            sizes[ending] = ((vocabulary, hidden), "vocab_size x hidden_size")
    if family not in ALIKE:
        return sizes
    for ending in ("input_layernorm.weight", "post_attention_layernorm.weight"):
        sizes[ending] = ((hidden,), "hidden_size")
    width = read(config, "intermediate_size")
    if width is not None:
        for ending in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
            sizes[ending] = ((width, hidden), "intermediate_size x hidden_size")
        sizes["mlp.down_proj.weight"] = ((hidden, width), "hidden_size x intermediate_size")
    heads, groups = read(config, "heads"), read(config, "kv_heads")
    size = read(config, "head_dim")
    if size is None and family in DIVIDING and heads:
        size = hidden // heads
    if size and heads:
        sizes["self_attn.q_proj.weight"] = (
            (heads * size, hidden),
            "num_attention_heads and hidden_size",
        )
        sizes["self_attn.o_proj.weight"] = (
            (hidden, heads * size),
            "num_attention_heads and hidden_size",
        )
    if size and groups:
        for ending in ("self_attn.k_proj.weight", "self_attn.v_proj.weight"):
            sizes[ending] = ((groups * size, hidden), "num_key_value_heads and hidden_size")
    return sizes


def _size_faults(
    sizes: Sizes, tensors: Mapping[str, Tensor], *, at: str, where: str
) -> Iterator[Fault]:
    """Tensors of another shape than config.json says: one fault for each kind of tensor."""
    known = tuple(sizes)
    reported = set()
    for name, tensor in tensors.items():
        if tensor.dtype not in PLAIN or not name.endswith(known):
            continue
        ending = next(ending for ending in known if name.endswith(ending))
        shape, keys = sizes[ending]
        if tensor.shape != shape and ending not in reported:
            reported.add(ending)
            if len(reported) > MOST_SIZES:
                return
            yield Fault(
                where=at,
                what=(
                    f"{name} in {where} has shape {shape_words(tensor.shape)}, and"
                    f" config.json says {shape_words(shape)} ({keys})"
                ),
                hint="weights and config.json are of different models: download both again",
            )


def shape_words(shape: Sequence[int]) -> str:
    """'[64, 128]'."""
    return f"[{', '.join(map(str, shape))}]"
