"""What LoRA adapts of a model: the layers that target modules name, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from advisor.estimate.model.dims import ALIASES, ATTENTION, MLP, Dims
from advisor.estimate.model.layers import Part
from advisor.estimate.run import Run

SPLIT = (*ATTENTION[:3], "qkv", "gate_proj", "up_proj", "gate_up")  # fused in some families
PARTS: tuple[Part, ...] = ("mixer", "mlp", "shared", "extra")
# What the path in front of a target module's name limits it to.
PLACES: Mapping[str, tuple[Part, ...]] = {
    "shared_expert": ("shared",), "mlp": ("mlp", "shared"), "feed_forward": ("mlp", "shared"),
    "attn": ("mixer",), "attention": ("mixer",), "mixer": ("mixer",), "mamba": ("mixer",),
}  # fmt: skip
# Values of target_modules that name a set of layers, whatever the model calls them.
ALL_LINEAR, SHARED, WITH_EXPERTS = "all-linear", "attention-and-shared", "with-experts"
NAMED_SETS = (ALL_LINEAR, SHARED, WITH_EXPERTS)


# What families call the matrix of token embeddings, and the one that makes logits.
EMBEDDINGS = frozenset(("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"))
OUTPUT = frozenset(("lm_head", "embed_out", "output"))


def embedding_matrices(names: Any) -> int:
    """How many of both matrices are among modules that PEFT copies and trains whole: 0, 1 or 2."""
    named = [names] if isinstance(names, str) else names if isinstance(names, list | tuple) else []
    last = {str(name).rpartition(".")[2] for name in named}
    return bool(last & EMBEDDINGS) + bool(last & OUTPUT)


def targets(run: Run) -> tuple[str, ...]:
    """The linear layers LoRA adapts, by common name.

    On a mixture of experts routed experts are among them only if the trainer holds them as linear
    layers: transformers 5 does not, and their corrections are counted by `trained_ends`.
    """
    return _targets(
        run.dims, run.target_modules, linear_experts=bool(run.trainer["linear_experts"])
    )


@lru_cache(maxsize=512)
def _targets(dims: Dims, wanted: str | tuple[str, ...], *, linear_experts: bool) -> tuple[str, ...]:
    found = list(
        dict.fromkeys(
            common
            for name in _named_targets(dims, wanted, linear_experts=linear_experts)
            if (common := _common_name(dims, name, linear_experts=linear_experts)) is not None
        )
    )
    if {"q_proj", "qkv"} <= set(found):  # one of the two naming schemes exists in a model
        found.remove("qkv")
    return tuple(found) or ATTENTION


def unknown_targets(run: Run) -> tuple[str, ...]:
    """Target modules that name no layer of this model: they count for nothing in an estimate."""
    linear = bool(run.trainer["linear_experts"])
    return tuple(
        name
        for name in _named_targets(run.dims, run.target_modules, linear_experts=linear)
        if not _named_ends(run.dims, name, linear_experts=linear)
    )


def trained_ends(run: Run) -> int:
    """Inputs + outputs of all layers that LoRA adapts: rank x this is what trains.

    A named set adapts every linear layer (PEFT's "all-linear"). Other targets are looked up as
    PEFT does, by the last part of a module's name; names of other families stand for the layers
    that do the same there.
    """
    dims, wanted, linear_experts = run.dims, run.target_modules, bool(run.trainer["linear_experts"])
    if wanted in NAMED_SETS:
        found = dims.peft_ends if _is_left_to_peft(run) else dims.shared_ends
        if dims.experts > 1 and linear_experts:
            found += sum(_expert_ends(dims, name) for name in MLP)
        return found + correction_ends(run)
    names = (wanted,) if isinstance(wanted, str) else wanted
    found = sum(
        _named_ends(dims, name, linear_experts=linear_experts) for name in dict.fromkeys(names)
    )
    return found or sum(_named_ends(dims, name, linear_experts=False) for name in ATTENTION)


def _named_ends(dims: Dims, name: str, *, linear_experts: bool) -> int:
    """Inputs + outputs of the layers that one target module stands for; 0 if there are none."""
    path, _, last = name.rpartition(".")
    last = last.lower()
    common = ALIASES.get(last)
    if common == "lm_head":
        return dims.hidden + dims.vocab
    ends = dims.named_ends
    parts = next((parts for word, parts in PLACES.items() if word in path), PARTS)
    found = sum(ends.get((last, part), 0) for part in parts)
    if not found and common is not None:
        found = sum(ends.get((common, part), 0) for part in parts)
    if not found and common in SPLIT and dims.is_plain:  # of a fused matrix, or of its parts
        sizes = dims.linear(common) if dims.experts < 2 or common not in MLP else None
        found = dims.layers * (sizes[0] + sizes[1]) if sizes is not None else 0
    if linear_experts and dims.experts > 1 and common in MLP and "shared" not in path:
        found += _expert_ends(dims, common)
    return found


def _expert_ends(dims: Dims, name: str) -> int:
    """Inputs + outputs of one linear layer of all experts of the model."""
    if name == "gate_proj" and not dims.gated:
        return 0
    return dims.routed_layers * dims.experts * (dims.hidden + dims.expert_width)


def correction_ends(run: Run) -> int:
    """Inputs + outputs of the tensors of routed experts that LoRA corrects in each forward pass; 0
    if it leaves them.

    Our own trainers leave them under "all-linear" (trainers/updates/lora.py); PEFT takes
    experts and routers of the families whose names it translates.
    """
    dims = run.dims
    if dims.experts < 2 or run.trainer["linear_experts"]:
        return 0
    if run.target_modules == WITH_EXPERTS:
        return dims.expert_ends
    return dims.renamed_ends if dims.renamed and _is_left_to_peft(run) else 0


def _is_left_to_peft(run: Run) -> bool:
    """Whether PEFT itself chooses what "all-linear" means in a mixture of experts on transformers 5
    (`_MOE_TARGET_MODULE_MAPPING` of peft 0.21).
    """
    chooses = run.target_modules == ALL_LINEAR and run.dims.experts > 1
    return chooses and not run.is_ours and not run.trainer["linear_experts"]


def _named_targets(
    dims: Dims, wanted: str | tuple[str, ...], *, linear_experts: bool
) -> Sequence[str]:
    if wanted in NAMED_SETS:
        mlp = [name for name in MLP if dims.linear(name) is not None]
        if dims.experts > 1 and not linear_experts:
            mlp = [f"shared_expert.{name}" for name in mlp if dims.shared_size]
        return (*ATTENTION, *mlp)
    return (wanted,) if isinstance(wanted, str) else wanted


def _common_name(dims: Dims, name: str, *, linear_experts: bool) -> str | None:
    """The common name of a layer of this model, None where it has none of that name."""
    common = ALIASES.get(name.rsplit(".", 1)[-1].lower())
    of_mlp = common in (*MLP, "gate_up") and dims.experts > 1
    if common is not None and ("shared_expert" in name or (of_mlp and not linear_experts)):
        common = f"shared_{common}"
    return (
        common
        if common == "lm_head" or (common is not None and dims.linear(common) is not None)
        else None
    )
