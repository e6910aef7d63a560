"""The chat template of a result for Ollama: derived, compared, with what of it is lost."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace

from advisor.data.chat_text import ChatText, RefusedByTemplate, Turn
from advisor.export.ollama.compare import check
from advisor.export.ollama.go_template import go_template
from advisor.export.ollama.shape import NotExpressible, Shape, shape_of, user

DAYS = (datetime.date(2021, 3, 4), datetime.date(2022, 11, 25))
SPEAKERS = {"system": "system messages", "user": "questions", "assistant": "earlier answers"}


@dataclass(frozen=True, kw_only=True, slots=True)
class OllamaTemplate:
    """A TEMPLATE that writes what the model's own template writes."""

    text: str
    shape: Shape
    compared: int  # conversations that came out alike
    lost: tuple[str, ...]  # what of the model's template it does not do, in sentences


def ollama_template(
    chat: ChatText, *, begins_with: str = "", fixed: Iterable[str] = (), today: datetime.date
) -> OllamaTemplate:
    """The TEMPLATE for a chat template. Raises NotExpressible.

    Args:
        begins_with: The token that Ollama puts in front of a text by itself, because the model
            file says so; "" if none.
        fixed: Arguments that the plan gives the template.
        today: For templates that write the date.
    """

    def write(messages: Iterable[Turn], *, prompt: bool, **given: object) -> str:
        text = chat.as_trained(list(messages), prompt=prompt, **given)
        return text.removeprefix(begins_with)

    lost = []
    if _writes_date(chat):
        lost.append(
            f"the model's template writes the day's date; Ollama's always writes {today:%Y-%m-%d},"
            " the day of this export"
        )
    chat.on(today)
    shape = shape_of(write, fixed=fixed)
    try:
        text = go_template(shape)
        compared = check(text, shape, write)
    except NotExpressible:
        if shape.prompts_by_switch is None:
            raise
        shape = replace(shape, prompts_by_switch=None)
        text = go_template(shape)
        compared = check(text, shape, write)
        lost.append("thinking cannot be switched on and off in Ollama: it is as without a switch")
    return OllamaTemplate(text=text, shape=shape, compared=compared, lost=(*lost, *_lost(shape)))


def _writes_date(chat: ChatText) -> bool:
    texts = set()
    for day in DAYS:
        chat.on(day)
        try:
            texts.add(chat.write([user(1)], prompt=True))
        except RefusedByTemplate:
            return False
    return len(texts) > 1


def _lost(shape: Shape) -> list[str]:
    lost = []
    stripped = [words for role, words in SPEAKERS.items() if role in shape.strips]
    if stripped:
        lost.append(
            f"the model's template removes white space around {_listed(stripped)}; Ollama's"
            " cannot: send them without"
        )
    if shape.system is None:
        lost.append("the model's template leaves system messages out, and so does this one")
    if shape.writes_tools:
        lost.append(
            "calls of functions are not in this template: a server that reads the model's own"
            " carries them (vLLM; llama.cpp's with --jinja; Ollama from the .gguf, in versions"
            " that prefer it)"
        )
    if shape.drops_thoughts and not shape.dropped_whole:
        lost.append(
            "after an answer with thoughts the model's template leaves a trace of them in the"
            " conversation (a mark or an empty line), which Ollama's does not"
        )
    return lost


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
