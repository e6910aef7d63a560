"""Names of linear layers: what families call the layers that do the same."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.estimate.model.layers import Part, Structure

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION_NAMES = (*ATTENTION, "qkv")
SPLIT = (*ATTENTION[:3], "qkv", "gate_proj", "up_proj", "gate_up")  # fused in some families
PARTS: tuple[Part, ...] = ("mixer", "mlp", "shared", "extra")
# What the path in front of a target module's name limits it to.
PLACES: Mapping[str, tuple[Part, ...]] = {
    "shared_expert": ("shared",), "mlp": ("mlp", "shared"), "feed_forward": ("mlp", "shared"),
    "attn": ("mixer",), "attention": ("mixer",), "mixer": ("mixer",), "mamba": ("mixer",),
}  # fmt: skip
# Other names for the same linear layers. "c_proj" is the attention's output in GPT-2 and Qwen-1
# (and a small MLP's there: left out).
ALIASES = {
    "q_proj": "q_proj", "q": "q_proj", "query": "q_proj", "q_lin": "q_proj", "wq": "q_proj",
    "k_proj": "k_proj", "k": "k_proj", "key": "k_proj", "k_lin": "k_proj", "wk": "k_proj",
    "v_proj": "v_proj", "v": "v_proj", "value": "v_proj", "v_lin": "v_proj", "wv": "v_proj",
    "o_proj": "o_proj", "out_proj": "o_proj", "output_proj": "o_proj", "dense": "o_proj",
    "out_lin": "o_proj", "wo": "o_proj", "proj": "o_proj", "c_proj": "o_proj",
    "gate_proj": "gate_proj", "w1": "gate_proj", "fc_1": "gate_proj",
    "w2": "down_proj",
    "up_proj": "up_proj", "w3": "up_proj", "fc1": "up_proj", "fc_2": "up_proj",
    "dense_h_to_4h": "up_proj", "c_fc": "up_proj", "lin1": "up_proj", "fc": "up_proj",
    "down_proj": "down_proj", "fc2": "down_proj", "dense_4h_to_h": "down_proj", "lin2": "down_proj",
    "c_attn": "qkv", "query_key_value": "qkv", "qkv_proj": "qkv", "qkv": "qkv", "attn": "qkv",
    "wqkv": "qkv", "w_pack": "qkv",
    "gate_up_proj": "gate_up", "wi": "gate_up", "lm_head": "lm_head", "head": "lm_head",
}  # fmt: skip


def ends_by_name(structure: Structure) -> Mapping[tuple[str, str], int]:
    """(name of a linear layer, part of the model) -> inputs + outputs of all that LoRA adapts."""
    found: dict[tuple[str, str], int] = {}
    for linear, count in structure.all_linears:
        if not linear.adapted:
            continue
        key = (linear.name.lower(), linear.part)
        found[key] = found.get(key, 0) + count * linear.ends
    return found


def by_common_name(ends: Mapping[tuple[str, str], int]) -> Mapping[tuple[str, str], int]:
    """The same for the names under which `ALIASES` gathers them."""
    found = dict(ends)
    for (name, part), size in ends.items():
        common = ALIASES.get(name)
        if common is None or common == name or (common in ATTENTION_NAMES) != (part == "mixer"):
            continue
        if (common, part) not in ends:
            found[common, part] = found.get((common, part), 0) + size
    return found
