"""Rows as training examples, by the roles recognised.

What cannot be used is counted with its row number, never lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from advisor.data.example import (
    Example,
    Message,
    UnusableRow,
    as_turns,
    parsed,
    read_messages,
    read_transcript,
    shared_prefix_length,
    tool_calls,
    trainable,
)
from advisor.data.formats import formats
from advisor.data.read.lines import Faults
from advisor.data.read.rows import read_rows
from advisor.data.recognition.columns import checkable, text_cell, with_paths
from advisor.data.recognition.recognise import DataSet, recognise
from advisor.ground.errors import Fault, InputError

# Rows that cannot be used may be left out up to this share, with a count; above it the data is
# refused. The same share at which a run stops for rows that are too long (plan key `truncation`).
MAX_UNUSABLE_SHARE = 0.05
SHOWN_ROWS = 20


REASONS: Mapping[str, str] = {
    "row-without-answer": "no answer to learn from",
    "row-without-question": "no request",
    "empty-row": "nothing in it",
    "row-is-no-object": "not an object with columns",
    "chosen-equals-rejected": "chosen and rejected are the same",
    "row-without-label": "no label",
    "row-without-verdict": "no verdict that reads as good or bad",
    "broken-unicode": (
        "half a character (a lone surrogate): the text was cut inside an emoji or badly decoded"
    ),
    "broken-conversation": "not a list of turns with a speaker and a text",
    "unknown-role": "a speaker that is none of system, user, assistant, tool",
    "no-function-calls": "function calls without the name of a function",
    "weight-is-no-number": "a weight that is no number from 0 on",
    "content-not-text": "an image, a sound or another content that is not text",
}
TRAILING_TURNS = "ends with turns that nobody answers; they are left out"

EMPTY_CELLS: tuple[Any, ...] = (None, [], {})
Cells = Mapping[str, Any]
Messages = tuple[Message, ...]


class Tally(Struct):
    """How many rows show something, and the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(row)

    @property
    def in_words(self) -> str:
        """'3 rows'."""
        return f"{self.count:,} row{'' if self.count == 1 else 's'}"

    @property
    def rows_in_words(self) -> str:
        """'row 4', 'rows 4, 9, 17' or 'rows 4, 9, 17, ...'."""
        few = self.rows[:5]
        more = ", ..." if self.count > len(few) else ""
        return f"row{'s' if self.count > 1 else ''} {', '.join(map(str, few))}{more}"


class SkippedRows(Struct):
    """Rows that were left out, and rows that were used without their trailing turns."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    shortened: Tally = field(default_factory=Tally)
    seen: int = 0  # rows read
    blank: int = 0  # of them without a single filled cell: the empty lines of a sheet

    @property
    def total(self) -> int:
        """How many rows were left out."""
        return sum(tally.count for tally in self.tallies.values())

    @property
    def are_too_many(self) -> bool:
        """Whether more rows are unusable than may be left out; empty lines are no rows."""
        return self.share > MAX_UNUSABLE_SHARE or 0 < self.total == self.seen

    @property
    def share(self) -> float:
        """How much of the rows that hold anything is unusable."""
        return (self.total - self.blank) / max(1, self.seen - self.blank)

    def add(self, reason: str, row: int) -> None:
        """Count a row that is left out."""
        self.tallies.setdefault(reason, Tally()).add(row)

    def said(self) -> Iterator[tuple[str, Tally, str]]:
        """(reason, rows, '3 of 60 rows: no answer to learn from')."""
        for reason, tally in self.tallies.items():
            yield reason, tally, f"{tally.count:,} of {self.seen:,} rows: {REASONS[reason]}"

    def lines(self) -> list[str]:
        """One sentence a reason: '3 of 60 rows: no answer to learn from; left out (rows 4, 9)'."""
        lines = [f"{text}; left out ({tally.rows_in_words})" for _, tally, text in self.said()]
        one = self.shortened
        if one.count:
            lines.append(f"{one.in_words} changed: {TRAILING_TURNS} ({one.rows_in_words})")
        return lines

    def raise_if_too_many(self, path: str) -> None:
        """Raises InputError if more than 5 % of the rows cannot be used."""
        if self.are_too_many:
            raise self.refusal(path)

    def refusal(self, path: str) -> TooManyUnusable:
        """The error for a file with more unusable rows than may be left out."""
        faults = [
            Fault(where=path, what=f"{text} ({tally.rows_in_words})")
            for _, tally, text in sorted(self.said(), key=lambda one: -one[1].count)
        ]
        none = self.total == self.seen
        last = Fault(
            where=path,
            what="no row can be used"
            if none
            else f"{100 * self.share:.0f} % of the rows cannot be used",
            allowed=f"up to {MAX_UNUSABLE_SHARE:.0%} may be left out, with a count",
            hint="repair or remove these rows, or name other columns with --map",
        )
        return TooManyUnusable(faults=[*faults, last], usable=self.seen - self.total)


class TooManyUnusable(InputError):
    """A file of which more rows cannot be used than may be left out.

    Attributes:
        usable: How many rows can be used.
    """

    def __init__(self, *, faults: list[Fault], usable: int) -> None:
        super().__init__(faults=faults)
        self.usable = usable


def usable_rows(path: str, mapping: Mapping[str, str]) -> str:
    """A JSON Lines text of the rows that can be used, with all their columns."""
    data = recognise(path, mapping=mapping)
    used = {example.row for example in read_examples(data, skipped=SkippedRows())}
    rows = (row for number, row in read_rows(data.source) if number in used)
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def read_examples(
    path: str | os.PathLike[str] | DataSet,
    *,
    mapping: Mapping[str, str] | None = None,
    skipped: SkippedRows | None = None,
    faults: Faults | None = None,
) -> Iterator[Example]:
    """The examples of a data file, in order.

    Args:
        mapping: Role -> column, as in the plan, of a path.
        skipped: Counts the rows that cannot be used. Without it, any such row is an error at the
            end of the file.
        faults: Collects unreadable parts of the file instead of raising them at its end.

    Raises:
        InputError: As `recognise` and `read_rows`.
    """
    data = recognise(path, mapping=mapping)
    build = builder(data)
    counted = SkippedRows() if skipped is None else skipped
    inner = [column for column in data.mapping.values() if column not in data.columns]
    for number, row in read_rows(data.source, faults=faults):
        counted.seen += 1
        try:
            if not isinstance(row, dict):
                raise UnusableRow("empty-row" if row in (None, []) else "row-is-no-object")
            example = build(number, with_paths(row, inner) if inner else row)
        except UnusableRow as error:
            counted.blank += (blank := is_empty(row))
            counted.add("empty-row" if blank else error.reason, number)
            continue
        if data.kind == "paired" and example.messages[-1].role != "assistant":
            roles = [message.role for message in example.messages]
            last = len(roles) - roles[::-1].index("assistant")
            counted.shortened.add(example.row)
            example = replace(example, messages=example.messages[:last])
        yield example
    if skipped is None and counted.total:
        raise counted.refusal(data.path)


def is_empty(row: Any) -> bool:
    """True for a row in which every cell is empty."""
    cells = row.values() if isinstance(row, dict) else [row]
    return all(not cell.strip() if isinstance(cell, str) else cell in EMPTY_CELLS for cell in cells)


# --------------------------------------------------------------------------- one builder a kind


def builder(data: DataSet) -> Callable[[int, Cells], Example]:
    """The function that makes an example of a row, or raises UnusableRow."""
    build = Builder(data.mapping)
    by_kind = {
        "raw_text": build.document,
        "preference": build.preference,
        "unpaired_feedback": build.feedback,
        "prompts_with_verifier": build.verified,
    }
    by_format = {"classification": build.labelled, "transcript": build.transcript}
    paired = build.conversation if "messages" in data.mapping else build.pair
    made = by_kind.get(data.kind) or by_format.get(data.format, paired)

    def sound(number: int, row: Cells) -> Example:
        example = made(number, row)
        turns = (*example.messages, *example.chosen, *example.rejected)
        try:
            for text in (*(turn.content for turn in turns), example.text or ""):
                if not text.isascii():
                    text.encode()
        except UnicodeEncodeError:  # half a character, which no tokenizer takes
            raise UnusableRow("broken-unicode") from None
        return example

    return sound


class Builder:
    """Examples of rows, by the columns that play a role. Each method raises UnusableRow if a row
    cannot be used.
    """

    def __init__(self, mapping: Mapping[str, str]) -> None:
        self.mapping = mapping
        self.asked = mapping.get("question") or mapping.get("messages") or ""
        self.is_simple = set(mapping) == {"question", "answer"}
        self.has_tools = "tools" in mapping

    def cell(self, row: Cells, role: str) -> Any:
        """The cell of a role; None if no column plays it."""
        column = self.mapping.get(role)
        return None if column is None else row.get(column)

    def document(self, number: int, row: Cells) -> Example:
        text = self.cell(row, "text")
        if text is None or (isinstance(text, str) and not text.strip()):
            raise UnusableRow("empty-row")
        if not isinstance(text, str):
            raise UnusableRow("content-not-text")
        return Example(row=number, text=text)

    def labelled(self, number: int, row: Cells) -> Example:
        text, second = self.cell(row, "text"), self.cell(row, "context")
        if not isinstance(text, str) or not text.strip():
            raise UnusableRow("row-without-question")
        if isinstance(second, str) and second.strip():
            text = f"{text}\n\n{second}"
        cell = self.cell(row, "label")
        label = ", ".join(map(str, cell)) if isinstance(cell, list) else text_cell(cell)
        label = (label or "").strip()
        if not label:
            raise UnusableRow("row-without-label")
        messages = (Message("user", text), Message("assistant", label))
        return Example(row=number, text=text, label=label, messages=messages)

    def transcript(self, number: int, row: Cells) -> Example:
        messages = read_transcript(self.cell(row, "transcript"))
        if messages is None:
            raise UnusableRow("broken-conversation")
        return Example(row=number, messages=self.with_system(row, trainable(messages)))

    def conversation(self, number: int, row: Cells) -> Example:
        cell = self.cell(row, "messages")
        if not cell:
            raise UnusableRow("empty-row")
        messages = self.with_system(row, trainable(read_messages(cell)))
        return Example(row=number, messages=messages, tools=self.tools(row, cell))

    def pair(self, number: int, row: Cells) -> Example:
        cell, asked = self.cell(row, "answer"), row.get(self.asked)
        answer, is_text = _answer(cell, calls=self.has_tools), isinstance(cell, str)
        # Most files are two columns of text: no detour for them.
        question: Messages = ()
        if self.is_simple and isinstance(asked, str) and asked.strip() and asked[0] != "[":
            question = (Message("user", asked),)
        question = question or self.prompt(row)
        result = checkable(cell) if is_text else None
        if "ground_truth" in self.mapping:
            result = text_cell(self.cell(row, "ground_truth"))
        return Example(
            row=number,
            messages=(*question, *answer),
            tools=_tools(self.cell(row, "tools")) if self.has_tools else (),
            plain=len(question) == 1 and is_text and isinstance(asked, str),
            answer=result,
        )

    def preference(self, number: int, row: Cells) -> Example:
        better, worse = self.cell(row, "chosen"), self.cell(row, "rejected")
        if "ranked" in self.mapping:  # first against last: the clearest of the pairs in a ranking
            better, worse = self.cell(row, "ranked"), None
            if isinstance(better, list) and len(better) > 1:
                better, worse = better[0], better[-1]
        chosen, rejected = self._side(better), self._side(worse)
        if chosen == rejected:
            raise UnusableRow("chosen-equals-rejected")
        asked: Messages = ()
        if chosen[0].role != "assistant" and rejected[0].role != "assistant":
            # Whole conversations: what both share is the request, whether or not a prompt column
            # repeats it.
            count = shared_prefix_length(chosen, rejected)
            asked, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
        elif self.asked:
            asked = self.prompt(row)
        if not asked:
            raise UnusableRow("row-without-question")
        tools = self.tools(row, row.get(self.asked))
        return Example(row=number, messages=asked, chosen=chosen, rejected=rejected, tools=tools)

    def _side(self, cell: Any) -> Messages:
        turns = None if self.asked else read_transcript(cell)
        return _answer(cell) if turns is None else turns

    def feedback(self, number: int, row: Cells) -> Example:
        is_whole = "messages" in self.mapping and "answer" not in self.mapping
        example = self.conversation(number, row) if is_whole else self.pair(number, row)
        # Thumbs up or down, however it is written.
        good = formats().is_good.get(str(self.cell(row, "good")).strip().lower())
        if good is None:
            raise UnusableRow("row-without-verdict")
        return replace(example, good=good)

    def verified(self, number: int, row: Cells) -> Example:
        question = self.prompt(row)
        if "ground_truth" not in self.mapping:
            return Example(row=number, messages=question)
        cell = self.cell(row, "ground_truth")
        answer = None if isinstance(cell, list) and len(cell) > 1 else text_cell(cell)
        if answer is None and cell and cell == cell:  # test cases: the reward gets them as they are
            answer = json.dumps(cell, ensure_ascii=False)
        if answer is None or not answer.strip():
            raise UnusableRow("row-without-answer")
        return Example(row=number, messages=question, answer=answer)

    def prompt(self, row: Cells) -> Messages:
        """The request of a row: system text, earlier turns, question and what it is about."""
        cell = row.get(self.asked)
        may_be_turns = isinstance(cell, (list, dict)) or str(cell).startswith("[")
        turns = as_turns(cell) if may_be_turns else None
        if turns is not None:
            return self.with_system(row, read_messages(turns))
        cells = (text_cell(cell), text_cell(self.cell(row, "context")))
        parts = [part for part in cells if part is not None and part.strip()]
        if not parts:
            raise UnusableRow("row-without-question")
        history = self.cell(row, "history")
        earlier = [
            message
            for pair in (history if isinstance(history, list) else ())
            if isinstance(pair, (list, tuple)) and len(pair) == 2
            for message in (Message("user", str(pair[0])), Message("assistant", str(pair[1])))
        ]
        return self.with_system(row, (*earlier, Message("user", "\n\n".join(parts))))

    def with_system(self, row: Cells, messages: Messages) -> Messages:
        """The messages behind the row's system text, if it has one and they have none."""
        cell = self.cell(row, "system")
        has_one = bool(messages) and messages[0].role == "system"
        if has_one or not isinstance(cell, str) or not cell.strip():
            return messages
        return (Message("system", cell), *messages)

    def tools(self, row: Cells, request: Any) -> tuple[Cells, ...]:
        """The functions that a row declares: in a column of their own, or beside the turns inside
        the cell of the request, as in OpenAI's pairs: {"input": {"messages": [...], "tools":
        [...]}}.
        """
        if cell := self.cell(row, "tools"):
            return _tools(cell)
        return _tools(request.get("tools")) if isinstance(request, Mapping) else ()


def _tools(cell: Any) -> tuple[Cells, ...]:
    if isinstance(cell, str):
        cell = parsed(cell)
    items = cell if isinstance(cell, list) else [cell]
    # Some files leave out the wrapping that chat templates expect.
    return tuple(
        {"type": "function", "function": item}
        if "name" in item and "function" not in item and "type" not in item
        else item
        for item in items
        if isinstance(item, dict)
    )


def _answer(cell: Any, *, calls: bool = False) -> Messages:
    """The turns of an answer cell: text as one assistant turn, turns as they are."""
    turns = as_turns(cell) if not isinstance(cell, str) or cell.startswith("[") else None
    if turns is not None:
        try:
            return trainable(read_messages(turns))
        except UnusableRow as error:
            if not calls or error.reason == "row-without-answer":
                raise
    if calls and (called := tool_calls(cell)):
        return (Message("assistant", "", 1.0, {"tool_calls": called}),)
    text = text_cell(cell)
    if text is None and not (cell is None or cell == [] or cell != cell):  # NaN differs from itself
        raise UnusableRow("content-not-text")
    if text is None or not text.strip():
        raise UnusableRow("row-without-answer")
    return (Message("assistant", text),)
