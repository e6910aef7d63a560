"""The files of rules/models/ as values, and what a model's name says: its size, how it is stored,
whether it follows instructions, and which known name it is or is nearest to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

from advisor.ground.errors import InputError
from advisor.ground.files import text_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import (
    VERSION,
    Choice,
    Date,
    Flag,
    Keys,
    ListOf,
    MapOf,
    Number,
    OneOf,
    Shape,
    Text,
)
from advisor.ground.units import format_count
from advisor.ground.yaml_files import read_shipped
from advisor.ruleset.facts import load_facts

NOT_ORGANISATIONS = ("suggestions", "typical_sizes", "named")
_COUNT = Number(whole=True, min=1)
_TEXTS = (
    "model_type", "params_source", "source", "license", "license_source", "notes",
    "same_architecture_as", "stored", "thinks", "thinks_source", "avoid_4_bit_source",
    "feed_forward_proj", "hybrid_override_pattern",
)  # fmt: skip
_COUNTS = (
    "params", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "intermediate_size", "vocab_size", "context_length", "num_experts", "num_experts_per_token",
    "moe_intermediate_size", "shared_expert_intermediate_size", "sliding_window",
    "full_attention_interval", "global_head_dim", "hidden_size_per_layer_input",
    "linear_key_head_dim", "linear_num_key_heads", "linear_num_value_heads",
    "linear_value_head_dim", "num_global_key_value_heads", "num_kv_shared_layers",
    "vocab_size_per_layer_input", "active_params", "first_k_dense_replace", "n_shared_experts",
    "interleave_moe_layer_step", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim",
    "qk_nope_head_dim", "v_head_dim", "num_decoder_layers", "type_vocab_size",
    "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "shared_intermediate_size",
    "moe_shared_expert_intermediate_size", "moe_latent_size", "num_dense_layers",
    "dense_intermediate_size", "index_topk_freq", "index_skip_topk_offset",
)  # fmt: skip
_FLAGS = (
    "tie_word_embeddings", "gated", "attention_k_eq_v", "use_double_wide_mlp", "attention_bias",
    "avoid_4_bit", "new_decoder_architecture", "use_qk_norm",
)  # fmt: skip
_LAYERS = (
    "full_attention", "sliding_attention", "linear_attention", "conv", "mamba", "mlp", "moe",
)  # fmt: skip
# What an entry does not take over from the model whose architecture it has.
_OWN = (
    "source", "license", "license_source", "stored", "thinks", "thinks_source", "gated",
    "avoid_4_bit", "avoid_4_bit_source",
)  # fmt: skip
MODEL_FILE = Keys(
    help="Architectures of published models",
    keys={
        "version": VERSION,
        "checked": Date(),
        "models": MapOf(
            of=Keys(
                keys={
                    **dict.fromkeys(_TEXTS, Text()),
                    **dict.fromkeys(_COUNTS, _COUNT),
                    **dict.fromkeys(_FLAGS, Flag()),
                    "layer_types_summary": Keys(
                        keys=dict.fromkeys(_LAYERS, Number(whole=True, min=0))
                    ),
                },
                required=("source",),
            )
        ),
    },
    required=("checked", "models"),
)
SIZES_FILE = Keys(
    help="Shapes that stand for a size",
    keys={
        "version": VERSION,
        "sizes": ListOf(
            of=Keys(
                keys={
                    "of": Text(help="the model it was read from"),
                    "params": _COUNT,
                    "shape": ListOf(
                        of=_COUNT,
                        least=7,
                        most=7,
                        help="layers, hidden_size, heads, kv_heads, head_dim, intermediate_size,"
                        " vocab_size",
                    ),
                    "tied": Flag(help="whether input and output embeddings are one matrix"),
                },
                required=("of", "params", "shape", "tied"),
            ),
            least=2,
        ),
    },
    required=("sizes",),
)


NAMED_FILE = Keys(
    help="Models that are known by name alone, and how people write families",
    keys={
        "version": VERSION,
        "checked": Date(),
        "sources": MapOf(of=Text(), help="short name -> what was read"),
        "groups": ListOf(
            of=Keys(
                keys={
                    "ids": ListOf(of=Text(), least=1),
                    "like": Text(help="the model of the catalogue with the same dimensions"),
                    "params_b": Number(above=0, help="thousands of millions, if no name says it"),
                    "active_b": Number(above=0, help="those that one token uses"),
                    "source": Text(help="one of `sources`"),
                },
                required=("ids", "source"),
            ),
            least=1,
        ),
        "spoken": ListOf(
            of=Keys(
                keys={
                    "pattern": Text(help="a regular expression"),
                    "meant": Text(help="what is read in its place"),
                    "asked": Flag(help="whether that is a guess, to be asked about"),
                },
                required=("pattern", "meant"),
            ),
            least=1,
        ),
    },
    required=("checked", "sources", "groups", "spoken"),
)


def suggestions_shape() -> Shape:
    """What rules/models/suggestions.yaml may hold; its tasks are those of rules/facts.yaml."""
    task = Choice(values=("any", *load_facts()["task"].values))
    row = Keys(
        keys={
            "model": Text(),
            "params_b": Number(above=0, help="parameters, in thousands of millions"),
            "base": Text(help="the plain text model behind it, of the same size and licence"),
            "kind": Text(),
            "tasks": OneOf(options=(task, ListOf(of=task, least=1))),
            "languages": ListOf(of=Text(), least=1),
            "license": Text(),
            "why": Text(),
            "source": Text(),
            "also": ListOf(
                of=Keys(
                    keys={"model": Text(), "why": Text(), "source": Text()},
                    required=("model", "why", "source"),
                ),
                least=1,
                help="newer models of about this size, and what speaks for and against them",
            ),
        },
        required=("model", "params_b", "tasks", "license", "why", "source"),
    )
    return Keys(
        help="Models to start from where none was named",
        keys={
            "version": VERSION,
            "checked": Date(),
            "models": ListOf(of=row, least=1),
            "encoders": ListOf(of=row, least=1),
        },
        required=("checked", "models", "encoders"),
    )


# --------------------------------------------------------------------------- reading


@cache
def organisation_models(stem: str) -> Mapping[str, Mapping[str, Any]]:
    """Hub id -> entry of one organisation's file, empty if there is none. Raises InputError."""
    path = rules_dir() / "models" / f"{stem}.yaml"
    if not path.is_file():
        return {}
    return dict(read_shipped(path, shape=MODEL_FILE).data["models"])


def catalogue_entry(hub_id: str) -> Mapping[str, Any]:
    """The entry of a model, with the dimensions of the one whose architecture it has
    (`same_architecture_as`) if it states none of its own. Raises InputError.
    """
    stem = hub_id.split("/", 1)[0].lower()
    entry = organisation_models(stem)[hub_id]
    of = entry.get("same_architecture_as")
    if of is None or "hidden_size" in entry or "params" in entry:
        return entry
    other = organisation_models(of.split("/", 1)[0].lower()).get(of)
    if other is None or ("same_architecture_as" in other and "params" not in other):
        raise InputError(
            f"rules/models/{stem}.yaml: {hub_id}: same_architecture_as names {of}",
            allowed="a model of the catalogue that states its own dimensions",
        )
    return {**{key: value for key, value in other.items() if key not in _OWN}, **entry}


@cache
def catalogue_ids() -> tuple[str, ...]:
    """The hub id of every model in the catalogue, found without parsing the files."""
    entry = re.compile(r"^  ([\w.-]+/[\w.-]+):", re.MULTILINE)
    files = sorted((rules_dir() / "models").glob("*.yaml"))
    return tuple(
        hub_id
        for file in files
        if file.stem not in NOT_ORGANISATIONS
        for hub_id in entry.findall(text_of(file))
    )


@cache
def typical_sizes() -> tuple[tuple[float, tuple[int, ...], bool], ...]:
    """(parameters, dimensions, tied embeddings) of decoders that stand for their size."""
    path = rules_dir() / "models" / "typical_sizes.yaml"
    rows = read_shipped(path, shape=SIZES_FILE).data["sizes"]
    return tuple((float(row["params"]), tuple(row["shape"]), row["tied"]) for row in rows)


@cache
def suggested_models() -> Mapping[str, Any]:
    """The table of rules/models/suggestions.yaml."""
    path = rules_dir() / "models" / "suggestions.yaml"
    return dict(read_shipped(path, shape=suggestions_shape()).data)


@cache
def named_file() -> Mapping[str, Any]:
    """What rules/models/named.yaml holds."""
    return dict(read_shipped(rules_dir() / "models" / "named.yaml", shape=NAMED_FILE).data)


@cache
def named_models() -> Mapping[str, Mapping[str, Any]]:
    """Hub id -> group of every model that is known by name alone."""
    return {hub_id: group for group in named_file()["groups"] for hub_id in group["ids"]}


def known_ids() -> tuple[str, ...]:
    """Every hub id of the catalogue, with those that are known by name alone."""
    return (*catalogue_ids(), *named_models())


INSTRUCT = re.compile(
    r"(?:^|[-_. ])(instruct|chat|it|sft|dpo|rlhf|assistant|thinking|reasoning)(?=$|[-_. ])",
    re.IGNORECASE,
)
BASE = re.compile(r"(?:^|[-_. ])(base|pt|pretrain(?:ed)?)(?=$|[-_. ])", re.IGNORECASE)
# Compiled when a name comes that is not known by itself, not at each start.
SIZE = (  # not the 17B of "17B-128E", which is what one token uses of 128 experts
    r"(?i)(?:(?<![\w.])|(?<=[a-z]_))(\d+(?:[._]\d+)?)\s*-?(b|m|bn|billion|million)"
    r"(?![a-z0-9]|[-_ ]\d+e(?![a-z0-9]))"
)
TRILLIONS = r"(?i)(?<![\w.])(\d+(?:\.\d+)?)\s*-?t(?![a-z0-9])"
LISTED_SIZE = (
    r"(?i)(?<![\w.])(\d+(?:\.\d+)?)(?=\s*(?:/|or|,)\s*\d+(?:\.\d+)?\s*b\b)"  # the 7 of "7/32B"
)
TENTHS = r"(?i)(?<![\w.])(\d+)b(\d)(?![a-z0-9])"  # the 7b1 of BLOOM
OF_EXPERTS = r"(?i)(?<![\w.])(\d+(?:\.\d+)?)b[-_ ]\d+e(?![a-z0-9])"  # used by one token
MIXTURE = r"(?i)(\d+)\s*[x*×]\s*(\d+(?:\.\d+)?)\s*b(?![a-z0-9])"
EXPERTS = r"(?i)(?<![\w.])(\d+(?:\.\d+)?)b[-_ ]*x?[-_ ]*(\d+)[-_ ]?experts?(?![a-z0-9])"
ACTIVE = r"(?i)(?<![a-z0-9])a(\d+(?:\.\d+)?)(b|m)(?![a-z0-9])"
# Experts share attention and embeddings, so "8x7B" holds less than 56B: Mixtral 8x7B has 46.7B and
# uses 12.9B, 8x22B has 140.6B and uses 39.2B.
MIXTURE_SHARE, MIXTURE_ACTIVE = 0.82, 1.8
NAMED_STORES = {"bnb": "bitsandbytes", "4bit": "bitsandbytes", "8bit": "bitsandbytes"}
STORED = re.compile(
    r"(?:^|[-_. ])(gptq|awq|mxfp4|nvfp4|fp8|bnb)(?=$|[-_. ])", re.IGNORECASE
)  # in the name of a quantised checkpoint
# Ends of a name that say how the same weights are stored, or who stored them.
STORAGE = (
    r"(?i)(?:[-_. ](?:gptq|awq|mxfp4|nvfp4|nf4|fp?(?:8|16|32)|bf16|int-?[48]|bnb|[2-8]-?bits?"
    r"|unsloth|hf|dynamic|gguf|ggml(?:v\d)?|mlx|onnx|openvino|coreml|exl[23]|hqq|dwq|llamafile"
    r"|i?q\d(?:_\w+)*|ud|i\d|\d\.\d+bpw|\d{5}-of-\d{5}|w\da\d+|quanti[sz]ed|marlin|autoround"
    r"|imatrix|qat|(?<=gptq-)4b|(?:g|gs)?128g?|bin|safetensors))+$"
)
# Of these the ones that say that its weights are rounded.
ROUNDED = re.compile(
    r"(?i)(?<![a-z0-9])(?:gptq|awq|int-?[48]|[2-8][- ]?bits?|nf4|nvfp4|fp8|i?q[1-8]_\w+|exl[23]|hqq"
    r"|dwq|gguf|ggml(?:v\d)?|w\da\d+|quanti[sz]ed|bnb)(?![a-z0-9])"
)
FILLER = frozenset(
    {
        "hf", "chat", "instruct", "it", "meta", "base", "model", "the", "a", "an", "in", "v",
        "latest", "0.1", "0.2", "0.3",
    }
)  # fmt: skip  # no difference in shape
LIKE_A_WORD = 0.74  # of a misspelt word: "instrct" and "instruct" have 0.93, "lama", "llama" 0.89
LIKE_A_NAME = 0.8  # of a whole name
SHORTEST = 3  # letters of a word that may be misspelt


# --------------------------------------------------------------------------- what it says


def is_instruct(name: str) -> bool | None:
    """Whether the name says that the model follows instructions (True), is a base model (False), or
    neither.
    """
    tail = tail_of(name)
    if INSTRUCT.search(tail):
        return True
    if BASE.search(tail):
        return False
    # Qwen3's plain names are the post-trained checkpoints; their base models carry "-Base".
    return True if re.match(r"qwen3(?:\.\d)?-", tail, re.IGNORECASE) else None


def stored_by_name(name: str) -> str | None:
    """How a checkpoint is stored, if its name says that it is quantised."""
    found = STORED.search(name.rsplit("/", 1)[-1])
    if found is None:
        return None
    word = found[1].lower()
    return NAMED_STORES.get(word, word)


class NamedSize(NamedTuple):
    """Parameters that a name states, and how they were read; None if it states none."""

    params: int | None = None
    active: int | None = None
    note: str = ""


def size_of(name: str, params_b: float | None) -> NamedSize:
    """The size that was stated, else the one that the name says."""
    active, mixture = re.search(ACTIVE, name), re.search(MIXTURE, name)
    used = None  # parameters that one token passes through
    if mixture is not None:
        used = round(MIXTURE_ACTIVE * float(mixture[2]) * 1e9)
    elif of_experts := re.search(OF_EXPERTS, name):
        used = round(float(of_experts[1]) * 1e9)
    elif active is not None:
        used = round(float(active[1]) * (1e6 if active[2].lower() == "m" else 1e9))
    if params_b is not None:
        held, note = round(params_b * 1e9), "size as stated"
    elif mixture is not None:
        held = round(MIXTURE_SHARE * int(mixture[1]) * float(mixture[2]) * 1e9)
        note = f"'{mixture[0]}' taken as a mixture of {mixture[1]} experts sharing attention"
    elif sizes := _sizes(name):
        held, note = round(min(sizes)), "size taken from the name"
        if len(sizes) > 1:
            others = ", ".join(map(format_count, sorted(sizes)))
            note = f"the name states several sizes ({others}): {format_count(held)} was taken"
    else:
        return NamedSize()
    return NamedSize(held, used and min(used, held), note)


def _sizes(name: str) -> set[float]:
    sizes = {
        float(number.replace("_", ".")) * (1e6 if unit.lower().startswith("m") else 1e9)
        for number, unit in re.findall(SIZE, name)
    }
    if max(sizes, default=0) >= 1e9:  # beside "7B", "1M" tells how many tokens it reads
        sizes = {size for size in sizes if size >= 1e7}
    sizes |= {float(number) * 1e9 for number in re.findall(LISTED_SIZE, name)}
    sizes |= {float(f"{whole}.{tenth}") * 1e9 for whole, tenth in re.findall(TENTHS, name)}
    # "-3T" behind a size tells the tokens it was trained on.
    return sizes or {float(number) * 1e12 for number in re.findall(TRILLIONS, name)}


# --------------------------------------------------------------------------- which one it is


def tail_of(name: str) -> str:
    """The part of a name after the organisation."""
    return name.rstrip("/").rsplit("/", 1)[-1]


def squashed(name: str) -> str:
    """A name without its organisation, case and separators: one for all spellings."""
    return re.sub(r"[^a-z0-9.]+", "", tail_of(name).lower())


def without_storage(name: str) -> str:
    """A name without the endings that say how its weights are stored."""
    return re.sub(STORAGE, "", name)


def bare(name: str) -> str:
    """The same of a name without the endings that say how its weights are stored."""
    return squashed(without_storage(name.strip())).removeprefix("meta")


def has_numbers_of(name: str, hub_id: str) -> bool:
    """Whether every number of a name stands in a model's name as it is: not the 370 of "llama370b"
    in Llama-3-70B.
    """
    return {*re.findall(r"\d+", name)} <= {*re.findall(r"\d+", hub_id)}


def spoken(name: str) -> tuple[str, bool]:
    """A name with the counts and families that people write in another way put as the hub writes
    them, without what a description says of rounded weights; and whether one of them is a guess.
    """
    name = name if "/" in name else ROUNDED.sub(" ", name)
    text = re.sub(EXPERTS, r"\2x\1b", re.sub(MIXTURE, r"\1x\2b", name))
    guessed = False
    for entry in named_file()["spoken"]:
        text, count = re.subn(entry["pattern"], entry["meant"], text, flags=re.IGNORECASE)
        guessed |= bool(count) and entry.get("asked", False)
    return text, guessed


def words_of(name: str) -> frozenset[str]:
    """The words of a name that tell one shape from another."""
    text = re.sub(r"(\d)_(\d)", r"\1.\2", without_storage(tail_of(name)).lower())
    text = re.sub(r"([a-z])(\d)", r"\1 \2", re.sub(r"[^a-z0-9.]+", " ", text))
    return frozenset(
        word for word in re.sub(r"(?<=\d) (?=b\b)", "", text).split() if word not in FILLER
    )


def states_size(words: Iterable[str]) -> frozenset[str]:
    """The sizes among the words of a name: "8b", "350m"."""
    return frozenset(word for word in words if re.fullmatch(r"\d+(?:\.\d+)?[bmt]", word))


@cache
def _catalogue_words() -> dict[str, frozenset[str]]:
    return {hub_id: words_of(hub_id) for hub_id in known_ids()}


def same_words(name: str) -> list[str]:
    """The catalogue models that the words of a description single out."""
    words = words_of(name)
    if len(words) < 2 and not states_size(words):
        return []
    return [hub_id for hub_id, known in _catalogue_words().items() if known == words]


def beginning_with(name: str) -> list[str]:
    """The catalogue models that have every word of a name and more of them: a family named without
    its size ("Llama 4 Scout") or without its date ("Ministral 3 8B").
    """
    words = words_of(name)
    return [hub_id for hub_id, known in _catalogue_words().items() if words and words < known]


def derived_from(name: str) -> list[str]:
    """The catalogue models whose words the name has and adds to: what a fine-tuned copy is called.
    Both state the same size, or neither states any.
    """
    words = words_of(name)
    sizes = states_size(words)
    found = {
        hub_id: len(known)
        for hub_id, known in _catalogue_words().items()
        if known < words
        and states_size(known) == sizes
        and len(known) > 1
        and not _other_generation(name, hub_id)
    }
    most = max(found.values(), default=0)
    return [hub_id for hub_id, count in found.items() if count == most]


def _other_generation(name: str, hub_id: str) -> bool:
    """Whether a name says another version of the family than a model has: "llama 5 7b" is not made
    from llama-7b.
    """
    family = re.match(r"[a-z]+", tail_of(hub_id).lower())
    number = r"[-_ :]*v?(\d+(?:\.\d+)?)(?![\d.]*[-_ ]?[bmkxt])(?![a-z\d])"
    found = re.search((family[0] if family else "$") + number, tail_of(name).lower())
    return found is not None and found[1] not in words_of(hub_id)


def nearest(name: str, others: Sequence[str] = ()) -> str | None:
    """The known name of the same size that a misspelt one is most like; None if none is like it.

    Args:
        name: As it was written.
        others: Known names beside the catalogue's: what is in the hub's cache.
    """
    sizes = states_size(words_of(name))
    known_names = {
        squashed(known): known
        for known in (*reversed(known_ids()), *others)
        if not sizes or states_size(words_of(known)) == sizes
    }
    found = get_close_matches(squashed(without_storage(name)), known_names, 1, LIKE_A_NAME)
    return known_names[found[0]] if found else None


def put_right(word: str, known: Collection[str]) -> str:
    """The known word that a misspelt one is most like; the word itself if none is like it."""
    if word in known or not word.isalpha() or len(word) < SHORTEST:
        return word
    words = sorted(other for other in known if other.isalpha() and len(other) >= SHORTEST)
    return next(iter(get_close_matches(word, words, 1, LIKE_A_WORD)), word)
