"""The profile of a data file: what it is, how long its rows are, what is wrong with it, what it can
train.

Advice has a quarter of a second in all, so a large file is measured on its first rows unless the
whole is asked for; the profile then says so. Rows are counted exactly either way where that is
cheap.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.data.chat_text import said, tools_text
from advisor.data.checks.answers import AnswerLooks
from advisor.data.checks.overlap import Overlap, evaluation_rows
from advisor.data.checks.tally import Tally
from advisor.data.examples import Skipped, read_examples, refusal
from advisor.data.measure.about_reading import (
    about_reading,
    fault_findings,
    open_requests,
    skip_findings,
)
from advisor.data.measure.findings import CHECKABLE_SHARE, Notebook, look_back
from advisor.data.measure.lengths import (
    Lengths,
    cuts,
    error_of_mean,
    longer_rows,
    percentile,
    token_stats,
)
from advisor.data.read.files import content_digest, find_data
from advisor.data.read.found import Found
from advisor.data.read.lines import Faults, open_bytes
from advisor.data.recognition.recognise import Recognition, recognise
from advisor.data.same_rows import Example, Message
from advisor.ground.errors import Fault, InputError
from advisor.ground.types import DataProfile, Finding, TokenStats
from advisor.methods import methods

QUICK_ROWS = (
    2000  # rows of a large file measured when `full` is not asked for: about 0.03 s on one core
)
QUICK_BYTES = 4 << 20
COUNT_BYTES = 256 << 20  # lines of a JSONL file are counted up to this size (0.1 s)
DIGEST_BYTES = 16 << 20  # larger files are digested when all of it is read anyway
STOP_SHARE = (
    0.05  # of the rows over the length asked about: more stop a run (plan key `truncation`)
)
SHOWN_CLASSES = 50


@dataclass(slots=True)
class _Reading:
    """What is collected while the rows go by."""

    recognition: Recognition
    lengths: Lengths
    notebook: Notebook
    faults: Faults = field(default_factory=Faults)
    skipped: Skipped = field(default_factory=Skipped)
    overlap: Overlap | None = None
    sample: dict[str, Any] | None = None
    looks: AnswerLooks = field(default_factory=AnswerLooks)
    over: Tally = field(default_factory=Tally)  # rows longer than the length asked about
    lost: Tally = field(default_factory=Tally)  # of these, rows whose request alone is


def profile(
    path: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    wanted: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
    full: bool = False,
    strict: bool = True,
    whole: bool = False,
    thorough: bool = False,
    evaluation: str | os.PathLike[str] | None = None,
    seq_len: int | None = None,
) -> DataProfile:
    """What the data is and what it can train.

    Args:
        mapping: Role -> column, where the names do not say it.
        wanted: What the task looks for where a table holds both: "reply" or "label".
        count_tokens: Tokens in a text by the model's own tokenizer; left out, the length is
            approximated.
        full: Count the tokens of every row, not of a sample; reads every row.
        whole: Read every row of a large file, not its beginning.
        strict: Raise where nothing can be trained. `advise check` prints the profile instead.
        thorough: Look for rows that are nearly the same and for telephone, card and account
            numbers, too.
        evaluation: A file of evaluation rows that must not stand in the data; all of the data is
            then read.
        seq_len: A sequence length to say of what it would cut, and in which rows.

    Raises:
        InputError: No data file, nothing recognised, and (strict) nothing that could be trained,
        all faults together.
    """
    shown = os.fspath(path)
    found = find_data(path)
    recognition = recognise(path, mapping=mapping, wanted=wanted)
    overlap = None if evaluation is None else evaluation_rows(evaluation, mapping=mapping)
    sampled = not (full or whole) and overlap is None and _is_large(found)
    notebook = Notebook(recognition.kind, recognition.format, thorough or overlap is not None)
    reading = _Reading(recognition, Lengths(count_tokens, full), notebook, overlap=overlap)
    _read(path, reading, seq_len, limit=QUICK_ROWS if sampled else None)
    skipped, faults = reading.skipped, reading.faults
    stopped_early = sampled and skipped.seen >= QUICK_ROWS
    if skipped.seen == 0 and not faults.items:
        raise InputError(
            "there are no rows in it",
            where=shown,
            hint="add one example a line, or name another file",
        )
    rows, rows_exact = _row_count(found, skipped.seen) if stopped_early else (skipped.seen, True)
    if strict:
        faults.raise_if_any()
        skipped.raise_if_too_many(shown)
    objectives = _objectives(reading)
    findings = [
        *fault_findings(faults, objectives),
        *skip_findings(skipped, objectives),
        *look_back(notebook, whole=not stopped_early),
        *open_requests(recognition, skipped),
        *about_reading(recognition),
    ]
    if overlap is not None:
        findings.extend(overlap.findings(recognition.kind))
    if stopped_early:
        counted = f"{rows:,}" if rows_exact else f"about {rows:,} (estimated from the file's size)"
        text = (
            f"measured on the first {skipped.seen:,} of {counted} rows; `advise check"
            f" {shlex.quote(shown)}` reads all"
        )
        findings.append(
            Finding(id="measured-on-a-sample", severity="note", text=text, count=skipped.seen)
        )
    tokens = _tokens(reading, rows if stopped_early else None, findings)
    findings.extend(_over_length(reading, seq_len))
    findings.sort(key=lambda finding: ("error", "warning", "note").index(finding.severity))
    blocked = {objective for finding in findings for objective in finding.blocks}
    result = DataProfile(
        path=shown,
        kind=recognition.kind,
        format=recognition.format,
        mapping=dict(recognition.mapping),
        rows=rows,
        tokens=tokens,
        objectives=tuple(objective for objective in objectives if objective not in blocked),
        findings=tuple(findings),
        sample=reading.sample,
        digest=content_digest(path) if full or whole or found.size_bytes <= DIGEST_BYTES else "",
        confidence=recognition.confidence,
        why=recognition.why,
        other_ways=tuple(candidate.flag for candidate in recognition.candidates),
        measures=_measures(reading, tokens, seq_len),
    )
    if strict:
        error = unusable(result)
        if error is not None:
            raise error
    return result


def _objectives(reading: _Reading) -> tuple[str, ...]:
    """What the kind can train, and what its format or its answers allow beside it."""
    recognition, notebook = reading.recognition, reading.notebook
    objectives = trainable_on(recognition.kind)
    if recognition.format == "classification":
        objectives = (*objectives, "classification")
    elif recognition.kind == "paired" and notebook.checkable >= CHECKABLE_SHARE * max(
        1, notebook.rows
    ):
        objectives = (*objectives, "grpo", "rloo")
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
    blocking = [finding for finding in profile.findings if finding.blocks]
    return InputError(
        faults=[Fault(where=profile.path, what=finding.text) for finding in blocking]
        or [Fault(where=profile.path, what="nothing can be trained on it")]
    )


def _is_large(found: Found) -> bool:
    return found.size_bytes > (
        QUICK_BYTES // 4 if any(file.gzipped for file in found.files) else QUICK_BYTES
    )


def _row_count(found: Found, read: int) -> tuple[int, bool]:
    """Rows of a file that was read in part, and whether that is exact."""
    if (
        found.container == "jsonl"
        and found.size_bytes <= COUNT_BYTES
        and not any(file.gzipped for file in found.files)
    ):
        return sum(_lines(found, index) for index in range(len(found.files))), True
    if found.container == "parquet":
        from advisor.data.read.arrow import parquet_rows

        return sum(parquet_rows(file) for file in found.files), True
    # By the share of bytes the rows read so far took; packed files are taken as a quarter of their
    # text.
    used = 0
    with open_bytes(found.files[0]) as stream:
        while used < QUICK_BYTES and (chunk := stream.read(1 << 20)):
            used += len(chunk)
        newlines_share = max(1, used)
    size = found.size_bytes * (4 if found.files[0].gzipped else 1)
    return max(read, round(read * size / newlines_share)), False


def _lines(found: Found, index: int) -> int:
    count, last = 0, b"\n"
    with open_bytes(found.files[index]) as stream:
        while chunk := stream.read(1 << 20):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")


def _read(
    path: str | os.PathLike[str], reading: _Reading, seq_len: int | None, *, limit: int | None
) -> None:
    """Reads the rows once, and notes everything there is to note."""
    lengths, notebook, overlap, skipped = (
        reading.lengths,
        reading.notebook,
        reading.overlap,
        reading.skipped,
    )
    for example in read_examples(
        path, recognition=reading.recognition, skipped=skipped, faults=reading.faults
    ):
        if example.text is not None and example.label is None:
            text = example.text
            request, answer, second = 0, size_of(text), 0
        else:
            parts = [said(message) for message in example.messages]
            request = size_of(tools_text(example.tools)) if example.tools else 0
            answer = second = 0
            for part in parts:
                request += len(part) if part.isascii() else len(part.encode())
            if example.chosen:
                sides = [
                    [said(message) for message in side]
                    for side in (example.chosen, example.rejected)
                ]
                answer, second = (sum(map(size_of, side)) for side in sides)
                parts += [*sides[0], *sides[1]]
            elif example.messages[-1].role == "assistant":
                answer = size_of(parts[-1])
                request -= answer
            text = "\n".join(parts)
        length = lengths.add(example, request, answer, second)
        asked = request // 4
        plain = notebook.add(example, text, asked, length)
        if seq_len is not None and length > seq_len:
            reading.over.add(example.row)
            if asked >= seq_len:
                reading.lost.add(example.row)
        if overlap is not None:
            overlap.look(example, plain)
        if reading.sample is None:
            reading.sample = understood(example)
        reading.looks.add(example)
        if limit is not None and skipped.seen >= limit:
            break


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8: a fairer stand-in for tokens than its letters where these are not
    Latin.
    """
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
        if said is not None and not (
            name == "answer" and example.messages and said in example.messages[-1].content
        ):
            shown[name] = getattr(example, name)
    if example.tools:
        shown["tools"] = [dict(tool) for tool in example.tools]
    return shown


# --------------------------------------------------------------------------- numbers


def _tokens(
    reading: _Reading, rows_in_all: int | None, findings: list[Finding]
) -> TokenStats | None:
    lengths = reading.lengths
    sampled = lengths.settle()
    if sampled is None and rows_in_all is not None:
        sampled = lengths.measured
    tokens = token_stats(
        lengths, rows=rows_in_all if rows_in_all is not None else lengths.seen, sampled_rows=sampled
    )
    if tokens is not None and sampled is not None and lengths.count_tokens is not None:
        text = (
            f"tokens were counted on {sampled:,} rows; the mean is within"
            f" ±{error_of_mean(lengths.rows):.1%} (95 %); --full counts every row"
        )
        findings.append(Finding(id="tokens-of-a-sample", severity="note", text=text, count=sampled))
    return tokens


def _over_length(reading: _Reading, seq_len: int | None) -> list[Finding]:
    """Which rows are longer than the length asked about."""
    if seq_len is None or not reading.over.count:
        return []
    exact = reading.lengths.count_tokens is not None and reading.lengths.full
    about = "" if exact else "about "
    rows = reading.notebook.rows
    if reading.recognition.kind == "raw_text":
        text = (
            f"{about}{reading.over.count:,} of {rows:,} texts are longer than {seq_len:,} tokens:"
            " they are cut into pieces, nothing is lost"
        )
        return [reading.over.finding("texts-over-length", "note", text)]
    share = reading.over.count / rows
    what = (
        "a run stops at them unless `truncation` says drop or truncate"
        if share > STOP_SHARE
        else "left out of the training, or cut with truncation: truncate"
    )
    text = (
        f"{about}{reading.over.count:,} of {rows:,} rows ({share:.1%}) are longer than {seq_len:,}"
        f" tokens: {what}"
    )
    findings = [reading.over.finding("rows-over-length", "warning", text)]
    if reading.lost.count:
        text = (
            f"{about}{reading.lost.count:,} requests alone fill {seq_len:,} tokens: cut to fit,"
            " nothing of their answers is left to learn"
        )
        findings.append(reading.lost.finding("requests-fill-the-length", "warning", text))
    return findings


def _measures(reading: _Reading, tokens: TokenStats | None, seq_len: int | None) -> dict[str, Any]:
    """Everything counted that is no finding, as JSON types."""
    notebook, lengths = reading.notebook, reading.lengths
    measures: dict[str, Any] = {"rows_used": notebook.rows, "rows_unusable": reading.skipped.total}
    measures["scripts"] = [
        {"script": script, "rows": count} for script, count in notebook.scripts.most_common()
    ]
    if looked_at := sum(notebook.english.values()):
        measures["english"] = {"rows": notebook.english[True], "of": looked_at}
    turns = notebook.turns.copy()
    turns[1] += notebook.single
    conversations = sum(turns.values())
    if conversations:
        measures["turns"] = {
            "conversations": conversations,
            "multi_turn": notebook.multi_turn,
            "mean": round(
                sum(answers * count for answers, count in turns.items()) / conversations, 2
            ),
            "most": max(answers for answers, count in turns.items() if count),
            "with_system_text": notebook.with_system,
            "with_tools": notebook.with_tools,
            "with_tool_calls": notebook.with_calls,
        }
    if notebook.with_thoughts:
        measures["rows_with_thoughts"] = notebook.with_thoughts
        measures["rows_with_reasoning"] = notebook.with_reasoning
    if notebook.classes:
        measures["classes"] = [
            {"label": label, "rows": count}
            for label, count in notebook.classes.most_common(SHOWN_CLASSES)
        ]
        measures["class_count"] = len(notebook.classes)
        measures["class_least"] = min(notebook.classes.values())
    if notebook.kind == "unpaired_feedback":
        measures["feedback"] = {"good": notebook.good, "bad": notebook.bad}
    if notebook.kind == "preference":
        measures["pairs"] = {
            "chosen_longer": notebook.longer_chosen,
            "rejected_longer": notebook.longer_rejected,
        }
    for name, counts in (("request_tokens", lengths.requests), ("answer_tokens", lengths.answers)):
        ordered = sorted(counts.items())
        if ordered:
            measures[name] = {
                "p50": percentile(ordered, 50),
                "p95": percentile(ordered, 95),
                "longest": ordered[-1][0],
            }
    if tokens is not None:
        measures["longer_rows"] = longer_rows(lengths, tokens)
    measures["sequence_lengths"] = cuts(lengths, notebook.kind, also=seq_len)
    if notebook.checkable:
        measures["checkable_answers"] = notebook.checkable
    if looks := reading.looks.measures():
        measures["answers_seen"] = looks
    if reading.overlap is not None:
        measures["evaluation"] = reading.overlap.measures()
    return measures


__all__ = ["profile", "refusal", "understood", "unusable"]
