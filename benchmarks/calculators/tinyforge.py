"""tinyforge: the planner behind `tinyforge ft`, calibrated by its authors on one small GPU."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "tinyforge"
NOTE = (
    "LoRA and QLoRA of all linear layers on one GPU; no 8-bit optimizer, no float32; its factors"
    " come from peaks of SmolLM2-360M on an RTX 3050 Ti"
)
# Run in its own environment: once, and for each item.
IMPORTS = """
from tinyforge.finetune import FTConfig, estimate_vram_gb
"""
BODY = """
    config = FTConfig.model_construct(**item["config"])
    total = estimate_vram_gb(item["shape"], config, item["quant"], item["checkpointing"], item["batch"])
    return total, 0.6
"""


def arguments(job: Job) -> Arguments:
    """Its shape of a model, with the inputs and outputs of each linear layer."""
    if job.gpus > 1:
        return "one GPU only"
    if job.method == "full":
        return "LoRA and QLoRA only"
    if job.weights_dtype == "fp32":
        return "no float32"
    if job.experts:
        return "no mixtures of experts"
    queries, keys = job.heads * job.head_dim, job.kv_heads * job.head_dim
    ends = [
        job.hidden + queries, job.hidden + keys, job.hidden + keys, queries + job.hidden,
        *[job.hidden + job.intermediate] * 3,
    ]  # fmt: skip
    return {
        "shape": {
            "params": job.params, "hidden": job.hidden, "layers": job.layers, "vocab": job.vocab,
            "linear_dims": ends * job.layers,
        },
        "config": {
            "lora_r": job.rank or 16, "max_len": job.seq_len, "chunked_ce": False, "ce_chunk": 1,
        },
        "quant": "4bit" if job.method == "qlora" else "none",
        "checkpointing": job.recompute, "batch": job.micro_batch_size,
    }  # fmt: skip
