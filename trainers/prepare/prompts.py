"""Prompts for training by reward: from any data with a question, the verifiable answer kept
beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.data.example import Example, Message
from trainers.prepare.conversation import question_key
from trainers.prepare.preference import assistant_text, split_last_answer
from trainers.prepare.prepared import Kind
from trainers.prepare.row import LeftOut, Unusable, ids_of, normal, rows_word
from trainers.prepare.template import Templater
from trainers.prepare.turns import as_turns

NO_PROMPT = "no question that a model could answer"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to a model, up to where it begins to answer."""

    number: int
    prompt_ids: Sequence[int]
    prompt: str  # as the template writes it
    messages_json: str  # as TRL's GRPO and RLOO trainers take it; empty where there is no template
    answer: (
        str | None
    )  # that can be verified, or the one in the data; None: a reward model judges alone
    verifiable: bool
    shown: str
    key: str
    text: str

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def input_ids(self) -> Sequence[int]:
        return self.prompt_ids

    @property
    def learned(self) -> int:
        return 0

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation, in plain values."""
        return json.loads(self.messages_json) if self.messages_json else []


def prompts(examples: Iterable[Example], templater: Templater, left: LeftOut) -> Iterator[Prompt]:
    """Every example's question; what holds none is counted in `left`."""
    for example in examples:
        try:
            yield prompt(example, templater)
        except Unusable as error:
            left.add(example.row, *error.args)


def prompt(example: Example, templater: Templater) -> Prompt:
    """The question of one example. Raises Unusable."""
    templater.begin()
    asked, reference = question_of(example)
    if not any(message.role in ("user", "tool") and message.content.strip() for message in asked):
        raise Unusable(NO_PROMPT)
    shown, key = asked[-1].content, question_key(asked)
    answer = example.answer if example.answer is not None else example.label
    plain = example.plain and not templater.own_template
    if plain:
        text = "".join(message.content for message in asked)
    else:
        templater.use_plain_template()
        asked = tuple(templater.without_system(asked))
        text = templater.rendered(asked, example.tools, prompt=True)
        if example.tools:
            templater.note(
                "a prompt has tools, which only our own PPO shows to the model: TRL's trainers take"
                " none from the data"
            )
    ids, _ = templater.encoded(text, special=plain)
    return Prompt(
        number=example.row,
        prompt_ids=ids_of(ids),
        prompt=text,
        messages_json="" if plain else json.dumps(as_turns(asked), ensure_ascii=False),
        answer=answer if answer is not None else reference or None,
        verifiable=answer is not None,
        shown=shown,
        key=key,
        text=normal(text),
    )


def question_of(example: Example) -> tuple[tuple[Message, ...], str]:
    """What is asked in an example of any kind, and the answer that the data gives."""
    if example.chosen:
        return example.messages, assistant_text(example.chosen)
    if not example.messages and example.label is not None and example.text is not None:
        return (Message("user", example.text),), example.label
    asked, answer = split_last_answer(example.messages)
    return asked, assistant_text(answer) if example.good is not False else ""


def without_repeats(
    rows: list[Prompt], templater: Templater
) -> tuple[list[Prompt], list[str], int]:
    """Each prompt once for each answer that is wanted: the model writes its own answers, so a
    repeated prompt teaches nothing more.
    """
    kept: dict[tuple[str, str | None], Prompt] = {}
    for row in rows:
        kept.setdefault((row.prompt, row.answer if row.verifiable else None), row)
    again = len(rows) - len(kept)
    return (
        list(kept.values()),
        [f"{rows_word(again)} left out: their prompt was there before"] if again else [],
        again,
    )


PROMPTS: Kind[Prompt] = Kind(
    name="prompts",
    row=Prompt,
    build=prompts,
    cut=None,
    unit="prompts",
    limit="seq_len less response_tokens, which is",
    review=without_repeats,
)


def prompt_columns(rows: Sequence[Prompt]) -> dict[str, list[Any]]:
    """What TRL's GRPO and RLOO trainers take: they write the chat template around messages
    themselves, once.
    """
    return {
        "prompt": [row.messages or row.prompt for row in rows],
        "answer": [row.answer for row in rows],
    }
