"""fitcheck-llm: config.json and settings to a report; its own measurements are of one Tesla T4."""

from typing import Any

from benchmarks.calculators.job import Arguments, Job

PACKAGE = "fitcheck-llm"
NOTE = "one GPU; refuses mixtures of experts and models whose parameters differ from its formula's; no adapters on the output matrix"
# Run in its own environment: once, and for each item.
IMPORTS = """
import os, pathlib, tempfile
cache = tempfile.TemporaryDirectory()
os.environ.update(HF_HUB_CACHE=cache.name, HF_HUB_OFFLINE="1")
from dataclasses import replace
from fitcheck import TrainingConfig, estimate, fetch_model_config, get_gpu
"""
BODY = """
    here = pathlib.Path(cache.name, f"models--shape--{abs(hash(json.dumps(item['config'])))}")
    snapshot = here / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (here / "refs").mkdir(exist_ok=True)
    (here / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps(item["config"]))
    config = fetch_model_config(here.name.removeprefix("models--").replace("--", "/"))
    if abs(config.num_params / item["params"] - 1) > 0.02:
        raise ValueError(f"parameters by its formula {config.num_params}, in truth {item['params']}: it refuses above 2 %")
    card = get_gpu(item["gpu"]) if item["gpu"] else get_gpu("card", vram_mib=item["vram_mib"])
    report = estimate(replace(config, num_params=item["params"]), TrainingConfig(**item["training"]), card)
    return report.total_mib / 1024, report.overhead_mib / 1024
"""


def arguments(job: Job) -> Arguments:
    """Fields of its TrainingConfig, a config.json for its own reader, and its card."""
    if job.gpus > 1:
        return "one GPU only"
    if job.method != "full" and not job.targets:
        return "LoRA targets unknown to it"
    training: dict[str, Any] = {
        "precision": job.weights_dtype, "quantization": "nf4" if job.method == "qlora" else "none",
        "double_quant": job.method == "qlora" and job.double_quant,
        "optimizer": {"adamw": "adamw", "adamw_8bit": "adam8bit"}[job.optimizer],
        "optimizer_dtype": job.states_dtype, "batch_size": job.micro_batch_size,
        "seq_len": job.seq_len, "lora_rank": None if job.method == "full" else job.rank or 16,
        "grad_checkpoint": job.recompute, "flash_attn": job.flash,
    }  # fmt: skip
    if job.method != "full":
        training["lora_targets"] = list(job.targets)
    config = {
        "model_type": "llama", "hidden_size": job.hidden, "num_hidden_layers": job.layers,
        "num_attention_heads": job.heads, "num_key_value_heads": job.kv_heads,
        "head_dim": job.head_dim, "intermediate_size": job.intermediate, "vocab_size": job.vocab,
        "tie_word_embeddings": job.tied,
    } | ({"num_local_experts": job.experts} if job.experts else {})  # fmt: skip
    # Its T4 is the one card that it has measured; for the others only the size is read.
    return {
        "training": training,
        "config": config,
        "params": job.params,
        "gpu": "t4" if "T4" in job.gpu else None,
        "vram_mib": job.gpu_mib or 81920,
    }
