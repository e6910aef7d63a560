"""For each rule about a configuration keys with which it speaks and keys with which it is silent,
beside a small file that is right (BASES).
"""

# What a small file that is right holds. In a case, null takes a key away.
BASES = {
    "llamafactory": {
        "model_name_or_path": "a/b", "stage": "sft", "do_train": True, "dataset": "c",
        "template": "qwen3", "finetuning_type": "lora", "output_dir": "out",
    },
    "axolotl": {
        "base_model": "a/b", "datasets": [{"path": "c/d", "type": "alpaca"}], "adapter": "lora",
        "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "learning_rate": 0.0001,
        "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1,
        "output_dir": "out", "sequence_len": 2048, "val_set_size": 0.05,
    },
    "trl": {"model_name_or_path": "a/b", "dataset_name": "c/d", "output_dir": "out"},
}  # fmt: skip
# Facts that a case may hold beside keys.
FACTS = (
    "command", "data_kind", "evaluates", "data.is_chat", "machine.gpus", "plan.model",
    "model.instruct", "model.mixture", "model.params_b", "plan.learning_rate",
)  # fmt: skip


def templates(model, setting, rows):
    """Cases of an instruct model with a template of another family, and with its own."""
    return {
        f"template-not-of-{name}": (
            {model: of, "model.instruct": True, setting: wrong},
            {model: of, "model.instruct": True, setting: right},
        )
        for name, of, wrong, right in rows
    }


RM, DPO, KTO, PPO = ({"stage": name} for name in ("rm", "dpo", "kto", "ppo"))
PPO = PPO | {"reward_model": "r"}
FULL, BITS = {"finetuning_type": "full"}, {"quantization_bit": 4}
LLAMA_FACTORY = {
    "lora-keys-alone": (FULL | {"lora_rank": 8}, {"lora_rank": 8}),
    "quantised-without-lora": (FULL | BITS, BITS),
    "adapter-without-lora": (FULL | {"adapter_name_or_path": "x"}, {"adapter_name_or_path": "x"}),
    "pissa-on-quantised": (BITS | {"pissa_init": True}, {"pissa_init": True}),
    "resize-quantised": (BITS | {"resize_vocab": True}, {"resize_vocab": True}),
    "new-adapter-on-quantised": (
        BITS | {"adapter_name_or_path": "x", "create_new_adapter": True},
        BITS | {"adapter_name_or_path": "x"},
    ),
    "adapters-on-quantised": (
        BITS | {"adapter_name_or_path": "x,y"}, BITS | {"adapter_name_or_path": "x"},
    ),
    "generate-outside-sft": (
        RM | {"predict_with_generate": True, "val_size": 0.1}, RM | {"val_size": 0.1},
    ),
    "neat-packing-outside-sft": (DPO | {"neat_packing": True}, {"neat_packing": True}),
    "masks-outside-sft": (DPO | {"train_on_prompt": True}, {"train_on_prompt": True}),
    "predict-without-generate": (
        {"do_predict": True, "eval_dataset": "d"}, {"do_eval": True, "eval_dataset": "d"},
    ),
    "best-model-of-rm-ppo": (
        RM | {"load_best_model_at_end": True, "val_size": 0.1, "eval_strategy": "steps",
              "eval_steps": 10, "save_steps": 10},
        DPO | {"load_best_model_at_end": True, "val_size": 0.1, "eval_strategy": "steps",
               "eval_steps": 10, "save_steps": 10},
    ),
    "ppo-without-training": (PPO | {"do_train": False}, PPO),
    "ppo-shift-attention": (PPO | {"shift_attn": True}, {"shift_attn": True}),
    "ppo-unsloth-reward": (PPO | {"use_unsloth": True}, PPO),
    "ppo-without-reward": ({"stage": "ppo"}, PPO),
    "ppo-reward-type": (PPO | FULL, PPO | FULL | {"reward_model_type": "full"}),
    "ppo-reward-oft": (PPO | {"reward_model_type": "oft"}, PPO),
    "streaming-without-steps": ({"streaming": True}, {"streaming": True, "max_steps": 9}),
    "no-data": ({"dataset": None}, {}),
    "evaluation-without-rows": ({"do_eval": True}, {"do_eval": True, "val_size": 0.1}),
    "eval-strategy-without-rows": (
        {"eval_strategy": "steps"}, {"eval_strategy": "steps", "eval_dataset": "d"},
    ),
    "generate-and-accuracy": (
        {"predict_with_generate": True, "compute_accuracy": True, "val_size": 0.1},
        {"compute_accuracy": True, "val_size": 0.1},
    ),
    "device-map-in-training": (BITS | {"quantization_device_map": "auto"}, BITS),
    "deepspeed-projections": (FULL | {"deepspeed": "z.json", "use_galore": True}, FULL),
    "fp8-quantised": (BITS | {"fp8": True}, {"fp8": True}),
    "inference-engine": ({"infer_backend": "vllm"}, {"infer_backend": "huggingface"}),
    "val-size-without-data": (
        {"dataset": None, "do_train": False, "val_size": 0.1}, {"val_size": 0.1},
    ),
    "two-evaluation-sets": ({"eval_dataset": "d", "val_size": 0.1}, {"eval_dataset": "d"}),
    "probabilities-of-concat": (
        {"interleave_probs": "1.0"},
        {"interleave_probs": "1.0", "mix_strategy": "interleave_under"},
    ),
    "streaming-share": (
        {"streaming": True, "max_steps": 9, "val_size": 0.1},
        {"streaming": True, "max_steps": 9, "val_size": 100},
    ),
    "streaming-samples": (
        {"streaming": True, "max_steps": 9, "max_samples": 5}, {"max_samples": 5},
    ),
    "masks-exclude": (
        {"mask_history": True, "train_on_prompt": True}, {"mask_history": True},
    ),
    "smoothing-of-sigmoid": (
        DPO | {"pref_loss": "orpo", "dpo_label_smoothing": 0.1}, DPO | {"dpo_label_smoothing": 0.1},
    ),
    "llama-pro-full": (FULL | {"use_llama_pro": True}, {"use_llama_pro": True}),
    "lora-with-projections": ({"use_badam": True}, FULL | {"use_badam": True}),
    "two-projections": (FULL | {"use_galore": True, "use_badam": True}, FULL),
    "apollo-and-badam": (FULL | {"use_apollo": True, "use_badam": True}, FULL),
    "pissa-stage": (KTO | {"pissa_init": True}, {"pissa_init": True}),
    "pissa-reference": (
        DPO | {"pissa_init": True}, DPO | {"pissa_init": True, "pref_loss": "orpo"},
    ),
    "loraplus-without-lora": (FULL | {"loraplus_lr_ratio": 16.0}, {"loraplus_lr_ratio": 16.0}),
    "variants-without-lora": (FULL | {"use_dora": True}, {"use_dora": True}),
    "two-number-formats": ({"bf16": True, "fp16": True}, {"bf16": True}),
    "best-without-evaluation": ({"load_best_model_at_end": True}, {}),
    "plateau-without-evaluation": (
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "val_size": 0.1},
    ),
    "prefetch-without-workers": (
        {"dataloader_prefetch_factor": 2},
        {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
    ),
    "prompt-of-template": (
        {"train_on_prompt": True, "template": "glm4"}, {"train_on_prompt": True},
    ),
    "neighbours-see": ({"packing": True}, {"packing": True, "neat_packing": True}),
    "neat-packing-packs": ({"neat_packing": True}, {"packing": True, "neat_packing": True}),
    "history-masked": ({"mask_history": True}, {}),
    "learns-the-questions": ({"train_on_prompt": True}, {}),
    "no-template": ({"template": None, "plan.model": "a/b"}, {"plan.model": "a/b"}),
    "empty-template": (
        {"template": "empty", "model.instruct": True}, {"template": "empty", "model.instruct": False},
    ),
    "nothing-trains": ({"do_train": False}, {}),
    "deepspeed-on-one": (
        {"deepspeed": "z.json", "machine.gpus": 1}, {"deepspeed": "z.json", "machine.gpus": 2},
    ),
    "learns-thinking-off": ({"enable_thinking": False}, {}),
    "remote-code": ({"trust_remote_code": True}, {}),
    "public-upload": (
        {"push_to_hub": True}, {"push_to_hub": True, "hub_private_repo": True},
    ),
    "short-by-default": ({}, {"cutoff_len": 2048}),
    "no-evaluation": ({"evaluates": False}, {"evaluates": True}),
    "never-measured": ({"val_size": 0.1}, {"val_size": 0.1, "eval_strategy": "steps"}),
    "hosted-tracker": ({"report_to": "wandb"}, {"report_to": "tensorboard"}),
    **templates("model_name_or_path", "template", [
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.3", "llama3", "mistral"),
    ]),
    "export-quantised-without-data": (
        {"export_quantization_bit": 4},
        {"export_quantization_bit": 4, "export_quantization_dataset": "d"},
    ),
}  # fmt: skip
QLORA = {"adapter": "qlora", "load_in_4bit": True}
NO_ADAPTER = {"adapter": None}
STREAM = {
    "datasets": None,
    "pretraining_dataset": [{"path": "c/d"}],
    "val_set_size": 0,
    "max_steps": 9,
}
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"fsdp_version": 2}}
FSDP1 = {"fsdp_config": {"fsdp_version": 1}, "fsdp_version": 1}
KTO_ROWS = {"rl": "kto", "remove_unused_columns": False}
RELORA = {"relora": True, "jagged_restart_steps": 10}
AXOLOTL = {
    "lora-keys-alone": ({"adapter": None}, {}),
    "no-data": ({"datasets": None}, {}),
    "quantised-without-adapter": (NO_ADAPTER | {"load_in_4bit": True}, QLORA),
    "qlora-without-4bit": ({"adapter": "qlora"}, QLORA),
    "qlora-in-8bit": (QLORA | {"load_in_8bit": True}, {"load_in_8bit": True}),
    "qlora-of-gptq": (QLORA | {"gptq": True}, {"gptq": True}),
    "qlora-merged": (QLORA | {"merge_lora": True}, QLORA),
    "no-targets": ({"lora_target_linear": None}, {"lora_target_modules": ["q_proj"]}),
    "dropout-of-parameters": (
        {"lora_target_parameters": ["w"], "lora_dropout": 0.1}, {"lora_target_parameters": ["w"]},
    ),
    "two-warmups": ({"warmup_steps": 10, "warmup_ratio": 0.1}, {"warmup_ratio": 0.1}),
    "batch-size-alone": (
        {"batch_size": 8, "micro_batch_size": None, "gradient_accumulation_steps": None},
        {"batch_size": 8, "micro_batch_size": 2, "gradient_accumulation_steps": None},
    ),
    "two-batch-sizes": (
        {"batch_size": 8, "gradient_accumulation_steps": 4},
        {"batch_size": 8, "gradient_accumulation_steps": None},
    ),
    "two-evaluation-sets": (
        {"test_datasets": [{"path": "e/f", "type": "alpaca"}]},
        {"test_datasets": [{"path": "e/f", "type": "alpaca"}], "val_set_size": 0},
    ),
    "evaluation-without-rows": (
        {"val_set_size": 0, "eval_steps": 10}, {"val_set_size": 0, "eval_strategy": "no"},
    ),
    "two-evaluation-intervals": ({"evals_per_epoch": 4, "eval_steps": 10}, {"eval_steps": 10}),
    "evaluation-strategy": (
        {"eval_steps": 10, "eval_strategy": "epoch"}, {"eval_steps": 10, "eval_strategy": "steps"},
    ),
    "two-save-intervals": ({"saves_per_epoch": 1, "save_steps": 10}, {"save_steps": 10}),
    "save-strategy": (
        {"save_steps": 10, "save_strategy": "epoch"}, {"save_steps": 10, "save_strategy": "steps"},
    ),
    "best-of-what": (
        {"save_strategy": "best"}, {"save_strategy": "best", "metric_for_best_model": "eval_loss"},
    ),
    "bench-without-interval": (
        {"do_bench_eval": True}, {"do_bench_eval": True, "evals_per_epoch": 1},
    ),
    "early-stopping": (
        {"early_stopping_patience": 3, "save_steps": 10},
        {"early_stopping_patience": 3, "save_steps": 10, "eval_steps": 10},
    ),
    "packed-table": (
        {"sample_packing": True, "eval_table_size": 5},
        {"sample_packing": True, "eval_table_size": 5, "eval_sample_packing": False},
    ),
    "causal-evaluation-packed": (
        {"do_causal_lm_eval": True, "eval_sample_packing": True},
        {"do_causal_lm_eval": True, "eval_sample_packing": False},
    ),
    "packing-of-preferences": ({"rl": "dpo", "sample_packing": True}, {"sample_packing": True}),
    "kto-columns": ({"rl": "kto"}, KTO_ROWS),
    "kto-evaluation-packed": (KTO_ROWS | {"eval_sample_packing": True}, KTO_ROWS),
    "dpo-loss-without-dpo": (
        {"dpo_loss_type": ["ipo"]}, {"rl": "dpo", "dpo_loss_type": ["ipo"]},
    ),
    "dpo-weights-of-nothing": (
        {"rl": "dpo", "dpo_loss_weights": [1.0]},
        {"rl": "dpo", "dpo_loss_weights": [1.0], "dpo_loss_type": ["ipo"]},
    ),
    "simpo-warmup": (
        {"rl": "simpo", "warmup_ratio": 0.1}, {"rl": "simpo", "warmup_steps": 10},
    ),
    "grpo-one-generation": (
        {"rl": "grpo", "trl": {"num_generations": 1}},
        {"rl": "grpo", "trl": {"num_generations": 4}, "micro_batch_size": 4},
    ),
    "grpo-groups": (
        {"rl": "grpo", "trl": {"num_generations": 3}, "micro_batch_size": 4},
        {"rl": "grpo", "trl": {"num_generations": 4}, "micro_batch_size": 4},
    ),
    "two-losses": (
        {"cut_cross_entropy": True, "chunked_cross_entropy": True}, {"cut_cross_entropy": True},
    ),
    "two-more-losses": (
        {"chunked_cross_entropy": True, "liger_cross_entropy": True},
        {"chunked_cross_entropy": True},
    ),
    "two-liger-losses": (
        {"liger_cross_entropy": True, "liger_fused_linear_cross_entropy": True},
        {"liger_cross_entropy": True},
    ),
    "two-attentions": (
        {"attn_implementation": "sdpa", "flash_attention": True}, {"attn_implementation": "sdpa"},
    ),
    "flattening-packed": (
        {"batch_flattening": True, "sample_packing": True,
         "attn_implementation": "flash_attention_2"},
        {"batch_flattening": True, "attn_implementation": "flash_attention_2"},
    ),
    "flattening-attention": (
        {"batch_flattening": True},
        {"batch_flattening": True, "attn_implementation": "flash_attention_2"},
    ),
    "two-limits-of-memory": (
        {"max_memory": {0: "20GiB"}, "gpu_memory_limit": 20}, {"gpu_memory_limit": 20},
    ),
    "deepspeed-and-fsdp": (
        {"deepspeed": "z.json", "fsdp": ["auto_wrap"]}, {"deepspeed": "z.json"},
    ),
    "muon-on-deepspeed": (
        NO_ADAPTER | {"optimizer": "muon", "deepspeed": "z.json"}, NO_ADAPTER | {"optimizer": "muon"},
    ),
    "muon-on-fsdp1": (
        NO_ADAPTER | {"optimizer": "muon"} | FSDP1, NO_ADAPTER | {"optimizer": "muon"} | FSDP2,
    ),
    "8bit-optimizer-on-fsdp2": (
        {"optimizer": "adamw_bnb_8bit"} | FSDP2, {"optimizer": "adamw_torch_8bit"} | FSDP2,
    ),
    "8bit-optimizer-offloaded": (
        {"optimizer": "adamw_bnb_8bit", "fsdp_config": {"offload_params": True}},
        {"optimizer": "adamw_torch", "fsdp_config": {"offload_params": True}},
    ),
    "4bit-loading-on-fsdp2": (
        QLORA | {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}},
        QLORA | {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": False}},
    ),
    "quantised-rl-on-fsdp2": (QLORA | FSDP2 | {"rl": "dpo"}, QLORA | FSDP2),
    "kernels-in-8bit": (
        {"load_in_8bit": True, "lora_mlp_kernel": True}, {"lora_mlp_kernel": True},
    ),
    "kernels-of-remote-code": (
        {"trust_remote_code": True, "lora_mlp_kernel": True}, {"trust_remote_code": True},
    ),
    "two-rates": (
        {"lr_groups": [{"name": "a", "modules": ["m"], "lr": 0.1}], "loraplus_lr_ratio": 16},
        {"loraplus_lr_ratio": 16},
    ),
    "pattern-of-layers": (
        {"peft_layers_pattern": ["layers"]},
        {"peft_layers_pattern": ["layers"], "peft_layers_to_transform": [1]},
    ),
    "relora-without-restarts": ({"relora": True}, RELORA),
    "relora-without-lora": (RELORA | NO_ADAPTER, RELORA),
    "relora-sharded": (RELORA | {"deepspeed": "z.json"}, RELORA),
    "offloading-of-nothing": (
        {"activation_offloading": True},
        {"activation_offloading": True, "gradient_checkpointing": True},
    ),
    "selective-of-nothing": (
        {"selective_checkpointing": True},
        {"selective_checkpointing": True, "gradient_checkpointing": True},
    ),
    "jinja-without-template": (
        {"chat_template": "jinja"}, {"chat_template": "jinja", "chat_template_jinja": "{{ a }}"},
    ),
    "pretraining-without-steps": (STREAM | {"max_steps": None}, STREAM),
    "pretraining-held-out": (STREAM | {"val_set_size": 0.1}, STREAM),
    "streaming-deduplicated": (STREAM | {"dataset_exact_deduplication": True}, STREAM),
    "deduplicated-unprepared": (
        {"dataset_exact_deduplication": True, "skip_prepare_dataset": True},
        {"dataset_exact_deduplication": True},
    ),
    "upload-of-data-without-token": (
        {"push_dataset_to_hub": "a/b"}, {"push_dataset_to_hub": "a/b", "hf_use_auth_token": True},
    ),
    "frozen-and-reentrant": (
        {"unfrozen_parameters": ["w"], "gradient_checkpointing": True,
         "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"unfrozen_parameters": ["w"], "gradient_checkpointing": True,
         "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    "frozen-and-layers": (
        {"unfrozen_parameters": ["w"], "peft_layers_to_transform": [1]},
        {"peft_layers_to_transform": [1]},
    ),
    "options-without-compiling": (
        {"torch_compile_options": {"shape_padding": True}},
        {"torch_compile_options": {"shape_padding": True}, "torch_compile": True},
    ),
    "fp8-settings-alone": ({"fp8_config": {"recipe": "tensorwise"}}, {}),
    "norms-without-fsdp": ({"fp32_norms": True}, {"fp32_norms": True} | FSDP2),
    "context-parallel-attention": ({"context_parallel_size": 2}, {"context_parallel_size": 1}),
    "qat-quantised": (
        QLORA | {"qat": {"weight_dtype": "int4"}}, {"qat": {"weight_dtype": "int4"}},
    ),
    "neighbours-see": (
        {"sample_packing": True}, {"sample_packing": True, "attn_implementation": "sdpa"},
    ),
    "short-by-default": ({"sequence_len": None}, {}),
    "no-checkpointing": ({"model.params_b": 8}, {"model.params_b": 0.5}),
    "learns-the-questions": ({"train_on_inputs": True}, {}),
    "answers-not-learned": (
        {"datasets": [{"path": "c/d", "type": "chat_template", "roles_to_train": ["user"]}]},
        {"datasets": [{"path": "c/d", "type": "chat_template", "roles_to_train": ["assistant"]}]},
    ),
    "end-not-learned": (
        {"datasets": [{"path": "c/d", "type": "chat_template", "train_on_eos": "none"}]},
        {"datasets": [{"path": "c/d", "type": "chat_template", "train_on_eos": "turn"}]},
    ),
    "last-end-alone": (
        {"datasets": [{"path": "c/d", "type": "chat_template", "train_on_eos": "last"}]}, {},
    ),
    "format-of-its-own": ({"model.instruct": True}, {"model.instruct": False}),
    "no-evaluation": ({"evaluates": False}, {"evaluates": True}),
    "never-measured": ({}, {"evals_per_epoch": 1}),
    "hosted-tracker": ({"wandb_project": "p"}, {"wandb_project": "p", "wandb_mode": "offline"}),
    "remote-code": ({"trust_remote_code": True}, {}),
    "projection-with-adapter": (
        {"optimizer": "q_galore_adamw8bit"}, {"optimizer": "q_galore_adamw8bit", "adapter": None},
    ),
    "fused-with-adapter": (
        {"flash_attn_fuse_mlp": True}, {"flash_attn_fuse_mlp": True, "adapter": None},
    ),
    "ternary-with-adapter": ({"use_onebitllms": True}, {"use_onebitllms": True, "adapter": None}),
    "better-transformer-mixed": (
        {"flash_optimum": True}, {"flash_optimum": True, "bf16": False, "bfloat16": True},
    ),
    "softmax-without-flex": (
        {"scaling_softmax": True}, {"scaling_softmax": True, "attn_implementation": "flex_attention"},
    ),
    "deepcompile-alone": ({"deepcompile": True}, {}),
    "experts-by-linear": (
        QLORA | {"quantize_moe_experts": True},
        QLORA | {"quantize_moe_experts": True, "lora_target_linear": None},
    ),
    "experts-unquantised": (
        {"quantize_moe_experts": True, "lora_target_linear": None},
        QLORA | {"quantize_moe_experts": True, "lora_target_linear": None},
    ),
    "embeddings-offloaded": ({"ple_cpu_offload": True}, QLORA | {"ple_cpu_offload": True}),
    "gather-without-fsdp2": (
        {"fp8_enable_fsdp_float8_all_gather": True},
        {"fp8_enable_fsdp_float8_all_gather": True} | FSDP2,
    ),
    "not-safetensors": ({"save_safetensors": False}, {"save_safetensors": True}),
    **templates("base_model", "chat_template", [
        ("qwen", "Qwen/Qwen2.5-7B-Instruct", "llama3", "chatml"),
        ("llama3", "meta-llama/Llama-3.1-8B-Instruct", "chatml", "llama3"),
        ("gemma", "google/gemma-2-9b-it", "llama3", "gemma"),
        ("mistral", "mistralai/Mistral-7B-Instruct-v0.3", "chatml", "tokenizer_default"),
    ]),
    "old-noise": (
        {"noisy_embedding_alpha": 5, "neftune_noise_alpha": 5}, {"neftune_noise_alpha": 5},
    ),
}  # fmt: skip
DPO_, KTO_, GRPO_ = ({"command": name} for name in ("dpo", "kto", "grpo"))
LORA = {"use_peft": True, "lora_target_modules": ["all-linear"]}
TRL = {
    "lora-keys-alone": ({"lora_r": 8}, {"lora_r": 8, "use_peft": True}),
    "no-data": ({"dataset_name": None}, {}),
    "two-quantisations": (
        LORA | {"load_in_4bit": True, "load_in_8bit": True}, LORA | {"load_in_4bit": True},
    ),
    "quantised-without-lora": ({"load_in_8bit": True}, LORA | {"load_in_8bit": True}),
    "two-number-formats": ({"fp16": True, "bf16": True}, {"fp16": True}),
    "best-without-evaluation": (
        {"load_best_model_at_end": True}, {"load_best_model_at_end": True, "eval_strategy": "steps"},
    ),
    "plateau-without-evaluation": (
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
    ),
    "prefetch-without-workers": (
        {"dataloader_prefetch_factor": 2},
        {"dataloader_prefetch_factor": 2, "dataloader_num_workers": 1},
    ),
    "answers-of-no-conversation": (
        {"assistant_only_loss": True, "data.is_chat": False}, {"assistant_only_loss": True},
    ),
    "padding-free-cuts-nothing": ({"padding_free": True}, {"padding_free": True, "packing": True}),
    "packing-without-length": (
        {"packing": True, "max_length": "null"}, {"packing": True, "max_length": 512},
    ),
    "selective-of-nothing": (
        {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"selective": True}},
        {"gradient_checkpointing_kwargs": {"selective": True}},
    ),
    "adapter-on-the-head": (LORA | {"lora_target_modules": ["q_proj", "lm_head"]}, LORA),
    "router-of-no-mixture": (
        {"router_aux_loss_coef": 0.01, "model.mixture": False},
        {"router_aux_loss_coef": 0.01, "model.mixture": True},
    ),
    "exo-without-smoothing": (
        DPO_ | {"loss_type": ["exo_pair"]}, DPO_ | {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    ),
    "weighting-of-aot": (DPO_ | {"loss_type": ["aot"], "use_weighting": True}, DPO_),
    "divergence-of-loss": (
        DPO_ | {"loss_type": ["aot"], "f_divergence_type": "forward_kl"},
        DPO_ | {"f_divergence_type": "forward_kl"},
    ),
    "reference-of-lora": (DPO_ | LORA | {"sync_ref_model": True}, DPO_ | {"sync_ref_model": True}),
    "reference-kept-and-moved": (
        DPO_ | {"sync_ref_model": True, "precompute_ref_log_probs": True},
        DPO_ | {"precompute_ref_log_probs": True},
    ),
    "precomputed-of-a-stream": (
        DPO_ | {"dataset_streaming": True, "precompute_ref_log_probs": True},
        DPO_ | {"dataset_streaming": True},
    ),
    "kto-one-row": (KTO_ | {"per_device_train_batch_size": 1}, KTO_),
    "kto-order": (KTO_ | {"train_sampling_strategy": "random"}, KTO_),
    "uploads-of-no-log": (
        GRPO_ | {"log_completions_hub_repo": "a/b"},
        GRPO_ | {"log_completions_hub_repo": "a/b", "log_completions": True},
    ),
    "batch-size-found": (GRPO_ | {"auto_find_batch_size": True}, GRPO_),
    "two-generation-sizes": (
        GRPO_ | {"generation_batch_size": 8, "steps_per_generation": 1},
        GRPO_ | {"generation_batch_size": 8},
    ),
    "one-generation": (GRPO_ | {"num_generations": 1}, GRPO_),
    "generation-groups": (GRPO_ | {"num_generations": 6}, GRPO_),
    "evaluation-groups": (
        GRPO_ | {"eval_strategy": "steps", "per_device_eval_batch_size": 4},
        GRPO_ | {"eval_strategy": "steps", "per_device_eval_batch_size": 16},
    ),
    "default-targets": ({"use_peft": True}, LORA),
    "learns-the-questions": (
        {"data_kind": "chat"}, {"data_kind": "chat", "assistant_only_loss": True},
    ),
    "questions-not-masked": (
        {"data_kind": "chat", "completion_only_loss": True}, {"completion_only_loss": True},
    ),
    "public-upload": ({"push_to_hub": True}, {"push_to_hub": True, "hub_private_repo": True}),
    "short-by-default": ({}, {"max_length": 2048}),
    "no-evaluation": ({"evaluates": False}, {"evaluates": True}),
    "hosted-tracker": ({"report_to": ["wandb"]}, {"report_to": "tensorboard"}),
    "remote-code": ({"trust_remote_code": True}, {}),
}  # fmt: skip
CASES = {
    **{f"llamafactory/{name}": case for name, case in LLAMA_FACTORY.items()},
    **{f"axolotl/{name}": case for name, case in AXOLOTL.items()},
    **{f"trl/{name}": case for name, case in TRL.items()},
}


def values_of(tool, case):
    """The keys of a whole small file."""
    both = BASES[tool] | case
    both = {key: value for key, value in both.items() if value is not None and key not in FACTS}
    return {key: None if value == "null" else value for key, value in both.items()}
