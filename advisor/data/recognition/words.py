"""Columns with names of their own: what the words in a name say, in some fifteen languages.

A reading is clear if the names alone leave one request and one answer. It is taken with a
warning; any other is a question in the wizard, and an error with a `--map` line elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache

from advisor.data.formats import formats
from advisor.data.recognition.columns import Column
from advisor.data.recognition.matching import ColumnReading, format_of

MOST_COLUMNS = 500  # a table with more is a matrix: its columns are named with --map
MOST_WORDS = 5  # of a name
SHOWN_WAYS = 4
LEAST_CHARS = 8  # on average, of a text
ASKED = ("question", "customer", "text", "title")  # who may be the request, the likeliest first
SAID = ("answer", "agent")
REQUEST_AND_ANSWER = "a request in {question} and its answer in {answer}"
WHOLE_WORDS_UP_TO = "\u0590"  # scripts from here on write no spaces: found inside a name


@cache
def _words() -> dict[str, frozenset[str]]:
    return {role: frozenset(words) for role, words in formats().words.items()}


def role_of(name: str) -> str:
    """The group of words that a column's name belongs to; "" for none. The last part of a
    nested name decides ('resolution.agent'), or all of it if that says little ('resolution.text').
    """
    last = name.rpartition(".")[2]
    if last != name and (role := role_of(last)) not in ("", "text"):
        return role
    words, whole = plain_words(name), unicodedata.normalize("NFC", name)
    for role, group in _words().items():
        if any(map(group.__contains__, words)):
            return role
        long = tuple(part for part in group if len(part) >= 5)
        if role != "nothing" and any(word.endswith(long) for word in words):
            return role  # German writes words together
        if any(part in whole for part in group if part >= WHOLE_WORDS_UP_TO):
            return role
    return ""


def plain_words(name: str) -> list[str]:
    """The words of a column's name, in small letters and without accents: 'Agent_Reply' and
    'agentReply' are agent, reply.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    letters = unicodedata.normalize("NFKD", spaced.replace("ł", "l").replace("ø", "o"))
    bare = "".join(char for char in letters if not unicodedata.combining(char))
    return re.findall(r"[^\W_]+", bare.casefold())


def may_be_row(names: Iterable[str]) -> bool:
    """Whether a name is as long as a sentence: a first line without names of columns."""
    return any(len(name.split()) > MOST_WORDS for name in names)


def by_words(columns: Mapping[str, Column]) -> tuple[list[ColumnReading], bool]:
    """Ways to read columns whose names are no known ones, best first, and whether the names leave
    no other way than the first.
    """
    if len(columns) > MOST_COLUMNS or may_be_row(columns):
        return [], False
    texts = {
        name: role_of(name)
        for name, column in columns.items()
        if column.shape in ("text", "texts") and not (column.holds_addresses or column.holds_dates)
    }
    texts = {name: role for name, role in texts.items() if role not in ("nothing", "label")}
    better, worse = ([name for name in texts if _words()[side] & {*plain_words(name)}]
                     for side in ("chosen", "rejected"))  # fmt: skip
    if len(better) == len(worse) == 1 and better != worse:
        asked = _best({name: texts[name] for name in texts if name not in better + worse}, ASKED)
        if len(asked) == 1:
            way = _way(
                "a better ({chosen}) and a worse ({rejected}) answer to {question}",
                {"question": asked[0], "chosen": better[0], "rejected": worse[0]},
            )
            return [way], True
    said = _best(texts, SAID)
    asked = _best({name: role for name, role in texts.items() if name not in said}, ASKED)
    pairs = [
        _way(REQUEST_AND_ANSWER, {"question": asks, "answer": says})
        for asks in asked or texts
        for says in said or texts
        if asks != says
    ]
    if len(asked) == len(said) == 1:
        # Codes, or a few states again and again ("fixed", "duplicate"), may be called a solution.
        rivals = [name for name, role in texts.items() if role in ASKED and role != "title"]
        says_little = (_is_thin(columns[said[0]]) and texts[asked[0]] != "question") or (
            _is_thin(columns[asked[0]]) and len(rivals) > 1
        )
        return pairs, not says_little
    return pairs[:SHOWN_WAYS] or [_way("a text in {text}", {"text": name}) for name in texts], False


def _is_thin(column: Column) -> bool:
    return column.mean_characters < LEAST_CHARS or column.is_label(named=False)


def _best(texts: Mapping[str, str], roles: tuple[str, ...]) -> list[str]:
    """The columns of the first of these roles that any column has."""
    found = ([name for name, own in texts.items() if own == role] for role in roles)
    return next(filter(None, found), [])


def for_task(
    wanted: str, chosen: ColumnReading, columns: Mapping[str, Column]
) -> ColumnReading | None:
    """Another reading of the columns, if the task needs what the chosen one leaves out.

    Args:
        wanted: "reply": a column of replies beside a text and its category; "label": a column of
            categories beside a request and its answer.
        chosen: The reading by known names or by words.
    """
    if wanted == "reply":
        ways, clear = by_words(columns)
        return ways[0] if clear and role_of(ways[0].mapping.get("answer", "")) in SAID else None
    answer = columns.get(chosen.mapping.get("answer", ""))
    labels = [
        name
        for name, column in columns.items()
        if role_of(name) == "label" and column.is_label(named=True) and len(column.values) > 1
    ]
    if len(labels) != 1 or answer is None or answer.is_label(named=True):
        return None
    mapping = {"text": chosen.mapping["question"], "label": labels[0]}
    return _way("a text in {text} and its category in {label}", mapping)


def _way(why: str, mapping: Mapping[str, str]) -> ColumnReading:
    columns = {role: f"`{column}`" for role, column in mapping.items()}
    why = why.format(**columns)
    return ColumnReading(format=format_of(mapping, {}), mapping=mapping, why=why)
