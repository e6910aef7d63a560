"""Rows that teach an answer (conversations, prompt and completion, classes as words) or a text, for
sft and cpt; and prompts for training by reward, from any data with a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from advisor.data.example import Example, Message
from advisor.data.example import question_key as question_key
from trainers.rows.row import IGNORED, Kind, Row, Unusable, cut_row, ids_of, normalise_text
from trainers.rows.template import Chat, Templater

NOTHING_LEARNED = "no token to learn: no answer, an empty one, or every answer has weight 0"
NEITHER = "neither a conversation nor a text"
BAD_ANSWER = "an answer that people rejected"
NO_TURNS = "no conversation"
NO_PROMPT = "no question that a model could answer"


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


def answer_rows(example: Example, templater: Templater) -> list[Row]:
    """One example as a row from which something is learned. Raises Unusable."""
    row = answer_row(example, templater)
    if not row.learned:
        raise Unusable(NOTHING_LEARNED)
    return [row]


def answer_row(example: Example, templater: Templater) -> Row:
    """One example as a row. Raises Unusable."""
    templater.begin_row(example.row)
    example = with_answer(example)
    if not example.messages:
        # Every token is learned, and an end token after the last separates documents.
        text = example.text or ""
        ids, _ = templater.encode(text, special=True)
        learned = [True] * len(ids)
        templater.append_end_token(ids, learned)
        about: dict[str, Any] = {"prompt": "", "shown": "", "expected": "", "document": True}
        key = normalise_text(text)
    else:
        chat, ids, learned = tokenise(example.messages, example, templater)
        last, text = example.messages[-1], chat.text
        is_answer = last.role == "assistant"
        context = example.messages[:-1] if is_answer else example.messages
        about = {
            "prompt": chat.prompt,
            "shown": context[-1].content if context else "",
            "expected": last.content if is_answer else "",
        }
        plain = is_plain_text(example, templater)
        key = normalise_text(chat.prompt) if plain else question_key(context)
    return Row(
        number=example.row,
        input_ids=ids_of(ids),
        labels=ids_of(token if mark else IGNORED for token, mark in zip(ids, learned, strict=True)),
        key=key,
        text=normalise_text(text),
        **about,
    )


def is_plain_text(example: Example, templater: Templater) -> bool:
    """True if prompt and answer follow each other as plain text, without a chat template."""
    return example.plain and not templater.own_template


def tokenise(
    messages: Sequence[Message], example: Example, templater: Templater, *, since: int = 0
) -> tuple[Chat, list[int], list[bool]]:
    """(a conversation as text, as token ids, which of them are learned). Raises Unusable.

    Args:
        example: Where it comes from.
        since: Only answers from this message on are learned.
    """
    if not is_plain_text(example, templater):
        templater.use_plain_template()
        chat = templater.chat(messages, example.tools, since=since)
        return chat, *templater.tokenise(chat)
    first = since or len(messages) - 1
    prompt = "".join(message.content for message in messages[:first])
    answer = "".join(message.content for message in messages[first:])
    # A space between them if neither brings one.
    glue = "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "
    text, start = prompt + glue + answer, len(prompt)
    ids, offsets = templater.encode(text, special=True)
    learned = [templater.learn_all or (a >= start and b > a) for a, b in offsets]
    templater.append_end_token(ids, learned)
    return Chat(text, ((start, len(text)),), prompt), ids, learned


ANSWERS: Kind[Row] = Kind(name="answers", row=Row, build=answer_rows, cut=cut_row)


# ------------------------------------------------------------------------------------ prompts


def assistant_text(messages: Sequence[Message]) -> str:
    """What the assistant says in these messages, as people read it."""
    return "\n".join(message.content for message in messages if message.role == "assistant")


def split_last_answer(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(the conversation before the last answer, that answer)."""
    last = max(
        (index for index, message in enumerate(messages) if message.role == "assistant"),
        default=len(messages),
    )
    return tuple(messages[:last]), tuple(messages[last : last + 1])


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to a model, up to where it begins to answer."""

    number: int
    prompt_ids: Sequence[int]
    prompt: str  # as the template writes it
    # that can be verified, or the one in the data; None: a reward model scores alone
    answer: str | None
    verifiable: bool
    shown: str
    key: str = ""
    text: str = ""

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def input_ids(self) -> Sequence[int]:
        return self.prompt_ids

    @property
    def learned(self) -> int:
        return 0


def prompt_rows(example: Example, templater: Templater) -> list[Prompt]:
    """The question of one example. Raises Unusable."""
    templater.begin_row(example.row)
    context, reference = question_of(example)
    if not any(message.role in ("user", "tool") and message.content.strip() for message in context):
        raise Unusable(NO_PROMPT)
    shown, key = context[-1].content, question_key(context)
    answer = example.answer if example.answer is not None else example.label
    plain = is_plain_text(example, templater)
    if plain:
        text = "".join(message.content for message in context)
    else:
        templater.use_plain_template()
        context = tuple(templater.without_system(context))
        text = templater.render(context, example.tools, prompt=True)
    ids, _ = templater.encode(text, special=plain)
    row = Prompt(
        number=example.row,
        prompt_ids=ids_of(ids),
        prompt=text,
        answer=answer if answer is not None else reference or None,
        verifiable=answer is not None,
        shown=shown,
        key=key,
        text=normalise_text(text),
    )
    return [row]


def question_of(example: Example) -> tuple[tuple[Message, ...], str]:
    """The question of an example of any kind, and the answer that the data gives to it."""
    if example.chosen:
        return example.messages, assistant_text(example.chosen)
    if not example.messages and example.label is not None and example.text is not None:
        return (Message("user", example.text),), example.label
    context, answer = split_last_answer(example.messages)
    return context, assistant_text(answer) if example.good is not False else ""


PROMPTS: Kind[Prompt] = Kind(
    name="prompts",
    row=Prompt,
    build=prompt_rows,
    cut=None,
    unit="prompts",
    limit="seq_len less response_tokens, which is",
    # What makes a prompt another one: its text, and an answer that can be verified.
    mark=lambda row: (row.prompt, row.answer if row.verifiable else None),
    once=True,  # the model writes its own answers: a repeated prompt teaches nothing more
)
