"""The keys, types and choices of unsloth_cli/config.py (unslothai/unsloth 015bdef0d9), 38 in all,
named here as facts: the file itself is AGPL-3.0 and is not part of this project.
"""

from typing import Literal


class Data:
    dataset: str
    local_dataset: list
    format_type: Literal["auto", "alpaca", "chatml", "sharegpt"]


class Training:
    training_type: Literal["lora", "full"]
    max_seq_length: int
    load_in_4bit: bool
    output_dir: str
    num_epochs: int
    learning_rate: float
    batch_size: int
    gradient_accumulation_steps: int
    warmup_steps: int
    max_steps: int
    save_steps: int
    weight_decay: float
    random_seed: int
    packing: bool
    train_on_completions: bool
    gradient_checkpointing: Literal["unsloth", "true", "none"]


class Lora:
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: str
    vision_all_linear: bool
    use_rslora: bool
    use_loftq: bool
    use_dora: bool
    finetune_vision_layers: bool
    finetune_language_layers: bool
    finetune_attention_modules: bool
    finetune_mlp_modules: bool


class Logging:
    enable_wandb: bool
    wandb_project: str
    wandb_token: str
    enable_tensorboard: bool
    tensorboard_dir: str
    hf_token: str


class Config:
    model: str
    data: dict
    training: dict
    lora: dict
    logging: dict
