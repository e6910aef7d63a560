"""JSON Schemas of the catalogues: cards, prices, models.

Keys that a catalogue's reader or its header comment explains, and no others.
"""

from typing import Any

from advisor.probe.catalogue import load_catalogue
from advisor.ruleset.facts import load_facts
from tests.generating.schema_parts import (
    DATE,
    TEXT,
    TEXTS,
    VERSION,
    Schema,
    closed,
    head,
    map_of,
    one_or_more,
    ref,
)

NUMBER: Schema = {"type": "number", "minimum": 0}
MAYBE: Schema = {"type": ["number", "null"], "minimum": 0}
COUNT: Schema = {"type": "integer", "minimum": 1}
YES_NO: Schema = {"type": "boolean"}
FORMATS = ("fp16", "bf16", "fp8", "fp4", "tf32", "fp32")
RELEASE: Schema = {
    "type": "string",
    "pattern": r"^\d+\.\d+$",
    "description": "in quotes, so that 12.10 stays 12.10",
}


def keys(schema: Schema, *names: str) -> dict[str, Schema]:
    """The same schema under several keys."""
    return dict.fromkeys(names, schema)


def hardware_schema() -> Schema:
    """rules/hardware/<vendor>.yaml."""
    memory = closed(
        {
            **keys(MAYBE, "sold_gb", "nvml_mib", "probe_mib", "largest_sold_gb"),
            "also_sold_gb": {"type": "array", "items": NUMBER}, "source": TEXT, "probe": TEXT,
            "seen_otherwise": {"type": "object"},
        },
        "probe",
    )  # fmt: skip
    link = closed(
        {
            "kind": TEXT,
            **keys(TEXT, "bridge", "domain", "topology"),
            **keys(
                NUMBER,
                "bidirectional_gb_s",
                "cards",
                "nvlink_generation",
                "pcie_generation",
                "pcie_lanes",
            ),
        },
        "kind",
    )
    card = closed(
        {
            "name": TEXT, "nvml_names": TEXTS, "other_names": TEXTS, "names_from": TEXT,
            "segment": TEXT, "architecture": TEXT, "compute_capability": RELEASE,
            "gfx_target": {"type": ["string", "null"]}, "memory": memory,
            "devices_per_board": COUNT,
            "supports": closed(keys({"type": ["boolean", "null"]}, *FORMATS)),
            "tflops_dense": closed(keys(MAYBE, *FORMATS)),
            "tflops_basis": closed(keys({"type": "array", "items": {"enum": list(FORMATS)}},
            "published", "secondary", "derived")),
            "fp32_accumulate": closed({"rate": {"enum": ["full", "half"]},
            "fp16_accumulate_tflops": NUMBER}, "rate"),
            "achieved_matmul_bf16": closed({"tflops": NUMBER, "of_peak": {"type": "number",
            "minimum": 0, "maximum": 1.1}, "source": TEXT}, "tflops", "source"),
            "bandwidth_gb_s": MAYBE, "interconnect": link, "tdp_w": MAYBE, "spec_url": TEXT,
            "sources": TEXTS, "note": TEXT,
        },
        "name", "memory", "sources",
    )  # fmt: skip
    return head(
        "A catalogue of cards",
        **closed(
            {"version": VERSION, "vendor": TEXT, "gpus": map_of(card)}, "version", "vendor", "gpus"
        ),
    )


def hardware_sources_schema() -> Schema:
    """rules/hardware/sources.yaml."""
    return head(
        "Where the facts about cards come from",
        **closed(
            {
                "version": VERSION,
                "compiled": DATE,
                "sources": map_of(TEXT),
                "derivation": {"type": "object"},
            },
            "version",
            "sources",
        ),
    )


def cuda_schema() -> Schema:
    """rules/hardware/cuda.yaml."""
    wheel = closed(
        {"cuda": RELEASE, "from": RELEASE, "to": RELEASE, "torch_below": RELEASE},
        "cuda",
        "from",
        "to",
    )
    release = closed(
        {
            "releases_from": RELEASE,
            "releases_below": RELEASE,
            "requirement": TEXT,
            "from": RELEASE,
            "to": RELEASE,
        },
        "releases_from",
        "requirement",
        "from",
        "to",
    )
    properties: dict[str, Schema] = {
        "version": VERSION, "checked": DATE, "formats_from_capability": closed(keys(RELEASE,
        *FORMATS)), "driver_from": map_of(COUNT), "driver_source": TEXT,
        "wheels": {"type": "array", "items": wheel}, "wheels_source": TEXT,
        "pip_torch": map_of(release),
    }  # fmt: skip
    return head("What joins a card, its driver and PyTorch", **closed(properties, "version"))


def prices_schema() -> Schema:
    """rules/prices/*.yaml: a card's id -> a provider's price."""
    provider = closed(
        {
            "kind": {"enum": ["cloud", "marketplace", "broker"]}, "date": {"anyOf": [DATE,
            {"type": "null"}]}, "dates": map_of(DATE), "source": TEXT,
            "count": {**YES_NO,
            "description": "false: listed, but no card's price is taken from it"},
        },
        "kind", "source",
    )  # fmt: skip

    bought = closed(
        {"value": NUMBER, "kind": TEXT, "street": {"enum": ["above", "below"]}, "source": TEXT},
        "value",
        "source",
    )

    def per_card(name: str) -> Schema:
        return {
            "type": "object",
            "properties": {card: ref(name) for card in load_catalogue()},
            "additionalProperties": ref(name),
        }

    hourly = keys(
        per_card("hourly"), "on_demand_usd_per_h", "spot_usd_per_h", "version_not_stated_usd_per_h"
    )
    properties: dict[str, Schema] = {
        "version": VERSION,
        "compiled": DATE,
        "providers": map_of(provider),
        **hourly,
        "purchase_usd": per_card("bought"),
        "left_out": TEXTS,
    }
    return head(
        "Prices of cards in US dollars",
        **closed(properties, "version", "compiled"),
        definitions={"hourly": map_of(NUMBER), "bought": bought},
    )


def models_schema() -> Schema:
    """rules/models/<organisation>.yaml: what config.json says of each model."""
    numbers = (
        "params", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
        "intermediate_size", "vocab_size", "context_length", "num_experts",
        "num_experts_per_token", "moe_intermediate_size", "shared_expert_intermediate_size",
        "sliding_window", "full_attention_interval", "global_head_dim",
        "hidden_size_per_layer_input", "linear_key_head_dim", "linear_num_key_heads",
        "linear_num_value_heads", "linear_value_head_dim",
        "num_global_key_value_heads", "num_kv_shared_layers", "vocab_size_per_layer_input",
    )  # fmt: skip
    texts = (
        "model_type",
        "params_source",
        "source",
        "license",
        "license_source",
        "notes",
        "same_architecture_as",
    )
    layers = {
        "layer_types_summary": closed(
            keys({"type": "integer", "minimum": 0}, "full_attention", "sliding_attention")
        )
    }
    model = closed(
        {
            **keys(TEXT, *texts),
            **keys(COUNT, *numbers),
            **keys(
                YES_NO, "tie_word_embeddings", "gated", "attention_k_eq_v", "use_double_wide_mlp"
            ),
            **layers,
        },
        "source",
    )
    return head(
        "Architectures of published models",
        **closed({"version": VERSION, "models": map_of(model)}, "models"),
    )


def suggestions_schema() -> Schema:
    """rules/models/suggestions.yaml."""
    task: dict[str, Any] = {"enum": ["any", *load_facts()["task"].values]}
    row = closed(
        {"model": TEXT, "params_b": NUMBER, "kind": TEXT, "tasks": one_or_more(task),
        "languages": TEXTS, "license": TEXT, "why": TEXT, "source": TEXT},
        "model", "params_b", "tasks", "license", "why", "source",
    )  # fmt: skip
    lists = keys({"type": "array", "items": row}, "models", "encoders")
    return head(
        "Models to start from where none was named",
        **closed({"version": VERSION, "checked": DATE, **lists}, "checked", "models"),
    )


def sizes_schema() -> Schema:
    """rules/models/typical_sizes.yaml."""
    row = closed(
        {
            "of": TEXT,
            "params": COUNT,
            "shape": {"type": "array", "items": COUNT, "minItems": 7, "maxItems": 7},
            "tied": YES_NO,
        },
        "of",
        "params",
        "shape",
        "tied",
    )
    return head(
        "Shapes that stand for a size",
        **closed({"version": VERSION, "sizes": {"type": "array", "items": row}}, "sizes"),
    )
