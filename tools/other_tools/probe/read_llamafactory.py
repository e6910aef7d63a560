"""Print the key table of the installed LLaMA-Factory as JSON."""

from __future__ import annotations

import json
from importlib.metadata import version

from llamafactory.hparams import parser

from tools.other_tools.probe.dataclass_keys import Classes, table


def main() -> None:
    commands = {
        "train": parser._TRAIN_ARGS,
        "infer": parser._INFER_ARGS,  # chat, api, webchat and export
        "eval": parser._EVAL_ARGS,
    }
    made = table(Classes("llamafactory"), commands)
    made["release"] = version("llamafactory")
    made["made_with"] = {name: version(name) for name in ("transformers", "trl", "peft")}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
