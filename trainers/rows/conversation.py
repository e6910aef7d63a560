"""Rows that teach an answer (conversations, prompt and completion, classes as words) or a text, for
sft and cpt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from advisor.data.example import Example, Message
from advisor.data.example import question_key as question_key
from advisor.ground.errors import InputError
from trainers.rows.row import IGNORED, LeftOut, Row, Unusable, ids_of, normalise_text
from trainers.rows.template import Templater

NOTHING_LEARNED = "no token to learn: no answer, an empty one, or every answer has weight 0"
NEITHER = "neither a conversation nor a text"
BAD_ANSWER = "an answer that people rejected"
NO_TURNS = "no conversation"


def with_answer(example: Example) -> Example:
    """The example as a conversation or text to learn: a class becomes the answer, and of a pair the
    chosen answer. Raises Unusable.
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
    """Every example as a row; an example with nothing to learn is counted in `left`."""
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
    templater.begin_row(example.row)
    example = with_answer(example)
    if not example.messages:
        return text_row(example, templater)
    if example.plain and not templater.own_template:
        return plain_row(example, templater)
    templater.use_plain_template()
    return chat_row(example, templater)


def tokenise(examples: Iterable[Example], templater: Templater) -> list[Row]:
    """Every example as a row.

    Raises InputError, each row named, if more than a few have nothing to learn.
    """
    left, seen = LeftOut(), list(examples)
    rows = list(answer_rows(seen, templater, left))
    left.raise_if_too_many(len(seen))
    if not rows:
        raise InputError("the data has no rows")
    return rows


def chat_row(example: Example, templater: Templater) -> Row:
    """A conversation, of which the assistant's answers are learned. Raises Unusable."""
    chat = templater.chat(example.messages, example.tools)
    ids, learned = templater.tokenise(chat)
    last = example.messages[-1]
    context = example.messages[:-1] if last.role == "assistant" else example.messages
    expected = last.content if last.role == "assistant" else ""
    shown = context[-1].content if context else ""
    return _row(
        example,
        ids,
        learned,
        prompt=chat.prompt,
        shown=shown,
        expected=expected,
        key=question_key(context),
        text=normalise_text(chat.text),
    )


def plain_row(example: Example, templater: Templater) -> Row:
    """Prompt and completion without a template: plain text, of which the completion is learned."""
    prompt = "".join(message.content for message in example.messages[:-1])
    answer = example.messages[-1].content
    full, start = join_texts(prompt, answer)
    ids, offsets = templater.encode(full, special=True)
    learned = [templater.learn_all or (a >= start and b > a) for a, b in offsets]
    templater.append_end_token(ids, learned)
    return _row(
        example,
        ids,
        learned,
        prompt=prompt,
        shown=prompt,
        expected=answer,
        key=normalise_text(prompt),
        text=normalise_text(full),
    )


def join_texts(prompt: str, answer: str) -> tuple[str, int]:
    """(prompt and completion as one text, where the completion begins), with a space between them
    if neither brings one.
    """
    glue = "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "
    return prompt + glue + answer, len(prompt)


def text_row(example: Example, templater: Templater) -> Row:
    """Raw text: every token is learned, and an end token after the last separates documents."""
    text = example.text or ""
    ids, _ = templater.encode(text, special=True)
    learned = [True] * len(ids)
    templater.append_end_token(ids, learned)
    return _row(
        example,
        ids,
        learned,
        document=True,
        prompt="",
        shown="",
        expected="",
        key=normalise_text(text),
        text=normalise_text(text),
    )


def _row(example: Example, ids: list[int], learned: list[bool], **rest: Any) -> Row:
    labels = ids_of(token if mark else IGNORED for token, mark in zip(ids, learned, strict=True))
    return Row(number=example.row, input_ids=ids_of(ids), labels=labels, **rest)
