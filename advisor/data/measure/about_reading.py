"""What is to say of reading data: places that cannot be read, rows that cannot be used, files and
columns that were left out, and how sure the reading is.
"""

from __future__ import annotations

from advisor.data.checks.tally import SHOWN_ROWS, Tally
from advisor.data.examples import NO_ANSWER, REASONS, Skipped, rows_words
from advisor.data.read.files import IMAGES_HELP
from advisor.data.read.lines import Faults
from advisor.data.recognition.naming import map_flag
from advisor.data.recognition.recognise import Recognition
from advisor.data.recognition.roles import METADATA, normal
from advisor.ground.types import Finding

# Columns of OpenAI's rows that say how to ask, not what is right; and those that name a row.
NO_REFERENCES = (
    "response_format",
    "parallel_tool_calls",
    "tool_choice",
    *METADATA,
)


def fault_findings(faults: Faults, objectives: tuple[str, ...]) -> list[Finding]:
    """Places that cannot be read, keys that stand twice, and how files were read.

    Args:
        objectives: What the data could train: a place that cannot be read blocks all of them.
    """
    return [
        *_unreadable(faults, objectives),
        *_keys_twice(faults.rows_with_key_twice),
        *_read_as(faults),
    ]


def _read_as(faults: Faults) -> list[Finding]:
    """How files were read that are not separated by commas or not UTF-8: one line for files
    alike.
    """
    files: dict[tuple[str, ...], list[str]] = {}
    for shown, how in faults.read_as.items():
        files.setdefault(tuple(how[what] for what in sorted(how, reverse=True)), []).append(shown)
    return [
        Finding(
            id="read-as",
            severity="note",
            text=f"{', '.join(how)}: read as such"
            + (f" ({len(names)} files)" if len(names) > 1 else ""),
            count=len(names),
        )
        for how, names in files.items()
    ]


def _keys_twice(rows: list[int]) -> list[Finding]:
    if not rows:
        return []
    text = (
        f"{len(rows):,} row{'s' if len(rows) > 1 else ''} with the same key twice: the last one is"
        " read, what stood before is lost"
    )
    return [Tally(count=len(rows), rows=rows[:SHOWN_ROWS]).finding("key-twice", "warning", text)]


def _unreadable(faults: Faults, objectives: tuple[str, ...]) -> list[Finding]:
    if not faults.items:
        return []
    shown = "; ".join(fault.headline for fault in faults.items[:20])
    more = f"; and {len(faults.items) - 20} more" if len(faults.items) > 20 else ""
    return [
        Finding(
            id="unreadable-rows",
            severity="error",
            text=f"{shown}{more}",
            count=len(faults.items),
            rows=tuple(faults.rows[:20]),
            blocks=objectives,
        )
    ]


def skip_findings(skipped: Skipped, objectives: tuple[str, ...]) -> list[Finding]:
    """Rows that cannot be used, by the reason: so many that a run stops are an error."""
    findings: list[Finding] = []
    for reason, count in skipped.counts.items():
        share = (
            f"{count:,} of {skipped.seen:,} rows: {REASONS[reason]}"
            if count < skipped.seen
            else f"no row can be used: {REASONS[reason]}"
        )
        if skipped.too_many:
            findings.append(
                Finding(
                    id=reason,
                    severity="error",
                    text=f"{share} ({rows_words(skipped.rows[reason], count)})",
                    count=count,
                    rows=tuple(skipped.rows[reason]),
                    blocks=objectives,
                )
            )
        else:
            text = f"{share}; left out of the training ({rows_words(skipped.rows[reason], count)})"
            findings.append(
                Finding(
                    id=reason,
                    severity="warning",
                    text=text,
                    count=count,
                    rows=tuple(skipped.rows[reason]),
                )
            )
    for reason, count in skipped.changes.items():
        text = (
            f"{count:,} conversations end with turns that nobody answers; these turns are left out"
            f" ({rows_words(skipped.changed_rows[reason], count)})"
        )
        findings.append(
            Finding(
                id=reason,
                severity="note",
                text=text,
                count=count,
                rows=tuple(skipped.changed_rows[reason]),
            )
        )
    return findings


def open_requests(recognition: Recognition, skipped: Skipped) -> list[Finding]:
    """What to do with conversations that nobody answers, where other columns may hold the right
    answer, as in OpenAI's items for reinforcement fine-tuning.
    """
    column = recognition.mapping.get("messages")
    if column is None or 2 * skipped.counts.get(NO_ANSWER, 0) <= skipped.seen:
        return []
    beside = [name for name in recognition.unused if normal(name) not in NO_REFERENCES]
    if not beside:
        return []
    ways = [map_flag({"messages": column, "ground_truth": name}) for name in beside[:3]]
    text = (
        "the conversations end with a question. If a column holds the right answer, or what a"
        f" grader compares with, name it to practise with grpo: {'; or '.join(ways)}. An answer"
        " that only a program of yours can judge: your own function, `reward: file.py:function`"
        " in the plan"
    )
    return [Finding(id="requests-with-references", severity="note", text=text, count=len(beside))]


def _about_files(note: str) -> Finding:
    """What was said while the files were found."""
    if note.startswith("not read"):
        if note.endswith(IMAGES_HELP):
            return Finding(id="files-not-read", severity="note", text=note)
        return Finding(id="files-not-read", severity="warning", text=note)
    left_out = note.startswith(("left out", "read:"))
    return Finding(id="files-left-out" if left_out else "about-reading", severity="note", text=note)


def about_reading(recognition: Recognition) -> list[Finding]:
    """Files and columns that play no role, and how sure the reading is."""
    findings = [_about_files(note) for note in recognition.notes]
    if recognition.container == "text":
        findings.append(Finding(id="documents", severity="note", text=recognition.why))
    if recognition.unused:
        names = ", ".join(recognition.unused[:8]) + (" ..." if len(recognition.unused) > 8 else "")
        findings.append(
            Finding(
                id="unused-columns",
                severity="note",
                text=f"columns that play no role: {names}",
                count=len(recognition.unused),
            )
        )
    media = [
        column
        for column in recognition.unused
        if normal(column).rstrip("s")
        in ("image", "img", "picture", "audio", "video", "sound", "pixel_value")
    ]
    if media:
        findings.append(
            Finding(
                id="media-columns",
                severity="warning",
                text=(
                    f"images or sound in {', '.join(media)} are left out: only the text is trained"
                ),
                count=len(media),
            )
        )
    if recognition.confidence == "guessed":
        others = [name for name in recognition.columns if name not in recognition.mapping.values()]
        beside = f" (other columns: {', '.join(others[:8])})" if others else ""
        text = (
            f"took {recognition.why}, guessed from their names; if that is wrong, say which:"
            f" {map_flag(recognition.mapping)}{beside}"
        )
        findings.append(Finding(id="columns-guessed", severity="warning", text=text))
    if recognition.confidence == "likely":
        ways = (
            f"; otherwise: {'; '.join(candidate.flag for candidate in recognition.candidates)}"
            if recognition.candidates
            else "; --map overrides it"
        )
        findings.append(
            Finding(
                id="recognised-by-shape",
                severity="note",
                text=f"read as {recognition.format}: {recognition.why}{ways}",
            )
        )
    return findings
