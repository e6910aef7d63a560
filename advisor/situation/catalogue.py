"""The files of rules/models/ as values: architectures by organisation, sizes, suggestions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Flag, Keys, ListOf, MapOf, Number, OneOf, Shape, Text
from advisor.ground.yaml_files import read_shipped
from advisor.ruleset.facts import load_facts

NOT_ORGANISATIONS = ("suggestions", "typical_sizes")
VERSION = Choice(values=(1,))
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
    models: Mapping[str, Mapping[str, Any]] = read_shipped(path, shape=MODEL_FILE).data["models"]
    return models


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
        for hub_id in entry.findall(file.read_text(encoding="utf-8"))
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
    table: Mapping[str, Any] = read_shipped(path, shape=suggestions_shape()).data
    return table
