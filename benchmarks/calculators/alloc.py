"""alloc: its scan of a parameter count, without running anything."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "alloc"
NOTE = (
    "full fine-tuning on one GPU; float32 master weights and gradients beside 16-bit weights; one"
    " tensor a layer as activations, checkpointing unknown to it"
)
HAS_ADAPTERS = False
# Run in its own environment: once, and for each item.
IMPORTS = """
from alloc.ghost import ghost
"""
BODY = """
    found = ghost(**item)
    return found.total_gb, found.buffer_gb
"""


def arguments(job: Job) -> Arguments:
    """Arguments of its `ghost`."""
    if job.gpus > 1 or job.method != "full":
        return "training of all parameters on one GPU only"
    return {
        "param_count": job.params, "dtype": job.weights_dtype,
        "batch_size": job.micro_batch_size, "seq_length": job.seq_len, "hidden_dim": job.hidden,
        "optimizer_type": {"adamw": "AdamW", "adamw_8bit": "AdamW8bit"}[job.optimizer],
    }  # fmt: skip
