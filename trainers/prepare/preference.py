"""Two answers to one question, and answers that people liked or did not, as token ids with a prompt
that is the same for both.

The columns are those that TRL's DPO, reward and KTO trainers batch: the chat template is applied
here, once, and never again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advisor.data.example import Example, Message
from trainers.prepare.conversation import NO_TURNS, join_texts, question_key
from trainers.prepare.prepared import Kind
from trainers.prepare.row import LeftOut, Unusable, ids_of, normal, row_numbers, rows_word
from trainers.prepare.template import Templater

NO_PAIR = "no pair of a better and a worse answer"
NO_VERDICT = "no verdict: neither liked nor rejected"
SAME_ANSWERS = "both answers are the same once they are written as the model sees them"
OTHER_QUESTION = "the two answers do not follow the same text"


@dataclass(frozen=True, slots=True)
class Pair:
    """A better and a worse answer to one prompt."""

    number: int
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    shown: str
    chosen: str
    rejected: str
    key: str
    text: str

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def input_ids(self) -> Sequence[int]:
        """The prompt with the better answer: one text, where one is wanted."""
        return [*self.prompt_ids, *self.chosen_ids]

    @property
    def learned(self) -> int:
        return len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class Feedback:
    """An answer and whether people liked it."""

    number: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    label: bool
    shown: str
    expected: str
    key: str
    text: str

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def input_ids(self) -> Sequence[int]:
        return [*self.prompt_ids, *self.completion_ids]

    @property
    def learned(self) -> int:
        return len(self.completion_ids)


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and one answer to it, as token ids."""

    prompt_ids: list[int]
    answer_ids: list[int]
    prompt: str
    text: str  # of both


def tokenise_answer(
    asked: Sequence[Message], answer: Sequence[Message], example: Example, templater: Templater
) -> Answered:
    """A prompt and one answer to it. Raises Unusable."""
    if not asked or not answer:
        raise Unusable(NO_TURNS)
    if example.plain and not templater.own_template:
        prompt = "".join(message.content for message in asked)
        text, start = join_texts(prompt, "".join(message.content for message in answer))
        ids, offsets = templater.encoded(text, special=True)
        learned = [a >= start and b > a for a, b in offsets]
        templater.end(ids, learned)
        split = learned.index(True)
        return Answered(ids[:split], ids[split:], prompt, text)
    templater.use_plain_template()
    chat = templater.chat(
        (*asked, *(replace(message, weight=1.0) for message in answer)),
        example.tools,
        since=len(asked),
    )
    ids, learned = templater.masked(chat)
    if not any(learned):
        raise Unusable(NO_TURNS)
    first, last = learned.index(True), len(learned) - learned[::-1].index(True)
    # What the template writes after the end of the last turn is no part of the answer: no model
    # writes it.
    return Answered(
        ids[:first], ids[first:last], chat.text[: chat.spans[0][0]], chat.text[: chat.spans[-1][1]]
    )


def pairs(examples: Iterable[Example], templater: Templater, left: LeftOut) -> Iterator[Pair]:
    """Every example with two answers as a pair; what is none is counted in `left`."""
    for example in examples:
        try:
            yield pair(example, templater)
        except Unusable as error:
            left.add(example.row, *error.args)


def pair(example: Example, templater: Templater) -> Pair:
    """One example as a pair. Raises Unusable."""
    templater.begin()
    if not example.chosen or not example.rejected:
        raise Unusable(NO_PAIR)
    chosen, rejected = (
        tokenise_answer(example.messages, side, example, templater)
        for side in (example.chosen, example.rejected)
    )
    if chosen.prompt != rejected.prompt:
        raise Unusable(OTHER_QUESTION)
    prompt_ids = chosen.prompt_ids
    if prompt_ids != rejected.prompt_ids:
        # A token that reaches over the border belongs to the answer in both.
        size = next(
            (
                place
                for place, (a, b) in enumerate(zip(prompt_ids, rejected.prompt_ids, strict=False))
                if a != b
            ),
            min(len(prompt_ids), len(rejected.prompt_ids)),
        )
        chosen, rejected = _shorter(chosen, size), _shorter(rejected, size)
        prompt_ids = chosen.prompt_ids
        templater.note(
            "the two answers change the last token of the prompt: it counts as part of the answers"
        )
    if chosen.answer_ids == rejected.answer_ids:
        raise Unusable(SAME_ANSWERS)
    said = [assistant_text(side) for side in (example.chosen, example.rejected)]
    return Pair(
        number=example.row,
        prompt_ids=ids_of(prompt_ids),
        chosen_ids=ids_of(chosen.answer_ids),
        rejected_ids=ids_of(rejected.answer_ids),
        shown=example.messages[-1].content,
        chosen=said[0],
        rejected=said[1],
        key=question_key(example.messages),
        # The same for a pair and its reverse, which must not stand on both sides of the split.
        text=normal(chosen.prompt) + "\n" + "\n".join(sorted(map(normal, said))),
    )


def _shorter(side: Answered, size: int) -> Answered:
    return replace(
        side, prompt_ids=side.prompt_ids[:size], answer_ids=side.prompt_ids[size:] + side.answer_ids
    )


def assistant_text(messages: Sequence[Message]) -> str:
    """What the assistant says in these turns, for people."""
    return "\n".join(message.content for message in messages if message.role == "assistant")


def cut_pair(row: Pair, seq_len: int) -> Pair | None:
    """The pair with both answers cut at their end; None where one would be gone or both would be
    the same.
    """
    room = seq_len - len(row.prompt_ids)
    shorter = replace(
        row,
        chosen_ids=row.chosen_ids[: max(0, room)],
        rejected_ids=row.rejected_ids[: max(0, room)],
    )
    return shorter if room > 0 and shorter.chosen_ids != shorter.rejected_ids else None


def review_pairs(rows: list[Pair], templater: Templater) -> tuple[list[Pair], list[str], int]:
    """The pairs, and a note on those that are there in both directions."""
    ways: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        ways.setdefault(row.text, set()).add(tuple(row.chosen_ids))
    contrary = [row.number for row in rows if len(ways[row.text]) > 1]
    notes = (
        [
            f"{rows_word(len(contrary))} contradict each other: the same two answers, once this and"
            f" once that one preferred ({row_numbers(contrary, len(contrary))})"
        ]
        if contrary
        else []
    )
    return rows, notes, 0


def feedback_rows(
    examples: Iterable[Example], templater: Templater, left: LeftOut
) -> Iterator[Feedback]:
    """Every example with a verdict as a row; a pair gives two, its better answer liked and its
    worse one not.
    """
    for example in examples:
        try:
            yield from feedback(example, templater)
        except Unusable as error:
            left.add(example.row, *error.args)


def feedback(example: Example, templater: Templater) -> list[Feedback]:
    """The answers of one example with their verdicts. Raises Unusable."""
    templater.begin()
    if example.chosen and example.rejected:
        both = pair(example, templater)
        sides = ((both.chosen_ids, True, both.chosen), (both.rejected_ids, False, both.rejected))
        return [
            Feedback(
                both.number,
                both.prompt_ids,
                ids,
                label,
                both.shown,
                said,
                both.key,
                f"{both.text}\n{label}",
            )
            for ids, label, said in sides
        ]
    if example.good is None:
        raise Unusable(NO_VERDICT)
    asked, answer = split_last_answer(example.messages)
    side = tokenise_answer(asked, answer, example, templater)
    said = assistant_text(answer)
    return [
        Feedback(
            example.row,
            ids_of(side.prompt_ids),
            ids_of(side.answer_ids),
            example.good,
            asked[-1].content,
            said,
            question_key(asked),
            normal(side.text),
        )
    ]


def split_last_answer(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The conversation before the last answer, and that answer."""
    last = max(
        (index for index, message in enumerate(messages) if message.role == "assistant"),
        default=len(messages),
    )
    return tuple(messages[:last]), tuple(messages[last : last + 1])


def cut_feedback(row: Feedback, seq_len: int) -> Feedback | None:
    """The row with its answer cut at the end; None where it would be gone."""
    room = seq_len - len(row.prompt_ids)
    return replace(row, completion_ids=row.completion_ids[:room]) if room > 0 else None


def review_feedback(
    rows: list[Feedback], templater: Templater
) -> tuple[list[Feedback], list[str], int]:
    """The rows, and a note where all verdicts are the same."""
    liked = sum(row.label for row in rows)
    if 0 < liked < len(rows):
        return rows, [f"{liked:,} answers people liked, {len(rows) - liked:,} they did not"], 0
    return (
        rows,
        [f"all {len(rows):,} answers have the same verdict: nothing says what makes one better"],
        0,
    )


PAIRS: Kind[Pair] = Kind(
    name="pairs", row=Pair, build=pairs, cut=cut_pair, unit="pairs", review=review_pairs
)
FEEDBACK: Kind[Feedback] = Kind(
    name="feedback", row=Feedback, build=feedback_rows, cut=cut_feedback, review=review_feedback
)


# --------------------------------------------------------------------------- TRL's columns


def preference_columns(rows: Sequence[Pair]) -> dict[str, list[list[int]]]:
    """What TRL's DPO and ORPO trainers batch."""
    return {
        "prompt_ids": [list(row.prompt_ids) for row in rows],
        "chosen_ids": [list(row.chosen_ids) for row in rows],
        "rejected_ids": [list(row.rejected_ids) for row in rows],
    }


def reward_columns(rows: Sequence[Pair]) -> dict[str, list[list[int]]]:
    """What TRL's reward trainer batches: each side with its prompt."""
    return {
        "chosen_ids": [[*row.prompt_ids, *row.chosen_ids] for row in rows],
        "rejected_ids": [[*row.prompt_ids, *row.rejected_ids] for row in rows],
    }


def feedback_columns(rows: Sequence[Feedback], *, batch: int) -> dict[str, list[Any]]:
    """What TRL's KTO trainer batches.

    Args:
        batch: Rows that go through one device at once. Each prompt also gets the answer of the row
            before it in its batch,
            from which KTO estimates how far the model has moved (arXiv:2402.01306, section 4.1).
    """
    answers = [list(row.completion_ids) for row in rows]
    groups = [answers[start : start + batch] for start in range(0, len(answers), batch)]
    turned = [answer for group in groups for answer in [group[-1], *group[:-1]]]
    if len(groups) > 1 and len(groups[-1]) == 1:
        turned[-1] = groups[-2][-1]  # alone in its batch: its own answer would tell nothing
    return {
        "prompt_ids": [list(row.prompt_ids) for row in rows],
        "completion_ids": answers,
        "KL_completion_ids": turned,
        "label": [row.label for row in rows],
    }


def reading_prepared_rows(trainer: type) -> type:
    """TRL's trainer class, taking rows as they are instead of writing the chat template around them
    again.
    """

    def _prepare_dataset(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    return type(f"Prepared{trainer.__name__}", (trainer,), {"_prepare_dataset": _prepare_dataset})
