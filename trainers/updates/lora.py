"""LoRA: a low-rank correction beside each frozen weight matrix. On a 4-bit base (quantization: nf4) this is QLoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.errors import Fault, InputError
from advisor.plan.model import Stage
from trainers.prepare import Row

OWNED: Mapping[str, str] = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "use_rslora": "rslora",
    "task_type": "objective",
    "peft_type": "update",
    "inference_mode": "objective",
    "base_model_name_or_path": "model",
    "revision": "revision",
}
LIMITS: Sequence[str] = ()


def config_class() -> type | None:
    """PEFT's LoraConfig."""
    from peft import LoraConfig

    return LoraConfig


def faults(stage: Stage) -> list[Fault]:
    """None of its own."""
    return []


def peft_config(stage: Stage, options: Mapping[str, Any], model: Any) -> Any:
    """The LoraConfig of the stage. Raises InputError where `target_modules` names no layer of the model."""
    from peft import LoraConfig

    targets = options["target_modules"]
    if not isinstance(targets, str):
        targets = list(targets)
    if targets != "all-linear":
        _check_targets(targets, model, stage)
    return LoraConfig(
        r=options["rank"],
        lora_alpha=options["alpha"] if options["alpha"] is not None else 2 * options["rank"],
        lora_dropout=options["dropout"],
        target_modules=targets,
        use_rslora=options["rslora"],
        task_type="CAUSAL_LM",
        **stage.peft,
    )


def start(stage: Stage, options: Mapping[str, Any], model: Any, tokenizer: Any, rows: Sequence[Row]) -> None:
    """None: PEFT's own start changes nothing until it is trained."""
    return None


def _check_targets(targets: str | list[str], model: Any, stage: Stage) -> None:
    import torch

    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # One text is a regular expression to PEFT; a list holds names or name endings.
    missing = [] if isinstance(targets, str) else [target for target in targets if target.rsplit(".", 1)[-1] not in linear | {"embed_tokens"}]
    if missing:
        raise InputError(
            f"stage {stage.name}: target_modules names no layer of this model: {', '.join(missing)}", allowed=f"all-linear, or some of: {', '.join(sorted(linear - {'lm_head'}))}"
        )
    if "lm_head" in targets:
        raise InputError(f"stage {stage.name}: target_modules names lm_head, whose correction the loss would not see", allowed="all-linear leaves it out")
