"""What a data file is: its kind, its format and which column plays which role.

A sample of rows is looked at, never the first alone. Names of columns decide where they are known ones and the values fit;
the shape of the values decides where they are not. What could be read in two ways is an error that shows both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NoReturn

from advisor.data import roles
from advisor.data.conversation import ROLE_KEYS, as_turns, read_transcript, text_of, turn_keys
from advisor.data.conversation import ROLES as SPEAKERS
from advisor.data.files import Faults, Found, find_data, open_bytes
from advisor.data.read import document_style, read_rows
from advisor.errors import Fault, InputError, nearest

SAMPLE_ROWS = 300
SAMPLE_BYTES = 2 << 20
SPREAD_BLOCKS = 4  # places further down a large JSONL file that are looked at too
VERDICTS = roles.GOOD_WORDS | roles.BAD_WORDS
MAX_CLASSES = 100
MAX_GROUPS = 50  # different sets of filled columns in one sample: more are optional columns, no formats
LONG_TEXT_CHARS = 1500  # texts this long beside an unnamed column of few values are documents with metadata

KINDS = {
    "messages": "paired",
    "sharegpt": "paired",
    "tool_calls": "paired",
    "alpaca": "paired",
    "prompt_completion": "paired",
    "question_answer": "paired",
    "summary": "paired",
    "transcript": "paired",
    "classification": "paired",
    "text": "raw_text",
    "preference": "preference",
    "unpaired_feedback": "unpaired_feedback",
    "prompts_with_verifier": "prompts_with_verifier",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to read a file."""

    format: str
    mapping: Mapping[str, str]
    why: str
    certain: bool = True

    @property
    def kind(self) -> str:
        return KINDS[self.format]

    @property
    def flag(self) -> str:
        """The option that chooses it: '--map question=Frage answer=Antwort'."""
        return "--map " + " ".join(f"{role}={column}" if " " not in column else f"'{role}={column}'" for role, column in self.mapping.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognition:
    """What a file was recognised as, and how sure that is."""

    kind: str  # paired | raw_text | preference | unpaired_feedback | prompts_with_verifier
    format: str
    mapping: Mapping[str, str]  # role -> column
    confidence: str  # "certain" | "likely" | "stated" (by a mapping)
    why: str
    container: str  # json jsonl csv text parquet arrow
    columns: tuple[str, ...] = ()  # seen in the sample, in order
    candidates: tuple[Candidate, ...] = ()  # other ways to read it that were not taken
    notes: tuple[str, ...] = ()  # files left out, how documents are parted

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that play no role."""
        return tuple(column for column in self.columns if column not in self.mapping.values())


@dataclass(slots=True)
class Column:
    """What a sample of one column's cells looks like."""

    filled: int = 0
    shapes: dict[str, int] = field(default_factory=dict)
    characters: int = 0
    values: set[str] = field(default_factory=set)
    yes_no: int = 0
    sharegpt: int = 0
    open_ended: int = 0  # conversations that end with a question
    with_calls: int = 0
    transcripts: int = 0

    @property
    def shape(self) -> str:
        """text, number, bool, turns, texts, object or list: what most filled cells are."""
        return max(self.shapes, key=lambda shape: self.shapes[shape]) if self.shapes else "null"

    @property
    def mean_characters(self) -> float:
        return self.characters / max(1, self.filled)

    def is_label(self, *, named: bool) -> bool:
        """True where the column has few distinct short values."""
        if self.shape not in ("text", "number", "bool", "texts") or not self.values:
            return False
        distinct = len(self.values)
        if distinct > MAX_CLASSES or self.mean_characters > 60:
            return False
        if named:
            return self.shape == "bool" or distinct <= max(2, self.filled // 2) or distinct == self.filled == 1
        return self.filled >= 8 and 2 <= distinct <= self.filled / 3


def _add(column: Column, cell: Any) -> None:
    if cell is None:
        return
    column.filled += 1
    shape = "object"
    text: str | None = None
    if isinstance(cell, bool):
        shape, text = "bool", str(cell).lower()
    elif isinstance(cell, (int, float)):
        shape, text = "number", str(cell)
    elif isinstance(cell, (str, list, dict)):
        turns = as_turns(cell)
        if turns is not None and turn_keys(turns[0]) is not None:
            shape = "turns"
            _add_turns(column, turns)
        elif isinstance(cell, str):
            shape, text = "text", cell
            column.transcripts += ":" in cell[:16] and read_transcript(cell) is not None
        elif isinstance(cell, list):
            shape = "texts" if all(isinstance(item, (str, int)) for item in cell) else "list"
            text = ", ".join(map(str, cell)) if shape == "texts" else None
    column.shapes[shape] = column.shapes.get(shape, 0) + 1
    if text is not None:
        column.characters += len(text)
        column.yes_no += text.strip().lower() in VERDICTS
        if len(column.values) <= SAMPLE_ROWS:
            column.values.add(text[:200])


def _add_turns(column: Column, turns: list[Any]) -> None:
    keys = [turn_keys(turn) for turn in turns]
    column.sharegpt += keys[0] is not None and keys[0][0] == "from"
    last = keys[-1]
    name = str(turns[-1].get(last[0], "")).strip().lower() if last else ""
    column.open_ended += SPEAKERS.get(name) not in ("assistant", None)
    called = any(isinstance(turn, dict) and (turn.get("tool_calls") or turn.get("function_call") or _is_tool_turn(turn)) for turn in turns)
    column.with_calls += called


def _is_tool_turn(turn: Mapping[str, Any]) -> bool:
    return any(turn.get(key) in ("tool", "function", "function_call", "observation", "tool_call") for key in ROLE_KEYS)


def recognise(path: str | os.PathLike[str], *, mapping: Mapping[str, str] | None = None) -> Recognition:
    """What the file is.

    Args:
        mapping: Role -> column, overrides what the names say. Roles: roles.ROLES.

    Raises:
        InputError: Not a data file, no row can be read, no known columns, or several ways to read it.
    """
    found = find_data(path)
    shown = os.fspath(path)
    if found.container == "text" and not mapping:
        return _text_files(found)
    faults = Faults()
    sample = sample_rows(found, faults)
    rows = [row for row in sample if isinstance(row, dict) and row]
    if not rows:
        faults.raise_if_any()
        if sample:
            raise InputError(
                f"{shown}: the rows are {_type_name(sample[0])}, not objects with columns", "known: " + _known_formats(), 'write each row as {"question": ..., "answer": ...}'
            )
        raise InputError(f"{shown}: there are no rows in it", hint="add one example a line, or name another file")
    columns = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    base = Recognition(kind="", format="", mapping={}, confidence="", why="", container=found.container, columns=columns, notes=found.notes)
    if mapping:
        stated = roles.read_mapping(mapping, columns, at=shown)
        candidate = _from_mapping(stated, _summarise(rows), shown)
        return replace(base, kind=candidate.kind, format=candidate.format, mapping=dict(candidate.mapping), confidence="stated", why=candidate.why)
    chosen, others = _decide(rows, shown)
    confidence = "certain" if chosen.certain else "likely"
    return replace(base, kind=chosen.kind, format=chosen.format, mapping=dict(chosen.mapping), confidence=confidence, why=chosen.why, candidates=others)


def _text_files(found: Found) -> Recognition:
    notes = list(found.notes)
    if found.folder:
        why = f"{len(found.files)} text files; each is one document"
    else:
        style = document_style(found.files[0])
        parted = {
            "marks": "documents are parted by lines such as <|endoftext|>",
            "blank lines": "documents are parted by blank lines (every block is one long line)",
            "whole": "the file is one document, handed on in pieces cut at paragraph ends",
        }[style]
        why = f"plain text; {parted}"
    return Recognition(kind="raw_text", format="text", mapping={"text": "text"}, confidence="certain", why=why, container="text", columns=("text",), notes=tuple(notes))


def sample_rows(found: Found, faults: Faults) -> list[Any]:
    """Rows to judge a file by: the first few hundred, and some from further down a large JSONL file."""
    rows: list[Any] = []
    size_chars = 0
    for _, row in read_rows(found, faults=faults):
        rows.append(row)
        # A rough size is enough to stop early on rows of megabytes.
        size_chars += sum(len(cell) for cell in row.values() if isinstance(cell, (str, list))) if isinstance(row, dict) else 0
        if len(rows) >= SAMPLE_ROWS or size_chars >= SAMPLE_BYTES:
            break
    first = found.files[0]
    if len(rows) >= SAMPLE_ROWS and first.container == "jsonl" and not first.gzipped:
        rows.extend(_rows_further_down(found))
    return rows


def _rows_further_down(found: Found) -> Iterable[Any]:
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


def _type_name(value: Any) -> str:
    names = {int: "numbers", float: "numbers", str: "texts", list: "lists", bool: "true / false", type(None): "null", dict: "empty objects"}
    return names.get(type(value), type(value).__name__)


def _known_formats() -> str:
    pairs = "instruction + output, prompt + completion, question + answer"
    return f"messages, conversations, {pairs}, text, text + label, chosen + rejected, prompt + completion + label, prompt + ground_truth"


# --------------------------------------------------------------------------- deciding


def _summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for row in rows:
        for name, cell in row.items():
            _add(columns.setdefault(str(name), Column()), cell)
    return columns


def _decide(rows: list[dict[str, Any]], shown: str) -> tuple[Candidate, tuple[Candidate, ...]]:
    _refuse_single_turns(rows, shown)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(name) for name, cell in row.items() if cell is not None), []).append(row)
    columns = _summarise(rows)
    answers: dict[tuple[str, str], tuple[int, list[tuple[str, ...]]]] = {}
    for keys, members in groups.items() if len(groups) <= MAX_GROUPS else ():
        own = columns if len(groups) == 1 else _summarise(members)
        # Few-valued columns can only be judged on all rows that have them.
        named = by_name({key: columns[key] if columns[key].shape == own[key].shape else own[key] for key in keys})
        if len(named) == 1:
            count, where = answers.get((named[0].kind, named[0].format), (0, []))
            answers[named[0].kind, named[0].format] = (count + len(members), [*where, keys])
    _refuse_mixture(answers, shown)
    main_columns = columns
    if answers:
        best = max(answers, key=lambda key: answers[key][0])
        kept = {key for keys in answers[best][1] for key in keys}
        main_columns = {name: column for name, column in columns.items() if name in kept}
    candidates = by_name(main_columns) or by_shape(main_columns)
    strong = [candidate for candidate in candidates if candidate.certain] or candidates
    if not candidates:
        _refuse_unknown(columns, shown)
    if len(strong) > 1:
        lines = "; or ".join(f"{candidate.format} ({candidate.why}): {candidate.flag}" for candidate in strong)
        raise InputError(f"{shown}: the columns can be read in {len(strong)} ways: {', '.join(columns)}", lines, "say which one with --map")
    return strong[0], tuple(candidate for candidate in candidates if candidate is not strong[0])


def _refuse_single_turns(rows: list[dict[str, Any]], shown: str) -> None:
    turns = sum(1 for row in rows for keys in [turn_keys(row)] if keys is not None and str(row[keys[0]]).strip().lower() in SPEAKERS and isinstance(row.get(keys[1]), str))
    if turns > 0.9 * len(rows):
        raise InputError(
            f"{shown}: each row is a single turn ({', '.join(list(rows[0])[:4])}), not a whole conversation",
            "one conversation is one row",
            'gather the turns of a conversation: {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}',
        )


def _refuse_mixture(answers: Mapping[tuple[str, str], tuple[int, list[tuple[str, ...]]]], shown: str) -> None:
    """Raises where rows of two formats stand in one file. Rows that merely lack a column of the main format are no second format."""
    if len(answers) < 2:
        return
    best = max(answers, key=lambda key: answers[key][0])
    known = {key for keys in answers[best][1] for key in keys}
    strangers = {key: count for key, (count, groups) in answers.items() if key != best and any(not set(group) <= known for group in groups)}
    if not strangers:
        return
    counted = ", ".join(f"{count} {name}" for (_, name), count in [(best, answers[best][0]), *strangers.items()])
    raise InputError(
        f"{shown}: rows of different formats stand in one file (in the sample: {counted} rows)",
        "one file holds one format",
        "split it by format, or name the wanted columns with --map (rows without them are then counted and left out)",
    )


def _refuse_unknown(columns: Mapping[str, Column], shown: str) -> NoReturn:
    seen = ", ".join(f"{name} ({column.shape})" for name, column in list(columns.items())[:30])
    known = [*roles.QUESTIONS, *roles.ANSWERS, *roles.TEXTS, *roles.CHOSEN, *roles.REJECTED, *roles.CONVERSATIONS]
    hints: list[str] = []
    for name in columns:
        close = nearest(roles.normal(name), known)
        if close and roles.normal(name) not in known:
            hints.append(f"{name}: {close}")
    texts = sorted(
        (name for name, column in columns.items() if column.shape == "text" and roles.normal(name) not in roles.METADATA), key=lambda name: columns[name].mean_characters
    )
    named_question = next((name for name in texts if roles.normal(name) in roles.QUESTIONS), None)
    if len(texts) >= 2:
        question = named_question or texts[-2]
        answer = next(name for name in reversed(texts) if name != question)
        close_format, way = "question_answer", Candidate(format="question_answer", mapping={"question": question, "answer": answer}, why="").flag
    elif len(texts) == 1 and named_question:
        close_format, way = "question_answer", f"there is a question but no answer; add a column and: --map question={named_question} answer=COL"
    elif len(texts) == 1:
        close_format, way = "text", Candidate(format="text", mapping={"text": texts[0]}, why="").flag
    else:
        close_format, way = "messages", "--map question=COL answer=COL"
    raise InputError(
        faults=[
            Fault(
                what=f"{shown}: no known columns. Columns: {seen}",
                allowed=f"known formats: {_known_formats()}; nearest: {close_format}",
                hint=f"say which column is what: {way}" + (f" ({'; '.join(hints[:3])})" if hints else "") + "; in general --map question=COL answer=COL, or --map text=COL",
            )
        ]
    )


# --------------------------------------------------------------------------- by the columns' names


def by_name(columns: Mapping[str, Column]) -> list[Candidate]:
    """Ways to read a file whose columns have known names: one entry where it is clear, several where it is not."""
    names: dict[str, str] = {}
    for column in columns:
        names.setdefault(roles.normal(column), column)

    def find(wanted: tuple[str, ...], *shapes: str) -> str | None:
        return next((names[name] for name in wanted if name in names and (not shapes or columns[names[name]].shape in shapes)), None)

    def optional(**wanted: str | None) -> dict[str, str]:
        return {role: column for role, column in wanted.items() if column is not None}

    system = find(roles.SYSTEMS, "text")
    tools = find(roles.TOOLS, "list", "text", "object")
    question = find(roles.QUESTIONS, "text", "turns")
    context = find(roles.CONTEXTS, "text")
    chosen, rejected = find(roles.CHOSEN, "text", "turns"), find(roles.REJECTED, "text", "turns")
    conversation = find(roles.CONVERSATIONS, "turns") or _only_conversation(columns)
    if chosen and rejected:
        prompt = optional(messages=conversation) if conversation and not question else optional(question=question, context=context if context != question else None)
        why = f"a better (`{chosen}`) and a worse (`{rejected}`) answer in every row"
        return [Candidate(format="preference", mapping={**prompt, "chosen": chosen, "rejected": rejected, **optional(system=system)}, why=why)]

    good = next((names[name] for name in roles.GOOD if name in names and _is_yes_no(columns[names[name]], name)), None)
    truth = find(roles.TRUTHS)
    if conversation:
        facts = columns[conversation]
        if good:
            return [
                Candidate(format="unpaired_feedback", mapping={"messages": conversation, "good": good, **optional(system=system)}, why=f"conversations with a verdict in `{good}`")
            ]
        ends_open = facts.open_ended > 0.5 * facts.filled
        checkable = truth or find(("answer", "solution"), "text", "number")
        if ends_open and checkable:
            return [
                Candidate(
                    format="prompts_with_verifier",
                    mapping={"messages": conversation, "ground_truth": checkable},
                    why=f"conversations that end with a question, and the right answer in `{checkable}`",
                )
            ]
        spelling = "from / value" if facts.sharegpt > 0.5 * facts.filled else "role / content"
        name = "tool_calls" if tools or facts.with_calls else "sharegpt" if spelling == "from / value" else "messages"
        return [Candidate(format=name, mapping={"messages": conversation, **optional(system=system, tools=tools)}, why=f"a list of {spelling} turns in `{conversation}`")]

    return _pairs(columns, names, good=good, truth=truth, extras=optional(system=system, history=find(("history",), "list"), tools=tools)) or _texts(columns, names)


def _only_conversation(columns: Mapping[str, Column]) -> str | None:
    """The single column of turns, whatever its name, unless it is called a prompt or an answer."""
    turns = [name for name, column in columns.items() if column.shape == "turns" and roles.normal(name) not in (*roles.QUESTIONS, *roles.ANSWERS, *roles.CHOSEN, *roles.REJECTED)]
    return turns[0] if len(turns) == 1 else None


def _is_yes_no(column: Column, name: str) -> bool:
    if column.shape == "bool":
        return True
    # A class column called `label` may hold 0 and 1 too; the caller has an answer column beside it.
    return column.filled > 0 and column.yes_no == column.filled and (name != "label" or len(column.values) <= 2)


def _pairs(columns: Mapping[str, Column], names: Mapping[str, str], *, good: str | None, truth: str | None, extras: Mapping[str, str]) -> list[Candidate]:
    usable = ("text", "turns", "number", "object", "texts", "list", "bool")
    questions = [names[name] for name in roles.QUESTIONS if name in names and columns[names[name]].shape in ("text", "turns")]
    answers = [names[name] for name in roles.ANSWERS if name in names and columns[names[name]].shape in usable and names[name] not in questions]
    pairs = [(names[left], names[right]) for left, right in roles.PAIRS if left in names and right in names and names[left] in questions and names[right] in answers]
    found: list[Candidate] = []
    if pairs:
        question, answer = pairs[0]
        apart = [pair for pair in pairs[1:] if question not in pair and answer not in pair]
        # instruction + input + output is one format; `input` + `output` in it is no second one.
        rivals = [(question, answer), *(pair for pair in apart)]
        rivals += [(question, other) for other in answers if other != answer and (question, other) in pairs]
        if {roles.normal(question), roles.normal(answer)} == {"problem", "solution"}:
            rivals = rivals[:1]  # `answer` beside them is the result of the solution, not a second answer
        found = [_pair(columns, names, left, right, extras) for left, right in rivals]
    elif questions and answers:
        main = questions[0] if len(questions) == 1 or roles.normal(questions[-1]) in roles.CONTEXTS else None
        lefts = [main] if main else questions[:3]
        found = [_pair(columns, names, left, right, extras) for left in lefts for right in answers[:3]]
    if len(found) == 1 and good and good not in found[0].mapping.values():
        why = f"answers in `{found[0].mapping['answer']}` with a verdict in `{good}`"
        return [Candidate(format="unpaired_feedback", mapping={**found[0].mapping, "good": good}, why=why)]
    if questions and truth and not answers:
        prompt = questions[0]
        return [
            Candidate(
                format="prompts_with_verifier",
                mapping={"question": prompt, "ground_truth": truth, **_system(extras)},
                why=f"requests in `{prompt}` with the right answer in `{truth}`",
            )
        ]
    if (
        len(found) == 1
        and found[0].mapping["question"] in columns
        and roles.normal(found[0].mapping["question"]) == "prompt"
        and roles.normal(found[0].mapping["answer"]) == "solution"
    ):
        short = columns[found[0].mapping["answer"]].mean_characters <= 100
        if short:
            mapping = {"question": found[0].mapping["question"], "ground_truth": found[0].mapping["answer"], **_system(extras)}
            return [Candidate(format="prompts_with_verifier", mapping=mapping, why="requests in `prompt` with a short right answer in `solution`", certain=False)]
    if not found:
        text = next((names[name] for name in roles.SUMMARISED if name in names and columns[names[name]].shape == "text"), None)
        summary = next((names[name] for name in roles.SUMMARIES if name in names and columns[names[name]].shape == "text"), None)
        if text and summary:
            return [Candidate(format="summary", mapping={"question": text, "answer": summary}, why=f"a text in `{text}` and its summary in `{summary}`", certain=False)]
    return found


def _system(extras: Mapping[str, str]) -> dict[str, str]:
    return {"system": extras["system"]} if "system" in extras else {}


def _pair(columns: Mapping[str, Column], names: Mapping[str, str], question: str, answer: str, extras: Mapping[str, str]) -> Candidate:
    mapping = {"question": question}
    context = next((names[name] for name in roles.CONTEXTS if name in names and names[name] not in (question, answer) and columns[names[name]].shape in ("text", "null")), None)
    if context:
        mapping["context"] = context
    mapping["answer"] = answer
    known = (roles.normal(question), roles.normal(answer)) in roles.PAIRS
    return Candidate(
        format=pair_format(mapping, tools="tools" in extras), mapping={**mapping, **extras}, why=f"a request in `{question}` and its answer in `{answer}`", certain=known
    )


def pair_format(mapping: Mapping[str, str], *, tools: bool = False) -> str:
    """What a pair of columns is commonly called."""
    pair = (roles.normal(mapping["question"]), roles.normal(mapping["answer"]))
    if tools:
        return "tool_calls"
    return "alpaca" if pair == ("instruction", "output") else "prompt_completion" if pair == ("prompt", "completion") else "question_answer"


def _texts(columns: Mapping[str, Column], names: Mapping[str, str]) -> list[Candidate]:
    text = next((names[name] for name in (*roles.TEXTS, "question", "query", "prompt") if name in names and columns[names[name]].shape == "text"), None)
    if text is None:
        return []
    is_text = roles.normal(text) in roles.TEXTS
    label = next((names[name] for name in roles.LABELS if name in names and names[name] != text and columns[names[name]].is_label(named=True)), None)
    if label:
        why = f"a text in `{text}` and one of {len(columns[label].values)} values in `{label}`"
        return [Candidate(format="classification", mapping={"text": text, "label": label}, why=why)]
    if not is_text:
        return []
    by_value = _few_valued(columns, text)
    plain = Candidate(format="text", mapping={"text": text}, why=f"a text in `{text}`", certain=len(columns) == 1)
    if not by_value or columns[text].mean_characters > LONG_TEXT_CHARS:
        if columns[text].transcripts >= 0.95 * columns[text].filled > 0:
            return [Candidate(format="transcript", mapping={"transcript": text}, why=f"a written dialogue in `{text}` (speakers named at the start of a turn)", certain=False)]
        return [plain]
    return [_labelled(columns, text, label) for label in by_value]


def _labelled(columns: Mapping[str, Column], text: str, label: str) -> Candidate:
    why = f"a text in `{text}` and one of {len(columns[label].values)} values in `{label}`"
    return Candidate(format="classification", mapping={"text": text, "label": label}, why=why, certain=False)


def _few_valued(columns: Mapping[str, Column], text: str) -> list[str]:
    return [name for name, column in columns.items() if name != text and roles.normal(name) not in roles.METADATA and column.is_label(named=False)]


# --------------------------------------------------------------------------- by the values' shape


def by_shape(columns: Mapping[str, Column]) -> list[Candidate]:
    """Ways to read a file whose columns have unknown names: a text beside a column of few distinct values."""
    texts = [
        name
        for name, column in columns.items()
        if column.shape == "text" and column.mean_characters >= 15 and not column.is_label(named=False) and len(column.values) > 1 and roles.normal(name) not in roles.METADATA
    ]
    if len(texts) != 1:
        return []
    return [_labelled(columns, texts[0], label) for label in _few_valued(columns, texts[0])]


# --------------------------------------------------------------------------- by a stated mapping


def _from_mapping(stated: Mapping[str, str], columns: Mapping[str, Column], shown: str) -> Candidate:
    """The format that the stated roles make. Raises InputError where they make none."""
    has = set(stated)
    prompt = bool(has & {"question", "messages"})
    if "chosen" in has or "rejected" in has:
        missing = {"chosen", "rejected"} - has
        if missing:
            raise InputError(f"{shown}: --map names no column for '{missing.pop()}'", "a preference needs chosen and rejected", "--map question=COL chosen=COL rejected=COL")
        name = "preference"
    elif "good" in has and ("messages" in has or {"question", "answer"} <= has):
        name = "unpaired_feedback"
    elif "ground_truth" in has and prompt:
        name = "prompts_with_verifier"
    elif "messages" in has:
        facts = columns[stated["messages"]]
        name = "tool_calls" if "tools" in has or facts.with_calls else "sharegpt" if facts.sharegpt > 0.5 * facts.filled else "messages"
    elif {"question", "answer"} <= has:
        name = pair_format(stated, tools="tools" in has)
    elif {"text", "label"} <= has or {"question", "label"} == has:
        name = "classification"
        if "question" in has:
            stated = {"text": stated["question"], "label": stated["label"]}
    elif "transcript" in has:
        name = "transcript"
    elif has == {"text"}:
        name = "text"
    else:
        raise InputError(
            f"{shown}: --map {' '.join(f'{role}={column}' for role, column in stated.items())} makes no known format",
            "question + answer; messages; text; text + label; chosen + rejected; question + answer + good; question + ground_truth",
            "--map question=COL answer=COL",
        )
    return Candidate(format=name, mapping=dict(stated), why="as stated with --map")


def text_cell(value: Any) -> str | None:
    """The text of an answer, label or context cell: text, a number, text parts, or the usual small objects around one."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):  # SQuAD answers, verl reward_model
        for key in ("ground_truth", "text", "value", "content", "answer"):
            if key in value:
                return text_cell(value[key])
        return None
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (str, int, float)) for item in value):
            return str(value[0])
        return text_of(value)
    return None
