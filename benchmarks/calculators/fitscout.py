"""fitscout: estimate_memory() behind `fitscout`, without its calibration on one's own card."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "fitscout"
NOTE = "one GPU; adapters always on queries and values; no batch-wise fused loss"
# Run in its own environment: once, and for each item.
IMPORTS = """
from fitscout.memory.estimator import estimate_memory
from fitscout.model.profile import ModelProfile
"""
BODY = """
    found = estimate_memory(ModelProfile(**item["profile"]), **item["settings"])
    return found.total_gb, found.overhead_gb
"""


def arguments(job: Job) -> Arguments:
    """Fields of its profile, and its settings."""
    if job.gpus > 1:
        return "one GPU only"
    return {
        "profile": {
            "params": job.params, "num_layers": job.layers, "hidden_size": job.hidden,
            "num_attention_heads": job.heads, "num_kv_heads": job.kv_heads,
            "intermediate_size": job.intermediate, "vocab_size": job.vocab,
            "tie_word_embeddings": job.tied, "num_experts": job.experts or 1,
            "dtype_bytes": 4 if job.weights_dtype == "fp32" else 2,
        },
        "settings": {
            "method": job.method, "micro_batch": job.micro_batch_size, "seq_len": job.seq_len,
            "grad_ckpt": job.recompute, "opt_8bit": job.optimizer == "adamw_8bit",
            "lora_rank": job.rank or 16,
            "grad_dtype_bytes": 4 if job.weights_dtype == "fp32" else 2,
        },
    }  # fmt: skip
