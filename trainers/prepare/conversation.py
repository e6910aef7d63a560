"""Rows that teach an answer (conversations, prompt and completion, classes as words) or a text, for
sft and cpt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from trainers.prepare.row import IGNORED, LeftOut, Row, Unusable, ids_of, normal
from trainers.prepare.template import Templater

NOTHING_LEARNED = "no token to learn: no answer, an empty one, or every answer has weight 0"
NEITHER = "neither a conversation nor a text, which is what this objective learns from"
BAD_ANSWER = "an answer that people rejected"
NO_TURNS = "no conversation"


def with_answer(example: Example) -> Example:
    """The example as a conversation or text to learn: the class as the answer, the better answer of
    a pair. Raises Unusable.
    """
    if example.good is False:
        raise Unusable(BAD_ANSWER)
    if example.label is not None and example.text is not None and not example.messages:
        return replace(
            example,
            messages=(Message("user", example.text), Message("assistant", example.label)),
            text=None,
        )
    if example.chosen:
        # Answers earlier in the conversation are context: nobody preferred them to anything.
        earlier = tuple(
            replace(message, weight=0.0) if message.role == "assistant" else message
            for message in example.messages
        )
        return replace(example, messages=(*earlier, *example.chosen))
    if not example.messages and example.text is None:
        raise Unusable(NEITHER)
    return example


def answer_rows(examples: Iterable[Example], templater: Templater, left: LeftOut) -> Iterator[Row]:
    """Every example as a row; what cannot be learned from is counted in `left`."""
    for example in examples:
        try:
            row = answer_row(example, templater)
        except Unusable as error:
            left.add(example.row, *error.args)
            continue
        if row.learned:
            yield row
        else:
            left.add(example.row, NOTHING_LEARNED)


def answer_row(example: Example, templater: Templater) -> Row:
    """One example as a row. Raises Unusable."""
    templater.begin()
    example = with_answer(example)
    if not example.messages:
        return text_row(example, templater)
    if example.plain and not templater.own_template:
        return plain_row(example, templater)
    templater.use_plain_template()
    return chat_row(example, templater)


def tokenise(examples: Iterable[Example], templater: Templater) -> list[Row]:
    """Every example as a row.

    Raises InputError naming the rows, where more than a few hold nothing to learn.
    """
    left, seen = LeftOut(), list(examples)
    rows = list(answer_rows(seen, templater, left))
    left.raise_if_too_many(len(seen))
    if not rows:
        raise InputError("the data has no rows")
    return rows


def chat_row(example: Example, templater: Templater) -> Row:
    """A conversation: learned where the assistant speaks."""
    chat = templater.chat(example.messages, example.tools)
    ids, learned = templater.masked(chat)
    last = example.messages[-1]
    asked = example.messages[:-1] if last.role == "assistant" else example.messages
    expected = last.content if last.role == "assistant" else ""
    shown = asked[-1].content if asked else ""
    return _row(
        example,
        ids,
        learned,
        prompt=chat.prompt,
        shown=shown,
        expected=expected,
        key=question_key(asked),
        text=normal(chat.text),
    )


def question_key(asked: Iterable[Message]) -> str:
    """Equal for conversations that ask the same, whatever the system text says."""
    return "\n".join(
        f"{message.role}: {normal(message.content)}"
        for message in asked
        if message.role != "system"
    )


def plain_row(example: Example, templater: Templater) -> Row:
    """Prompt and completion as they stand, where there is no template: learned from the completion
    on.
    """
    prompt = "".join(message.content for message in example.messages[:-1])
    answer = example.messages[-1].content
    full, start = join_texts(prompt, answer)
    ids, offsets = templater.encoded(full, special=True)
    learned = [templater.learn_all or (a >= start and b > a) for a, b in offsets]
    templater.end(ids, learned)
    return _row(
        example,
        ids,
        learned,
        prompt=prompt,
        shown=prompt,
        expected=answer,
        key=normal(prompt),
        text=normal(full),
    )


def join_texts(prompt: str, answer: str) -> tuple[str, int]:
    """Prompt and completion as one text with a space between them where neither brings one, and
    where the completion begins.
    """
    glue = "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "
    return prompt + glue + answer, len(prompt)


def text_row(example: Example, templater: Templater) -> Row:
    """Raw text: every token is learned, and the end token after the last, so that documents do not
    run into each other.
    """
    text = example.text or ""
    ids, _ = templater.encoded(text, special=True)
    learned = [True] * len(ids)
    templater.end(ids, learned)
    return _row(
        example,
        ids,
        learned,
        document=True,
        prompt="",
        shown="",
        expected="",
        key=normal(text),
        text=normal(text),
    )


def _row(example: Example, ids: list[int], learned: list[bool], **rest: Any) -> Row:
    labels = ids_of(token if mark else IGNORED for token, mark in zip(ids, learned, strict=True))
    return Row(number=example.row, input_ids=ids_of(ids), labels=labels, **rest)
