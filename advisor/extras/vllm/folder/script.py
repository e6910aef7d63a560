"""The script that starts a vLLM server."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from advisor.plan.serving import VllmServer

SCRIPT, TEMPLATE, GENERATION = "serve.sh", "chat_template.jinja", "generation_config.json"
QUESTION = "Hello"


def script(server: VllmServer, *, asked: str, chats: bool, notes: Sequence[str]) -> str:
    """serve.sh. Paths in it are relative to its own folder; the base may be given as MODEL.

    Args:
        asked: A model name that requests may ask for.
        chats: There is a chat template; else the model continues texts.
    """
    about = [
        "Serves the result of a run with vLLM. Options behind the name of this script are handed"
        " on: for example `sh serve.sh --max-model-len 4096` if memory runs out at the start.",
        *notes,
    ]
    if Path(server.model).is_absolute():
        about.append(
            "The model is a folder of the machine that trained it; elsewhere:"
            " MODEL=/its/folder sh serve.sh"
        )
    lines = ["#!/bin/sh"]
    for text in about:
        lines += [f"# {line}" for line in textwrap.wrap(text, 76)]
    lines += [
        "# Ask it:",
        f"#   {request(asked, chats=chats)}",
        'cd "$(dirname "$0")" || exit 1',
        f"model=${{MODEL:-{shlex.quote(server.model)}}}",
        'exec vllm serve "$model" \\',
        *(f"  {shlex.join(option)} \\" for option in server.options()),
        '  "$@"',
    ]
    return "\n".join(lines) + "\n"


def request(model: str, *, chats: bool) -> str:
    """A line that asks a server."""
    body = (
        {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
        if chats
        else {"model": model, "prompt": QUESTION, "max_tokens": 64}
    )
    path = "chat/completions" if chats else "completions"
    return (
        f"curl http://localhost:8000/v1/{path} -H 'Content-Type: application/json' -d"
        f" {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )
