"""What a data file is: its kind, its format and which column plays which role.

A sample of rows is looked at, never the first alone. Names of columns decide where they are known
ones and the values fit; the shape of the values decides where they are not. What could be read in
two ways is an error that shows both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from advisor.data.conversation import ROLES as SPEAKERS
from advisor.data.conversation import turn_keys
from advisor.data.read.lines import Faults, open_bytes
from advisor.data.read.rows import document_style, read_rows
from advisor.data.read.source import Source, find_data
from advisor.data.recognition.columns import Column, summarise, with_leaves
from advisor.data.recognition.naming import Candidate, by_mapping, ways_to_read
from advisor.data.recognition.roles import read_mapping
from advisor.ground.errors import InputError

SAMPLE_ROWS = 300
SAMPLE_BYTES = 2 << 20
SHOWN_FROM = 20  # rows, of which a person is shown one
SPREAD_BLOCKS = 4  # places further down a large JSONL file that are looked at too
PAIRS = ("question_answer", "prompt_completion", "alpaca")  # formats of a request and its answer
MAX_GROUPS = (
    50  # different sets of filled columns in one sample: more are optional columns, no formats
)
_OF_JOB = "the rows are in the file that its `training_file` names: GET /v1/files/FILE_ID/content"
_PAIR_UP = (
    "write one row for each answer with its request before it: "
    '{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}'
)
# `object` of OpenAI's API -> what such rows are, and what to do instead.
OTHER_OBJECTS = {
    "fine_tuning.job": ("OpenAI's fine-tuning jobs", _OF_JOB),
    "fine_tuning.job.event": ("events of an OpenAI fine-tuning job", _OF_JOB),
    "fine_tuning.job.checkpoint": ("checkpoints of an OpenAI fine-tuning job", _OF_JOB),
    "file": ("descriptions of files at OpenAI", "their content: GET /v1/files/FILE_ID/content"),
    "chat.completion": ("answers that OpenAI stored, without the requests they answer", _PAIR_UP),
    "batch": ("requests or answers of OpenAI's Batch API, each without the other", _PAIR_UP),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognition:
    """What a file was recognised as, and how sure that is."""

    kind: str  # paired | raw_text | preference | unpaired_feedback | prompts_with_verifier
    format: str
    mapping: Mapping[str, str]  # role -> column
    confidence: str  # "certain" | "likely" | "guessed" | "stated" (by a mapping)
    why: str
    container: str  # json jsonl csv text parquet arrow
    columns: tuple[str, ...] = ()  # seen in the sample, in order
    candidates: tuple[Candidate, ...] = ()  # other ways to read it that were not taken
    notes: tuple[str, ...] = ()  # files left out, how documents are parted

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that play no role."""
        used = {*self.mapping.values()} | {path.split(".")[0] for path in self.mapping.values()}
        return tuple(column for column in self.columns if column not in used)


def recognise(
    path: str | os.PathLike[str] | Source,
    *,
    mapping: Mapping[str, str] | None = None,
    wanted: str | None = None,
) -> Recognition:
    """What the file is.

    Args:
        mapping: Role -> column, overrides what the names say. Roles: formats().roles.
        wanted: What the task looks for where a table holds both: "reply" or "label".

    Raises:
        InputError: Not a data file, no row can be read, no known columns, or several ways to read
        it.
    """
    found = find_data(path)
    shown = found.shown
    if found.container == "text" and not mapping:
        return _text_files(found)
    faults = Faults()
    sample = sample_rows(found, faults)
    rows = [row for row in sample if isinstance(row, dict) and row]
    if not rows:
        faults.raise_if_any()
        if sample:
            from advisor.data.recognition.unclear import KNOWN_FORMATS

            raise InputError(
                f"the rows are {_type_name(sample[0])}, not objects with columns",
                "known: " + KNOWN_FORMATS,
                'write each row as {"question": ..., "answer": ...}',
                where=shown,
            )
        raise InputError(
            "there are no rows in it",
            where=shown,
            hint="add one example a line, or name another file",
        )
    _refuse_other_objects(rows, shown)
    columns = known = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    others: tuple[Candidate, ...] = ()
    notes = found.notes
    if mapping:
        if not set(mapping.values()) <= set(columns):  # columns inside columns: ticket.text
            rows = [with_leaves(row) for row in rows]
            known = tuple(dict.fromkeys(str(name) for row in rows for name in row))
        chosen = by_mapping(read_mapping(mapping, known, at=shown), summarise(rows), shown)
        confidence = "stated"
    else:
        looks = summarise(rows)
        chosen, others = _decide(rows, looks, shown)
        lacks = {"reply": ("classification", "text"), "label": PAIRS}.get(wanted or "", ())
        if chosen.format in lacks and (better := _for_task(str(wanted), chosen, rows)) is not None:
            chosen, others = better, (chosen, *others)
        sure = chosen.certain and not chosen.likely
        confidence = "guessed" if chosen.guessed else "certain" if sure else "likely"
        answer = chosen.mapping.get("answer", "")
        if answer in looks and looks[answer].several:
            several = (
                f"{looks[answer].several} of {looks[answer].filled} rows looked at have several"
            )
            notes = (*notes, f"{several} answers in `{answer}`: the first is learned")
    return Recognition(
        kind=chosen.kind,
        format=chosen.format,
        mapping=dict(chosen.mapping),
        confidence=confidence,
        why=chosen.why,
        container=found.container,
        columns=columns,
        candidates=others,
        notes=notes,
    )


def _text_files(found: Source) -> Recognition:
    notes = list(found.notes)
    if len(found.files) > 1:
        why = f"{len(found.files)} text files; each is one document"
    else:
        style = document_style(found.files[0])
        parted = {
            "marks": "documents are parted by lines such as <|endoftext|>",
            "blank lines": "documents are parted by blank lines (every block is one long line)",
            "lines": "every line is one document (they are as long as articles)",
            "whole": "the file is one document, handed on in pieces cut at paragraph ends",
        }[style]
        why = f"plain text; {parted}"
    return Recognition(
        kind="raw_text",
        format="text",
        mapping={"text": "text"},
        confidence="certain",
        why=why,
        container="text",
        columns=("text",),
        notes=tuple(notes),
    )


def sample_rows(found: Source, faults: Faults) -> list[Any]:
    """Rows to judge a file by: the first few hundred, and some from further down a large JSONL
    file.
    """
    rows: list[Any] = []
    size_chars = 0
    for _, row in read_rows(found, faults=faults):
        rows.append(row)
        # A rough size is enough to stop early on rows of megabytes.
        size_chars += (
            sum(len(cell) for cell in row.values() if isinstance(cell, (str, list)))
            if isinstance(row, dict)
            else 0
        )
        if len(rows) >= SAMPLE_ROWS or size_chars >= SAMPLE_BYTES:
            break
    first = found.files[0]
    plain = first.container == "jsonl" and not first.gzipped and not first.is_wide
    if len(rows) >= SAMPLE_ROWS and plain:
        rows.extend(_rows_further_down(found))
    return rows


def _rows_further_down(found: Source) -> Iterable[Any]:
    import json

    file = found.files[-1]
    size = file.path.stat().st_size
    with open_bytes(file) as stream:
        for block in range(1, SPREAD_BLOCKS + 1):
            stream.seek(size * block // (SPREAD_BLOCKS + 1))
            stream.readline(SAMPLE_BYTES)  # the rest of a line
            for raw in islice(iter(lambda: stream.readline(SAMPLE_BYTES), b""), 20):
                try:
                    yield json.loads(raw)
                except (ValueError, RecursionError):
                    continue  # reading on row by row names it


def first_row(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """To show to a person: of the first rows the one with the most filled columns, with nested
    columns beside its own; empty where no row has columns.
    """
    rows = islice(read_rows(find_data(path), faults=Faults()), SHOWN_FROM)
    return max(
        (with_leaves(row) for _, row in rows if isinstance(row, dict)),
        key=lambda row: sum(cell not in (None, "", [], {}) for cell in row.values()),
        default={},
    )


def _type_name(value: Any) -> str:
    names = {
        int: "numbers",
        float: "numbers",
        str: "texts",
        list: "lists",
        bool: "true / false",
        type(None): "null",
        dict: "empty objects",
    }
    return names.get(type(value), type(value).__name__)


def _decide(
    rows: list[dict[str, Any]], columns: Mapping[str, Column], shown: str
) -> tuple[Candidate, tuple[Candidate, ...]]:
    _refuse_single_turns(rows, shown)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(
            tuple(str(name) for name, cell in row.items() if cell is not None), []
        ).append(row)
    answers: dict[tuple[str, str], tuple[int, list[tuple[str, ...]]]] = {}
    for keys, members in groups.items() if len(groups) <= MAX_GROUPS else ():
        own = columns if len(groups) == 1 else summarise(members)
        # Few-valued columns can only be judged on all rows that have them.
        named = ways_to_read(
            {
                key: columns[key] if columns[key].shape == own[key].shape else own[key]
                for key in keys
            }
        )
        if len(named) == 1:
            count, where = answers.get((named[0].kind, named[0].format), (0, []))
            answers[named[0].kind, named[0].format] = (count + len(members), [*where, keys])
    _refuse_mixture(answers, shown)
    main_columns = columns
    if answers:
        best = max(answers, key=lambda key: answers[key][0])
        kept = {key for keys in answers[best][1] for key in keys}
        main_columns = {name: column for name, column in columns.items() if name in kept}
    candidates = ways_to_read(main_columns) or _by_words_or_shape(rows, main_columns, shown)
    strong = [candidate for candidate in candidates if candidate.certain] or candidates
    if len(strong) > 1:
        from advisor.data.recognition.unclear import several_ways

        raise several_ways(shown, columns, rows[0], strong)
    return strong[0], tuple(candidate for candidate in candidates if candidate is not strong[0])


def _by_words_or_shape(
    rows: list[dict[str, Any]], main_columns: Mapping[str, Column], shown: str
) -> list[Candidate]:
    """Readings of columns that have no known names, nested ones too.

    Raises ColumnsUnclear where there are none but guesses.
    """
    # Most files have known names, and need none of this.
    from advisor.data.recognition.unclear import no_known_columns
    from advisor.data.recognition.words import by_words, role_of

    leaves = [with_leaves(row) for row in rows]
    columns = summarise(leaves)
    ways, clear = by_words(columns)
    if clear:
        return [replace(ways[0], guessed=True)]
    shaped = ways_to_read(main_columns, "shape")
    if not shaped:
        raise no_known_columns(shown, columns, leaves[0], ways)
    called = [way for way in shaped if role_of(way.mapping.get("label", "")) == "label"]
    return [replace(called[0], guessed=True)] if len(called) == 1 < len(shaped) else shaped


def _for_task(wanted: str, chosen: Candidate, rows: list[dict[str, Any]]) -> Candidate | None:
    """The reading that the task needs, where it is another one."""
    from advisor.data.recognition.words import for_task

    found = for_task(wanted, chosen, summarise(map(with_leaves, rows)))
    return None if found is None else replace(found, guessed=True)


def _refuse_single_turns(rows: list[dict[str, Any]], shown: str) -> None:
    turns = sum(
        1
        for row in rows
        for keys in [turn_keys(row)]
        if keys is not None
        and str(row[keys[0]]).strip().lower() in SPEAKERS
        and isinstance(row.get(keys[1]), str)
    )
    if turns > 0.9 * len(rows):
        raise InputError(
            f"each row is a single turn ({', '.join(list(rows[0])[:4])}), not a whole conversation",
            "one conversation is one row",
            'gather the turns of a conversation: {"messages": [{"role": "user", ...}, {"role":'
            ' "assistant", ...}]}',
            where=shown,
        )


def _refuse_other_objects(rows: list[dict[str, Any]], shown: str) -> None:
    """Raises where most rows are objects of OpenAI's API that people export."""
    kinds = [
        "batch" if "custom_id" in row and {"body", "response"} & row.keys() else row.get("object")
        for row in rows
    ]
    for kind, (what, hint) in OTHER_OBJECTS.items():
        if 2 * kinds.count(kind) > len(rows):
            allowed = "rows to train on: messages, pairs, texts, ..."
            raise InputError(f"these are {what}", allowed, hint, where=shown)


def _refuse_mixture(
    answers: Mapping[tuple[str, str], tuple[int, list[tuple[str, ...]]]], shown: str
) -> None:
    """Raises where rows of two formats stand in one file.

    Rows that merely lack a column of the main format are no second format.
    """
    if len(answers) < 2:
        return
    best = max(answers, key=lambda key: answers[key][0])
    known = {key for keys in answers[best][1] for key in keys}
    strangers = {
        key: count
        for key, (count, groups) in answers.items()
        if key != best and any(not set(group) <= known for group in groups)
    }
    if not strangers:
        return
    counted = ", ".join(
        f"{count} {name}" for (_, name), count in [(best, answers[best][0]), *strangers.items()]
    )
    raise InputError(
        f"rows of different formats stand in one file (in the sample: {counted} rows)",
        "one file holds one format",
        "split it by format, or name the wanted columns with --map (rows without them are then"
        " counted and left out)",
        where=shown,
    )
