"""Tiny random mixtures of experts of several families, and their training by two processes."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from advisor.plan.read import read_plan
from trainers.job.job import make_job
from trainers.job.machine import run_and_leave

SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "num_experts_per_tok": 2, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
# What each family calls the rest.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 32, "head_dim": 8},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "moe_intermediate_size": 16,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
}


def tiny_mixture(family: str, **changed: Any) -> Any:
    """A model of the family with random weights: the same each time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **changed})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def train_all(plans: Sequence[Path], *, part: str | None = None) -> None:
    """Train each plan's stage into a folder beside it, in this process, maybe one of several."""
    for path in plans:
        plan = read_plan(path)
        (stage,) = plan.stages
        job = make_job(
            plan, stage=stage.name, run=path.with_suffix(""), folder=path.parent, max_steps=2, part=part,
        )  # fmt: skip
        import_module(f"trainers.{stage.objective}").train(job)


if __name__ == "__main__":
    sys.exit(run_and_leave(lambda: train_all(list(map(Path, sys.argv[1:]))) or 0))
