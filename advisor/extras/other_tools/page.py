"""`advise check` of another tool's configuration, on the screen or as JSON, and its plan."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.commands.check_options import CheckOptions
from advisor.commands.output import console, print_json, put
from advisor.extras.other_tools.file import ToolFile
from advisor.extras.other_tools.findings import SEVERITIES
from advisor.extras.other_tools.mapping import ABSENT, NO_DATA, at_key
from advisor.extras.other_tools.out_of_memory import read_memory_error
from advisor.extras.other_tools.read import read_any
from advisor.extras.other_tools.report import MODEL, ConfigurationReport
from advisor.ground.errors import InputError
from advisor.ground.files import KEPT, free_path, shown_path, write_atomically
from advisor.ground.memory_errors import MemoryRanOut
from advisor.ground.terminal import shown
from advisor.ground.types import Hardware
from advisor.ground.wrap import on_lines
from advisor.plan.comments import stage_notes
from advisor.plan.write import write_plan_file
from advisor.probe import probe, stated_hardware
from advisor.record.smaller import yaml_value
from advisor.ruleset.load import load_rules

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    "error": "bold red", "warning": "yellow", "note": "dim", "+": "green", "-": "red", "@": "dim",
    "fits": "bold green", "tight": "bold green", "too_big": "bold red",
}  # fmt: skip
SHOWN_NOTES, SHOWN_SOURCES = 6, 2
WIDE = 96  # columns of a comment
JUDGEMENT = "product"  # the source that is no one's but ours
OF_DATA = {
    "--map": "mapping", "--eval": "evaluation", "--model": "model", "--template": "template",
    "--seq-len": "seq_len", "--full": "full", "--show-row": "show_row",
}  # fmt: skip
Line = tuple[str, str]  # text, style


def check_configuration(path: str, options: CheckOptions, beside: str | None = None) -> int:
    """Check one configuration and print what was found, after what an error text beside it says.
    Returns the exit code.
    """
    gpu, plan_file, refused = options.gpu, options.plan_file, dict(OF_DATA)
    told = None if beside is None else read_memory_error(beside)

    @cache
    def machine(said: MemoryRanOut | None) -> tuple[Hardware, tuple[str, ...]]:
        ran_out = told or said
        total = ran_out.total_gib if ran_out is not None and ran_out.kind == "torch" else None
        if gpu is None and total is None:
            return probe(), ()
        return stated_hardware(gpu, memory_gib=None if gpu else total, from_flag=True)

    file = read_any(path, bfloat16=lambda said: _bfloat16(machine(said)[0]), model=options.model)
    if file.checked == "script" and file.values.get(MODEL) == options.model:
        del refused["--model"]  # the code names none
    options.refuse(refused, "a configuration", "it names its own model, data and lengths")
    ran_out = told or file.ran_out
    hardware, notes = machine(file.ran_out)
    report = ConfigurationReport(file, hardware, notes, ran_out)
    document, mended, changes = report.document, report, list[dict[str, Any]]()
    if options.fix_to is not None or (plan_file is not None and not options.as_is):
        mended, changes = with_changes(report, notes, options.model)
        document = {**document, "changes": changes, "fits_after": mended.document["verdict"]}
    written, lines = None, list[str]()
    if options.fix_to is not None:
        written = str(free_path(Path(options.fix_to)))
        lines += write_fixed(mended, Path(options.fix_to))
    if plan_file is not None:
        written = plan_file
        lines += write_carried(mended, Path(plan_file))
    if written is not None:
        document = {**document, "written": str(Path(written))}
    if options.as_json:
        print_json(document)
    else:
        if written is None:
            print_configuration(report, console(), gpu)
        else:
            fixed = None if options.fix_to is None else written
            for line in (*_changed(changes, report.file), *lines, *_after(mended, options, fixed)):
                put(on_lines(line))
    last = mended if written is not None else report
    return 0 if last.fit is None or last.fit.should_fit or last.fit.fits in FITTING else 3


def _bfloat16(hardware: Hardware) -> bool | None:
    """Whether the GPU has bfloat16; None: it is not known."""
    spec = hardware.gpus[0].spec if hardware.gpus else None
    return None if spec is None else spec.bf16


SIDES = ("from", "to")
FITTING = ("fits", "tight", "unknown")
ROUNDS = 3  # of changes: one may make room for another


def with_changes(
    report: ConfigurationReport, notes: Sequence[str], model: str | None = None
) -> tuple[ConfigurationReport, list[dict[str, Any]]]:
    """The file with its suggested changes, judged again, and each of them with its reason.

    Raises InputError for a file in which they have to be made by hand.
    """
    before, told = report.file, dict[str, dict[str, Any]]()
    bfloat16 = _bfloat16(report.hardware)
    for _ in range(ROUNDS):
        if not (changes := report.document["changes"]):
            break
        text = report.file.with_changes(changes)
        if text is None:
            what = (
                "a command line is not rewritten" if before.is_command_line else "it takes a hand"
            )
            hint = f"`advise check {shlex.quote(before.name)}` prints the changes to make"
            raise InputError(what, where=before.name, hint=hint)
        reasons = report.reasons()
        for key, value in changes.items():
            old = at_key(before.values, key)
            old = told.get(key, {}).get("from", None if old is ABSENT else old)
            told[key] = {"key": key, "from": old, "to": value, "why": reasons.get(key, "")}
        file = read_any(before.name, text, bfloat16=lambda _: bfloat16, model=model)
        report = ConfigurationReport(file, report.hardware, notes)
    return report, [one for one in told.values() if one["from"] != one["to"]]


def write_fixed(report: ConfigurationReport, path: Path) -> list[str]:
    """Write the changed file, comments and order kept, under a name that nothing has."""
    if not path.parent.is_dir():
        what, hint = f"the directory {path.parent} does not exist", shlex.quote(str(path.parent))
        raise InputError(what, where=f"--fix {path}", hint=f"mkdir -p {hint}")
    free = free_path(path)
    write_atomically(free, report.file.text)
    kept = [] if free == path else [KEPT.format(shown_path(path))]
    return [*kept, f"Written: {shown_path(free)}"]


def _changed(changes: Sequence[Mapping[str, Any]], file: ToolFile) -> Iterator[str]:
    """Each reason once, behind what it changes."""
    for why, group in groupby(changes, key=itemgetter("why")):
        for one in group:
            was, now = (
                "not set" if one[side] is None else file.shown_value(one["key"], one[side])
                for side in SIDES
            )
            yield f"{file.shown_key(one['key'])}: {was} -> {now}"
        yield f"    {why}"


def _after(report: ConfigurationReport, options: CheckOptions, fixed: str | None) -> Iterator[str]:
    """Whether what was written fits, and what to do with it."""
    plan, gpu = options.plan_file, options.gpu
    yield report.document["summary"].replace(" (below)", "" if fixed else " as it is written")
    if fixed:
        yield f"Check it:  advise check {shlex.quote(fixed)}{_on(gpu)}"
    if plan and report.data.plan is not None:
        does = "run {}" if gpu is None else "export {} --to bundle"
        yield f"Next:  advise {does.format(shlex.quote(plan))}"


def _on(gpu: str | None) -> str:
    """The GPU that was named, as words of a command."""
    return "" if gpu is None else f" --gpu {shlex.quote(gpu)}"


def print_configuration(
    report: ConfigurationReport, console: Console, gpu: str | None = None
) -> None:
    """Print the page; its commands name the GPU, too."""
    print_lines(_lines(report, _on(gpu)), console)


def print_lines(page: Iterable[Line], console: Console) -> None:
    """Print a page, wrapped to the console's width, but for what is pasted."""
    from rich.text import Text

    for text, style in page:
        if style in ("diff", "whole"):
            # Whole lines: a diff that is cut cannot be applied, nor a command be pasted.
            styled = Text(shown(text), STYLES.get(text.strip()[:1], "") if style == "diff" else "")
            console.print(styled, no_wrap=True, crop=False, overflow="ignore")
            continue
        bare = text.lstrip(" ")
        indent = len(text) - len(bare)
        hang = indent + (2 if bare.startswith("- ") or indent else 0)
        lines = Text(shown(text[indent:])).wrap(console, max(20, console.width - hang))
        for place, line in enumerate(lines):
            lead = " " * (indent if place == 0 else hang)
            line.rstrip()
            console.print(Text(lead + line.plain, style))


def _lines(report: ConfigurationReport, on_gpu: str) -> Iterator[Line]:
    document = report.document
    if (ran_out := document.get("out_of_memory")) is not None:
        for place, text in enumerate(ran_out["words"]):
            yield text, "bold red" if place == 0 else ""
        yield "", ""
    yield document["summary"], STYLES.get(document["verdict"], "bold yellow")
    yield "", ""
    for text in (*document["what"], *document["takes"]):
        yield text, ""
    if document["ways"]:
        yield "", ""
        yield "What alone needs less memory, and what that costs", "bold"
        for text in report.ways():
            yield f"  - {text}", ""
    if document["findings"]:
        yield "", ""
        yield from finding_lines(document["findings"], report.file.name)
    if document.get("unknown"):
        yield "", ""
        yield "Not known", "bold"
        for text in report.not_known():
            yield f"  - {text}", ""
    if changes := document["changes"]:
        yield "", ""
        by_hand = "" if document["diff"] else ", to be made by hand"
        yield f"Suggested changes{by_hand}", "bold"
        for text in document["diff"] or report.file.by_hand(changes):
            yield f"  {text}", "diff"
    # The release stands above already.
    if notes := [one for one in document["notes"] if document["release"] not in one]:
        yield "", ""
        yield "How it was read", "bold"
        for note in notes:
            yield f"  - {note}", ""
    yield "", ""
    file = shlex.quote(report.file.name)
    if report.carried is not None:
        without = ", without some of its keys" if document["not_carried"] else ""
        command = f"advise check {file}{on_gpu} --plan {free_path()}"
        yield f"Turn it into a plan{without}:  {command}", "whole"
    if document["diff"]:
        path = report.file.path
        fixed = shlex.quote(str(free_path(path.with_stem(f"{path.stem}.fixed"))))
        yield f"With the changes:  advise check {file}{on_gpu} --fix {fixed}", "whole"
    if not document["gpus"]:
        yield f"On another GPU:  advise check {file} --gpu 'RTX 4090'", "whole"


def finding_lines(found: Sequence[Mapping[str, Any]], name: str) -> Iterator[Line]:
    """What was found, worst first, each with its place in the file of this name and its source."""
    counts = Counter(one["severity"] for one in found)
    words = [f"{counts[word]} {word}{'' if counts[word] == 1 else 's'}" for word in SEVERITIES]
    yield f"Findings: {', '.join(one for one in words if not one.startswith('0 '))}", "bold"
    more_notes = max(0, counts["note"] - SHOWN_NOTES)  # they are the last
    for one in found[: len(found) - more_notes]:
        word = "ERROR" if one["severity"] == "error" else one["severity"]
        own, where = f"{name}:", one["where"]
        line = where.removeprefix(own).partition(":")[0]
        if where.startswith(own) and (line.isdigit() or line.startswith(" cell")):
            where = f"line {line}" if line.isdigit() else line.strip()
        titles = list(dict.fromkeys(map(_title, one["sources"])))
        more = f" and {len(titles) - SHOWN_SOURCES} more" if len(titles) > SHOWN_SOURCES else ""
        source = f" [{'; '.join(titles[:SHOWN_SOURCES])}{more}]" if titles else ""
        place = f" ({where})" if where else ""
        yield f"  - {word}: {one['text']}{place}{source}", STYLES[one["severity"]]
    if more_notes:
        yield f"    {more_notes} more notes: --json has them all", "dim"


def _title(source: str) -> str:
    """What a page calls a source: an id, or a link, which stays as it is."""
    known = load_rules().sources.get(source)
    return "our judgement" if source == JUDGEMENT else source if known is None else known.title


def write_carried(report: ConfigurationReport, path: Path) -> list[str]:
    """Write the plan of a configuration, if it has one. Returns what is to be said of it."""
    carried, lost = report.carried, report.document["not_carried"]
    if carried is None:
        what = report.document["summary"].partition(": ")[2]
        raise InputError(f"it cannot be carried over to a plan: {what}", where=report.file.name)
    instruct = bool(report.shape and report.shape.instruct)
    block = [stage_notes(carried.plan, 0, instruct=instruct)]
    lines = [f"Written: {shown_path(path)}"]
    if lost:
        block.append(f"Not carried over from {report.file.name}:")
        for text in map(_lost, lost):
            wrapped = textwrap.wrap(text, WIDE, subsequent_indent="  ")
            block += [f"  {line}" for line in wrapped]
    if report.data.plan is None:
        block.append("Its data are not here: write their path into `data`.")
        lines.append(f"  data: {NO_DATA} stands for data that are not here: write their path")
    if lost:
        lines.append(f"  not carried over ({len(lost)}):")
        lines += [f"    {text}" for text in map(_lost, lost)]
    comments = {**carried.comments, ("stages", 0): "\n".join(block)}
    write_plan_file(carried.plan, comments, path)
    return lines


def _lost(one: Mapping[str, Any]) -> str:
    return f"{one['key']}: {yaml_value(one['value'])} ({one['why']})"
