"""Prompts for training by reward: from any data with a question, with its verifiable answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from advisor.data.example import Example, Message
from trainers.rows.conversation import question_key
from trainers.rows.kinds import Kind, Marked, Review
from trainers.rows.preference import assistant_text, split_last_answer
from trainers.rows.row import LeftOut, Unusable, ids_of, normalise_text, rows_word
from trainers.rows.template import Templater

NO_PROMPT = "no question that a model could answer"


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


def prompt_rows(
    examples: Iterable[Example], templater: Templater, left: LeftOut
) -> Iterator[Prompt]:
    """Every example's question; an example without one is counted in `left`."""
    for example in examples:
        try:
            yield tokenise_prompt(example, templater)
        except Unusable as error:
            left.add(example.row, *error.args)


def tokenise_prompt(example: Example, templater: Templater) -> Prompt:
    """The question of one example. Raises Unusable."""
    templater.begin_row(example.row)
    context, reference = question_of(example)
    if not any(message.role in ("user", "tool") and message.content.strip() for message in context):
        raise Unusable(NO_PROMPT)
    shown, key = context[-1].content, question_key(context)
    answer = example.answer if example.answer is not None else example.label
    plain = example.plain and not templater.own_template
    if plain:
        text = "".join(message.content for message in context)
    else:
        templater.use_plain_template()
        context = tuple(templater.without_system(context))
        text = templater.render(context, example.tools, prompt=True)
    ids, _ = templater.encode(text, special=plain)
    return Prompt(
        number=example.row,
        prompt_ids=ids_of(ids),
        prompt=text,
        answer=answer if answer is not None else reference or None,
        verifiable=answer is not None,
        shown=shown,
        key=key,
        text=normalise_text(text),
    )


def question_of(example: Example) -> tuple[tuple[Message, ...], str]:
    """The question of an example of any kind, and the answer that the data gives to it."""
    if example.chosen:
        return example.messages, assistant_text(example.chosen)
    if not example.messages and example.label is not None and example.text is not None:
        return (Message("user", example.text),), example.label
    context, answer = split_last_answer(example.messages)
    return context, assistant_text(answer) if example.good is not False else ""


def asked_and_expected(row: Prompt) -> tuple[str, str | None]:
    """What makes a prompt another one: its text, and an answer that can be verified."""
    return row.prompt, row.answer if row.verifiable else None


def drop_repeats(rows: Marked) -> Review:
    """Each prompt once for each expected answer.

    The model writes its own answers, so a repeated prompt teaches nothing more.
    """
    import numpy

    _, first = numpy.unique(rows.marks, return_index=True)
    again = len(rows.marks) - len(first)
    if not again:
        return Review()
    keep = numpy.zeros(len(rows.marks), bool)
    keep[first] = True
    return Review(keep=keep, notes=[f"{rows_word(again)} left out: repeated prompts"])


PROMPTS: Kind[Prompt] = Kind(
    name="prompts",
    row=Prompt,
    build=prompt_rows,
    cut=None,
    unit="prompts",
    limit="seq_len less response_tokens, which is",
    mark=asked_and_expected,
    review=drop_repeats,
)
