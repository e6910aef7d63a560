"""A case of `benchmarks.gpu` by LLaMA-Factory: SFT, full or LoRA, also on a 4-bit base."""

import json
import sys
from pathlib import Path

from llamafactory.train.tuner import run_exp

from benchmarks.plain.measured import Clock, rows_of, show


def main():
    given = json.loads(sys.argv[1])
    folder = Path(given["output"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows_of(given["data"])), "utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
            "assistant_tag": "assistant"}  # fmt: skip
    about = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "tags": tags,
                      "columns": {"messages": "messages"}}}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(about), "utf-8")
    keys = given["keys"]
    arguments = {
        "stage": "sft", "do_train": True, "model_name_or_path": given["model"],
        "dataset": "rows", "dataset_dir": str(folder), "template": "default",
        "finetuning_type": given["update"], "output_dir": str(folder / "out"),
        "cutoff_len": given["seq_len"], "per_device_train_batch_size": given["batch"],
        "max_steps": given["steps"], "learning_rate": given["learning_rate"],
        "lr_scheduler_type": "constant", "bf16": given["bf16"], "fp16": not given["bf16"],
        "optim": "adamw_torch_fused", "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "seed": given["seed"], "include_num_input_tokens_seen": True,
        "disable_gradient_checkpointing": True,
    }  # fmt: skip
    if given["update"] == "lora":
        arguments |= {"lora_rank": keys["rank"], "lora_alpha": keys["alpha"], "lora_target": "all"}
    if keys.get("quantization") == "nf4":
        arguments |= {"quantization_bit": 4, "quantization_method": "bnb"}
    clock = Clock()
    run_exp(arguments, callbacks=[clock])
    state = json.loads((folder / "out" / "trainer_state.json").read_text("utf-8"))
    tokens = state.get("num_input_tokens_seen")
    show(state["log_history"], tokens, clock.seconds, given["device"])


main()
