"""Rows as training examples, by the roles recognised.

What cannot be used is counted with its row number, never lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.data.conversation import (
    BAD_WEIGHT,
    BROKEN,
    NO_CALLS,
    NOT_TEXT,
    UNKNOWN_ROLE,
    as_turns,
    has_trainable_answer,
    read_messages,
    read_transcript,
    shared_prefix_length,
    tool_calls,
)
from advisor.data.example import Example, Message
from advisor.data.formats import formats
from advisor.data.read.lines import Faults
from advisor.data.read.rows import read_rows
from advisor.data.read.source import find_data
from advisor.data.recognition.columns import checkable, text_cell, with_paths
from advisor.data.recognition.recognise import DataSet, recognise
from advisor.ground.errors import Fault, InputError

# Rows that cannot be used may be left out up to this share, with a count; above it the data is
# refused. The same share at which a run stops for rows that are too long (plan key `truncation`).
MAX_UNUSABLE_SHARE = 0.05
SHOWN_ROWS = 20

NO_ANSWER = "row-without-answer"
NO_QUESTION = "row-without-question"
EMPTY = "empty-row"
NOT_A_ROW = "row-is-no-object"
SAME_PAIR = "chosen-equals-rejected"
NO_LABEL = "row-without-label"
NO_VERDICT = "row-without-verdict"
BROKEN_TEXT = "broken-unicode"
TRAILING = "turns-after-the-last-answer"

REASONS = {
    NO_ANSWER: "no answer to learn from",
    NO_QUESTION: "no request",
    EMPTY: "nothing in it",
    NOT_A_ROW: "not an object with columns",
    SAME_PAIR: "chosen and rejected are the same",
    NO_LABEL: "no label",
    NO_VERDICT: "no verdict that reads as good or bad",
    BROKEN_TEXT: (
        "half a character (a lone surrogate): the text was cut inside an emoji or badly decoded"
    ),
    BROKEN: "not a list of turns with a speaker and a text",
    UNKNOWN_ROLE: "a speaker that is none of system, user, assistant, tool",
    NO_CALLS: "function calls without the name of a function",
    BAD_WEIGHT: "a weight that is no number from 0 on",
    NOT_TEXT: "an image, a sound or another content that is not text",
}
CHANGES = {TRAILING: "ends with turns that nobody answers; they are left out"}

Build = Callable[[int, Mapping[str, Any]], "Example | str"]


@dataclass(slots=True)
class Skipped:
    """Rows that were left out, and rows that were used after a change: how many and which, by
    reason.
    """

    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)  # the first twenty of each reason
    changes: dict[str, int] = field(default_factory=dict)
    changed_rows: dict[str, list[int]] = field(default_factory=dict)
    seen: int = 0  # rows read

    @property
    def total(self) -> int:
        """How many rows were left out."""
        return sum(self.counts.values())

    @property
    def too_many(self) -> bool:
        """True where more rows are unusable than may be left out."""
        return self.total > MAX_UNUSABLE_SHARE * self.seen

    def add(self, reason: str, row: int) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        rows = self.rows.setdefault(reason, [])
        if len(rows) < SHOWN_ROWS:
            rows.append(row)

    def change(self, reason: str, row: int) -> None:
        self.changes[reason] = self.changes.get(reason, 0) + 1
        rows = self.changed_rows.setdefault(reason, [])
        if len(rows) < SHOWN_ROWS:
            rows.append(row)

    def lines(self) -> list[str]:
        """One sentence a reason: '3 rows left out: no answer to learn from (rows 4, 9, 17)'."""
        left = [
            f"{_rows(count)} left out: {REASONS[reason]} ({rows_words(self.rows[reason], count)})"
            for reason, count in self.counts.items()
        ]
        return left + [
            f"{_rows(count)} changed: {CHANGES[reason]}"
            f" ({rows_words(self.changed_rows[reason], count)})"
            for reason, count in self.changes.items()
        ]

    def raise_if_too_many(self, path: str) -> None:
        """Raises InputError where more than 5 % of the rows cannot be used."""
        if self.too_many:
            raise refusal(path, self)


def refusal(path: str, skipped: Skipped) -> InputError:
    """The error for a file with more unusable rows than may be left out."""
    share = 100 * skipped.total / max(1, skipped.seen)
    lines = [
        Fault(
            where=path,
            what=(
                f"{REASONS[reason]}: {_rows(count)} of {skipped.seen:,}"
                f" ({rows_words(skipped.rows[reason], count)})"
            ),
        )
        for reason, count in sorted(skipped.counts.items(), key=lambda item: -item[1])
    ]
    what = (
        "no row can be used"
        if skipped.total == skipped.seen
        else f"{share:.0f} % of the rows cannot be used"
    )
    allowed = f"up to {MAX_UNUSABLE_SHARE:.0%} may be left out, with a count"
    return InputError(
        faults=[
            *lines,
            Fault(
                where=path,
                what=what,
                allowed=allowed,
                hint="repair or remove these rows, or name other columns with --map",
            ),
        ]
    )


def rows_words(rows: list[int] | tuple[int, ...], count: int) -> str:
    """'row 4', 'rows 4, 9, 17' or 'rows 4, 9, 17, ...'."""
    few = rows[:5]
    return (
        f"row{'s' if count > 1 else ''}"
        f" {', '.join(map(str, few))}{', ...' if count > len(few) else ''}"
    )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def read_examples(
    path: str | os.PathLike[str],
    *,
    recognition: DataSet | None = None,
    mapping: Mapping[str, str] | None = None,
    skipped: Skipped | None = None,
    faults: Faults | None = None,
) -> Iterator[Example]:
    """The examples of a data file, in order.

    Args:
        recognition: What `recognise` said; left out, it is asked.
        mapping: Role -> column, as in the plan.
        skipped: Counts the rows that cannot be used. Without it, any such row is an error at the
            end of the file.
        faults: Collects unreadable parts of the file instead of raising them at its end.

    Raises:
        InputError: As `recognise` and `read_rows`.
    """
    understood = recognition if recognition is not None else recognise(path, mapping=mapping)
    build = builder(understood)
    counted = Skipped() if skipped is None else skipped
    inner = [path for path in understood.mapping.values() if path not in understood.columns]
    for number, row in read_rows(find_data(path), faults=faults):
        counted.seen += 1
        example = (
            build(number, with_paths(row, inner) if inner else row)
            if isinstance(row, dict)
            else (EMPTY if row in (None, []) else NOT_A_ROW)
        )
        if isinstance(example, str):
            counted.add(EMPTY if example != NOT_A_ROW and is_empty(row) else example, number)
            continue
        if understood.kind == "paired" and example.messages[-1].role != "assistant":
            example = _without_trailing(example, counted)
        yield example
    if skipped is None and counted.total:
        raise refusal(os.fspath(path), counted)


def is_empty(row: Any) -> bool:
    """True for a row in which every cell is empty."""
    if isinstance(row, dict):
        return all(
            cell is None or cell == [] or cell == {} or (isinstance(cell, str) and not cell.strip())
            for cell in row.values()
        )
    return row is None or row == []


def _without_trailing(example: Example, skipped: Skipped) -> Example:
    from dataclasses import replace

    last = max(
        index for index, message in enumerate(example.messages) if message.role == "assistant"
    )
    skipped.change(TRAILING, example.row)
    return replace(example, messages=example.messages[: last + 1])


# --------------------------------------------------------------------------- one builder a kind


def builder(recognition: DataSet) -> Build:
    """The function that makes an example of a row, or says why it cannot be used."""
    mapping = recognition.mapping
    if recognition.kind == "raw_text":
        return _text_builder(mapping)
    if recognition.kind == "preference":
        return _preference_builder(mapping)
    if recognition.kind == "unpaired_feedback":
        return _feedback_builder(mapping)
    if recognition.kind == "prompts_with_verifier":
        return _verifier_builder(mapping)
    if recognition.format == "classification":
        return _label_builder(mapping)
    if recognition.format == "transcript":
        return _transcript_builder(mapping)
    return _conversation_builder(mapping) if "messages" in mapping else _pair_builder(mapping)


def _sound(text: str) -> bool:
    """False where a text holds half a character, which no tokenizer takes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(example: Example) -> Example | str:
    for group in (example.messages, example.chosen, example.rejected):
        for message in group:
            if not message.content.isascii() and not _sound(message.content):
                return BROKEN_TEXT
    return example


def _text_builder(mapping: Mapping[str, str]) -> Build:
    column = mapping["text"]

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        text = row.get(column)
        if not isinstance(text, str):
            return EMPTY if text is None else NOT_TEXT
        if not text.strip():
            return EMPTY
        return Example(row=number, text=text) if _sound(text) else BROKEN_TEXT

    return build


def _label_builder(mapping: Mapping[str, str]) -> Build:
    text_column, label_column, second_column = (
        mapping["text"],
        mapping["label"],
        mapping.get("context"),
    )

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        text, cell = row.get(text_column), row.get(label_column)
        if not isinstance(text, str) or not text.strip():
            return NO_QUESTION
        second = row.get(second_column) if second_column else None
        if isinstance(second, str) and second.strip():
            text = f"{text}\n\n{second}"
        label = ", ".join(map(str, cell)) if isinstance(cell, list) else text_cell(cell)
        if label is None or not label.strip():
            return NO_LABEL
        label = label.strip()
        return _checked(
            Example(
                row=number,
                text=text,
                label=label,
                messages=(Message("user", text), Message("assistant", label)),
            )
        )

    return build


def _transcript_builder(mapping: Mapping[str, str]) -> Build:
    column, system_column = mapping["transcript"], mapping.get("system")

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        messages = read_transcript(row.get(column))
        if messages is None:
            return BROKEN
        if system_column:
            messages = _with_system(row.get(system_column), messages)
        return (
            _checked(Example(row=number, messages=messages))
            if has_trainable_answer(messages)
            else NO_ANSWER
        )

    return build


def _tools(cell: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(cell, str) and cell.strip():
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return ()
    items = cell if isinstance(cell, list) else [cell]
    # Some files leave out the wrapping that chat templates expect.
    return tuple(
        (
            {"type": "function", "function": item}
            if "name" in item and "function" not in item and "type" not in item
            else item
        )
        for item in items
        if isinstance(item, dict)
    )


def _offered(
    row: Mapping[str, Any], column: str | None, request: Any
) -> tuple[Mapping[str, Any], ...]:
    """The functions that a row declares: in a column of their own, or beside the turns inside the
    cell of the request, as in OpenAI's pairs: {"input": {"messages": [...], "tools": [...]}}.
    """
    if column and row.get(column):
        return _tools(row[column])
    return _tools(request.get("tools")) if isinstance(request, Mapping) else ()


def _conversation_builder(mapping: Mapping[str, str]) -> Build:
    column, system_column, tools_column = (
        mapping["messages"],
        mapping.get("system"),
        mapping.get("tools"),
    )

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        cell = row.get(column)
        if not cell:
            return EMPTY
        messages = read_messages(cell)
        if isinstance(messages, str):
            return messages
        if not has_trainable_answer(messages):
            return NO_ANSWER
        if system_column:
            messages = _with_system(row.get(system_column), messages)
        tools = _offered(row, tools_column, cell)
        return _checked(Example(row=number, messages=messages, tools=tools))

    return build


def _with_system(cell: Any, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if isinstance(cell, str) and cell.strip() and (not messages or messages[0].role != "system"):
        return (Message("system", cell), *messages)
    return messages


def _prompt(mapping: Mapping[str, str]) -> Callable[[Mapping[str, Any]], tuple[Message, ...] | str]:
    """The function that reads the request of a row: system text, earlier turns, question and what
    it is about.
    """
    column = mapping.get("question") or mapping.get("messages") or ""
    context_column, system_column, history_column = (
        mapping.get("context"),
        mapping.get("system"),
        mapping.get("history"),
    )

    def read(row: Mapping[str, Any]) -> tuple[Message, ...] | str:
        cell = row.get(column)
        turns = (
            as_turns(cell)
            if isinstance(cell, (list, dict)) or (isinstance(cell, str) and cell.startswith("["))
            else None
        )
        if turns is not None:
            messages = read_messages(turns)
            return (
                messages
                if isinstance(messages, str)
                else _with_system(row.get(system_column) if system_column else None, messages)
            )
        question = text_cell(cell)
        context = text_cell(row.get(context_column)) if context_column else None
        parts = [part for part in (question, context) if part is not None and part.strip()]
        if not parts:
            return NO_QUESTION
        earlier: tuple[Message, ...] = ()
        history = row.get(history_column) if history_column else None
        if isinstance(history, list):
            pairs = [pair for pair in history if isinstance(pair, (list, tuple)) and len(pair) == 2]
            earlier = tuple(
                message
                for asked, said in pairs
                for message in (Message("user", str(asked)), Message("assistant", str(said)))
            )
        return _with_system(
            row.get(system_column) if system_column else None,
            (*earlier, Message("user", "\n\n".join(parts))),
        )

    return read


def _answer(cell: Any, *, calls: bool = False) -> tuple[Message, ...] | str:
    """The turns of an answer cell: text as one assistant turn, turns as they are."""
    turns = as_turns(cell) if not isinstance(cell, str) or cell.startswith("[") else None
    if turns is not None:
        messages = read_messages(turns)
        if not isinstance(messages, str):
            return messages if has_trainable_answer(messages) else NO_ANSWER
        if not calls:
            return messages
    if calls:
        called = tool_calls(cell)
        if called:
            return (Message("assistant", "", 1.0, {"tool_calls": called}),)
    text = cell if isinstance(cell, str) else text_cell(cell)
    if text is None:
        return (
            NO_ANSWER if cell is None or cell == [] or cell != cell else NOT_TEXT
        )  # NaN differs from itself
    return (Message("assistant", text),) if text.strip() else NO_ANSWER


def _pair_builder(mapping: Mapping[str, str]) -> Build:
    prompt, answer_column, tools_column = _prompt(mapping), mapping["answer"], mapping.get("tools")
    simple = set(mapping) == {"question", "answer"}
    question_column, result_column = mapping["question"], mapping.get("ground_truth")

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        cell, asked = row.get(answer_column), row.get(question_column)
        answer = _answer(cell, calls=tools_column is not None)
        if isinstance(answer, str):
            return answer
        # Most files are two columns of text: no detour for them.
        if simple and isinstance(asked, str) and asked and asked[0] != "[":
            if asked.isspace():
                return NO_QUESTION
            text = isinstance(cell, str)
            return _checked(
                Example(
                    row=number,
                    messages=(Message("user", asked), *answer),
                    plain=text,
                    answer=checkable(cell) if isinstance(cell, str) else None,
                )
            )
        question = prompt(row)
        if isinstance(question, str):
            return question
        tools = _tools(row.get(tools_column)) if tools_column else ()
        plain = len(question) == 1 and isinstance(cell, str) and isinstance(asked, str)
        result = (
            text_cell(row.get(result_column))
            if result_column
            else checkable(cell)
            if isinstance(cell, str)
            else None
        )
        return _checked(
            Example(
                row=number, messages=(*question, *answer), tools=tools, plain=plain, answer=result
            )
        )

    return build


def _preference_builder(mapping: Mapping[str, str]) -> Build:
    has_prompt = "question" in mapping or "messages" in mapping
    prompt, chosen_column, rejected_column, ranked_column = (
        _prompt(mapping),
        mapping.get("chosen", ""),
        mapping.get("rejected", ""),
        mapping.get("ranked"),
    )
    prompt_column = mapping.get("question") or mapping.get("messages") or ""
    tools_column = mapping.get("tools")

    def side(cell: Any) -> tuple[Message, ...] | str:
        if isinstance(cell, str) and not has_prompt:
            turns = read_transcript(cell)
            if turns is not None:
                return turns
        return _answer(cell)

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        better, worse = row.get(chosen_column), row.get(rejected_column)
        if ranked_column:  # the first against the last: the clearest of the pairs in a ranking
            ranking = row.get(ranked_column)
            better, worse = (
                (ranking[0], ranking[-1])
                if isinstance(ranking, list) and len(ranking) > 1
                else (ranking, None)
            )
        chosen, rejected = side(better), side(worse)
        if isinstance(chosen, str):
            return chosen
        if isinstance(rejected, str):
            return rejected
        if chosen == rejected:
            return SAME_PAIR
        asked: tuple[Message, ...] = ()
        if chosen[0].role != "assistant" and rejected[0].role != "assistant":
            # Whole conversations: what both share is the request, whether or not a prompt column
            # repeats it.
            count = shared_prefix_length(chosen, rejected)
            asked, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
        elif has_prompt:
            question = prompt(row)
            if isinstance(question, str):
                return question
            asked = question
        if not asked:
            return NO_QUESTION
        tools = _offered(row, tools_column, row.get(prompt_column))
        return _checked(
            Example(row=number, messages=asked, chosen=chosen, rejected=rejected, tools=tools)
        )

    return build


def feedback_label(cell: Any) -> bool | None:
    """A thumbs up or down, however it is written; None where it is neither."""
    if isinstance(cell, bool):
        return cell
    return formats().is_good.get(str(cell).strip().lower())


def _feedback_builder(mapping: Mapping[str, str]) -> Build:
    whole = (
        _conversation_builder(mapping)
        if "messages" in mapping and "answer" not in mapping
        else _pair_builder({**mapping, "question": mapping.get("question") or mapping["messages"]})
    )
    column = mapping["good"]

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        from dataclasses import replace

        example = whole(number, row)
        if isinstance(example, str):
            return example
        good = feedback_label(row.get(column))
        return NO_VERDICT if good is None else replace(example, good=good)

    return build


def _verifier_builder(mapping: Mapping[str, str]) -> Build:
    prompt, column = _prompt(mapping), mapping.get("ground_truth")

    def build(number: int, row: Mapping[str, Any]) -> Example | str:
        question = prompt(row)
        if isinstance(question, str):
            return question
        if column is None:
            return _checked(Example(row=number, messages=question))
        cell = row.get(column)
        answer = None if isinstance(cell, list) and len(cell) > 1 else text_cell(cell)
        if answer is None and cell and cell == cell:
            answer = json.dumps(
                cell, ensure_ascii=False
            )  # test cases: handed to the reward as they are
        if answer is None or not answer.strip():
            return NO_ANSWER
        return _checked(Example(row=number, messages=question, answer=answer))

    return build
