"""How each family of models builds its layers: rules/layouts.yaml, one entry per family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from advisor.ground.annotated import build, shape_of
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Keys, ListOf, MapOf, Shape, Text
from advisor.ground.yaml_files import read_shipped

Bias = Literal["none", "config", "config-qkv", "qkv", "qkvo", "o"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What distinguishes a family from LLaMA."""

    mixer: Annotated[
        str, "letter (structure.MIXERS) of layers of which config.json says nothing"
    ] = "a"
    linear: Annotated[str, 'letter that "linear_attention" in `layer_types` stands for'] = "d"
    delta: Annotated[
        str, "matrices of gated DeltaNet's input: qwen3_next two, olmo_hybrid six, else four"
    ] = ""
    every: Annotated[
        int,
        "of layers with a window, every nth sees everything; 1: all have the window; 0: none has"
        " one unless `layer_types` says so",
    ] = 0
    first_full: Annotated[bool, "of each `every` layers the first sees everything"] = False
    bias: Annotated[Bias, "projections with biases; config: all if `attention_bias` is set"] = (
        "config"
    )
    norm: Annotated[
        Literal["", "head", "whole", "config"],
        "RMSNorms of queries and keys; config: of each head if `use_qk_norm` is set",
    ] = ""
    gate: Annotated[
        Literal["", "queries", "heads"],
        "what scales attention's output: a second half of q_proj, or a number per head",
    ] = ""
    sinks: bool = False
    capped: bool = False
    fused: Annotated[str, "the one matrix of all three projections"] = ""
    names: Annotated[tuple[str, ...], "the projections"] = ("q_proj", "k_proj", "v_proj")
    output: Annotated[str, "the projection of the output"] = "o_proj"
    gated: bool = True
    mlp: Annotated[tuple[str, ...], "gate, up and down; up and down where it is not gated"] = (
        "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    fused_mlp: Annotated[str, "gate and up where they are one matrix"] = ""
    mlp_bias: Annotated[bool | None, "null: as `mlp_bias` in config.json"] = None
    alone: Annotated[bool, "a layer is a mixer or an MLP, with one norm"] = False
    shared: Annotated[int, "shared experts where config.json gives no number"] = 0
    shared_gate: Annotated[bool, "a number per token scales the shared expert"] = False
    beside: Annotated[bool, "layers with experts have a dense MLP too"] = False
    refused: Annotated[str, "a linear layer that PEFT refuses to adapt"] = ""
    linear_router: Annotated[str, "the router, where it is a linear layer"] = ""
    fused_shared: Annotated[str, "gate and up of the shared experts as one matrix"] = ""
    renamed: Annotated[
        bool,
        "transformers 4 had linear layers for its experts, which PEFT's all-linear finds again",
    ] = False
    router_biases: Annotated[int, "parameters per expert beside the router's matrix"] = 0
    expert_biases: bool = False
    norms: Annotated[int, "per layer"] = 2
    norm_bias: Annotated[bool, "they are LayerNorms with a bias"] = False
    first_norm: Annotated[bool, "the first layer has all of them"] = True
    end_norms: Annotated[int, "outside of the layers, in multiples of the hidden size"] = 1
    positions: Annotated[
        int | None, "rows of a table of learned positions beyond the context; null: no table"
    ] = None
    token_types: Annotated[int | None, "rows of a table of token types; null: none"] = None
    tables: Annotated[int, "such tables of positions (encoder and decoder have one each)"] = 1
    relative: Annotated[int, "rows of relative positions as wide as the model (DeBERTa)"] = 0
    tables_each: Annotated[bool, "each layer has a table of relative positions (UMT5)"] = False
    pooler: Annotated[bool, "a square matrix over the first token"] = False
    head_bias: Annotated[bool, "the output matrix has a bias"] = False
    tied: Annotated[bool, "one matrix embeds and answers where config.json does not say"] = False
    plus: Annotated[int, "further parameters per layer"] = 0
    defaults: Annotated[
        Mapping[str, int], "sizes that the configuration class has and config.json may leave out"
    ] = field(default_factory=dict)
    exact: Annotated[bool, "the count was compared with transformers' own modules"] = True


PLAIN = Layout(exact=False)  # of a family that nobody compared
_KEYS: dict[str, Shape] = {**shape_of(Layout).keys, "like": Text(help="one of `bases`")}
LAYOUTS_FILE = Keys(
    help="How each family of models builds its layers",
    keys={
        "version": Choice(values=(1,)),
        "bases": MapOf(of=Keys(keys=_KEYS), help="what several families start from"),
        "layouts": ListOf(
            of=Keys(
                keys={**_KEYS, "families": ListOf(of=Text(), least=1)},
                required=("families",),
            )
        ),
    },
    required=("version", "bases", "layouts"),
)


@cache
def layout_of(family: str | None) -> Layout:
    """The family's entry; a LLaMA's for a family that has none."""
    entry = layouts().get(family or "")
    return PLAIN if entry is None else build(Layout, entry)


@cache
def layouts() -> Mapping[str, Mapping[str, Any]]:
    """Family -> its keys, with those of what it is like."""
    data = read_shipped(rules_dir() / "layouts.yaml", shape=LAYOUTS_FILE).data
    bases: dict[str, dict[str, Any]] = {}
    for name, entry in data["bases"].items():
        bases[name] = _whole(entry, bases)
    return {
        family: _whole(entry, bases) for entry in data["layouts"] for family in entry["families"]
    }


def _whole(entry: Mapping[str, Any], bases: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    own = {key: value for key, value in entry.items() if key not in ("families", "like")}
    return {**(bases[entry["like"]] if "like" in entry else {}), **own}
