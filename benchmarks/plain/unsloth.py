"""A case of `benchmarks.gpu` by Unsloth: SFT with LoRA, also on a 4-bit base."""

import json
import sys

sys.path.pop(0)  # this folder, in which this file has the name of a library

from unsloth import FastLanguageModel  # before transformers, which it changes

# isort: split
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.plain.measured import Clock, rows_of, show

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main():
    given = json.loads(sys.argv[1])
    model, tokenizer = FastLanguageModel.from_pretrained(
        given["model"], max_seq_length=given["seq_len"], dtype=getattr(torch, given["weights_dtype"]),
        load_in_4bit=given["keys"].get("quantization") == "nf4",
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=given["keys"]["rank"], lora_alpha=given["keys"]["alpha"], target_modules=LINEAR,
        lora_dropout=0.0, bias="none", use_gradient_checkpointing=False,
        random_state=given["seed"],
    )  # fmt: skip
    chats = [row["messages"] for row in rows_of(given["data"])]
    rows = [{"text": tokenizer.apply_chat_template(chat, tokenize=False)} for chat in chats]
    arguments = SFTConfig(
        output_dir=given["output"], max_steps=given["steps"], seed=given["seed"],
        per_device_train_batch_size=given["batch"], learning_rate=given["learning_rate"],
        lr_scheduler_type="constant", max_length=given["seq_len"], bf16=given["bf16"],
        fp16=not given["bf16"], optim="adamw_8bit", logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, dataset_text_field="text",
    )  # fmt: skip
    clock = Clock()
    run = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows),
                     processing_class=tokenizer, callbacks=[clock])  # fmt: skip
    run.train()
    history = run.state.log_history
    tokens = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
    show(history, tokens[-1] if tokens else None, clock.seconds, given["device"])


main()
