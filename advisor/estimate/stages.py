"""A stage's settings -> RunSpec: the one place where plan keys become the estimator's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.estimate.padding import row_lengths
from advisor.estimate.types import RunSpec
from advisor.ground.types import ModelShape, TokenStats
from advisor.methods import objective as objective_named

# Keys of an update or objective that a formula reads.
OPTIONS = (
    "bottleneck",
    "placement",
    "prefix_tokens",
    "response_tokens",
    "generations",
    "beta",
    "ppo_epochs",
    "on_policy",
    "teacher_params",
    "teacher_quantization",
    "verifier",
    "reward_model",
    "reward",
    "rewards",
    "dropout",
    "train_embeddings",
    "rollouts",
    "server_memory",
    "group_by_length",
)

# Families whose layers look at whole rows, none through a window: on the CPU the bundled trainers
# lay their rows end to end (trainers/frame/flat_rows.py, which tries it on the model itself).
WHOLE_ROWS = frozenset(
    ("llama", "qwen2", "qwen3", "granite", "olmo", "olmo2", "gpt2", "gpt_neox", "opt", "smollm3")
)


# What families call the matrix of token embeddings, and the one that makes logits.
EMBEDDINGS = frozenset(("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"))
OUTPUT = frozenset(("lm_head", "embed_out", "output"))


def embedding_matrices(names: Any) -> int:
    """How many of both matrices are among modules that PEFT copies and trains whole: 0, 1 or 2."""
    named = [names] if isinstance(names, str) else names if isinstance(names, list | tuple) else []
    last = {str(name).rpartition(".")[2] for name in named}
    return bool(last & EMBEDDINGS) + bool(last & OUTPUT)


def stage_spec(
    objective: str,
    update: str,
    quantization: str | None,
    settings: Mapping[str, Any],
    *,
    gpus: int = 1,
    sharding: str | None = None,
) -> RunSpec:
    """The estimator's view of one stage (plain values by plan key); a key that is missing or None
    takes what the trainers use.
    """
    targets = settings.get("target_modules") or "all-linear"
    passed = settings.get("trl") or {}
    options = {key: settings[key] for key in OPTIONS if settings.get(key) is not None}
    if whole := embedding_matrices((settings.get("peft") or {}).get("modules_to_save")):
        options["embedding_copies"] = whole
    projected = passed.get("optim_target_modules") or "all-linear"
    return RunSpec(
        objective=objective,
        update=update,
        quantization=quantization,
        double_quantization=settings.get("double_quantization") is not False,
        weights_dtype=str(settings.get("weights_dtype") or "bfloat16"),
        precision=settings.get("precision"),
        optimizer=settings.get("optimizer"),
        optim_args=passed.get("optim_args"),
        optim_target_modules=projected if isinstance(projected, str) else tuple(projected),
        rank=settings.get("rank"),
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        micro_batch_size=int(settings["micro_batch_size"]),
        seq_len=int(settings["seq_len"]),
        grad_accum=int(settings["grad_accum"]),
        packing=bool(settings.get("packing")),
        gradient_checkpointing=bool(settings.get("gradient_checkpointing")),
        attention=str(settings.get("attention") or "sdpa"),
        kernels=str(settings.get("kernels") or "none"),
        compile=bool(settings.get("compile")),
        gpus=gpus,
        offload_weights=bool(settings.get("offload")),
        sharding=sharding or ("ddp" if gpus > 1 else None),
        options=options,
    )


def with_rows(
    spec: RunSpec,
    tokens: TokenStats | None,
    shape: ModelShape | None,
    *,
    cpu: bool,
    share: float = 1.0,
) -> RunSpec:
    """The spec with the lengths of the rows that it is for, where they are known: no micro-batch is
    wider than the longest of them. A stage that writes answers keeps its seq_len, which holds both.

    Args:
        share: Of the rows that are read.
    """
    what = objective_named(spec.objective)
    if tokens is None or not tokens.histogram or what.generates:
        return spec
    flat = (
        cpu
        and what.logits == "tiles_on_gpu"
        and spec.update != "prefix"  # it stands before each row
        and spec.attention in ("sdpa", "auto")
        and shape is not None
        and shape.architecture in WHOLE_ROWS
        and not spec.options.get("group_by_length")  # rows as long as the longest meet in a batch
    )
    return replace(
        spec, lengths=row_lengths(tokens, seq_len=spec.seq_len, share=share), unpadded=flat
    )
