"""Configurations that keep what we read in lists and objects of their own, as flat ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.ground.model_config import NAMES, read

# Kimi's `linear_attn_config`: its names -> those that other families have.
KIMI_DELTA = {
    "num_heads": "linear_num_heads", "head_dim": "linear_head_dim",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}  # fmt: skip
ABSENT = "none"  # a layer's mixer or MLP that was left out
BLOCK_MULTIPLE = 256  # of the MLP's width in `block_configs`


def flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with the number of its layers (Nemotron-H states only a list of them), the
    sizes of Kimi's delta attention and the blocks that a search chose (Nemotron Super).
    """
    found: dict[str, Any] = {}
    delta = config.get("linear_attn_config")
    if isinstance(delta, Mapping):
        found |= {KIMI_DELTA[name]: delta[name] for name in KIMI_DELTA if delta.get(name)}
    blocks = config.get("block_configs")
    if isinstance(blocks, list) and blocks:
        found |= _of_blocks(config, blocks)
    if read(config, "layers") is None:
        lists = (config.get("layers_block_type"), config.get("hybrid_override_pattern"))
        layers = next((item for item in lists if isinstance(item, list | str) and item), None)
        if layers is not None:
            found[NAMES["layers"][0]] = len(layers)
    return {**config, **found} if found else config


def _of_blocks(config: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `block_configs` says: which blocks lack attention or an MLP, how many heads share keys
    and values, and the width of the MLP, on average: parameters and work grow linearly with it.
    """
    mixers, mlps = ([block.get(part) or {} for block in blocks] for part in ("attention", "ffn"))
    found: dict[str, Any] = {
        "layer_types": [ABSENT if part.get("no_op") else "full_attention" for part in mixers],
        "mlp_layer_types": [ABSENT if part.get("no_op") else "dense" for part in mlps],
    }
    groups = [int(part["n_heads_in_group"]) for part in mixers if part.get("n_heads_in_group")]
    if groups:
        heads = read(config, "heads") or 0
        found["num_key_value_heads"] = round(sum(heads / group for group in groups) / len(groups))
    hidden = read(config, "hidden_size") or 0
    widths = [int(2 * part["ffn_mult"] * hidden / 3) for part in mlps if part.get("ffn_mult")]
    if widths:
        rounded = [-(-width // BLOCK_MULTIPLE) * BLOCK_MULTIPLE for width in widths]
        found["intermediate_size"] = round(sum(rounded) / len(rounded))
    return found
