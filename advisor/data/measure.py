"""The profile of a data file: what it is, how long its rows are, what is wrong with it, what it can train.

Advice has a quarter of a second in all, so a large file is measured on its first rows unless the whole is asked for; the
profile then says so. Rows are counted exactly either way where that is cheap.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.data.example import Example, Message
from advisor.data.examples import REASONS, Skipped, read_examples, refusal, shown_rows
from advisor.data.files import Faults, Found, content_digest, find_data, open_bytes
from advisor.data.findings import Notebook, look_back
from advisor.data.recognition import Recognition, recognise
from advisor.data.roles import normal
from advisor.errors import Fault, InputError
from advisor.types import DataProfile, Finding, TokenStats

QUICK_ROWS = 2000  # rows of a large file measured when `full` is not asked for: about 0.03 s on one core
QUICK_BYTES = 4 << 20
COUNT_BYTES = 256 << 20  # lines of a JSONL file are counted up to this size (0.1 s)
DIGEST_BYTES = 16 << 20  # larger files are digested when all of it is read anyway
TOKENIZED_ROWS = 1000  # rows a tokenizer counts when `full` is not asked for
CHARS_PER_TOKEN = 4
APPROXIMATION = "characters / 4 (approximation; letters outside ASCII count by their UTF-8 bytes)"
# What a kind can train, in the order to try.
OBJECTIVES = {
    "paired": ("sft",),
    "raw_text": ("cpt",),
    "preference": ("dpo", "orpo", "rm", "ppo", "sft"),
    "unpaired_feedback": ("kto",),
    "prompts_with_verifier": ("grpo", "rloo", "ppo"),
}
HISTOGRAM_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(slots=True)
class _Lengths:
    """Approximate lengths of all rows, and a random sample of rows for the tokenizer."""

    tokens: array[int] = field(default_factory=lambda: array("L"))
    texts: list[str] = field(default_factory=list)


def profile(
    path: str | os.PathLike[str],
    *,
    mapping: Mapping[str, str] | None = None,
    count_tokens: Callable[[str], int] | None = None,
    full: bool = False,
    strict: bool = True,
) -> DataProfile:
    """What the data is and what it can train.

    Args:
        mapping: Role -> column, where the names do not say it.
        count_tokens: Tokens in a text by the model's own tokenizer; left out, the length is approximated.
        full: Measure every row of a large file, not its beginning.
        strict: Raise where nothing can be trained. `advise check` prints the profile instead.

    Raises:
        InputError: No data file, nothing recognised, and (strict) nothing that could be trained, all faults together.
    """
    shown = os.fspath(path)
    found = find_data(path)
    recognition = recognise(path, mapping=mapping)
    sampled = not full and _is_large(found)
    faults, skipped, notebook = Faults(), Skipped(), Notebook(recognition.kind, recognition.format)
    lengths, examples = _measure(path, recognition, faults, skipped, notebook, count_tokens, full=full, limit=QUICK_ROWS if sampled else None)
    stopped_early = sampled and skipped.seen >= QUICK_ROWS
    if skipped.seen == 0 and not faults.items:
        raise InputError(f"{shown}: there are no rows in it", hint="add one example a line, or name another file")
    rows, rows_exact = _row_count(found, skipped.seen) if stopped_early else (skipped.seen, True)
    if strict:
        faults.raise_if_any()
        skipped.raise_if_too_many(shown)
    objectives = OBJECTIVES[recognition.kind]
    findings = [*_fault_findings(faults, objectives), *_skip_findings(skipped, objectives), *look_back(notebook, whole=not stopped_early), *_about_reading(recognition)]
    if stopped_early:
        counted = f"{rows:,}" if rows_exact else f"about {rows:,} (estimated from the file's size)"
        text = f"measured on the first {skipped.seen:,} of {counted} rows; `advise check {shown} --full` reads all"
        findings.append(Finding(id="measured-on-a-sample", severity="note", text=text, count=skipped.seen))
    tokens = _token_stats(lengths, rows if stopped_early else None, count_tokens, examples, full=full, findings=findings)
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
        sample=examples,
        digest=content_digest(path) if full or found.size_bytes <= DIGEST_BYTES else "",
    )
    if strict:
        error = unusable(result)
        if error is not None:
            raise error
    return result


def unusable(profile: DataProfile) -> InputError | None:
    """The error for data that can train nothing, or None. Every finding that blocks is one fault."""
    if profile.objectives:
        return None
    blocking = [finding for finding in profile.findings if finding.blocks]
    return InputError(faults=[Fault(what=f"{profile.path}: {finding.text}") for finding in blocking] or [Fault(what=f"{profile.path}: nothing can be trained on it")])


def _is_large(found: Found) -> bool:
    return found.size_bytes > (QUICK_BYTES // 4 if any(file.gzipped for file in found.files) else QUICK_BYTES)


def _row_count(found: Found, read: int) -> tuple[int, bool]:
    """Rows of a file that was read in part, and whether that is exact."""
    if found.container == "jsonl" and found.size_bytes <= COUNT_BYTES and not any(file.gzipped for file in found.files):
        return sum(_lines(found, index) for index in range(len(found.files))), True
    if found.container == "parquet":
        from advisor.data.arrow import parquet_rows

        return sum(parquet_rows(file) for file in found.files), True
    # By the share of bytes the rows read so far took; packed files are taken as a quarter of their text.
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


def _measure(
    path: str | os.PathLike[str],
    recognition: Recognition,
    faults: Faults,
    skipped: Skipped,
    notebook: Notebook,
    count_tokens: Callable[[str], int] | None,
    *,
    full: bool,
    limit: int | None,
) -> tuple[_Lengths, dict[str, Any] | None]:
    """Reads the rows once. Returns their lengths and one row as understood."""
    lengths = _Lengths()
    sample: dict[str, Any] | None = None
    chance: Callable[[int], int] | None = None
    if count_tokens is not None:
        import random

        chance = random.Random(0).randrange  # noqa: S311 - a sample of rows, the same every time
    for example in read_examples(path, recognition=recognition, skipped=skipped, faults=faults):
        text = example.text if example.text is not None and example.label is None else None
        parts = [text] if text is not None else [message.content for group in (example.messages, example.chosen, example.rejected) for message in group]
        size = 0
        for part in parts:
            size += len(part) if part.isascii() else len(part.encode())
        lengths.tokens.append(-(-size // CHARS_PER_TOKEN))
        if chance is not None:
            # A reservoir: every row has the same chance to be counted, and memory stays flat.
            if full or len(lengths.texts) < TOKENIZED_ROWS:
                lengths.texts.append("\n".join(parts))
                if full:
                    assert count_tokens is not None
                    lengths.tokens[-1] = count_tokens(lengths.texts.pop())
            elif (place := chance(len(lengths.tokens))) < TOKENIZED_ROWS:
                lengths.texts[place] = "\n".join(parts)
        notebook.add(example, size)
        if sample is None:
            sample = understood(example)
        if limit is not None and skipped.seen >= limit:
            break
    return lengths, sample


def understood(example: Example) -> dict[str, Any]:
    """An example as plain values: only what is set."""
    shown: dict[str, Any] = {"row": example.row}
    for name in ("messages", "chosen", "rejected"):
        messages: tuple[Message, ...] = getattr(example, name)
        if messages and not (name == "messages" and example.label is not None):
            shown[name] = [{"role": turn.role, "content": turn.content, **({"weight": turn.weight} if turn.weight != 1 else {}), **turn.extra} for turn in messages]
    for name in ("text", "label", "good", "answer"):
        if getattr(example, name) is not None:
            shown[name] = getattr(example, name)
    if example.tools:
        shown["tools"] = [dict(tool) for tool in example.tools]
    return shown


# --------------------------------------------------------------------------- tokens


def _token_stats(
    lengths: _Lengths, rows_in_all: int | None, count_tokens: Callable[[str], int] | None, sample: object, *, full: bool, findings: list[Finding]
) -> TokenStats | None:
    if not lengths.tokens:
        return None
    counts = lengths.tokens
    counted_by, sampled_rows = APPROXIMATION, len(counts) if rows_in_all is not None else None
    rows = rows_in_all if rows_in_all is not None else len(counts)
    if count_tokens is not None:
        counted_by = getattr(count_tokens, "name", "the model's tokenizer")
        if not full:
            sampled_rows = len(lengths.texts) if len(lengths.texts) < rows else None
            counts = array("L", (count_tokens(text) for text in lengths.texts))
    ordered = sorted(counts)
    mean = sum(ordered) / len(ordered)
    if sampled_rows is not None and count_tokens is not None and len(ordered) > 1:
        deviation = math.sqrt(sum((count - mean) ** 2 for count in ordered) / (len(ordered) - 1))
        error = 1.96 * deviation / math.sqrt(len(ordered)) / mean if mean else 0.0
        findings.append(
            Finding(id="tokens-of-a-sample", severity="note", text=f"tokens were counted on {len(ordered):,} rows; the mean is within ±{error:.0%} (95 %)", count=len(ordered))
        )
    return TokenStats(
        total=sum(ordered) if sampled_rows is None else round(mean * rows),
        mean=round(mean, 1),
        p50=_percentile(ordered, 50),
        p90=_percentile(ordered, 90),
        p95=_percentile(ordered, 95),
        p99=_percentile(ordered, 99),
        longest=ordered[-1],
        counted_by=counted_by,
        sampled_rows=sampled_rows,
        histogram=_histogram(ordered),
    )


def _percentile(ordered: list[int], percent: int) -> int:
    """The smallest length that at least `percent` of the rows do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]


def _histogram(ordered: list[int]) -> tuple[tuple[int, int], ...]:
    """(longest of the bin, rows in it), from the first to the last bin that holds a row."""
    from bisect import bisect_right

    edges = [*HISTOGRAM_TOKENS]
    while edges[-1] < ordered[-1]:
        edges.append(edges[-1] * 2)
    bins: list[tuple[int, int]] = []
    before = 0
    for edge in edges:
        upto = bisect_right(ordered, edge)
        bins.append((edge, upto - before))
        before = upto
    filled = [index for index, (_, count) in enumerate(bins) if count]
    return tuple(bins[filled[0] : filled[-1] + 1])


# --------------------------------------------------------------------------- findings that come from reading


def _fault_findings(faults: Faults, objectives: tuple[str, ...]) -> list[Finding]:
    if not faults.items:
        return []
    shown = "; ".join(fault.what for fault in faults.items[:20])
    more = f"; and {len(faults.items) - 20} more" if len(faults.items) > 20 else ""
    return [Finding(id="unreadable-rows", severity="error", text=f"{shown}{more}", count=len(faults.items), rows=tuple(faults.rows[:20]), blocks=objectives)]


def _skip_findings(skipped: Skipped, objectives: tuple[str, ...]) -> list[Finding]:
    findings: list[Finding] = []
    for reason, count in skipped.counts.items():
        share = f"{count:,} of {skipped.seen:,} rows: {REASONS[reason]}" if count < skipped.seen else f"no row can be used: {REASONS[reason]}"
        if skipped.too_many:
            findings.append(
                Finding(id=reason, severity="error", text=f"{share} ({shown_rows(skipped.rows[reason], count)})", count=count, rows=tuple(skipped.rows[reason]), blocks=objectives)
            )
        else:
            text = f"{share}; left out of the training ({shown_rows(skipped.rows[reason], count)})"
            findings.append(Finding(id=reason, severity="warning", text=text, count=count, rows=tuple(skipped.rows[reason])))
    for reason, count in skipped.changes.items():
        text = f"{count:,} conversations end with turns that nobody answers; these turns are left out ({shown_rows(skipped.changed_rows[reason], count)})"
        findings.append(Finding(id=reason, severity="note", text=text, count=count, rows=tuple(skipped.changed_rows[reason])))
    return findings


def _about_reading(recognition: Recognition) -> list[Finding]:
    findings = [Finding(id="files-left-out" if note.startswith(("left out", "read:")) else "about-reading", severity="note", text=note) for note in recognition.notes]
    if recognition.container == "text":
        findings.append(Finding(id="documents", severity="note", text=recognition.why))
    if recognition.unused:
        names = ", ".join(recognition.unused[:8]) + (" ..." if len(recognition.unused) > 8 else "")
        findings.append(Finding(id="unused-columns", severity="note", text=f"columns that play no role: {names}", count=len(recognition.unused)))
    media = [column for column in recognition.unused if normal(column).rstrip("s") in ("image", "img", "picture", "audio", "video", "sound", "pixel_value")]
    if media:
        findings.append(Finding(id="media-columns", severity="warning", text=f"images or sound in {', '.join(media)} are left out: only the text is trained", count=len(media)))
    if recognition.confidence == "likely":
        ways = f"; otherwise: {'; '.join(candidate.flag for candidate in recognition.candidates)}" if recognition.candidates else "; --map overrides it"
        findings.append(Finding(id="recognised-by-shape", severity="note", text=f"read as {recognition.format}: {recognition.why}{ways}"))
    return findings


__all__ = ["profile", "refusal", "understood", "unusable"]
