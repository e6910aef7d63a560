"""What llama.cpp adds to a text by itself, by the flags in a .gguf file: it has to be what the chat
template leaves out.

The trainers write a conversation as its template does and add nothing. A file whose flag makes
llama.cpp put a token in front that the template does not write, or one behind, would give the model
other tokens than those of its training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advisor.data.chat_text import ChatText
from advisor.export.ollama.shape import user

BEGIN, END = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"


def leave_to_template(path: Path, chat: ChatText) -> tuple[bool, list[str]]:
    """(whether llama.cpp puts the first token in front of a text, what was changed in the file).

    A flag is changed in its place: one byte, and no weight.
    """
    import gguf

    reader = gguf.GGUFReader(path, "r+")
    first = chat.tokens.get("bos_token")
    begins = bool(first) and chat.as_trained([user(1)], prompt=True).startswith(str(first))
    adds = _flag(reader, BEGIN)
    notes = []
    if adds and not begins:
        _clear(reader, BEGIN)
        adds = False
        notes.append(
            f"{path.name} no longer puts {first or 'a first token'} in front:"
            " the chat template writes none, and neither did the training"
        )
    if _flag(reader, END):
        _clear(reader, END)
        notes.append(f"{path.name} no longer puts an end token behind a question")
    return adds, notes


def _flag(reader: Any, name: str) -> bool:
    field = reader.get_field(name)
    return field is not None and bool(field.parts[field.data[0]][0])


def _clear(reader: Any, name: str) -> None:
    field = reader.get_field(name)
    field.parts[field.data[0]][0] = False
