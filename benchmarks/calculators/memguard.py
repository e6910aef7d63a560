"""ml-memguard: dimensions and settings to terms, for PyTorch and MLX."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "ml-memguard"
NOTE = (
    "one GPU; no vocabulary and so no logits, a key/value cache while training; every LoRA target"
    " is as wide as the hidden state"
)
# Run in its own environment: once, and for each item.
IMPORTS = """
from memory_guard.estimator import FinetuneMethod, ModelArch, ModelSpec, TrainSpec, estimate_training_memory
"""
BODY = """
    model = ModelSpec(**{**item["model"], "arch": ModelArch(item["model"]["arch"])})
    train = TrainSpec(**{**item["train"], "method": FinetuneMethod(item["train"]["method"])})
    found = estimate_training_memory(model=model, train=train)
    return found.total_mb / 1024, found.overhead_mb / 1024
"""


def arguments(job: Job) -> Arguments:
    """Fields of its ModelSpec and TrainSpec."""
    if job.gpus > 1:
        return "one GPU only"
    bits = {"bf16": 16, "fp16": 16, "fp32": 32}[job.weights_dtype]
    model = {
        "params": job.params, "hidden_dim": job.hidden, "num_heads": job.heads,
        "num_kv_heads": job.kv_heads, "num_layers": job.layers,
        "intermediate_dim": job.intermediate, "bits": 4 if job.method == "qlora" else bits,
        "arch": "moe" if job.experts else "dense", "num_experts": job.experts or 1,
        "num_active_experts": job.active_experts or 1,
    }  # fmt: skip
    train = {
        "method": job.method, "batch_size": job.micro_batch_size, "seq_length": job.seq_len,
        "lora_rank": job.rank or 16, "lora_layers": job.layers,
        "lora_targets": len(job.targets) or 4, "optimizer": "adamw",
        "grad_checkpoint": job.recompute, "mixed_precision": bits == 16 or job.mixed,
        "qlora_double_quant": job.double_quant, "flash_attention": job.flash,
    }  # fmt: skip
    return {"model": model, "train": train}
