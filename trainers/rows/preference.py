"""Pairs of a chosen and a rejected answer, and single answers with feedback, as token ids behind
one prompt.

The columns are those that TRL's DPO, reward and KTO trainers batch. The chat template is applied
once, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec import structs

from advisor.data.example import Example, Message
from trainers.rows.conversation import (
    NO_TURNS,
    assistant_text,
    question_key,
    split_last_answer,
    tokenise,
)
from trainers.rows.row import IGNORED, Kind, Unusable, ids_of, normalise_text
from trainers.rows.template import Templater, shared_prefix_length

NO_PAIR = "no pair of a better and a worse answer"
NO_VERDICT = "no verdict: neither liked nor rejected"
SAME_ANSWERS = "both answers are the same once they are written as the model sees them"
OTHER_QUESTION = "the two answers do not follow the same text"


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected answer to one prompt."""

    number: int
    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    shown: str
    chosen: str
    rejected: str
    key: str = ""
    text: str = ""

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def input_ids(self) -> Sequence[int]:
        """The prompt with the chosen answer, for checks that need one text."""
        return [*self.prompt_ids, *self.chosen_ids]

    @property
    def learned(self) -> int:
        return len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class Feedback:
    """An answer and the feedback to it: True for an answer that people liked."""

    number: int
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    label: bool
    shown: str
    expected: str
    key: str = ""
    text: str = ""

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def input_ids(self) -> Sequence[int]:
        return [*self.prompt_ids, *self.completion_ids]

    @property
    def learned(self) -> int:
        return len(self.completion_ids)


class TokenisedAnswer(NamedTuple):
    prompt_ids: list[int]
    answer_ids: list[int]
    prompt: str
    text: str  # of both


def tokenise_answer(
    context: Sequence[Message], answer: Sequence[Message], example: Example, templater: Templater
) -> TokenisedAnswer:
    """A prompt and one answer to it. Raises Unusable."""
    if not context or not answer:
        raise Unusable(NO_TURNS)
    messages = (*context, *(structs.replace(message, weight=1.0) for message in answer))
    chat, ids, learned = tokenise(messages, example, templater, since=len(context))
    if not any(learned):
        raise Unusable(NO_TURNS)
    first, last = learned.index(True), len(learned) - learned[::-1].index(True)
    # What the template writes after the end of the last turn is not part of the answer: no model
    # writes it.
    return TokenisedAnswer(
        ids[:first], ids[first:last], chat.text[: chat.spans[0][0]], chat.text[: chat.spans[-1][1]]
    )


def pair_rows(example: Example, templater: Templater) -> list[Pair]:
    """One example as a pair. Raises Unusable."""
    templater.begin_row(example.row)
    if not example.chosen or not example.rejected:
        raise Unusable(NO_PAIR)
    chosen, rejected = (
        tokenise_answer(example.messages, side, example, templater)
        for side in (example.chosen, example.rejected)
    )
    if chosen.prompt != rejected.prompt:
        raise Unusable(OTHER_QUESTION)
    # A token that spans the border belongs to the answer on both sides.
    size = shared_prefix_length(chosen.prompt_ids, rejected.prompt_ids)
    if size < max(len(chosen.prompt_ids), len(rejected.prompt_ids)):
        templater.note(
            "the two answers change the last token of the prompt: it counts as part of the answers"
        )
    chosen_ids, rejected_ids = (
        (side.prompt_ids + side.answer_ids)[size:] for side in (chosen, rejected)
    )
    if chosen_ids == rejected_ids:
        raise Unusable(SAME_ANSWERS)
    texts = [assistant_text(side) for side in (example.chosen, example.rejected)]
    row = Pair(
        number=example.row,
        prompt_ids=ids_of(chosen.prompt_ids[:size]),
        chosen_ids=ids_of(chosen_ids),
        rejected_ids=ids_of(rejected_ids),
        shown=example.messages[-1].content,
        chosen=texts[0],
        rejected=texts[1],
        key=question_key(example.messages),
        # The same for a pair and its reverse: the split must not separate them.
        text=normalise_text(chosen.prompt) + "\n" + "\n".join(sorted(map(normalise_text, texts))),
    )
    return [row]


def cut_pair(row: Pair, seq_len: int) -> Pair | None:
    """The pair with both answers cut at their end; None if that would leave one empty or make both
    the same.
    """
    room = seq_len - len(row.prompt_ids)
    shorter = replace(
        row,
        chosen_ids=row.chosen_ids[: max(0, room)],
        rejected_ids=row.rejected_ids[: max(0, room)],
    )
    return shorter if room > 0 and shorter.chosen_ids != shorter.rejected_ids else None


def feedback_rows(example: Example, templater: Templater) -> list[Feedback]:
    """The answers of one example with their feedback. Raises Unusable."""
    templater.begin_row(example.row)
    if example.chosen and example.rejected:
        (both,) = pair_rows(example, templater)
        return [
            Feedback(
                number=both.number,
                prompt_ids=both.prompt_ids,
                completion_ids=both.chosen_ids if label else both.rejected_ids,
                label=label,
                shown=both.shown,
                expected=both.chosen if label else both.rejected,
                key=both.key,
                text=f"{both.text}\n{label}",
            )
            for label in (True, False)
        ]
    if example.good is None:
        raise Unusable(NO_VERDICT)
    context, last = split_last_answer(example.messages)
    side = tokenise_answer(context, last, example, templater)
    return [
        Feedback(
            example.row,
            ids_of(side.prompt_ids),
            ids_of(side.answer_ids),
            example.good,
            context[-1].content,
            assistant_text(last),
            question_key(context),
            normalise_text(side.text),
        )
    ]


def cut_feedback(row: Feedback, seq_len: int) -> Feedback | None:
    """The row with its answer cut at the end; None if it would be gone."""
    room = seq_len - len(row.prompt_ids)
    return replace(row, completion_ids=row.completion_ids[:room]) if room > 0 else None


PAIRS: Kind[Pair] = Kind(
    name="pairs",
    row=Pair,
    build=pair_rows,
    cut=cut_pair,
    unit="pairs",
    mark=attrgetter("chosen_ids"),
    contrary=("contradict each other: the same two answers, once this and once that one preferred"),
)
FEEDBACK: Kind[Feedback] = Kind(
    name="feedback", row=Feedback, build=feedback_rows, cut=cut_feedback
)


# --------------------------------------------------------------------------- TRL's columns


def preference_columns(rows: Sequence[Pair]) -> dict[str, list[list[int]]]:
    """What TRL's DPO trainer batches."""
    return {
        "prompt_ids": [list(row.prompt_ids) for row in rows],
        "chosen_ids": [list(row.chosen_ids) for row in rows],
        "rejected_ids": [list(row.rejected_ids) for row in rows],
    }


def tokenised_columns(rows: Sequence[Pair]) -> dict[str, list[list[int]]]:
    """What TRL's ORPO and CPO trainers batch."""
    prompts = [list(row.prompt_ids) for row in rows]
    table = {
        "prompt_input_ids": prompts,
        "prompt_attention_mask": [[1] * len(prompt) for prompt in prompts],
    }
    for side in ("chosen", "rejected"):
        answers = [list(getattr(row, f"{side}_ids")) for row in rows]
        both = list(zip(prompts, answers, strict=True))
        table[f"{side}_input_ids"] = [prompt + answer for prompt, answer in both]
        table[f"{side}_attention_mask"] = [[1] * len(ids) for ids in table[f"{side}_input_ids"]]
        table[f"{side}_labels"] = [[IGNORED] * len(prompt) + answer for prompt, answer in both]
    return table


def reward_columns(rows: Sequence[Pair]) -> dict[str, list[list[int]]]:
    return {
        "chosen_ids": [[*row.prompt_ids, *row.chosen_ids] for row in rows],
        "rejected_ids": [[*row.prompt_ids, *row.rejected_ids] for row in rows],
    }


def feedback_columns(rows: Sequence[Feedback]) -> dict[str, list[Any]]:
    """What TRL's KTO trainer batches, of the rows of a batch. Each prompt also gets the answer of
    the row before it, the first that of the last, from which KTO estimates how far the model has
    moved (arXiv:2402.01306, section 4.1).
    """
    answers = [list(row.completion_ids) for row in rows]
    return {
        "prompt_ids": [list(row.prompt_ids) for row in rows],
        "completion_ids": answers,
        "KL_completion_ids": [*answers[-1:], *answers[:-1]],
        "label": [row.label for row in rows],
    }
