"""llm-flops: training memory from a model's dimensions."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "llm-flops"
NOTE = (
    "full fine-tuning with Adam on one GPU; float32 master weights beside 16-bit ones, no logits;"
    " its own count of parameters"
)
HAS_ADAPTERS = False
HAS_CONTEXT = False
# Run in its own environment: once, and for each item.
IMPORTS = """
from llmflops import estimate
"""
BODY = """
    found = estimate(item.pop("model"), gpu=None, training=True, allow_hf_fetch=False, **item)
    return found["memory"] / 2**30, 0
"""


def arguments(job: Job) -> Arguments:
    """Its model configuration, batch, length and precision."""
    if job.gpus > 1 or job.method != "full" or job.optimizer != "adamw":
        return "Adam training of all parameters on one GPU only"
    model = {
        "name": "shape", "hidden_size": job.hidden, "num_layers": job.layers,
        "num_attention_heads": job.heads, "num_key_value_heads": job.kv_heads,
        "head_dim": job.head_dim, "vocab_size": job.vocab,
        "intermediate_size": job.intermediate, "tie_word_embeddings": job.tied,
    }  # fmt: skip
    if job.experts:
        model |= {"num_experts": job.experts, "num_experts_per_tok": job.active_experts or 1}
    return {
        "model": model, "batch_size": job.micro_batch_size, "sequence_length": job.seq_len,
        "precision": job.weights_dtype, "optimizer": "adamw",
        "gradient_checkpointing": job.recompute,
    }  # fmt: skip
