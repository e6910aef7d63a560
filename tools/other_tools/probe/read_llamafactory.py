"""Read the key table of the installed LLaMA-Factory."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from llamafactory.hparams import parser

from tools.other_tools.probe.dataclass_keys import Classes, table
from tools.other_tools.probe.trials import pretend_gpu


def main() -> dict[str, Any]:
    pretend_gpu()
    commands = {
        "train": parser._TRAIN_ARGS,
        "infer": parser._INFER_ARGS,  # chat, api, webchat and export
        "eval": parser._EVAL_ARGS,
    }
    made = table(Classes("llamafactory"), commands)
    made["release"] = version("llamafactory")
    made["made_with"] = {name: version(name) for name in ("transformers", "trl", "peft")}
    return made
