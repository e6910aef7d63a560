"""What `advise check` prints: what the data can train, and what is wrong with it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.data.amounts import in_words
from advisor.data.recognition.matching import map_flag
from advisor.ground.types import PRIVATE, DataFinding, DataProfile, TokenStats
from advisor.ground.units import format_count
from advisor.methods import methods
from advisor.render.data import FORMATS, visible, what_of
from advisor.render.terminal import plain, rich_text
from advisor.situation.data import suited_task

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
UNREAD = "files-not-read"
SHOWN_OBJECTIVES, SHOWN_FINDINGS, SHOWN_FAULTS, SHOWN_TURNS = 3, 5, 5, 4
SHOWN_CLASSES, SHOWN_BARS, SHOWN_SCRIPTS = 4, 5, 6
SHOWN_CHARS, LABEL_CHARS = 120, 28
# What the page says elsewhere: how the data are read.
SAID_ABOVE = ("recognised-by-shape", "documents")
BAR_CELLS = 30
INDENT = 2  # of everything below a title
BAR, SLIVER = "█", "▏"
LEARNED, READ = "bold green", "dim"  # stretches of a row
OPEN, CLOSE = "[[", "]]"
LENGTHS = "padding: empty part of a batch of single rows; packed: sequences when laid end to end"
# What stands in a row, and what it is called.
CELLS = {"text": "text", "label": "label", "answer": "right answer"}


def print_check(profile: DataProfile, advice: Mapping[str, Any], console: Console) -> None:
    """Print the page; the next command stands on one whole line, however narrow the terminal."""
    page, measures, tokens = _Page(console), profile.measures, profile.tokens
    console.print(
        page.text(f"{visible(profile.path)}: {_rows(profile.rows)}, {what_of(profile)}", "bold")
    )
    page.print_section("It can train", page.objectives(profile, advice.get("amounts", ())))
    findings = [
        one for one in profile.findings if one.id not in SAID_ABOVE or one.severity != "note"
    ]
    counted: Counter[str] = Counter(finding.severity for finding in findings)
    counts = ", ".join(
        f"{counted[word]} {word}{'s' if counted[word] > 1 else ''}"
        for word in SEVERITIES
        if counted[word]
    )
    page.print_section(f"Findings{f': {counts}' if counts else ''}", page.findings(findings))
    for finding in findings:
        if finding.id == UNREAD:
            for command in finding.text.split("`")[1::2]:
                console.print(page.text(f"  {visible(command)}"), soft_wrap=True)
    row = f" (row {profile.sample.get('row', '?')})" if profile.sample else ""
    page.print_section(f"How it is read{row}", page.reading(profile))
    if "classes" in measures:
        page.print_section(f"Classes: {measures['class_count']:,}", page.classes(measures))
    if tokens is not None and tokens.histogram:
        title = f"Length in tokens: {format_count(tokens.total)} in all, {tokens.mean:,.0f} a row"
        page.print_section(title, page.histogram(tokens, measures))
    if advice.get("asked_length") and measures.get("sequence_lengths"):
        page.print_section("What a sequence length would cut", page.lengths(profile))
    if profile.objectives and (suggested := advice.get("suggested")):
        objective = suggested["objective"]
        how = f"{objective} with LoRA on one GPU"
        how = "a small model that sorts" if objective == "classification" else how
        page.print_section(f"A plan for {how} takes", page.suggested(suggested))
    console.print()
    # On a low screen the first lines have gone by.
    trains = ", ".join(profile.objectives[:SHOWN_OBJECTIVES]) or "nothing yet"
    console.print(page.text(f"Trains: {trains}{f'. See above: {counts}' if counts else ''}"))
    if profile.objectives:
        task = suited_task(profile)
        shown = "lets the rows decide" if task == "other" else "is what the rows look like"
        said = f"`--task {task}` {shown}; leave it out to be asked."
        console.print(page.text(said, "dim"))
    line = page.text(_next_command(profile, advice.get("model")))
    console.print(line, soft_wrap=True)  # whole, so that it can be pasted


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _next_command(profile: DataProfile, model: str | None) -> str:
    is_good = bool(profile.objectives)
    words = f"advise --task {suited_task(profile)} --data" if is_good else "advise check"
    command = f"{words} {shlex.quote(profile.path)}"
    if profile.confidence == "stated":
        command += f" {map_flag(profile.mapping)}"
    if model is not None:
        command += f" --model {shlex.quote(model)}"
    return f"{'Next' if is_good else 'Then'}: {visible(command)}"


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

    def print_section(self, title: str, body: RenderableType) -> None:
        """Print a title and what stands below it."""
        self.console.print()
        self.console.print(self.text(title, "bold"))
        self.console.print(Padding(body, (0, 0, 0, INDENT)))

    def pairs(self, rows: Iterable[tuple[Text | str, str | Text]], style: str = "") -> Table:
        """Names at the left, and what is said of each."""
        table = _grid((style, "left", True), ("", "left", False))
        for name, said in rows:
            table.add_row(name, self.text(said) if isinstance(said, str) else said)
        return table

    def objectives(self, profile: DataProfile, amounts: Sequence[Any]) -> RenderableType:
        if not profile.objectives:
            return self.text("nothing, before the errors below are repaired", "bold red")
        wanted = {row["objective"]: row for row in amounts}
        is_half = profile.kind == "preference"

        def on_what(objective: str) -> str:
            return " (on the chosen answers)" if objective == "sft" and is_half else ""

        rows = []
        for objective in profile.objectives[:SHOWN_OBJECTIVES]:
            known = methods().objectives.get(objective)
            said = self.text(f"{known.short if known else CLASSIFICATION}{on_what(objective)}")
            if row := wanted.get(objective):
                said.append("; ").append_text(self.text(in_words(row), VERDICTS[row["verdict"]]))
            rows.append((objective, said))
        table = self.pairs(rows, "bold")
        more = [f"{one}{on_what(one)}" for one in profile.objectives[SHOWN_OBJECTIVES:]]
        return Group(table, self.text(f"also {', '.join(more)}", "dim")) if more else table

    def findings(self, findings: Sequence[DataFinding]) -> RenderableType:
        # Errors, then what nobody may miss, however many.
        first = [
            one
            for one in findings
            if one.severity == "error" or one.id.startswith((*PRIVATE, UNREAD))
        ]
        kept = [*first, *(one for one in findings if one not in first)]
        kept = kept[: max(SHOWN_FINDINGS, len(first))]
        shown = [one for one in findings if one in kept]
        rows = [
            (self.text(*SEVERITIES[finding.severity]) if place == 0 else "", line)
            for finding in shown
            for place, line in enumerate(_finding_lines(finding))
        ]
        more = len(findings) - len(shown)
        parts = [self.pairs(rows)] if rows else [self.text("no problems found")]
        said = [f"and {more:,} more: --json lists all"] if more else []
        if not rows or any(one.id.startswith(PRIVATE) for one in first):
            said.append("names and postal addresses are not looked for")
        return Group(*parts, *([self.text("; ".join(said), "dim")] if said else []))

    def reading(self, profile: DataProfile) -> RenderableType:
        """The format, how sure that is, and one row."""
        is_stated = profile.confidence == "stated"
        said = f"{FORMATS.get(profile.format, profile.format)}{SURE.get(profile.confidence, '')}"
        lines = [said if is_stated or not profile.why else f"{said}; {profile.why}"]
        if is_stated:
            columns = profile.mapping.items()
            named = (role if role == name else f"{role} = {name}" for role, name in columns)
            lines.append(", ".join(named))
        if profile.other_ways:
            lines.append(f"or: {'; or: '.join(profile.other_ways)}")
        elif profile.confidence in ("likely", "guessed"):
            lines.append("--map says otherwise")
        said_of_rows = map(self.text, _about_rows(profile.measures))
        row = [self.pairs(_row(profile.sample), "cyan")] if profile.sample else []
        return Group(*(self.text(visible(line)) for line in lines), *said_of_rows, *row)

    def classes(self, measures: Mapping[str, Any]) -> RenderableType:
        shown = measures["classes"][:SHOWN_CLASSES]
        bars = self._bars([(_short(row["label"], LABEL_CHARS), row["rows"]) for row in shown])
        more, least = measures["class_count"] - len(shown), measures.get("class_least")
        down = "" if least is None else f", down to {_rows(least)}"
        return Group(bars, self.text(f"and {more:,} more{down}", "dim")) if more > 0 else bars

    def histogram(self, tokens: TokenStats, measures: Mapping[str, Any]) -> RenderableType:
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
        by += " (an approximation; --model counts those of a model)" if approximate else ""
        if tokens.sampled_rows is not None:
            by += f"; {tokens.sampled_rows:,} rows counted"
        bars = self._bars([(f"up to {edge:,}", rows) for edge, rows in few_bins(tokens.histogram)])
        return Group(bars, *map(self.text, lines), self.text(f"counted by: {by}", "dim"))

    def _bars(self, rows: Sequence[tuple[str, int]]) -> Table:
        most = max(count for _, count in rows)
        beside = max(len(name) for name, _ in rows) + len(f"{most:,}") + 3
        # On a narrow terminal the bars give way, not the numbers.
        longest = max(0, min(BAR_CELLS, self.width - beside))
        bars = _grid(("", "right", False), ("", "left", True), ("", "right", True), gap=1)
        for name, count in rows:
            # A bin that holds something shows something.
            bar = BAR * round(longest * count / most) or (SLIVER if count and longest else "")
            bars.add_row(self.text(name), self.text(bar), f"{count:,}")
        return bars

    def suggested(self, suggested: Mapping[str, Any]) -> RenderableType:
        packing = f"packing: {str(bool(suggested['packing'])).lower()}"
        length = f"seq_len: {suggested['seq_len']}"
        return self.pairs([
            (length, suggested["because"]), (packing, suggested["packing_because"]),
        ])  # fmt: skip

    def lengths(self, profile: DataProfile) -> RenderableType:
        raw = profile.kind == "raw_text"
        lines = []
        for row in profile.measures["sequence_lengths"]:
            said = f"rows over {row['rows_over']:,} ({_share(row['rows_over_share'])})"
            if not raw:
                said += f", text cut {_share(row['tokens_cut_share'])}"
                said += f", no answer left {row['answers_lost']:,}"
            said += f", padding {_share(row['padding'])}, packed {row['packed_sequences']:,}"
            lines.append(self.text(f"{row['seq_len']:,} tokens: {said}"))
        what = "texts over it are cut into pieces, nothing is lost; " if raw else ""
        return Group(*lines, self.text(f"{what}{LENGTHS}", "dim"))


def _row(sample: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, prefix in (("messages", ""), ("chosen", "chosen: "), ("rejected", "rejected: ")):
        turns = sample.get(key, ())
        for turn in turns[:SHOWN_TURNS]:
            said = str(turn.get("content", "")) or _calls(turn)
            weight = f" (weight {turn['weight']:g})" if "weight" in turn else ""
            yield f"{prefix}{turn.get('role', '?')}{weight}", _short(said)
        if len(turns) > SHOWN_TURNS:
            yield "…", f"{len(turns) - SHOWN_TURNS} more turns"
    yield from ((name, _short(str(sample[key]))) for key, name in CELLS.items() if key in sample)
    if "good" in sample:
        yield "verdict", "good" if sample["good"] else "bad"
    if "tools" in sample:
        count = len(sample["tools"])
        yield "tools", f"{count} function{'' if count == 1 else 's'} on offer"


def few_bins(histogram: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most a few bins that hold rows; if there are more, the shortest rows share one."""
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


def _about_rows(measures: Mapping[str, Any]) -> Iterable[str]:
    turns = measures.get("turns")
    if turns and turns["multi_turn"]:
        yield (
            f"{turns['multi_turn']:,} of {turns['conversations']:,} have several answers;"
            f" {turns['mean']:g} on average, {turns['most']} at most"
        )
    scripts = [row for row in measures.get("scripts", ()) if row["script"] != "none"]
    if [row["script"] for row in scripts] not in ([], ["Latin"]):
        total = sum(row["rows"] for row in scripts)
        shares = (f"{row['script']} {_share(row['rows'] / total)}" for row in scripts)
        yield f"scripts: {', '.join(list(shares)[:SHOWN_SCRIPTS])}"


def _grid(*columns: tuple[str, Any, bool], gap: int = 2) -> Table:
    table = Table.grid(padding=(0, gap))
    for style, justify, no_wrap in columns:
        table.add_column(style=style, justify=justify, no_wrap=no_wrap, overflow="fold")
    return table


def _share(share: float) -> str:
    """'12 %', and for little 'below 1 %': a share that is there never reads as nothing."""
    return "below 1 %" if 0 < share < 0.01 else f"{max(0, share):.0%}".replace("%", " %")


def _finding_lines(finding: DataFinding) -> list[str]:
    text = visible(finding.text)
    if finding.id == UNREAD and "`" in text:  # whole below, so that they can be pasted
        return [f"{text.partition(': `')[0]}, with the lines below"]
    if finding.id != "unreadable-rows":
        return [text]
    parts = text.split("; ")
    more = finding.count - SHOWN_FAULTS if finding.count else 0
    return [*parts[:SHOWN_FAULTS], *([f"and {more:,} more places"] if more > 0 else [])]


# --------------------------------------------------------------------------- one row


def print_row(shown: dict[str, Any], console: Console) -> None:
    """One row as the trainers see it; what is learned is coloured, or between marks."""
    coloured = console.color_system is not None and not console.no_color

    def put(text: str, style: str = "") -> None:
        console.print(rich_text(text, console, style), soft_wrap=True)

    put("")
    seen_by = f", as {shown['model']} sees it" if shown["model"] else ""
    put(f"Row {shown['row']} of {shown['path']}{seen_by}", "bold")
    if why := shown["left_out"]:
        put(f"  This row is left out of the training, and counted: {why}", "yellow")
    if shown["parts"]:
        put(f"  chat template: {shown['template']}")
        how = "in green and bold" if coloured else f"between {OPEN} and {CLOSE}"
        put(f"  learned: {how}; the rest is only read")
    for part in shown["parts"]:
        counts = ""
        if part["tokens"] is not None:
            counts = f" ({part['learned_tokens']:,} of {part['tokens']:,} tokens learned)"
        put("")
        put(f"{part['title']}{counts}", "underline")
        text = Text(overflow="fold")
        for stretch in part["stretches"]:
            said, is_learned = plain(stretch["text"], console), stretch["learned"]
            marked = f"{OPEN}{said}{CLOSE}" if is_learned and not coloured else said
            text.append(marked, (LEARNED if is_learned else READ) if coloured else "")
        console.print(text, soft_wrap=True)
        if part.get("answer") is not None:
            put(f"  the right answer, which the model's own is checked against: {part['answer']}")
    if shown["notes"]:
        put("")
    for note in shown["notes"]:
        put(f"  note: {note}")
