"""A data profile as one JSON document and as a page for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advisor.types import DataProfile, Finding, TokenStats
from advisor.units import format_count

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SCHEMA_VERSION = 1
KINDS = {
    "paired": "requests with the right answer",
    "raw_text": "plain documents",
    "preference": "pairs of a better and a worse answer",
    "unpaired_feedback": "answers with thumbs up or down",
    "prompts_with_verifier": "problems whose answer can be checked",
}
FORMATS = {
    "messages": "messages (role / content turns)",
    "sharegpt": "ShareGPT (from / value turns)",
    "tool_calls": "conversations with tool calls",
    "alpaca": "Alpaca (instruction / input / output)",
    "prompt_completion": "prompt and completion",
    "question_answer": "question and answer columns",
    "summary": "texts and their summaries",
    "transcript": "dialogues written as one text",
    "classification": "texts with a label",
    "text": "text",
    "preference": "chosen and rejected",
    "unpaired_feedback": "answers with a verdict",
    "prompts_with_verifier": "requests with the right answer to check against",
}
OBJECTIVES = {
    "sft": "learning from examples",
    "cpt": "reading documents",
    "rm": "a model that scores answers",
    "ppo": "practice against that score",
    "dpo": "learning from pairs",
    "orpo": "examples and pairs in one go",
    "kto": "learning from thumbs up and down",
    "grpo": "practice on checkable problems",
    "rloo": "practice, several tries each",
}
SEVERITIES = {"error": ("ERROR", "bold red"), "warning": ("warning", "yellow"), "note": ("note", "dim")}
SHOWN_CHARS = 240
BAR_CELLS = 30


def profile_json(profile: DataProfile) -> dict[str, Any]:
    """The profile as one JSON document; lengths are in tokens a row."""
    return {
        "schema_version": SCHEMA_VERSION,
        "path": profile.path,
        "kind": profile.kind,
        "format": profile.format,
        "mapping": dict(profile.mapping),
        "rows": profile.rows,
        "tokens": None if profile.tokens is None else _tokens_json(profile.tokens),
        "objectives": list(profile.objectives),
        "findings": [_finding_json(finding) for finding in profile.findings],
        "sample": None if profile.sample is None else dict(profile.sample),
        "digest": profile.digest or None,
    }


def _tokens_json(tokens: TokenStats) -> dict[str, Any]:
    return {
        "total": tokens.total,
        "mean": tokens.mean,
        "p50": tokens.p50,
        "p90": tokens.p90,
        "p95": tokens.p95,
        "p99": tokens.p99,
        "longest": tokens.longest,
        "counted_by": tokens.counted_by,
        "sampled_rows": tokens.sampled_rows,
        "histogram": [{"up_to_tokens": edge, "rows": rows} for edge, rows in tokens.histogram],
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id,
        "severity": finding.severity,
        "text": finding.text,
        "count": finding.count,
        "rows": list(finding.rows),
        "blocks": list(finding.blocks),
    }


def print_profile(profile: DataProfile, console: Console) -> None:
    """Print what the data is, one row as understood, what is wrong, how long rows are and what it can train."""
    from rich.padding import Padding
    from rich.text import Text

    def section(title: str, body: RenderableType) -> None:
        console.print()
        console.print(Text(title, style="bold"))
        console.print(Padding(body, (0, 0, 0, 2)))

    console.print(Text(profile.path, style="bold"))
    console.print(Padding(_facts(profile), (0, 0, 0, 2)))
    if profile.sample is not None:
        section(f"One row as understood (row {profile.sample.get('row', '?')})", _sample(profile))
    section(_findings_title(profile.findings), _findings(profile.findings))
    if profile.tokens is not None and profile.tokens.histogram:
        section("Length of a row in tokens", _histogram(profile.tokens))
    if profile.objectives:
        section("What it can train", _objectives(profile))
    else:
        section("What it can train", Text("nothing, before the errors above are repaired", style="bold red"))


def visible(text: str) -> str:
    """Text of a file made safe for a terminal: line breaks as ⏎, control characters as their escapes."""
    joined = text.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " ")
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode("ascii") for character in joined)


def _short(text: str, limit: int = SHOWN_CHARS) -> str:
    shown = visible(text[: limit + 1])
    return shown if len(text) <= limit else f"{shown[:limit].rstrip()} … ({len(text):,} characters)"


def _facts(profile: DataProfile) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("what", Text(KINDS.get(profile.kind, profile.kind)))
    facts.add_row("format", Text(FORMATS.get(profile.format, profile.format)))
    if profile.format != "text" or profile.mapping.get("text") != "text":
        facts.add_row("columns", Text(", ".join(role if role == column else f"{role} = {column}" for role, column in profile.mapping.items())))
    facts.add_row("rows", Text(f"{profile.rows:,}"))
    if profile.tokens is not None:
        facts.add_row("tokens", Text(f"{format_count(profile.tokens.total)} in all, {profile.tokens.mean:,.0f} a row"))
    return facts


def _sample(profile: DataProfile) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    sample = profile.sample or {}
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True, style="cyan")
    lines.add_column(overflow="fold")

    def turns(key: str, prefix: str = "") -> None:
        for turn in sample.get(key, ())[:6]:
            said = str(turn.get("content", "")) or (f"calls {turn['tool_calls'][0]['function']['name']}" if turn.get("tool_calls") else "")
            lines.add_row(f"{prefix}{turn.get('role', '?')}", Text(_short(said)))
        if len(sample.get(key, ())) > 6:
            lines.add_row("…", Text(f"{len(sample[key]) - 6} more turns"))

    turns("messages")
    turns("chosen", "chosen: ")
    turns("rejected", "rejected: ")
    for key in ("text", "label", "good", "answer"):
        if key in sample:
            value = {True: "good", False: "bad"}.get(sample[key], str(sample[key])) if key == "good" else str(sample[key])
            lines.add_row("verdict" if key == "good" else "right answer" if key == "answer" else key, Text(_short(value)))
    if "tools" in sample:
        lines.add_row("tools", Text(f"{len(sample['tools'])} functions on offer"))
    return lines


def _findings_title(findings: tuple[Finding, ...]) -> str:
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    parts = [f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count]
    return f"Findings: {', '.join(parts)}" if parts else "Findings"


def _findings(findings: tuple[Finding, ...]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if not findings:
        return Text("nothing conspicuous")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        word, style = SEVERITIES[finding.severity]
        for index, line in enumerate(_parts(finding)):
            table.add_row(Text(word, style=style) if index == 0 else "", Text(line))
    return table


def _parts(finding: Finding) -> list[str]:
    """A finding's lines: unreadable places stand one below the other."""
    text = visible(finding.text)
    return text.split("; ") if finding.id == "unreadable-rows" else [text]


def _histogram(tokens: TokenStats) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    most = max(rows for _, rows in tokens.histogram)
    bars = Table.grid(padding=(0, 1))
    bars.add_column(justify="right", no_wrap=True)
    bars.add_column(no_wrap=True)
    bars.add_column(justify="right", no_wrap=True)
    for edge, rows in tokens.histogram:
        cells = round(BAR_CELLS * rows / most)
        # A bin that holds something shows something.
        bars.add_row(f"up to {edge:,}", Text("█" * cells or ("▏" if rows else "")), f"{rows:,}")
    how = f"half of the rows up to {tokens.p50:,}, 95 % up to {tokens.p95:,}, the longest {tokens.longest:,}"
    sampled = f"; {tokens.sampled_rows:,} rows counted" if tokens.sampled_rows is not None else ""
    return Group(bars, Text(how), Text(f"counted by: {tokens.counted_by}{sampled}", style="dim"))


def _objectives(profile: DataProfile) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for objective in profile.objectives:
        meaning = OBJECTIVES.get(objective, "")
        if objective == "sft" and profile.kind == "preference":
            meaning += " (on the chosen answers)"
        table.add_row(objective, Text(meaning))
    return table
