"""train-in-silence: the estimator behind `tis recommend`; 2 GB stand for CUDA."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "train-in-silence"
NOTE = "one GPU; no optimizer, rank, targets or checkpointing; one layer of activations"
# Run in its own environment: once, and for each item.
IMPORTS = """
from tis.planner.estimator import ResourceEstimator
from tis.planner.models import ModelSpec, TrainingSpec, Workload
"""
BODY = """
    work = Workload(model=ModelSpec(**item["model"]), training=TrainingSpec(**item["training"]))
    return ResourceEstimator().estimate(work).required_vram_gb, 2.0
"""


def arguments(job: Job) -> Arguments:
    """Fields of its model and of its training."""
    if job.gpus > 1:
        return "one GPU only"
    return {
        "model": {
            "name": "model", "params": job.params, "num_layers": job.layers,
            "num_heads": job.heads, "num_kv_heads": job.kv_heads, "hidden_dim": job.hidden,
            "vocab_size": job.vocab, "num_experts": job.experts or 0,
            "active_experts": job.active_experts or 0,
        },
        "training": {
            "method": job.method, "precision": job.weights_dtype,
            "batch_size": job.micro_batch_size, "seq_len": job.seq_len,
        },
    }  # fmt: skip
