"""A data profile as one JSON document and as a page for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from advisor.ground.terminal import shown
from advisor.ground.types import DataProfile, Finding, TokenStats
from advisor.ground.units import format_count
from advisor.methods import methods

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

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
    "requests": "as --map says",
}
REQUESTS = "requests without answers"
CLASSIFICATION = "a small model that sorts texts"
SURE = {
    "certain": "certain",
    "likely": "likely, not certain",
    "guessed": "guessed",
    "stated": "as stated with --map",
}
SEVERITIES = {
    "error": ("ERROR", "bold red"),
    "warning": ("warning", "yellow"),
    "note": ("note", "dim"),
}
VERDICTS = {
    "too_few": "red",
    "thin": "yellow",
    "usual": "green",
    "plenty": "green",
    "unknown": "dim",
}
SHOWN_CHARS = 240
SHOWN_CLASSES = 8
BAR_CELLS = 30
INDENT = 2  # of everything below a title
BAR, SLIVER = "█", "▏"
PLAIN = str.maketrans(
    {
        BAR: "#",
        SLIVER: "|",
        "…": "...",
        "⏎": "\\n",
        "×": "x",
        "–": "-",
        "—": "-",
        "±": "+-",
        "’": "'",
    }
)  # for terminals that cannot show them


def what_of(profile: DataProfile) -> str:
    """What the rows hold, in words."""
    return REQUESTS if profile.format == "requests" else KINDS.get(profile.kind, profile.kind)


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


def check_json(profile: DataProfile, advice: Mapping[str, Any]) -> dict[str, Any]:
    """What `advise check --json` prints: the profile, how sure it is, everything measured, and what
    follows from it.
    """
    return {
        **profile_json(profile),
        "confidence": profile.confidence,
        "why": profile.why,
        "other_ways": list(profile.other_ways),
        "measures": dict(profile.measures),
        "amounts": advice["amounts"],
        "suggested": advice["suggested"],
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


def print_check(profile: DataProfile, advice: Mapping[str, Any], console: Console) -> None:
    """Print what the data is, one row as understood, what is wrong, how long rows are and what it
    can train.
    """
    from rich.padding import Padding

    page = _Page(console)

    def section(title: str, body: RenderableType) -> None:
        console.print()
        console.print(page.text(title, "bold"))
        console.print(Padding(body, (0, 0, 0, INDENT)))

    console.print(page.text(profile.path, "bold"))
    console.print(Padding(page.facts(profile), (0, 0, 0, INDENT)))
    if profile.sample is not None:
        section(
            f"One row as understood (row {profile.sample.get('row', '?')})", page.sample(profile)
        )
    section(_findings_title(profile.findings), page.findings(profile.findings))
    if "classes" in profile.measures:
        section(f"Classes: {profile.measures['class_count']:,}", page.classes(profile.measures))
    if profile.tokens is not None and profile.tokens.histogram:
        section("Length of a row in tokens", page.histogram(profile.tokens, profile.measures))
    if advice.get("suggested") and profile.measures.get("sequence_lengths"):
        section("What a sequence length would cut", page.lengths(profile, advice["suggested"]))
    if profile.objectives:
        section("What it can train", page.objectives(profile, advice.get("amounts", ())))
    else:
        section(
            "What it can train",
            page.text("nothing, before the errors above are repaired", "bold red"),
        )


def visible(text: str) -> str:
    """Text of a file made safe for a terminal: line breaks as ⏎, control characters as their
    escapes.
    """
    joined = text.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("\t", " ")
    return shown(joined)


def _short(text: str, limit: int = SHOWN_CHARS) -> str:
    said = visible(text[: limit + 1])
    return said if len(text) <= limit else f"{said[:limit].rstrip()} … ({len(text):,} characters)"


class _Page:
    """The parts of the page, in signs that the terminal can show."""

    def __init__(self, console: Console) -> None:
        encoding = (console.encoding or "utf-8").lower().replace("-", "")
        self.encoding = None if encoding.startswith("utf") else console.encoding
        self.width = console.width - INDENT

    def text(self, text: str, style: str = "") -> Text:
        from rich.text import Text

        if self.encoding is not None:
            text = (
                text.translate(PLAIN)
                .encode(self.encoding, "backslashreplace")
                .decode(self.encoding)
            )
        return Text(text, style=style, overflow="fold")

    def facts(self, profile: DataProfile) -> RenderableType:
        facts = _grid(("dim", "left", True), ("", "left", False))
        facts.add_row("what", self.text(what_of(profile)))
        facts.add_row("format", self.text(FORMATS.get(profile.format, profile.format)))
        if profile.confidence:
            why = f": {profile.why}" if profile.why and profile.confidence != "stated" else ""
            facts.add_row("how sure", self.text(visible(f"{SURE[profile.confidence]}{why}")))
        for way in profile.other_ways:
            facts.add_row("or", self.text(visible(way)))
        if profile.format != "text" or profile.mapping.get("text") != "text":
            facts.add_row(
                "columns",
                self.text(
                    visible(
                        ", ".join(
                            role if role == column else f"{role} = {column}"
                            for role, column in profile.mapping.items()
                        )
                    )
                ),
            )
        facts.add_row("rows", self.text(f"{profile.rows:,}"))
        if profile.tokens is not None:
            facts.add_row(
                "tokens",
                self.text(
                    f"{format_count(profile.tokens.total)} in all, {profile.tokens.mean:,.0f} a row"
                ),
            )
        turns = profile.measures.get("turns")
        if turns and turns["multi_turn"]:
            facts.add_row(
                "turns",
                self.text(
                    f"{turns['multi_turn']:,} of {turns['conversations']:,} have several answers;"
                    f" {turns['mean']:g} on average, {turns['most']} at most"
                ),
            )
        scripts = [row for row in profile.measures.get("scripts", ()) if row["script"] != "none"]
        if scripts and (len(scripts) > 1 or scripts[0]["script"] != "Latin"):
            total = sum(row["rows"] for row in scripts)
            facts.add_row(
                "scripts",
                self.text(
                    ", ".join(
                        f"{row['script']} {_share(row['rows'] / total)}" for row in scripts[:6]
                    )
                ),
            )
        return facts

    def sample(self, profile: DataProfile) -> RenderableType:
        sample = profile.sample or {}
        lines = _grid(("cyan", "left", True), ("", "left", False))

        def turns(key: str, prefix: str = "") -> None:
            for turn in sample.get(key, ())[:6]:
                said = str(turn.get("content", "")) or (
                    f"calls {turn['tool_calls'][0]['function']['name']}"
                    if turn.get("tool_calls")
                    else ""
                )
                weight = f" (weight {turn['weight']:g})" if "weight" in turn else ""
                lines.add_row(f"{prefix}{turn.get('role', '?')}{weight}", self.text(_short(said)))
            if len(sample.get(key, ())) > 6:
                lines.add_row(self.text("…"), self.text(f"{len(sample[key]) - 6} more turns"))

        turns("messages")
        turns("chosen", "chosen: ")
        turns("rejected", "rejected: ")
        for key in ("text", "label", "good", "answer"):
            if key in sample:
                value = (
                    {True: "good", False: "bad"}.get(sample[key], str(sample[key]))
                    if key == "good"
                    else str(sample[key])
                )
                lines.add_row(
                    "verdict" if key == "good" else "right answer" if key == "answer" else key,
                    self.text(_short(value)),
                )
        if "tools" in sample:
            lines.add_row("tools", self.text(f"{len(sample['tools'])} functions on offer"))
        return lines

    def findings(self, findings: tuple[Finding, ...]) -> RenderableType:
        if not findings:
            return self.text("nothing conspicuous")
        table = _grid(("", "left", True), ("", "left", False))
        for finding in findings:
            word, style = SEVERITIES[finding.severity]
            for index, line in enumerate(_parts(finding)):
                table.add_row(self.text(word, style) if index == 0 else "", self.text(line))
        return table

    def classes(self, measures: Mapping[str, Any]) -> RenderableType:
        rows = measures["classes"]
        bars = self._bars([(_short(row["label"], 28), row["rows"]) for row in rows[:SHOWN_CLASSES]])
        more = measures["class_count"] - min(len(rows), SHOWN_CLASSES)
        return _group(bars, self.text(f"and {more:,} more", "dim")) if more > 0 else bars

    def histogram(self, tokens: TokenStats, measures: Mapping[str, Any]) -> RenderableType:
        bars = self._bars([(f"up to {edge:,}", rows) for edge, rows in tokens.histogram])
        lines = [
            f"half of the rows up to {tokens.p50:,}, 95 % up to {tokens.p95:,}, 99 % up to"
            f" {tokens.p99:,}, the longest {tokens.longest:,}"
        ]
        for key, name in (("request_tokens", "requests"), ("answer_tokens", "answers")):
            part = measures.get(key)
            if part and "answer_tokens" in measures and measures["answer_tokens"]["longest"]:
                lines.append(
                    f"{name}: half up to {part['p50']:,}, 95 % up to {part['p95']:,}, the longest"
                    f" {part['longest']:,}"
                )
        sampled = (
            f"; {tokens.sampled_rows:,} rows counted" if tokens.sampled_rows is not None else ""
        )
        return _group(
            bars,
            *(self.text(line) for line in lines),
            self.text(f"counted by: {tokens.counted_by}{sampled}", "dim"),
        )

    def _bars(self, rows: list[tuple[str, int]]) -> RenderableType:
        most = max(count for _, count in rows)
        beside = max(len(name) for name, _ in rows) + len(f"{most:,}") + 3
        longest = max(
            0, min(BAR_CELLS, self.width - beside)
        )  # on a narrow terminal the bars give way, not the numbers
        bars = _grid(("", "right", False), ("", "left", True), ("", "right", True), gap=1)
        for name, count in rows:
            cells = round(longest * count / most)
            # A bin that holds something shows something.
            bars.add_row(
                self.text(name),
                self.text(BAR * cells or (SLIVER if count and longest else "")),
                f"{count:,}",
            )
        return bars

    def lengths(self, profile: DataProfile, suggested: Mapping[str, Any]) -> RenderableType:
        raw = profile.kind == "raw_text"
        names = (
            "tokens",
            "rows over",
            *(() if raw else ("text cut", "no answer left")),
            "padding",
            "packed",
        )
        rows = []
        for row in profile.measures["sequence_lengths"]:
            over = (
                f"{row['rows_over']:,} ({_share(row['rows_over_share'])})"
                if row["rows_over"]
                else "0"
            )
            lost = () if raw else (_share(row["tokens_cut_share"]), f"{row['answers_lost']:,}")
            rows.append(
                (
                    f"{row['seq_len']:,}",
                    over,
                    *lost,
                    _share(row["padding"]),
                    f"{row['packed_sequences']:,}",
                )
            )
        table = self._numbers(names, rows)
        what = "texts over it are cut into pieces, nothing is lost; " if raw else ""
        return _group(
            table,
            self.text(
                f"{what}padding: empty part of a batch of single rows; packed: sequences when laid"
                " end to end",
                "dim",
            ),
            self.text(f"suggested: {suggested['seq_len']:,} tokens: {suggested['because']}"),
            self.text(
                f"packing: {'yes' if suggested['packing'] else 'no'}:"
                f" {suggested['packing_because']}"
            ),
        )

    def _numbers(self, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> RenderableType:
        """A table of numbers; one row below the other where the terminal is too narrow to show each
        number whole.
        """
        if sum(max(map(len, column)) + 2 for column in zip(names, *rows, strict=True)) > self.width:
            rest = [
                ", ".join(f"{name} {value}" for name, value in zip(names[1:], row[1:], strict=True))
                for row in rows
            ]
            return _group(
                *(
                    self.text(f"{row[0]} {names[0]}: {values}")
                    for row, values in zip(rows, rest, strict=True)
                )
            )
        table = _grid(*((("", "right", True),) * len(names)))
        table.add_row(*(self.text(name, "dim") for name in names))
        for row in rows:
            table.add_row(*row)
        return table

    def objectives(self, profile: DataProfile, amounts: Any) -> RenderableType:
        from advisor.data.measure.data_requirements import in_words

        wanted = {row["objective"]: row for row in amounts}
        table = _grid(("bold", "left", True), ("", "left", False))
        for objective in profile.objectives:
            meaning = (
                CLASSIFICATION
                if objective == "classification"
                else methods().objectives[objective].short
            )
            if objective == "sft" and profile.kind == "preference":
                meaning += " (on the chosen answers)"
            table.add_row(objective, self.text(meaning))
            if objective in wanted:
                table.add_row(
                    "",
                    self.text(in_words(wanted[objective]), VERDICTS[wanted[objective]["verdict"]]),
                )
        return table


def _grid(*columns: tuple[str, str, bool], gap: int = 2) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, gap))
    for style, justify, no_wrap in columns:
        table.add_column(style=style, justify=justify, no_wrap=no_wrap, overflow="fold")  # type: ignore[arg-type]
    return table


def _group(*parts: RenderableType) -> RenderableType:
    from rich.console import Group

    return Group(*parts)


def _share(share: float) -> str:
    """'12 %', and for little 'below 1 %': a share that is there never reads as nothing."""
    return (
        "0 %" if share <= 0 else "below 1 %" if share < 0.01 else f"{share:.0%}".replace("%", " %")
    )


def _findings_title(findings: tuple[Finding, ...]) -> str:
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in SEVERITIES
    }
    parts = [
        f"{count} {severity}{'s' if count > 1 else ''}"
        for severity, count in counts.items()
        if count
    ]
    return f"Findings: {', '.join(parts)}" if parts else "Findings"


def _parts(finding: Finding) -> list[str]:
    """A finding's lines: unreadable places stand one below the other."""
    text = visible(finding.text)
    return text.split("; ") if finding.id == "unreadable-rows" else [text]
