"""ftuneai: a model's dimensions and a training configuration, also sharded."""

from benchmarks.calculators.job import MLP, Arguments, Job

PACKAGE = "ftuneai"
NOTE = "the nearest of three sets of LoRA targets; no double quantisation, no dtype of optimizer states"
# Run in its own environment: once, and for each item.
IMPORTS = """
from ftuneai import FineTuneMethod, LoRATarget, ModelSpec, OptimizerType, Quantization, ShardingStrategy, TrainingConfig
from ftuneai.core.memory import MemoryEstimator
KINDS = {"method": FineTuneMethod, "quantization": Quantization, "optimizer": OptimizerType, "lora_target": LoRATarget, "sharding": ShardingStrategy}
"""
BODY = """
    words = {key: KINDS[key](value) for key, value in item["words"].items()}
    found = MemoryEstimator(ModelSpec(name="shape", **item["model"]), TrainingConfig(**item["config"], **words)).estimate()
    return found.total_gb, found.overhead_gb
"""


def arguments(job: Job) -> Arguments:
    """Fields of its ModelSpec and TrainingConfig."""
    shardings = {
        "none": "none",
        "ddp": "none",
        "zero1": "zero_1",
        "zero2": "zero_2",
        "zero3": "zero_3",
        "fsdp": "fsdp",
    }
    targets = (
        "all_linear"
        if set(job.targets) & set(MLP)
        else "attention"
        if set(job.targets) <= {"q_proj", "v_proj"}
        else "attention_all"
    )
    model = {
        "parameters": job.params, "hidden_size": job.hidden, "num_layers": job.layers,
        "num_attention_heads": job.heads, "num_kv_heads": job.kv_heads,
        "intermediate_size": job.intermediate, "vocab_size": job.vocab,
        "max_seq_length": job.seq_len,
        "default_dtype": {"bf16": "bfloat16", "fp16": "float16",
        "fp32": "float32"}[job.weights_dtype],
        "is_moe": job.experts is not None, "num_experts": job.experts,
        "num_active_experts": job.active_experts,
    }  # fmt: skip
    config = {
        "batch_size": job.micro_batch_size, "seq_length": job.seq_len,
        "gradient_checkpointing": job.recompute, "lora_rank": job.rank or 16,
        "flash_attention": job.flash,
        "num_gpus": job.gpus,
    }  # fmt: skip
    words = {
        "method": job.method,
        "quantization": "4bit" if job.method == "qlora" else "none",
        "optimizer": {"adamw": "adamw", "adamw_8bit": "adam_8bit"}[job.optimizer],
    }
    return {
        "model": model,
        "config": config,
        "words": {**words, "lora_target": targets, "sharding": shardings[job.sharding]},
    }
