"""Whether llama.cpp reads the same tokens from the texts that Ollama writes as transformers does
from the conversations behind them.

Run: python -P -m trainers.tools.ollama_prompts GGUF --tokenizer FOLDER --cases FILE
FILE: a JSON list of {"messages": [...], "text": "..."}; the text is the one that Ollama hands to
llama.cpp, which adds what the .gguf file says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.bounded_template import bound_chat_templates
from advisor.ground.errors import AdviseError, MachineNotReady, TrainingFailed
from advisor.ground.terminal import show_streams
from trainers.frame.files import read_json
from trainers.frame.machine import quiet_libraries
from trainers.tools.gguf.engine import Engine, EngineFailed, Process
from trainers.tools.gguf.find import HOW, find_llama_cpp
from trainers.tools.gguf.tokens import load_tokenizer

CONTEXT = 64  # no answer is computed


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="trainers.tools.ollama_prompts",
        description="Compare the tokens of prompts. `advise export --to ollama` calls this.",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--cases", required=True, type=Path)
    given = parser.parse_args(argv)
    show_streams()
    quiet_libraries()
    try:
        llama_cpp = find_llama_cpp()
        if llama_cpp is None:
            raise MachineNotReady("there is no llama.cpp on this machine", hint=HOW)
        cases = read_json(given.cases)
        with Process(llama_cpp) as engine:
            engine.load(given.file, context=CONTEXT)
            check(engine, load_tokenizer(given.tokenizer), cases)
    except EngineFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return TrainingFailed.exit_code
    except AdviseError as error:
        print(f"error: {error.text()}", file=sys.stderr)
        return error.exit_code
    print(f"  {len(cases)} prompts have the same tokens in llama.cpp as in the training")
    return 0


def check(engine: Engine, tokenizer: Any, cases: Sequence[Mapping[str, Any]]) -> None:
    """Raise TrainingFailed with the first prompt that is read otherwise."""
    bound_chat_templates()
    found = engine.tokens([case["text"] for case in cases], whole=True)
    for case, theirs in zip(cases, found, strict=True):
        text = tokenizer.apply_chat_template(
            case["messages"], tokenize=False, add_generation_prompt=True
        )
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        if list(ours) != list(theirs):
            at = next(
                (place for place, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise TrainingFailed(
                "llama.cpp reads other tokens from Ollama's prompt than the model was trained on,"
                f" from token {at}: {list(theirs[at : at + 4])} instead of"
                f" {list(ours[at : at + 4])}",
                where=f"a conversation of {len(case['messages'])} messages",
                hint="do not serve it with Ollama, and report this; `advise export --to gguf` and"
                " llama-server with --jinja read the model's own template",
            )


if __name__ == "__main__":
    sys.exit(main())
