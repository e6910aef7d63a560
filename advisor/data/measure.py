"""The profile of a data file: what it is, how long its rows are, what is wrong with it, what it can
train.

Advice has a quarter of a second in all, so a large file is measured on its first rows unless the
whole is asked for; the profile then says so. Rows are counted exactly either way if that is cheap.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from advisor.data.checks import SeenRow, Subject, checks, finding, findings_of, worst_first
from advisor.data.checks.repeats import normalise
from advisor.data.example import Example, Message, parts_of, tools_text
from advisor.data.examples import REASONS, SHOWN_ROWS, SkippedRows, Tally, read_examples
from advisor.data.formats import formats, normal
from advisor.data.lengths import CHARS_PER_TOKEN, Lengths
from advisor.data.read.lines import DataFile, Faults, open_bytes
from advisor.data.read.rows import no_rows, parquet_rows
from advisor.data.read.source import IMAGES_HELP, DataSource, content_digest
from advisor.data.recognition.matching import map_flag
from advisor.data.recognition.recognise import DataSet, recognise
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import DataFinding, DataProfile
from advisor.methods import methods

# rows of a large file measured when `full` is not asked for: about 0.03 s on one core
QUICK_ROWS = 2000
QUICK_BYTES = 4 << 20
COUNT_BYTES = 256 << 20  # lines of a JSONL file are counted up to this size (0.1 s)
DIGEST_BYTES = 16 << 20  # larger files are digested when all of it is read anyway
# of the answers that must be checkable before the data counts as problems with a right answer
CHECKABLE_SHARE = 0.95
UNREADABLE = "unreadable-rows"  # a finding


class Depth(Struct, frozen=True, kw_only=True):
    """How closely data are looked at."""

    full: bool = False  # count the tokens of every row, not of a sample; reads every row
    whole: bool = False  # read every row of a large file, not its beginning
    thorough: bool = False  # look for rows of similar wording, too
    strict: bool = True  # raise if nothing can be trained; `advise check` prints the profile
    # rows that must not stand in the data; all of the data is then read
    evaluation: str | os.PathLike[str] | None = None
    seq_len: int | None = None  # a length to say of what it would cut, and in which rows


USUAL_DEPTH = Depth()


def profile(
    path: str | os.PathLike[str] | DataSet,
    depth: Depth = USUAL_DEPTH,
    *,
    mapping: Mapping[str, str] | None = None,
    wanted: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> DataProfile:
    """What the data is and what it can train.

    Args:
        mapping: Role -> column, if the names do not say it.
        wanted: What the task looks for if a table holds both: "reply" or "label".
        count_tokens: Tokens in a text by the model's own tokenizer; left out, the length is
            approximated.

    Raises:
        InputError: No data file, nothing recognised, and (strict) nothing that could be trained,
        all faults together.
    """
    data = recognise(path, mapping=mapping, wanted=wanted)
    source, beside = data.source, depth.evaluation
    about = Subject(
        kind=data.kind,
        format=data.format,
        thorough=depth.thorough or beside is not None,
        evaluation=None if beside is None else recognise(beside, mapping=mapping),
        seq_len=depth.seq_len,
        exact=depth.full and count_tokens is not None,
    )
    reads_all = depth.full or depth.whole
    is_packed = source.is_gzipped or source.container == "excel"
    is_large = source.size_bytes > (QUICK_BYTES // 4 if is_packed else QUICK_BYTES)
    most_rows = QUICK_ROWS if is_large and not reads_all and beside is None else None
    seen, lengths = checks(about), Lengths(count_tokens, depth.full)
    faults, skipped = Faults(), SkippedRows()
    sample: dict[str, Any] | None = None
    for example in read_examples(data, skipped=skipped, faults=faults):
        about.rows += 1
        row = _row(example, lengths, about)
        for one in seen:
            one.see(row)
        sample = sample or understood(example)
        if most_rows is not None and skipped.seen >= most_rows:
            break
    stopped_early = most_rows is not None and skipped.seen >= most_rows
    if skipped.seen == 0 and not faults.items:
        raise no_rows(data.path)
    rows, is_exact = _row_count(source, skipped.seen) if stopped_early else (skipped.seen, True)
    if depth.strict:
        faults.raise_if_any()
        skipped.raise_if_too_many(data.path)
    measures: dict[str, Any] = {"rows_used": about.rows, "rows_unusable": skipped.total}
    for one in seen:
        measures |= one.measures()
    objectives = _objectives(data, measures)
    findings = [
        *fault_findings(faults, objectives),
        *skip_findings(skipped, objectives),
        *(_judged(one, whole=not stopped_early) for check in seen for one in check.findings()),
        *open_requests(data, skipped),
        *about_reading(data),
    ]
    if stopped_early:
        counted = f"{rows:,}" if is_exact else f"about {rows:,} (estimated from the file's size)"
        text = (
            f"measured on the first {skipped.seen:,} of {counted} rows; `advise check"
            f" {shlex.quote(data.path)}` reads all"
        )
        findings.append(finding("measured-on-a-sample", "note", text, skipped.seen))
    tokens = lengths.stats(rows if stopped_early else None)
    if tokens is not None and tokens.sampled_rows is not None and count_tokens is not None:
        text = (
            f"tokens were counted on {tokens.sampled_rows:,} rows; the mean is within"
            f" ±{lengths.error_of_mean():.1%} (95 %); --full counts every row"
        )
        findings.append(finding("tokens-of-a-sample", "note", text, tokens.sampled_rows))
    measures |= lengths.measures(tokens, data.kind, depth.seq_len)
    blocked = {objective for one in findings for objective in one.blocks}
    result = DataProfile(
        path=data.path,
        kind=data.kind,
        format=data.format,
        mapping=dict(data.mapping),
        rows=rows,
        tokens=tokens,
        objectives=tuple(objective for objective in objectives if objective not in blocked),
        findings=worst_first(findings),
        sample=sample,
        digest=content_digest(source) if reads_all or source.size_bytes <= DIGEST_BYTES else "",
        confidence=data.confidence,
        why=data.why,
        other_ways=tuple(way.flag for way in data.other_ways),
        measures=measures,
    )
    if depth.strict and (error := unusable(result)) is not None:
        raise error
    return result


def _row(example: Example, lengths: Lengths, about: Subject) -> SeenRow:
    """The row as the checks see it, after its length is noted."""
    asked, answers = parts_of(example)
    request = sum(map(size_of, asked))
    if example.tools:
        request += size_of(tools_text(example.tools))
    tokens = lengths.add(example, request, [sum(map(size_of, answer)) for answer in answers])
    text = "\n".join(sum(answers, asked))
    return SeenRow(example, text, normalise(text), request // CHARS_PER_TOKEN, tokens)


def _judged(one: DataFinding, *, whole: bool) -> DataFinding:
    """What the beginning of a file lacks blocks nothing: the file may be sorted by class."""
    if whole or not one.blocks:
        return one
    return replace(one, severity="warning", text=f"{one.text} (in the rows read)", blocks=())


def _objectives(data: DataSet, measures: Mapping[str, Any]) -> tuple[str, ...]:
    """What the kind can train, and what its format or its answers allow beside it."""
    objectives = trainable_on(data.kind)
    if data.format == "classification":
        return (*objectives, "classification")
    enough = CHECKABLE_SHARE * max(1, measures["rows_used"])
    if data.kind == "paired" and measures.get("checkable_answers", 0) >= enough:
        known = methods().objectives.values()
        # PPO compares no answers with each other: it wants prompts, or a reward model's pairs.
        return (*objectives, *(one.id for one in known if one.takes_verifier and one.answers > 1))
    return objectives


def trainable_on(kind: str) -> tuple[str, ...]:
    """The objectives that a kind of data can train: first those that it suits best."""
    suited = [one for one in methods().objectives.values() if kind in one.trains_on]
    return tuple(one.id for one in sorted(suited, key=lambda one: one.trains_on.index(kind)))


def unusable(profile: DataProfile) -> InputError | None:
    """The error for data that can train nothing, or None.

    Every finding that blocks is one fault.
    """
    if profile.objectives:
        return None
    faults = [_fault(one, profile.path) for one in profile.findings if one.blocks]
    nothing = Fault(where=profile.path, what="nothing can be trained on it")
    return InputError(faults=faults or [nothing])


def _fault(finding: DataFinding, path: str) -> Fault:
    """A finding as a fault; of rows that cannot be read the text begins with the first place."""
    if finding.id == UNREADABLE:
        where, _, what = finding.text.partition(": ")
        return Fault(where=where, what=what)
    return Fault(where=path, what=finding.text)


def _row_count(source: DataSource, read: int) -> tuple[int, bool]:
    """Rows of a file that was read in part, and whether that is exact."""
    if source.container == "parquet":
        return sum(map(parquet_rows, source.files)), True
    if source.container == "excel":
        from advisor.data.read.excel import count_rows

        return max(read, sum(map(count_rows, source.files))), False
    is_small = source.container == "jsonl" and source.size_bytes <= COUNT_BYTES
    if is_small and not source.is_gzipped:
        return sum(map(_lines, source.files)), True
    # By the share of bytes the rows read so far took; packed files are taken as a quarter of their
    # text.
    used = 0
    with open_bytes(source.files[0]) as stream:
        while used < QUICK_BYTES and (chunk := stream.read(1 << 20)):
            used += len(chunk)
    size = source.size_bytes * (4 if source.files[0].gzipped else 1)
    return max(read, round(read * size / max(1, used))), False


def _lines(file: DataFile) -> int:
    count, last = 0, b"\n"
    with open_bytes(file) as stream:
        while chunk := stream.read(1 << 20):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8: nearer to tokens than letters where these are not Latin."""
    return len(text) if text.isascii() else len(text.encode())


def understood(example: Example) -> dict[str, Any]:
    """An example as plain values: only what is set."""
    shown: dict[str, Any] = {"row": example.row}
    for name in ("messages", "chosen", "rejected"):
        messages: tuple[Message, ...] = getattr(example, name)
        if messages and not (name == "messages" and example.label is not None):
            shown[name] = [
                {
                    "role": turn.role,
                    "content": turn.content,
                    **({"weight": turn.weight} if turn.weight != 1 else {}),
                    **turn.extra,
                }
                for turn in messages
            ]
    for name in ("text", "label", "good", "answer"):
        said = getattr(example, name)
        last = example.messages[-1].content if name == "answer" and example.messages else None
        if said is not None and (last is None or said not in last):
            shown[name] = said
    if example.tools:
        shown["tools"] = [dict(tool) for tool in example.tools]
    return shown


def fault_findings(faults: Faults, objectives: tuple[str, ...]) -> Iterator[DataFinding]:
    """Places that cannot be read, keys that stand twice, and how files were read that are not
    separated by commas or not UTF-8: one line for files alike.

    Args:
        objectives: What the data could train: a place that cannot be read blocks all of them.
    """
    if faults.items:
        shown = "; ".join(fault.headline for fault in faults.items[:SHOWN_ROWS])
        left = len(faults.items) - SHOWN_ROWS
        text = f"{shown}; and {left} more" if left > 0 else shown
        places = Tally(len(faults.items), faults.rows)
        yield finding(UNREADABLE, "error", text, places, objectives)
    twice = Tally(len(faults.rows_with_key_twice), faults.rows_with_key_twice)
    text = (
        f"{twice.in_words} with the same key twice: the last one is read, what stood before is lost"
    )
    yield from findings_of(twice, "key-twice", "warning", text)
    files: dict[str, list[str]] = {}
    for shown, how in faults.read_as.items():
        said = ", ".join(how[what] for what in sorted(how, reverse=True))
        files.setdefault(said, []).append(shown)
    for said, names in files.items():
        as_such = "" if "not read" in said else ": read as such"
        text = f"{said}{as_such}" + (f" ({len(names)} files)" if len(names) > 1 else "")
        yield finding("read-as", "warning" if "not read" in said else "note", text, len(names))


def skip_findings(skipped: SkippedRows, objectives: tuple[str, ...]) -> Iterator[DataFinding]:
    """Rows that cannot be used, by the reason: so many that a run stops are an error."""
    for reason, tally, text in skipped.said():
        if tally.count == skipped.seen:
            text = f"no row can be used: {REASONS[reason]}"
        if skipped.are_too_many:
            yield from findings_of(tally, reason, "error", text, objectives)
        else:
            text = f"{text}; left out of the training"
            yield from findings_of(tally, reason, "warning", text)
    one = skipped.shortened
    text = (
        f"{one.count:,} conversations end with turns that nobody answers; these turns are left out"
    )
    yield from findings_of(one, "turns-after-the-last-answer", "note", text)


def open_requests(data: DataSet, skipped: SkippedRows) -> Iterator[DataFinding]:
    """What to do with conversations that nobody answers, where other columns may hold the right
    answer, as in OpenAI's items for reinforcement fine-tuning.
    """
    column = data.mapping.get("messages")
    if (
        column is None
        or 2 * skipped.tallies.get("row-without-answer", Tally()).count <= skipped.seen
    ):
        return
    others = (*formats().settings, *formats().metadata)
    beside = [name for name in data.unused if normal(name) not in others]
    if not beside:
        return
    ways = [map_flag({"messages": column, "ground_truth": name}) for name in beside[:3]]
    text = (
        "the conversations end with a question. If a column holds the right answer, or what a"
        f" grader compares with, name it to practise with grpo: {'; or '.join(ways)}. An answer"
        " that only a program of yours can judge: your own function, `reward: file.py:function`"
        " in the plan"
    )
    yield finding("requests-with-references", "note", text, len(beside))


def about_reading(data: DataSet) -> Iterator[DataFinding]:
    """Files and columns that play no role, and how sure the reading is."""
    for note in data.notes:
        unread = note.startswith("not read")
        severity = "warning" if unread and not note.endswith(IMAGES_HELP) else "note"
        left_out = "files-left-out" if note.startswith("left out") else "about-reading"
        yield finding("files-not-read" if unread else left_out, severity, note)
    if data.container == "text":
        yield finding("documents", "note", data.why)
    unused = data.unused
    if unused:
        more = " ..." if len(unused) > 8 else ""
        text = f"columns that play no role: {', '.join(unused[:8])}{more}"
        yield finding("unused-columns", "note", text, len(unused))
    media = [column for column in unused if normal(column).rstrip("s") in formats().media]
    if media:
        text = f"images or sound in {', '.join(media)} are left out: only the text is trained"
        yield finding("media-columns", "warning", text, len(media))
    if data.confidence == "guessed":
        others = [name for name in data.columns if name not in data.mapping.values()]
        beside = f" (other columns: {', '.join(others[:8])})" if others else ""
        text = (
            f"took {data.why}, guessed from their names; if that is wrong, say which:"
            f" {map_flag(data.mapping)}{beside}"
        )
        yield finding("columns-guessed", "warning", text)
    if data.confidence == "likely":
        ways = "; ".join(candidate.flag for candidate in data.other_ways)
        text = (
            f"read as {data.format}: {data.why};"
            f" {f'otherwise: {ways}' if ways else '--map overrides it'}"
        )
        yield finding("recognised-by-shape", "note", text)
