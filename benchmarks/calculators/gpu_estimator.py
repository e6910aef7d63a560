"""gpu-estimator: parameters, batch and length to memory and a number of GPUs."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "gpu-estimator"
NOTE = (
    "full fine-tuning with Adam; activations from the square root of the parameter count; its total"
    " is read, not its share of a GPU"
)
HAS_ADAPTERS = False
HAS_CONTEXT = False
# Run in its own environment: once, and for each item.
IMPORTS = """
from gpu_estimator.estimator import GPUEstimator
"""
BODY = """
    return GPUEstimator().estimate(**item).total_memory_gb, 0
"""


def arguments(job: Job) -> Arguments:
    """Arguments of its `estimate`."""
    if job.gpus > 1 or job.method != "full" or job.optimizer != "adamw":
        return "Adam training of all parameters on one GPU only"
    return {
        "model_params": job.params, "batch_size": job.micro_batch_size,
        "sequence_length": job.seq_len, "precision": job.weights_dtype, "optimizer": "adamw",
        "gradient_checkpointing": job.recompute,
    }  # fmt: skip
