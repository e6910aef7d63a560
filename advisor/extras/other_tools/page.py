"""What `advise check` prints of another tool's configuration, the same as a JSON document, and as a
plan with everything that could not be carried over.

First the verdict with the smallest change that fits, then what the tool will do, what it takes,
what is wrong (worst first), and the changes as a diff in the tool's own form.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.extras.other_tools.carrying import NO_DATA
from advisor.extras.other_tools.findings import Found
from advisor.extras.other_tools.mapping import Lost
from advisor.extras.other_tools.report import Report
from advisor.ground.errors import InputError
from advisor.ground.files import shown_path
from advisor.ground.sources import source_title
from advisor.ground.terminal import shown
from advisor.ground.units import format_count, format_duration, format_usd
from advisor.methods import methods
from advisor.plan.notes import stage_notes
from advisor.plan.smaller import in_words
from advisor.plan.write_target import write_plan_file

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
WORDS = {"error": "ERROR", "warning": "warning", "note": "note"}
SHOWN_NOTES, SHOWN_TERMS, SHOWN_CHANGES, SHOWN_SOURCES = 6, 3, 5, 2
WIDE = 96  # columns of a comment
JUDGEMENT = "product"  # the source that is no one's but ours
Line = tuple[str, str]  # text, style


def print_configuration(report: Report, console: Console) -> None:
    """Print the page, wrapped to the console's width."""
    from rich.text import Text

    for text, style in configuration_lines(report):
        if style in ("diff", "whole"):
            # Whole lines: a diff that is cut cannot be applied, nor a command be pasted.
            styled = Text(shown(text), _diff_style(text) if style == "diff" else "")
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


def configuration_lines(report: Report) -> list[Line]:
    """The page, one paragraph a line."""
    lines: list[Line] = [(first_line(report), _verdict_style(report))]
    if report.verdict == "refused" and report.fitting is not None:
        fit = fit_line(report)
        lines.append((f"Once that is fixed: {fit[0].lower()}{fit[1:]}", ""))
    lines.append(("", ""))
    lines += [(text, "") for text in _what(report)]
    lines += [(text, "") for text in _takes(report)]
    if report.findings:
        lines += [("", ""), (_title(report.findings), "bold")]
        lines += list(_findings(report))
    if report.changes:
        lines += [("", ""), ("Suggested changes", "bold")]
        lines += [(f"  {text}", "diff") for text in report.diff or _flags(report)]
    # The release stands above already.
    if notes := [one for one in report.notes if report.file.about.release not in one]:
        lines += [("", ""), ("How it was read", "bold")]
        lines += [(f"  - {note}", "") for note in notes]
    lines += [("", "")]
    lines += [(text, "whole") for text in _next(report)]
    return lines


# --------------------------------------------------------------------------- the first line


def first_line(report: Report) -> str:
    """The verdict, and the smallest change that fits."""
    if report.verdict == "refused":
        refused = [one for one in report.findings if one.refused]
        more = f" (and {len(refused) - 1} more, below)" if len(refused) > 1 else ""
        return f"{report.file.about.name} refuses this file: {refused[0].text}{more}"
    return fit_line(report)


def fit_line(report: Report) -> str:
    """Whether it fits, and the smallest change that does."""
    if report.fitting is None or report.fitting.document.get("peak_gib") is None:
        return f"Whether it fits is not known: {_why_unknown(report)}"
    document = report.fitting.document
    need, limit = f"{document['need_gib']:.3g} GiB", document.get("limit_gib")
    if limit is None:
        return (
            f"It needs about {need}; whether it fits is not known, because this machine has no GPU"
            " and none is named (--gpu NAME)"
        )
    has = f"{_device(report)} has {limit:.3g}"
    if report.fits in ("fits", "tight"):
        tightly = ", with little to spare" if report.fits == "tight" else ""
        return f"Fits: it needs about {need}, {has}{tightly}{_but(report)}"
    if report.fitting.should_fit:
        most = f"{document['need_high_gib']:.3g}"
        safe = f". To be safe: {_said(report)}" if report.fit_changes else ""
        return f"Should fit: it needs about {need} (at most {most}), {has}{_but(report)}{safe}"
    does = "May not fit" if report.fits == "may_fit" else "Does not fit"
    return f"{does}: it needs about {need}, {has}. {_way_out(report)}"


def _but(report: Report) -> str:
    """That there is more to read, where it is worth it."""
    wrong = sum(one.severity != "note" and not one.refused for one in report.findings)
    if not wrong:
        return ""
    return f"; but {wrong} thing{' is' if wrong == 1 else 's are'} wrong with it (below)"


def _way_out(report: Report) -> str:
    fit = report.fitting
    assert fit is not None
    if fit.change is not None and fit.changed is not None and report.fit_changes:
        surely = "fits" if fit.changed["fits"] == "fits" else "should fit"
        return f"Smallest change that {surely}: {_said(report)}"
    cards = f" The cheapest GPUs that hold it: {', '.join(fit.cards)}." if fit.cards else ""
    return f"No change of its keys makes it fit.{cards}"


def _said(report: Report) -> str:
    """The change that fits: its keys, or what it does where they are many; what it then needs."""
    fit = report.fitting
    assert fit is not None
    assert fit.change is not None
    assert fit.changed is not None
    changes = report.fit_changes
    if len(changes) > SHOWN_CHANGES:
        said = f"one that {fit.change.why} ({len(changes)} keys, below)"
        said = said.replace("; ", " and ")
    else:
        said = ", ".join(f"{key}: {in_words(value)}" for key, value in changes.items())
    after = fit.changed
    most = "" if after["fits"] == "fits" else f", at most {after['need_high_gib']:.3g}"
    return f"{said} (then {after['need_gib']:.3g} GiB{most})"


def _why_unknown(report: Report) -> str:
    if report.fitting is not None:
        return str(report.fitting.document.get("reason", "no estimate"))
    return "; ".join(report.why_no_estimate) or "the model is not known"


def _device(report: Report) -> str:
    gpus = report.hardware.gpus
    if not gpus:
        return "this machine"
    name = gpus[0].spec.name if gpus[0].spec is not None else gpus[0].name
    return f"the {name}" if len(gpus) == 1 else f"each of {len(gpus)} x {name}"


def _verdict_style(report: Report) -> str:
    return {
        "fits": "bold green", "tight": "bold green", "may_fit": "bold yellow",
        "unknown": "bold yellow", "too_big": "bold red", "refused": "bold red",
    }[report.verdict]  # fmt: skip


# --------------------------------------------------------------------------- what it does


def _what(report: Report) -> Iterator[str]:
    started = report.file.about.start.format(
        command=report.file.command.name, file=shlex.quote(report.file.name)
    )
    if report.file.is_script:
        started = f"sh {shlex.quote(report.file.name)}"
    yield f"{report.file.about.name} {report.file.about.release} (`{started}`):"
    if report.carried is None:
        yield "  a plan cannot express what it trains: see below"
        return
    plan = report.carried.plan
    stage = plan.stages[0]
    ours = report.reading.ours
    known = methods()
    objective = known.objective(stage.objective)
    update = known.update(stage.update)
    quantised = {"nf4": " on a base in 4 bits", "int8": " on a base in 8 bits"}
    rank = f", rank {ours['rank']}" if "rank" in ours else ""
    yield f"  {objective.name}: {objective.about}"
    yield f"  {update.name}{rank}{quantised.get(stage.quantization or '', '')}: {update.about}"
    yield f"  model {plan.model}; data {', '.join(report.data.words) or 'not named'}"
    over = f" x {plan.launch.world_size} GPUs" if plan.launch.world_size > 1 else ""
    rows = stage.effective_batch_size * plan.launch.world_size
    each = "sequence" if stage.packing else "row"
    length = "" if stage.max_steps is None else f"{stage.max_steps:,} steps, "
    epochs = f"{stage.epochs:g} epoch{'' if stage.epochs == 1 else 's'}, "
    rate = f"learning rate {stage.learning_rate:g}, {stage.scheduler}"
    batch = (
        f"batch {stage.micro_batch_size} x accumulation {stage.grad_accum}{over} = {rows} {each}s"
    )
    yield (
        f"  {length or epochs}{batch} a step, {rate}; up to {stage.seq_len:,} tokens a {each}"
        f"{', several rows packed into each' if stage.packing else ''}"
    )


def _takes(report: Report) -> Iterator[str]:
    if report.fitting is None or report.fitting.document.get("peak_gib") is None:
        return
    document = report.fitting.document
    terms = sorted(document["terms"], key=lambda one: -one["gib"])[:SHOWN_TERMS]
    parts = ", ".join(f"{one['name']} {one['gib']:.3g}" for one in terms)
    band = f"between {document['need_low_gib']:.3g} and {document['need_high_gib']:.3g}"
    a_gpu = " a GPU" if len(report.hardware.gpus) > 1 else ""
    yield f"Memory: about {document['need_gib']:.3g} GiB{a_gpu} ({band}); largest: {parts}"
    if document.get("step_s") is not None:
        speed = f"{_step(document['step_s'])} a step"
        if document.get("hours") is not None:
            whole = format_duration(document["hours"] * 3600)
            rows = (
                ""
                if report.data.profile is None
                else f" for {format_count(report.data.profile.rows)} rows"
            )
            about = "" if whole.startswith("under") else "about "
            yield f"Time: {about}{whole}{rows} ({speed})"
        else:
            yield f"Time: {speed}; the total is not known: the data set is not on this machine"
    if report.fitting.cost_usd is not None:
        cost = format_usd(report.fitting.cost_usd)
        yield f"Cost: {'' if cost.startswith('under') else 'about '}{cost}: {report.fitting.price}"


def _step(seconds: float) -> str:
    """The time of a step: two digits below ten minutes."""
    return f"{seconds:.2g} s" if seconds < 100 else format_duration(seconds)


# --------------------------------------------------------------------------- what is wrong


def _title(findings: Sequence[Found]) -> str:
    counts = {
        word: sum(one.severity == word for one in findings) for word in ("error", "warning", "note")
    }
    said = [f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items() if count]
    return f"Findings: {', '.join(said)}"


def _findings(report: Report) -> Iterator[Line]:
    notes = 0
    for one in report.findings:
        notes += one.severity == "note"
        if one.severity == "note" and notes > SHOWN_NOTES:
            continue
        where = f" ({_place(report, one.where)})" if one.where else ""
        titles = list(dict.fromkeys(_source(name) for name in one.sources))
        more = f" and {len(titles) - SHOWN_SOURCES} more" if len(titles) > SHOWN_SOURCES else ""
        source = f" [{'; '.join(titles[:SHOWN_SOURCES])}{more}]" if titles else ""
        yield (f"  - {WORDS[one.severity]}: {one.text}{where}{source}", STYLES[one.severity])
    if notes > SHOWN_NOTES:
        yield (f"    {notes - SHOWN_NOTES} more notes: --json has them all", "dim")


def _place(report: Report, where: str) -> str:
    """Where a finding is: the line alone if it is in the file that the page is about."""
    line, _, _ = where.removeprefix(f"{report.file.name}:").partition(":")
    return f"line {line}" if where.startswith(f"{report.file.name}:") and line.isdigit() else where


def _source(name: str) -> str:
    return "our judgement" if name == JUDGEMENT else source_title(name)


def _flags(report: Report) -> Iterator[str]:
    """The changes of a command line, which is not written anew."""
    for key, value in report.changes.items():
        yield f"- --{key}" if value is None else f"+ --{key} {in_words(value)}"


def _diff_style(text: str) -> str:
    return {"+": "green", "-": "red", "@": "dim"}.get(text.strip()[:1], "")


def _next(report: Report) -> Iterator[str]:
    file = shlex.quote(report.file.name)
    if report.carried is not None:
        lost = len(report.carried.lost)
        without = f", without {lost} key{'' if lost == 1 else 's'} of it" if lost else ""
        yield f"Turn it into a plan{without}:  advise check {file} --plan plan.yaml"
    if not report.hardware.gpus:
        yield f"On another GPU:  advise check {file} --gpu 'RTX 4090'"


# --------------------------------------------------------------------------- JSON


def configuration_json(report: Report) -> dict[str, Any]:
    """The report as one JSON document."""
    fit = report.fitting
    return {
        "schema_version": SCHEMA_VERSION,
        "path": report.file.name,
        "tool": report.file.tool,
        "release": report.file.about.release,
        "command": report.file.command.name,
        "verdict": report.verdict,
        "summary": first_line(report),
        "change": dict(report.fit_changes) or None,
        "memory": None if fit is None else dict(fit.document),
        "memory_with_change": None if fit is None or fit.changed is None else dict(fit.changed),
        "cost_usd": None if fit is None else fit.cost_usd,
        "plan": {key: one.value for key, one in report.reading.carried.items()},
        "defaults": sorted(key for key, one in report.reading.carried.items() if one.is_default),
        "data": list(report.data.words),
        "findings": [
            {
                **asdict(one),
                "instead": dict(one.instead or {}) or None,
                "sources": list(one.sources),
            }
            for one in report.findings
        ],
        "changes": dict(report.changes),
        "diff": list(report.diff),
        "not_carried": []
        if report.carried is None
        else [asdict(one) for one in report.carried.lost],
        "no_effect_on_training": list(report.reading.no_effect),
        "notes": list(report.notes),
    }


# --------------------------------------------------------------------------- as a plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The launch file and what is to be said of it."""

    path: Path
    lines: tuple[str, ...]


def write_carried(report: Report, path: Path) -> Written:
    """Write the plan of a configuration.

    Raises InputError if it has no word for what the configuration trains, or may not be written
    there.
    """
    if report.carried is None:
        raise InputError(
            "it cannot be carried over to a plan: " + "; ".join(report.why_no_estimate),
            where=report.file.name,
        )
    plan, lost = report.carried.plan, report.carried.lost
    instruct = bool(report.shape is not None and report.shape.instruct)
    block = [stage_notes(plan, 0, instruct=instruct)]
    if lost:
        block.append(f"Not carried over from {report.file.name}:")
        block += [line for one in lost for line in _comment(one)]
    if report.carried.no_data:
        block.append("Its data are not here: write their path into `data`.")
    comments = {**report.carried.comments, ("stages", 0): "\n".join(block)}
    write_plan_file(plan, comments, path, inputs=[Path(report.file.name)])
    return Written(path=path, lines=tuple(_plan_lines(report, path, lost)))


def _plan_lines(report: Report, path: Path, lost: tuple[Lost, ...]) -> list[str]:
    lines = [f"Written: {shown_path(path)}"]
    if report.carried is not None and report.carried.no_data:
        lines.append(f"  data: {NO_DATA} stands for data that are not here: write their path")
    if lost:
        lines.append(f"  not carried over ({len(lost)}):")
        lines += [f"    {one.key}: {in_words(one.value)} ({one.why})" for one in lost]
    return lines


def _comment(one: Lost) -> list[str]:
    said = f"{one.key}: {in_words(one.value)} ({one.why})"
    return [f"  {line}" for line in textwrap.wrap(said, WIDE, subsequent_indent="  ")]
