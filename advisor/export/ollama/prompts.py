"""Conversations with the text that Ollama writes for each, to be read by llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path

from advisor.data.chat_text import ChatText, Turn
from advisor.export.exporter import Wanted
from advisor.export.ollama.go_reader import written_by_ollama
from advisor.export.ollama.template import OllamaTemplate
from advisor.ground.disk import TEMPORARY
from advisor.ground.files import write_atomically

# Plain words: what tokenizers make of odd ones was compared with the file itself.
SAID = (
    ("Hello", "Good morning, how can I help you?"),
    ("My parcel KW-120945 is late. Where is it?", "It is on its way.\nIt arrives on Friday."),
    ("1 + 1 = ?", "2"),
    ("Thank you!", "You are welcome."),
)
SYSTEM = "You are the help desk of a shop.\nAnswer briefly."


def prompts(chat: ChatText, made: OllamaTemplate) -> list[dict[str, object]]:
    """{messages: as the template takes them, text: as Ollama writes them}: one to four questions,
    with and without a system message.
    """
    found: list[dict[str, object]] = []
    for begin in ([], [{"role": "system", "content": SYSTEM}]) if made.shape.system else ([],):
        turns: list[Turn] = list(begin)
        for asked, answered in SAID:
            turns.append({"role": "user", "content": asked})
            found.append(
                {"messages": list(chat.taken(turns)), "text": written_by_ollama(made.text, turns)}
            )
            turns.append({"role": "assistant", "content": answered})
    return found


def compare_tokens(
    wanted: Wanted, file: Path, tokenizer: Path, cases: list[dict[str, object]]
) -> int:
    """The exit code of the tool that lets llama.cpp read the texts."""
    path = file.with_name(f"{TEMPORARY}prompts.json")
    write_atomically(path, json.dumps(cases))
    try:
        return wanted.run_tool(
            "ollama_prompts", str(file), "--tokenizer", str(tokenizer), "--cases", str(path)
        )
    finally:
        path.unlink(missing_ok=True)
