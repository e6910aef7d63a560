"""A published case in words that calculators of training memory share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.ground.types import ModelShape
from advisor.probe.catalogue import find_gpu

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
# Fused and renamed projections as the calculators' seven names.
SPLIT = {
    **{name: (name,) for name in (*ATTENTION, *MLP)},
    "c_attn": ATTENTION[:3], "W_pack": ATTENTION[:3], "query_key_value": ATTENTION[:3],
    "c_proj": ("o_proj", "down_proj"), "w1": ("gate_proj",), "w2": ("up_proj",),
}  # fmt: skip
Arguments = dict[str, Any] | str  # what a calculator is asked, or why it cannot be asked


@dataclass(frozen=True, kw_only=True)
class Job:
    """A published case in words that calculators share."""

    params: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    experts: int | None
    active_experts: int | None
    method: str  # full | lora | qlora
    weights_dtype: str  # bf16 | fp16 | fp32
    states_dtype: str  # of the optimizer's moments: bf16 | fp32
    mixed: bool
    optimizer: str  # adamw | adamw_8bit
    rank: int | None
    targets: tuple[str, ...]
    double_quant: bool
    micro_batch_size: int
    seq_len: int
    recompute: bool
    flash: bool
    gpus: int
    sharding: str
    gpu_mib: int | None
    gpu: str


def job_of(case: Mapping[str, Any], shape: ModelShape) -> Job | str:
    """The case as a job, or what no calculator here can be told of it."""
    unsaid = {
        "offload_weights": case.get("offload_weights"),
        "adamw_cpu": case["optimizer"] == "adamw_cpu",
        "optimizer_in_backward": case["optimizer_in_backward"],
        "train_embeddings": case.get("train_embeddings"),
        "selective checkpointing": not isinstance(case["gradient_checkpointing"], bool),
    }  # fmt: skip
    reasons = [name for name, holds in unsaid.items() if holds]
    if reasons:
        return ", ".join(reasons)
    hidden, layers, heads = shape.hidden_size, shape.layers, shape.heads
    if (
        hidden is None
        or layers is None
        or heads is None
        or shape.intermediate_size is None
        or shape.vocab_size is None
    ):
        return "dimensions are not known"
    dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[case["weights_dtype"]]
    wanted = case.get("target_modules") or ()
    names = (
        (*ATTENTION, *MLP)
        if wanted == "all-linear"
        else tuple(name for module in wanted for name in SPLIT.get(module, ()))
    )
    card = find_gpu(case["gpu"], lenient=True).spec if case.get("gpu") else None
    return Job(
        params=shape.params, hidden=hidden, layers=layers, heads=heads,
        kv_heads=shape.kv_heads or heads, head_dim=shape.head_dim or hidden // heads,
        intermediate=shape.intermediate_size, vocab=shape.vocab_size,
        tied=bool(shape.tied_embeddings), experts=shape.experts,
        active_experts=shape.experts_per_token,
        method=case["update"], weights_dtype=dtype, mixed=case["precision"] == "mixed",
        # PyTorch keeps both moments in the dtype of what is trained; mixed precision trains float32
        # adapters.
        states_dtype="bf16" if dtype != "fp32" and not case["fp32_master_weights"] and (case["update"] == "full" or case["precision"] == "pure") else "fp32",
        optimizer="adamw_8bit" if case["optimizer"].endswith("8bit") else "adamw",
        rank=case.get("rank"),
        targets=tuple(name for name in (*ATTENTION, *MLP) if name in names),
        double_quant=case["double_quantization"], micro_batch_size=case["micro_batch_size"],
        seq_len=case["seq_len"], recompute=case["gradient_checkpointing"],
        flash=case["attention"] != "eager", gpus=case["gpus"],
        sharding=case.get("sharding") or "none",
        gpu_mib=None if card is None or not card.memory_bytes else card.memory_bytes // 2**20,
        gpu=case.get("gpu") or "",
    )  # fmt: skip


def shared(case: Mapping[str, Any]) -> bool:
    """Whether every calculator of adapters has words for it, but for its counter and packing."""
    said = (
        case["gpus"] == 1
        and case["weights_dtype"] == "bfloat16"
        and case["optimizer"] in ("adamw", "adamw_fused", "adamw_8bit")
        and case["loss"] == "full"
    )
    targets = case.get("target_modules") or ()
    return bool(said and (targets == "all-linear" or all(name in SPLIT for name in targets)))
