"""peft-doctor: `peft-doctor estimate`, one formula for parameters, length and batch."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "peft-doctor"
NOTE = "one GPU, 16 bit; no optimizer, rank or targets; its overhead is at least 1 GB, or 12 %"
# Run in its own environment: once, and for each item.
IMPORTS = """
from peft_doctor.estimator import estimate_vram_gb
"""
BODY = """
    report = estimate_vram_gb("model", **item)
    parts = next(one for one in report.issues if one.code == "estimate.total_vram").details
    return report.metadata["estimated_total_gb"], parts["overhead_gb"]
"""


def arguments(job: Job) -> Arguments:
    """Every argument that it has."""
    if job.gpus > 1:
        return "one GPU only"
    if job.weights_dtype == "fp32":
        return "no float32"
    return {
        "seq_len": job.seq_len, "batch_size": job.micro_batch_size,
        "qlora": job.method == "qlora", "lora": job.method != "full",
        "gradient_checkpointing": job.recompute, "params_billion": job.params / 1e9,
        "hidden_size": job.hidden, "num_layers": job.layers,
    }  # fmt: skip
