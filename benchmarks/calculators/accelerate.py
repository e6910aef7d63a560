"""accelerate: the rule of `estimate-memory` for training with Adam."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "accelerate"
NOTE = "full fine-tuning with Adam on one GPU, no batch, length or activations: a floor rather than a peak; its rule applied to the parameter count"
HAS_ADAPTERS = False
HAS_CONTEXT = False
# Run in its own environment: once, and for each item.
IMPORTS = """
from accelerate.commands.estimate import estimate_training_usage
"""
BODY = """
    return max(estimate_training_usage(item["size_bytes"], item["precision"]).values()) / 2**30, 0
"""


def arguments(job: Job) -> Arguments:
    """The float32 size of the empty model and the precision, for its "Training using Adam"."""
    if job.gpus > 1 or job.method != "full" or job.optimizer != "adamw":
        return "Adam training of all parameters on one GPU only"
    return {
        "size_bytes": 4 * job.params,
        "precision": "float32" if job.weights_dtype == "fp32" and not job.mixed else "bfloat16",
    }
