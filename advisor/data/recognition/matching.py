"""Ways to read a file: the formats of rules/data/formats.yaml that its columns fit, or the one that
a mapping states, or what the words in other names say, in some fifteen languages.

A reading by words is clear if they leave one request and one answer. It is taken with a warning;
any other is a question in the wizard, and an error with a `--map` line elsewhere.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import islice, product

from msgspec import Struct
from msgspec.structs import replace

from advisor.data.formats import Called, Format, formats, names_of, normal
from advisor.data.recognition.columns import Column
from advisor.ground.errors import InputError

MAX_LABELLED_COLUMNS = 4  # with more, a column of few values is taken for a remark about the text
# Texts this long beside an unnamed column of few values are documents with metadata.
LONG_TEXT_CHARS = 1500
MOST_WAYS = 3  # columns that may be the request, and that may be the answer
PAIR = ("question", "answer")

# What a column may look like -> the test, given its name and how many columns there are.
LOOKS: Mapping[str, Callable[[Column, str, int], bool]] = {
    "brief": lambda column, name, count: column.mean_characters <= 100,
    "calls": lambda column, name, count: column.are["calls"] > 0,
    "class": lambda column, name, count: column.is_label(named=True),
    "dialogue": lambda column, name, count: column.are["dialogue"] >= 0.95 * column.filled > 0,
    "empty": lambda column, name, count: column.shape == "text" and not column.characters,
    "few": lambda column, name, count: _has_few_values(column, name),
    "from_value": lambda column, name, count: column.are["from_value"] > 0.5 * column.filled,
    "no_address": lambda column, name, count: not column.holds_addresses,
    "number": lambda column, name, count: (
        column.filled >= 3
        and column.are["checkable"] >= 0.95 * column.filled
        and column.mean_characters <= 24
    ),
    "open": lambda column, name, count: column.are["open"] > 0.5 * column.filled,
    "prose": lambda column, name, count: (
        column.mean_characters >= 15
        and not column.is_label(named=False)
        and len(column.values) > 1
        and name not in formats().metadata
    ),
    "several": lambda column, name, count: column.are["several"] >= 0.95 * column.filled > 0,
    "verdict": lambda column, name, count: _is_verdict(column, name),
    "with_remarks": lambda column, name, count: (
        count > MAX_LABELLED_COLUMNS or column.mean_characters > LONG_TEXT_CHARS
    ),
    "written": lambda column, name, count: column.shape == "text",
}


def _has_few_values(column: Column, name: str) -> bool:
    named = name in names_of("label")
    return (
        name not in formats().metadata and column.is_label(named=named) and not column.holds_dates
    )


def _is_verdict(column: Column, name: str) -> bool:
    # A class column called `label` may hold 0 and 1 too; the caller has an answer column beside it.
    return column.shape == "bool" or (
        column.are["verdict"] == column.filled > 0 and (name != "label" or len(column.values) <= 2)
    )


def map_flag(mapping: Mapping[str, str]) -> str:
    """The option that states a mapping, ready for a shell: "--map question=Q 'answer=My A'"."""
    pairs = [f"{role}={column}" for role, column in mapping.items()]
    # Letters of other scripts need no quotes, and read better without.
    bare = re.compile(r"[\w@%+=:,./-]+")
    return " ".join(["--map", *(one if bare.fullmatch(one) else shlex.quote(one) for one in pairs)])


class ColumnReading(Struct, frozen=True, kw_only=True):
    """One way to read a file."""

    format: str
    mapping: Mapping[str, str]
    why: str
    certain: bool = True
    likely: bool = False  # taken, but the values decided rather than the names
    guessed: bool = False  # by the words in names

    @property
    def kind(self) -> str:
        return formats().kinds[self.format]

    @property
    def flag(self) -> str:
        """The option that chooses it: '--map question=Frage answer=Antwort'."""
        return map_flag(self.mapping)


def ways_to_read(columns: Mapping[str, Column], by: str = "name") -> list[ColumnReading]:
    """One entry if the columns are clear, several if they are not.

    Args:
        by: "name" for columns with known names, "shape" for any others.
    """
    ways: list[ColumnReading] = []
    for one in formats().formats:
        if by not in one.by or any(_fitting(columns, source) for source in one.without):
            continue
        found = list(_readings(one, columns))
        # A first reading that leaves a doubt is followed by the other one.
        ways += [replace(way, certain=False) for way in found] if ways else found
        if found and not one.also:
            break
    return ways


def _readings(one: Format, columns: Mapping[str, Column]) -> Iterator[ColumnReading]:
    sources = {source: role for role, source, needed in one.roles if needed}
    starts: list[tuple[dict[str, str], bool]] = [({}, True)]
    if sources.keys() >= {*PAIR}:
        pairs, known = _pairs(columns)
        starts = [
            ({sources[name]: column for name, column in zip(PAIR, pair, strict=True)}, known)
            for pair in pairs
        ]
        if len(starts) > 1 and one.each not in PAIR:
            return
    for start, known in starts:
        for index, bound in enumerate(bindings := _bindings(one, columns, start)):
            if not _holds(one, bound, columns):
                continue
            sure = not one.sure or (
                index == 0 and (len(bindings) == 1 or normal(bound[one.each]) in one.sure)
            )
            yield ColumnReading(
                format=_name(one, bound, columns),
                mapping={role: bound[role] for role in one.keeps or bound},
                why=one.why.format(**bound, flag=map_flag(bound)),
                certain=sure
                and one.certain != "never"
                and (known or one.certain != "pair")
                and (len(columns) == 1 or one.certain != "lone"),
                likely=one.certain == "likely",
            )


def _bindings(
    one: Format, columns: Mapping[str, Column], start: Mapping[str, str]
) -> list[dict[str, str]]:
    """Role -> column, in the order of the format; none if a role finds no column."""
    found: list[dict[str, str]] = [{}]
    for role, source, needed in one.roles:
        more: list[dict[str, str]] = []
        for bound in found:
            taken = (*bound.values(), *start.values())
            choices = [start[role]] if role in start else _fitting(columns, source, taken)
            more += [
                {**bound, role: column} for column in (choices if one.each == role else choices[:1])
            ]
            if not choices and not needed:
                more.append(bound)
        if not more:
            return []
        found = more
    return found


def _fitting(columns: Mapping[str, Column], source: str, taken: tuple[str, ...] = ()) -> list[str]:
    """The columns that may play a role, the likeliest first."""
    wanted = formats().columns[source]
    names: dict[str, str] = {}
    for column in columns:
        names.setdefault(normal(column), column)
    known = names_of(source)
    others = names_of(*wanted.unlike)
    found = [
        column
        for column in ([names[name] for name in known if name in names] if known else columns)
        if column not in taken
        and normal(column) not in others
        and (not wanted.shapes or columns[column].shape in wanted.shapes)
        and (wanted.where is None or _looks(wanted.where, column, columns))
    ]
    if wanted.only and len(found) > 1:
        return []
    return found or (_fitting(columns, wanted.otherwise, taken) if wanted.otherwise else [])


def _looks(like: str, column: str, columns: Mapping[str, Column]) -> bool:
    return LOOKS[like](columns[column], normal(column), len(columns))


def _pairs(columns: Mapping[str, Column]) -> tuple[list[tuple[str, str]], bool]:
    """Requests with their answers, and whether their names belong together."""
    asked = {normal(column): column for column in _fitting(columns, "question")}
    said = {normal(column): column for column in _fitting(columns, "answer")}
    known: dict[str, tuple[str, str]] = {}  # of pairs that share an answer the first
    for question, answer in formats().pairs:
        if question in asked and answer in said:
            known.setdefault(answer, (asked[question], said[answer]))
    if known:
        return [*known.values()], True
    # `input` beside another request is what that one is about.
    about = names_of("context")
    main = [column for name, column in asked.items() if name not in about] or [*asked.values()]
    return [*product(main[:MOST_WAYS], [*said.values()][:MOST_WAYS])], False


def _holds(one: Called, bound: Mapping[str, str], columns: Mapping[str, Column]) -> bool:
    return (
        {*one.has} <= bound.keys()
        and all(_looks(like, bound[role], columns) for role, like in (one.when or {}).items())
        and (
            not one.named
            or any(
                all(normal(bound[role]) == name for role, name in names.items())
                for names in one.named
            )
        )
    )


def _name(one: Format, bound: Mapping[str, str], columns: Mapping[str, Column]) -> str:
    return next((name.format for name in one.called if _holds(name, bound, columns)), one.format)


def format_of(mapping: Mapping[str, str], columns: Mapping[str, Column]) -> str:
    """The format that these roles make; "" if they make none."""
    has = {*mapping}
    for one in formats().formats:
        if (
            "map" in one.by
            and one.needed <= has
            and not has & {*one.without}
            and (not one.alone or has <= {role for role, _, _ in one.roles})
            and _holds(one, mapping, columns)
        ):
            return _name(one, mapping, columns)
    return ""


def by_mapping(
    stated: Mapping[str, str], columns: Mapping[str, Column], shown: str
) -> ColumnReading:
    """The format that the stated roles make. Raises InputError if they make none."""
    name = format_of(stated, columns)
    if not name:
        raise InputError(
            f"--map {' '.join(f'{role}={column}' for role, column in stated.items())}"
            " makes no known format",
            "question + answer; messages; text; text + label; chosen + rejected; question + answer"
            " + good; question + ground_truth; question",
            "--map takes each of them with the name of its column",
            where=shown,
        )
    return ColumnReading(format=name, mapping=dict(stated), why="as stated with --map")


MOST_COLUMNS = 500  # a table with more is a matrix: its columns are named with --map
MOST_WORDS = 5  # of a name
SHOWN_WAYS = 4
LEAST_CHARS = 8  # on average, of a text
LONGER = 3  # times, that an answer is clearly longer than its request
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


def worth_reading(columns: Mapping[str, Column]) -> Mapping[str, Column]:
    """The columns to look at: of a table with very many the first, and those of known names."""
    if len(columns) <= MOST_COLUMNS:
        return columns
    known = {name for source in formats().columns for name in names_of(source)}
    first = [*columns][:MOST_COLUMNS]
    return {name: columns[name] for name in (*first, *(n for n in columns if normal(n) in known))}


def by_words(columns: Mapping[str, Column]) -> tuple[list[ColumnReading], bool]:
    """Ways to read columns whose names are no known ones, best first, and whether the names leave
    no other way than the first.
    """
    if len(columns) > MOST_COLUMNS:
        return [], False
    texts = {
        name: role_of(name)
        for name, column in columns.items()
        if column.shape in ("text", "texts")
        and not (column.holds_addresses or column.holds_dates or may_be_row([name]))
    }
    texts = {name: role for name, role in texts.items() if role not in ("nothing", "label")}
    written = {name: role for name, role in texts.items() if not _is_about(columns[name], role)}
    texts = written if len(written) > 1 else texts
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
    if not said and len(texts) == 2 and [texts[name] for name in asked] == ["text"]:
        # "Idea" and "text": what is called a text may be asked or said, and the longer one is said.
        other = next(name for name in texts if name not in asked)
        if columns[asked[0]].mean_characters > LONGER * columns[other].mean_characters:
            asked = [other]
    both = ((asks, says) for asks in asked or texts for says in said or texts if asks != says)
    pairs = [
        _way(REQUEST_AND_ANSWER, {"question": asks, "answer": says})
        for asks, says in islice(both, SHOWN_WAYS)
    ]
    if len(asked) == len(said) == 1:
        # Codes, or a few states again and again ("fixed", "duplicate"), may be called a solution.
        rivals = [name for name, role in texts.items() if role in ASKED and role != "title"]
        says_little = (_is_thin(columns[said[0]]) and texts[asked[0]] != "question") or (
            _is_thin(columns[asked[0]]) and len(rivals) > 1
        )
        return pairs, not says_little
    return pairs or [_way("a text in {text}", {"text": name}) for name in texts], False


def _is_about(column: Column, role: str) -> bool:
    """Whether it says whose row this is, or in what state, under a name that could be a text's."""
    is_person = role in ("customer", "agent")
    return (is_person and _is_thin(column)) or (
        (is_person or not role) and (column.holds_names or column.is_label(named=False))
    )


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
