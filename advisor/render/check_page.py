"""What `advise check` prints: what the data can train, what is wrong with it, how it is read, how
long its rows are, and the next command. `--json` has the rest.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from advisor.ground.types import DataProfile, Finding, TokenStats
from advisor.ground.units import format_count
from advisor.methods import methods
from advisor.render.data import FORMATS, visible, what_of
from advisor.render.terminal import rich_text
from advisor.situation.data import suited_task

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

CLASSIFICATION = "a small model that sorts texts"
SURE = {
    "certain": "",
    "likely": ": likely, not certain",
    "guessed": ": a guess",
    "stated": ", as stated with --map",
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
# What is shown of each list, so that the page fits a screen; --json has all of it.
SHOWN_OBJECTIVES, SHOWN_FINDINGS, SHOWN_FAULTS, SHOWN_TURNS = 3, 5, 5, 4
SHOWN_CLASSES, SHOWN_BARS = 4, 5
SHOWN_CHARS = 120
# What the page says elsewhere: how the data are read.
SAID_ABOVE = ("recognised-by-shape", "documents")
BAR_CELLS = 30
INDENT = 2  # of everything below a title
BAR, SLIVER = "█", "▏"


def print_check(profile: DataProfile, advice: Mapping[str, Any], console: Console) -> None:
    """Print the page; the next command stands on one whole line, however narrow the terminal."""
    from rich.padding import Padding

    page = _Page(console)

    def section(title: str, body: RenderableType) -> None:
        console.print()
        console.print(page.text(title, "bold"))
        console.print(Padding(body, (0, 0, 0, INDENT)))

    rows = f"{profile.rows:,} row{'' if profile.rows == 1 else 's'}"
    console.print(page.text(f"{visible(profile.path)}: {rows}, {what_of(profile)}", "bold"))
    nothing = page.text("nothing, before the errors below are repaired", "bold red")
    trained = page.objectives(profile, advice.get("amounts", ())) if profile.objectives else nothing
    section("It can train", trained)
    findings = [
        one for one in profile.findings if one.id not in SAID_ABOVE or one.severity != "note"
    ]
    counts = _counted(findings)
    section(f"Findings: {counts}" if counts else "Findings", page.findings(findings))
    row = f" (row {profile.sample.get('row', '?')})" if profile.sample else ""
    section(f"How it is read{row}", page.reading(profile))
    if "classes" in profile.measures:
        section(f"Classes: {profile.measures['class_count']:,}", page.classes(profile.measures))
    if profile.tokens is not None and profile.tokens.histogram:
        total, mean = format_count(profile.tokens.total), f"{profile.tokens.mean:,.0f}"
        title = f"Length in tokens: {total} in all, {mean} a row"
        section(title, page.histogram(profile.tokens, profile.measures))
    if advice.get("asked_length") and profile.measures.get("sequence_lengths"):
        section("What a sequence length would cut", page.lengths(profile))
    if profile.objectives and advice.get("suggested"):
        objective = advice["suggested"]["objective"]
        how = "a small model that sorts"
        if objective != "classification":
            how = f"{objective} with LoRA on one GPU"
        section(f"A plan for {how} takes", page.suggested(advice["suggested"]))
    console.print()
    # On a low screen the first lines have gone by.
    trains = ", ".join(profile.objectives[:SHOWN_OBJECTIVES]) or "nothing yet"
    console.print(page.text(f"Trains: {trains}{f'. See above: {counts}' if counts else ''}"))
    if profile.objectives:
        console.print(page.text("Without --task, the next line asks what the model is for.", "dim"))
    line = page.text(_next_command(profile, advice.get("model")))
    console.print(line, soft_wrap=True)  # whole, so that it can be pasted


def _next_command(profile: DataProfile, model: str | None) -> str:
    from advisor.data.recognition.matching import map_flag

    words = f"advise --task {suited_task(profile)} --data" if profile.objectives else "advise check"
    command = f"{words} {shlex.quote(profile.path)}"
    if profile.confidence == "stated":
        command += f" {map_flag(profile.mapping)}"
    if model is not None:
        command += f" --model {shlex.quote(model)}"
    return f"{'Next' if profile.objectives else 'Then'}: {visible(command)}"


def _short(text: str, limit: int = SHOWN_CHARS) -> str:
    said = visible(text[: limit + 1])
    return said if len(text) <= limit else f"{said[:limit].rstrip()} … ({len(text):,} characters)"


class _Page:
    """The parts of the page, in signs that the terminal can show."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = console.width - INDENT

    def text(self, text: str, style: str = "") -> Text:
        return rich_text(text, self.console, style)

    def objectives(self, profile: DataProfile, amounts: Sequence[Any]) -> RenderableType:
        from advisor.data.amounts import in_words

        wanted = {row["objective"]: row for row in amounts}
        table = _grid(("bold", "left", True), ("", "left", False))
        for objective in profile.objectives[:SHOWN_OBJECTIVES]:
            known = methods().objectives.get(objective)
            meaning = known.short if known is not None else CLASSIFICATION
            said = self.text(f"{meaning}{_on_what(objective, profile)}")
            if objective in wanted:
                style = VERDICTS[wanted[objective]["verdict"]]
                said.append("; ").append_text(self.text(in_words(wanted[objective]), style))
            table.add_row(objective, said)
        more = [f"{one}{_on_what(one, profile)}" for one in profile.objectives[SHOWN_OBJECTIVES:]]
        return _group(table, self.text(f"also {', '.join(more)}", "dim")) if more else table

    def findings(self, findings: Sequence[Finding]) -> RenderableType:
        if not findings:
            return self.text("no problems found")
        table = _grid(("", "left", True), ("", "left", False))
        for finding in findings[:SHOWN_FINDINGS]:
            word, style = SEVERITIES[finding.severity]
            for index, line in enumerate(_parts(finding)):
                table.add_row(self.text(word, style) if index == 0 else "", self.text(line))
        more = len(findings) - SHOWN_FINDINGS
        if more <= 0:
            return table
        return _group(table, self.text(f"and {more:,} more: --json lists all", "dim"))

    def reading(self, profile: DataProfile) -> RenderableType:
        """The format, how sure that is, and one row."""
        said = f"{FORMATS.get(profile.format, profile.format)}{SURE.get(profile.confidence, '')}"
        if profile.why and profile.confidence != "stated":
            said += f"; {profile.why}"
        lines = [self.text(visible(said))]
        if profile.confidence == "stated":
            columns = ", ".join(
                role if role == column else f"{role} = {column}"
                for role, column in profile.mapping.items()
            )
            lines.append(self.text(visible(columns)))
        if profile.other_ways:
            lines.append(self.text(visible(f"or: {'; or: '.join(profile.other_ways)}")))
        elif profile.confidence in ("likely", "guessed"):
            lines.append(self.text("--map ROLE=COLUMN says otherwise"))
        lines.extend(self.text(line) for line in _about_rows(profile.measures))
        return _group(*lines, *([self.row(profile)] if profile.sample else []))

    def row(self, profile: DataProfile) -> RenderableType:
        sample = profile.sample or {}
        lines = _grid(("cyan", "left", True), ("", "left", False))

        def turns(key: str, prefix: str = "") -> None:
            for turn in sample.get(key, ())[:SHOWN_TURNS]:
                said = str(turn.get("content", "")) or _calls(turn)
                weight = f" (weight {turn['weight']:g})" if "weight" in turn else ""
                lines.add_row(f"{prefix}{turn.get('role', '?')}{weight}", self.text(_short(said)))
            if len(sample.get(key, ())) > SHOWN_TURNS:
                more = len(sample[key]) - SHOWN_TURNS
                lines.add_row(self.text("…"), self.text(f"{more} more turns"))

        turns("messages")
        turns("chosen", "chosen: ")
        turns("rejected", "rejected: ")
        for key, name in (("text", "text"), ("label", "label"), ("answer", "right answer")):
            if key in sample:
                lines.add_row(name, self.text(_short(str(sample[key]))))
        if "good" in sample:
            lines.add_row("verdict", "good" if sample["good"] else "bad")
        if "tools" in sample:
            count = len(sample["tools"])
            lines.add_row("tools", f"{count} function{'' if count == 1 else 's'} on offer")
        return lines

    def classes(self, measures: Mapping[str, Any]) -> RenderableType:
        rows = measures["classes"]
        shown = rows[:SHOWN_CLASSES]
        bars = self._bars([(_short(row["label"], 28), row["rows"]) for row in shown])
        more = measures["class_count"] - len(shown)
        if more <= 0:
            return bars
        least = measures.get("class_least")
        down = "" if least is None else f", down to {least:,} row{'' if least == 1 else 's'}"
        return _group(bars, self.text(f"and {more:,} more{down}", "dim"))

    def histogram(self, tokens: TokenStats, measures: Mapping[str, Any]) -> RenderableType:
        bars = self._bars([(f"up to {edge:,}", rows) for edge, rows in merged(tokens.histogram)])
        lines = [
            f"half of the rows up to {tokens.p50:,}, 95 % up to {tokens.p95:,}, 99 % up to"
            f" {tokens.p99:,}, the longest {tokens.longest:,}"
        ]
        answers = measures.get("answer_tokens")
        if answers and answers["longest"]:
            lines.append(
                f"answers: half up to {answers['p50']:,}, 95 % up to {answers['p95']:,}, the"
                f" longest {answers['longest']:,}"
            )
        by, approximate, _ = tokens.counted_by.partition(" (approximation")
        by += " (an approximation; --model NAME counts its tokens)" if approximate else ""
        if tokens.sampled_rows is not None:
            by += f"; {tokens.sampled_rows:,} rows counted"
        return _group(bars, *map(self.text, lines), self.text(f"counted by: {by}", "dim"))

    def _bars(self, rows: list[tuple[str, int]]) -> RenderableType:
        most = max(count for _, count in rows)
        beside = max(len(name) for name, _ in rows) + len(f"{most:,}") + 3
        # On a narrow terminal the bars give way, not the numbers.
        longest = max(0, min(BAR_CELLS, self.width - beside))
        bars = _grid(("", "right", False), ("", "left", True), ("", "right", True), gap=1)
        for name, count in rows:
            cells = round(longest * count / most)
            # A bin that holds something shows something.
            bar = BAR * cells or (SLIVER if count and longest else "")
            bars.add_row(self.text(name), self.text(bar), f"{count:,}")
        return bars

    def suggested(self, suggested: Mapping[str, Any]) -> RenderableType:
        table = _grid(("", "left", True), ("", "left", False))
        packing = "true" if suggested["packing"] else "false"
        table.add_row(f"seq_len: {suggested['seq_len']}", self.text(suggested["because"]))
        table.add_row(f"packing: {packing}", self.text(suggested["packing_because"]))
        return table

    def lengths(self, profile: DataProfile) -> RenderableType:
        raw = profile.kind == "raw_text"
        columns: dict[str, list[str]] = {}
        for row in profile.measures["sequence_lengths"]:
            over = row["rows_over"]
            cells = {
                "tokens": f"{row['seq_len']:,}",
                "rows over": f"{over:,} ({_share(row['rows_over_share'])})" if over else "0",
                "text cut": _share(row["tokens_cut_share"]),
                "no answer left": f"{row['answers_lost']:,}",
                "padding": _share(row["padding"]),
                "packed": f"{row['packed_sequences']:,}",
            }
            for name, cell in cells.items():
                if not raw or name not in ("text cut", "no answer left"):
                    columns.setdefault(name, []).append(cell)
        table = self._numbers(columns)
        what = "texts over it are cut into pieces, nothing is lost; " if raw else ""
        said = (
            "padding: empty part of a batch of single rows; packed: sequences when laid end to end"
        )
        return _group(table, self.text(f"{what}{said}", "dim"))

    def _numbers(self, columns: Mapping[str, Sequence[str]]) -> RenderableType:
        """A table of numbers; one row below the other where a number would not be shown whole."""
        names, rows = list(columns), list(zip(*columns.values(), strict=True))
        if sum(max(map(len, (name, *columns[name]))) + 2 for name in names) > self.width:
            lines = []
            for row in rows:
                rest = (f"{name} {cell}" for name, cell in zip(names[1:], row[1:], strict=True))
                lines.append(self.text(f"{row[0]} {names[0]}: {', '.join(rest)}"))
            return _group(*lines)
        table = _grid(*((("", "right", True),) * len(names)))
        table.add_row(*(self.text(name, "dim") for name in names))
        for row in rows:
            table.add_row(*row)
        return table


def merged(histogram: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most a few bins that hold rows; where there are more, the shortest rows share one."""
    filled = [(edge, rows) for edge, rows in histogram if rows]
    first = max(0, len(filled) - SHOWN_BARS)
    together = sum(rows for _, rows in filled[: first + 1])
    return [(filled[first][0], together), *filled[first + 1 :]]


def _calls(turn: Mapping[str, Any]) -> str:
    """'calls get_weather, get_time' for a turn that calls functions; "" for one that does not."""
    old = turn.get("function_call")  # OpenAI's spelling before tool_calls
    calls = turn.get("tool_calls") or ([old] if old else [])
    names = [call.get("function", call).get("name", "?") for call in calls]
    return f"calls {', '.join(map(str, names))}" if names else ""


def _on_what(objective: str, profile: DataProfile) -> str:
    is_half = objective == "sft" and profile.kind == "preference"
    return " (on the chosen answers)" if is_half else ""


def _about_rows(measures: Mapping[str, Any]) -> list[str]:
    """Sentences about turns and scripts, where there is something to say."""
    lines = []
    turns = measures.get("turns")
    if turns and turns["multi_turn"]:
        lines.append(
            f"{turns['multi_turn']:,} of {turns['conversations']:,} have several answers;"
            f" {turns['mean']:g} on average, {turns['most']} at most"
        )
    scripts = [row for row in measures.get("scripts", ()) if row["script"] != "none"]
    if scripts and (len(scripts) > 1 or scripts[0]["script"] != "Latin"):
        total = sum(row["rows"] for row in scripts)
        shares = (f"{row['script']} {_share(row['rows'] / total)}" for row in scripts[:6])
        lines.append(f"scripts: {', '.join(shares)}")
    return lines


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
    if 0 < share < 0.01:
        return "below 1 %"
    return f"{max(0, share):.0%}".replace("%", " %")


def _counted(findings: Sequence[Finding]) -> str:
    """'2 warnings, 1 note'."""
    counts: Counter[str] = Counter(finding.severity for finding in findings)
    listed = [(counts[severity], severity) for severity in SEVERITIES if counts[severity]]
    return ", ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in listed)


def _parts(finding: Finding) -> list[str]:
    """A finding's lines: unreadable places stand one below the other."""
    text = visible(finding.text)
    if finding.id != "unreadable-rows":
        return [text]
    parts = text.split("; ")
    more = finding.count - SHOWN_FAULTS if finding.count else 0
    return [*parts[:SHOWN_FAULTS], *([f"and {more:,} more places"] if more > 0 else [])]
