"""Modules with random weights on the toy model, saved as stages leave them."""

from pathlib import Path
from typing import Any

from tests.trainers.runs import lines_of

UPDATES = {
    "lora": {"rank": 4, "alpha": 8},
    "adapter": {"rank": None, "alpha": None, "bottleneck": 8},
    "prefix": {"rank": None, "alpha": None, "prefix_tokens": 4},
    "full": {"rank": None, "alpha": None},
}


def module_config(update: str, task_type: str) -> Any:
    """A PEFT config of an update scheme."""
    from peft import LoraConfig, PrefixTuningConfig

    from advisor.peft_adapter import BottleneckConfig

    if update == "lora":
        return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task_type)
    if update == "adapter":
        return BottleneckConfig(bottleneck=8, placement="houlsby", task_type=task_type)
    return PrefixTuningConfig(
        num_virtual_tokens=4, num_layers=2, num_attention_heads=2, token_dim=16, task_type=task_type
    )


def save_module(base: Path, folder: Path, update: str, *, seed: int, scores: int) -> Path:
    """A module (or a whole model) with random weights in `folder`, with the base's tokenizer: one
    that writes, or one that scores, for so many labels.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    extra = {"num_labels": int(scores)} if scores else {}
    loader = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model: Any = loader.from_pretrained(base, dtype=torch.float32, **extra)
    if update != "full":
        model = get_peft_model(model, module_config(update, "SEQ_CLS" if scores else "CAUSAL_LM"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    timed = ("tokens_per_s", "elapsed_s", "memory_bytes", "writing_s", "learning_s")
    lines = lines_of(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]
