"""Which columns are the request and the answer, where no known name says so: a guess by names in
many languages and by what stands in the cells, scored.

A guess is clear where its best reading is ahead of the next by a margin, and names or question
marks speak for it: the order of columns alone is no evidence. A clear guess is taken with a
warning; one that is not is a question in the wizard, and an error elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.data.recognition.columns import Column, text_cell
from advisor.data.recognition.naming import Candidate, pair_format
from advisor.data.recognition.words import BETTER, WORSE, Meaning, meaning, plain_words

CLEAR_MARGIN = 0.75  # by which the best reading has to be ahead of the next
LEAST_CHARS = 12  # on average, of a text that is a request or an answer
FEW_CHARS = 60  # longer texts that repeat are templates, shorter ones states and categories
LEAST_FILLED = 0.6  # of the rows
WIDE_LETTER = 3  # a Chinese or Japanese letter says as much as about three of ours
_WIDE = re.compile(r"[\u1100-\uffdc]")
_ASKS = re.compile(r"[?？؟¿]|;\s*$")  # the Greek question mark is a semicolon
_NO_PROSE = re.compile(
    r"\S+@\S+\.\S+|https?://\S+|\+?[\d\s()/.:,-]+(?:[ap]m|z)?|[\d-]+t[\d:.]+z?|[0-9a-f-]{16,}"
    r"|[!-~]*\d[!-~]*",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A column of texts, as far as they tell its role."""

    name: str
    place: int  # among all columns
    size: float  # letters on average, in those of Latin script
    asks: float  # share of the cells with a question mark
    few: bool  # the same few short texts again and again
    means: Meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """Ways to read a file, best first."""

    candidates: tuple[Candidate, ...]
    clear: bool


def guess(columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]]) -> Guess:
    """What the columns most likely are; no candidate where there is no text at all."""
    for name, column in columns.items():
        if column.filled and column.transcripts >= 0.95 * column.filled:
            why = f"a written dialogue in `{name}` (speakers named at the start of a turn)"
            found = Candidate(format="transcript", mapping={"transcript": name}, why=why)
            return Guess(candidates=(found,), clear=True)
    texts = [
        text
        for place, (name, column) in enumerate(columns.items())
        if (text := _text(name, place, column, rows)) is not None
    ]
    preference = _preference(texts)
    if preference is not None:
        return Guess(candidates=(preference,), clear=True)
    scored = sorted(
        (
            (_score(request, answer, texts), request, answer)
            for request in texts
            for answer in texts
            if request is not answer and answer.means.answer >= request.means.answer - 0.5
        ),
        key=lambda pair: -pair[0],
    )
    if scored:
        best, request, answer = scored[0]
        ahead = len(scored) == 1 or best - scored[1][0] >= CLEAR_MARGIN
        clear = ahead and _is_evident(request, answer, texts)
        pairs = tuple(_pair(first, second) for _, first, second in scored[:4])
        return Guess(candidates=pairs, clear=clear)
    return Guess(candidates=tuple(_single(text) for text in texts), clear=False)


def for_task(
    wanted: str,
    chosen: Candidate,
    columns: Mapping[str, Column],
    rows: Sequence[Mapping[str, Any]],
) -> Candidate | None:
    """Another reading of the columns, where the task needs what the chosen one leaves out.

    Args:
        wanted: "reply": a column of replies beside a text and its category; "label": a column of
            categories beside a request and its answer.
        chosen: The reading by known names, or the clear guess.
    """
    if wanted == "reply" and chosen.format in ("classification", "text"):
        found = guess(columns, rows)
        if found.clear and meaning(found.candidates[0].mapping.get("answer", "")).answer >= 0.8:
            return found.candidates[0]
    if wanted == "label" and {"question", "answer"} <= chosen.mapping.keys():
        answer = columns.get(chosen.mapping["answer"])
        labels = [
            name
            for name, column in columns.items()
            if meaning(name).is_label and column.is_label(named=True) and len(column.values) > 1
        ]
        if len(labels) == 1 and answer is not None and not answer.is_label(named=True):
            text = chosen.mapping["question"]
            why = f"a text in `{text}` and its category in `{labels[0]}`"
            mapping = {"text": text, "label": labels[0]}
            return Candidate(format="classification", mapping=mapping, why=why)
    return None


def _text(name: str, place: int, column: Column, rows: Sequence[Mapping[str, Any]]) -> Text | None:
    """The column as a text to learn from, or None: dates, addresses, numbers, names of things and
    categories are none.
    """
    if column.shape not in ("text", "texts") or column.filled < LEAST_FILLED * len(rows):
        return None
    cells = [cell for row in rows if (cell := text_cell(row.get(name))) and cell.strip()]
    if not cells:
        return None
    means = meaning(name)
    letters = sum(len(cell) + (WIDE_LETTER - 1) * len(_WIDE.findall(cell)) for cell in cells)
    size = letters / len(cells)
    prose = sum(_NO_PROSE.fullmatch(cell.strip()) is None for cell in cells) / len(cells)
    few = len(column.values) <= max(2, 0.1 * len(cells)) and len(cells) >= 8 and size < FEW_CHARS
    if means.is_named and not means.is_no_text:
        is_text = len(column.values) > 1 or prose >= 0.5
    else:
        is_text = (
            prose >= 0.5
            and size >= LEAST_CHARS
            and not few
            and not (means.is_no_text and size < 40)
        )
    if not is_text:
        return None
    asks = sum(_ASKS.search(cell) is not None for cell in cells) / len(cells)
    return Text(name=name, place=place, size=size, asks=asks, means=means, few=few)


def _score(request: Text, answer: Text, texts: Sequence[Text]) -> float:
    longest = max(text.size for text in texts)
    score = 2 * request.means.request + 2 * answer.means.answer
    score -= 2 * request.means.answer + 2 * answer.means.request * (answer.means.request >= 0.8)
    if request.asks >= 0.3 and request.asks > 2 * answer.asks:
        score += 1
    if answer.asks >= 0.3 and answer.asks > 2 * request.asks:
        score -= 1
    for text in (request, answer):  # a title says less than the text below it
        score += 0.5 * min(1.0, 2 * text.size / longest) - 0.5 * text.means.is_title
    return score + 0.4 * (request.place < answer.place)


def _is_evident(request: Text, answer: Text, texts: Sequence[Text]) -> bool:
    """Whether more than the order of the columns speaks for the guess."""
    asks = request.asks >= 0.3 and request.asks > 2 * answer.asks
    if answer.asks >= 0.3 and answer.asks > 2 * request.asks:
        return False  # the names say one thing, the cells another
    if answer.few and not asks:
        return False  # a state, such as "fixed" and "duplicate", that may be called a resolution
    if request.means.request and answer.means.answer:
        return True
    bodies = [text for text in texts if not text.means.is_title]
    bodies = list(texts) if len(bodies) < 2 else bodies
    return len(bodies) == 2 and (answer.means.answer >= 0.8 or request.means.request >= 0.8 or asks)


def _preference(texts: Sequence[Text]) -> Candidate | None:
    """A request with a better and a worse answer, where two columns are named so."""
    better = [text for text in texts if BETTER & set(plain_words(text.name))]
    worse = [text for text in texts if WORSE & set(plain_words(text.name))]
    if len(better) != 1 or len(worse) != 1 or better == worse:
        return None
    others = [text for text in texts if text not in (*better, *worse)]
    bodies = [text for text in others if not text.means.is_title] or others
    if len(bodies) != 1:
        return None
    chosen, rejected = better[0].name, worse[0].name
    return Candidate(
        format="preference",
        mapping={"question": bodies[0].name, "chosen": chosen, "rejected": rejected},
        why=f"a better (`{chosen}`) and a worse (`{rejected}`) answer to `{bodies[0].name}`",
    )


def _pair(request: Text, answer: Text) -> Candidate:
    mapping = {"question": request.name, "answer": answer.name}
    return Candidate(
        format=pair_format(mapping),
        mapping=mapping,
        why=f"a request in `{request.name}` and its answer in `{answer.name}`",
    )


def _single(text: Text) -> Candidate:
    return Candidate(format="text", mapping={"text": text.name}, why=f"a text in `{text.name}`")
