"""What is to say of reading data: places that cannot be read, rows that cannot be used, files and
columns that were left out, and how sure the reading is.
"""

from __future__ import annotations

from advisor.data.checks import SHOWN_ROWS, Tally, finding
from advisor.data.examples import NO_ANSWER, REASONS, Skipped
from advisor.data.read.files import IMAGES_HELP
from advisor.data.read.lines import Faults
from advisor.data.recognition.naming import map_flag
from advisor.data.recognition.recognise import Recognition
from advisor.data.recognition.roles import METADATA, normal
from advisor.ground.types import Finding

# Columns of OpenAI's rows that say how to ask, not what is right; and those that name a row.
NO_REFERENCES = ("response_format", "parallel_tool_calls", "tool_choice", *METADATA)
MEDIA = ("image", "img", "picture", "audio", "video", "sound", "pixel_value")


def fault_findings(faults: Faults, objectives: tuple[str, ...]) -> list[Finding]:
    """Places that cannot be read, keys that stand twice, and how files were read that are not
    separated by commas or not UTF-8: one line for files alike.

    Args:
        objectives: What the data could train: a place that cannot be read blocks all of them.
    """
    found: list[Finding] = []
    if faults.items:
        shown = "; ".join(fault.headline for fault in faults.items[:SHOWN_ROWS])
        left = len(faults.items) - SHOWN_ROWS
        text = f"{shown}; and {left} more" if left > 0 else shown
        found = [
            finding("unreadable-rows", "error", text, len(faults.items), faults.rows, objectives)
        ]
    twice = Tally(len(faults.rows_with_key_twice), faults.rows_with_key_twice[:SHOWN_ROWS])
    text = (
        f"{twice.in_words} with the same key twice: the last one is read, what stood before is lost"
    )
    found += twice.findings("key-twice", "warning", text)
    files: dict[str, list[str]] = {}
    for shown, how in faults.read_as.items():
        said = ", ".join(how[what] for what in sorted(how, reverse=True))
        files.setdefault(said, []).append(shown)
    for said, names in files.items():
        text = f"{said}: read as such" + (f" ({len(names)} files)" if len(names) > 1 else "")
        found.append(finding("read-as", "note", text, len(names)))
    return found


def skip_findings(skipped: Skipped, objectives: tuple[str, ...]) -> list[Finding]:
    """Rows that cannot be used, by the reason: so many that a run stops are an error."""
    found: list[Finding] = []
    for reason, count in skipped.counts.items():
        text = (
            f"{count:,} of {skipped.seen:,} rows: {REASONS[reason]}"
            if count < skipped.seen
            else f"no row can be used: {REASONS[reason]}"
        )
        tally = Tally(count, skipped.rows[reason])
        found += (
            tally.findings(reason, "error", text, objectives)
            if skipped.too_many
            else tally.findings(reason, "warning", f"{text}; left out of the training")
        )
    for reason, count in skipped.changes.items():
        text = (
            f"{count:,} conversations end with turns that nobody answers; these turns are left out"
        )
        found += Tally(count, skipped.changed_rows[reason]).findings(reason, "note", text)
    return found


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
    return [finding("requests-with-references", "note", text, len(beside))]


def about_reading(recognition: Recognition) -> list[Finding]:
    """Files and columns that play no role, and how sure the reading is."""
    found: list[Finding] = []
    for note in recognition.notes:
        unread = note.startswith("not read")
        severity = "warning" if unread and not note.endswith(IMAGES_HELP) else "note"
        left_out = "files-left-out" if note.startswith(("left out", "read:")) else "about-reading"
        found.append(finding("files-not-read" if unread else left_out, severity, note))
    if recognition.container == "text":
        found.append(finding("documents", "note", recognition.why))
    unused = recognition.unused
    if unused:
        text = (
            f"columns that play no role: {', '.join(unused[:8])}{' ...' if len(unused) > 8 else ''}"
        )
        found.append(finding("unused-columns", "note", text, len(unused)))
    media = [column for column in unused if normal(column).rstrip("s") in MEDIA]
    if media:
        text = f"images or sound in {', '.join(media)} are left out: only the text is trained"
        found.append(finding("media-columns", "warning", text, len(media)))
    if recognition.confidence == "guessed":
        others = [name for name in recognition.columns if name not in recognition.mapping.values()]
        beside = f" (other columns: {', '.join(others[:8])})" if others else ""
        text = (
            f"took {recognition.why}, guessed from their names; if that is wrong, say which:"
            f" {map_flag(recognition.mapping)}{beside}"
        )
        found.append(finding("columns-guessed", "warning", text))
    if recognition.confidence == "likely":
        ways = "; ".join(candidate.flag for candidate in recognition.candidates)
        text = (
            f"read as {recognition.format}: {recognition.why};"
            f" {f'otherwise: {ways}' if ways else '--map overrides it'}"
        )
        found.append(finding("recognised-by-shape", "note", text))
    return found
