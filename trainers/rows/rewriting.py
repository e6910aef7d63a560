"""Texts and what they become, for sequence-to-sequence models: one sequence to read, one to write.

There is no chat template: the input is what stands before the last answer, as plain text. The
tokenizer puts its own tokens around both (an end, a language).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advisor.data.example import Example, Message
from trainers.rows.kinds import Kind
from trainers.rows.row import LeftOut, ids_of, normalise_text
from trainers.rows.template import Templater

NO_OUTPUT = "no input with an output"
EMPTY = "the input or the output is empty"


@dataclass(frozen=True, slots=True)
class Rewriting:
    """An input and its output."""

    number: int
    input_ids: Sequence[int]
    labels: Sequence[int]  # of the output, every one of them learned
    prompt: str
    shown: str
    expected: str
    key: str
    text: str

    @property
    def tokens(self) -> int:
        """The longer of the two: `seq_len` is what each of them may have."""
        return max(len(self.input_ids), len(self.labels))

    @property
    def learned(self) -> int:
        return len(self.labels)


def rewriting_rows(
    examples: Iterable[Example], templater: Templater, left: LeftOut
) -> Iterator[Rewriting]:
    """Every example with an answer as a row; one without is counted in `left`. Of preferences the
    chosen answer is the output.
    """
    for example in examples:
        before, answer = input_and_output(example)
        if answer is None:
            left.add(example.row, NO_OUTPUT)
            continue
        prompt = "\n\n".join(message.content for message in before if message.content)
        expected = answer.content
        if not prompt.strip() or not expected.strip():
            left.add(example.row, EMPTY)
            continue
        ids, _ = templater.encode(prompt, special=True)
        yield Rewriting(
            number=example.row,
            input_ids=ids_of(ids),
            labels=ids_of(templater.tokenizer(text_target=expected)["input_ids"]),
            prompt=prompt,
            shown=before[-1].content,
            expected=expected,
            key=normalise_text(prompt),
            text=normalise_text(f"{prompt}\n{expected}"),
        )


def input_and_output(example: Example) -> tuple[tuple[Message, ...], Message | None]:
    """(what stands before the last answer, that answer); None for an example without one."""
    turns = (*example.messages, *example.chosen)
    if not turns or turns[-1].role != "assistant":
        return turns, None
    return turns[:-1], turns[-1]


def cut_both(row: Rewriting, seq_len: int) -> Rewriting:
    """The row with a shorter input and a shorter output. The last token of each stays: it closes
    the text.
    """
    return replace(row, input_ids=_cut(row.input_ids, seq_len), labels=_cut(row.labels, seq_len))


def _cut(ids: Sequence[int], length: int) -> Sequence[int]:
    return ids if len(ids) <= length else ids_of((*ids[: length - 1], ids[-1]))


REWRITINGS: Kind[Rewriting] = Kind(
    name="rewritings", row=Rewriting, build=rewriting_rows, cut=cut_both
)


def rewriting_columns(rows: Sequence[Rewriting]) -> dict[str, list[Any]]:
    """The columns of a sequence-to-sequence trainer."""
    return {
        "input_ids": [list(row.input_ids) for row in rows],
        "attention_mask": [[1] * len(row.input_ids) for row in rows],
        "labels": [list(row.labels) for row in rows],
    }
