"""canifinetune: estimate() behind `canifinetune estimate`, with the model given as its override."""

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "canifinetune"
NOTE = (
    "one GPU; adapters on attention or on all linear layers; its line for CUDA and its margin are"
    " shares of the card (80 GiB where the source names none); fitted on one RTX 4080"
)
# Run in its own environment: once, and for each item.
IMPORTS = """
from canifinetune.estimator.memory import EstimateRequest, estimate
"""
BODY = """
    memory = estimate(EstimateRequest(**item)).memory
    total = memory.total_estimated_gb - memory.safety_margin_gb
    return total, memory.cuda_overhead_gb
"""


def arguments(job: Job) -> Arguments:
    """Fields of its request; it shows its safety margin apart, so that is no need."""
    if job.gpus > 1:
        return "one GPU only"
    mlp = {"gate_proj", "up_proj", "down_proj"} & {*job.targets}
    adapters = {} if job.method == "full" else {
        "lora_rank": job.rank or 16, "lora_target_scope": "all_linear" if mlp else "attention",
    }  # fmt: skip
    return adapters | {
        "model_id": "model", "method": job.method, "seq_len": job.seq_len,
        "micro_batch_size": job.micro_batch_size, "base_dtype": job.weights_dtype,
        "quantization": "nf4_double_quant" if job.double_quant else "nf4",
        "optimizer": {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}[job.optimizer],
        "gradient_checkpointing": job.recompute,
        "attention_implementation": "flash_attention_2" if job.flash else "eager",
        "gpu_vram_gb": (job.gpu_mib or 81920) / 1024, "use_network": False,
        "override": {
            "family": "llama", "hidden_size": job.hidden, "num_hidden_layers": job.layers,
            "num_attention_heads": job.heads, "num_key_value_heads": job.kv_heads,
            "intermediate_size": job.intermediate, "vocab_size": job.vocab,
            "tie_word_embeddings": job.tied, "total_params": job.params,
            "num_local_experts": job.experts or 1, "num_experts_per_tok": job.active_experts or 1,
        },
    }  # fmt: skip
