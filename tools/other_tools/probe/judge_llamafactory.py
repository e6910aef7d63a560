"""Ask LLaMA-Factory's own parser what it makes of a file."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llamafactory.hparams import parser

from tools.other_tools.probe.trials import pretend_gpu

PARSE = {
    "train": parser._parse_train_args,
    "infer": parser._parse_infer_args,
    "eval": parser._parse_eval_args,
}


def refusal(text: str, command: str) -> str:
    """Why `llamafactory-cli` does not begin with this text; empty if it does."""
    pretend_gpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_text(text, encoding="utf-8")
        sys.argv = ["llamafactory-cli", str(path)]
        try:
            PARSE[command](None)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def start(text: str, command: str) -> str:
    """The same with everything that is checked before a model is loaded: keys that exclude each
    other too. Only `train` is asked for.
    """
    assert command == "train"
    pretend_gpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.yaml"
        path.write_text(text, encoding="utf-8")
        sys.argv = ["llamafactory-cli", str(path)]
        try:
            parser.get_train_args(None)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""
