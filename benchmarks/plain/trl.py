"""A case of `benchmarks.gpu` by a minimal script over TRL and PEFT."""

import json
import sys

sys.path.pop(0)  # this folder, in which this file has the name of a library

import peft
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.plain.measured import Clock, rows_of, show

CLASSES = {"sft": (SFTConfig, SFTTrainer), "dpo": (DPOConfig, DPOTrainer),
           "rm": (RewardConfig, RewardTrainer)}  # fmt: skip
ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def dataset_of(given):
    rows = rows_of(given["data"])
    if given["objective"] == "sft":
        chats = [row["messages"] for row in rows]
        return Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])
    return Dataset.from_list(
        [{key: [{"role": role, "content": row[key]}] for key, role in ROLES.items()}
         for row in rows]
    )  # fmt: skip


def model_of(given):
    options = {"dtype": getattr(torch, given["weights_dtype"])}
    if given["keys"].get("quantization") == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )  # fmt: skip
        options["device_map"] = {"": given["device"]}
    if given["objective"] == "rm":
        return AutoModelForSequenceClassification.from_pretrained(
            given["model"], num_labels=1, **options
        )
    return AutoModelForCausalLM.from_pretrained(given["model"], **options)


def module_of(given):
    task = "SEQ_CLS" if given["objective"] == "rm" else "CAUSAL_LM"
    if given["update"] == "lora":
        keys = given["keys"]
        return peft.LoraConfig(task_type=task, r=keys["rank"], lora_alpha=keys["alpha"],
                               target_modules=keys["target_modules"])  # fmt: skip
    if given["update"] == "prefix":
        return peft.PrefixTuningConfig(
            task_type=task, num_virtual_tokens=given["keys"]["prefix_tokens"]
        )
    return None


def main():
    given = json.loads(sys.argv[1])
    config, trainer = CLASSES[given["objective"]]
    cuda, mixed = given["device"] == "cuda", given["precision"] == "mixed"
    paged = cuda and given["keys"].get("quantization") == "nf4"
    arguments = config(
        output_dir=given["output"], max_steps=given["steps"], seed=given["seed"],
        per_device_train_batch_size=given["batch"], learning_rate=given["learning_rate"],
        lr_scheduler_type="constant", max_length=given["seq_len"], gradient_checkpointing=False,
        bf16=mixed and given["bf16"], fp16=mixed and not given["bf16"], use_cpu=not cuda,
        optim="paged_adamw_8bit" if paged else "adamw_torch_fused", logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = model_of(given)
    model.config.pad_token_id = tokenizer.pad_token_id
    clock = Clock()
    run = trainer(model=model, args=arguments, train_dataset=dataset_of(given),
                  processing_class=tokenizer, peft_config=module_of(given),
                  callbacks=[clock])  # fmt: skip
    run.train()
    history = run.state.log_history
    tokens = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    show(history, tokens[-1] if tokens else None, clock.seconds, given["device"])


main()
