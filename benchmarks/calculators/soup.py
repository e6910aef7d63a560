"""soup-cli: the function behind `soup profile`."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "soup-cli"
NOTE = "one GPU; a model is its size alone; no targets, dtypes or attention; its GB read as GiB"
# Run in its own environment: once, and for each item.
IMPORTS = """
from soup_cli.utils.profiler import estimate_total
"""
BODY = """
    found = estimate_total(**item)
    return found["total_memory_gb"], found["overhead_gb"]
"""


def arguments(job: Job) -> Arguments:
    """Arguments behind `soup profile`; it has no words for dtype, targets or attention."""
    if job.gpus > 1:
        return "one GPU only"
    if job.weights_dtype == "fp32":
        return "no float32"
    return {
        "model_name": "model", "model_params_b": job.params / 1e9,
        "quantization": "4bit" if job.method == "qlora" else "none", "lora_r": job.rank or 16,
        "lora_alpha": 16,
        "batch_size": job.micro_batch_size, "seq_len": job.seq_len,
        "optimizer": {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit"}[job.optimizer],
        "gradient_checkpointing": job.recompute, "peft": job.method,
    }  # fmt: skip
