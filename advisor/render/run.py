"""What came of a run, as JSON and on one screen: the verdict, what was expected and measured, where
the result is. Everything else is in the report.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.estimate.types import Learned
from advisor.ground.files import shown_path as shown_path
from advisor.ground.units import format_count, format_duration, format_gib
from advisor.methods.composition import Composition
from advisor.record.next_step import resume_command
from advisor.record.run import DONE, DRY_RUN, DryRun, DryRunStage, Run, RunRecord, StageRecord
from advisor.record.stage import Expected, LearnedRecord, Measured, Times
from advisor.render.compare import MIDDLE, evaluation_shown, picked_samples
from advisor.render.result_commands import export_command, forms_of, use_of
from advisor.render.verdict import verdict_lines

if TYPE_CHECKING:
    from rich.console import Console


LABEL_WIDTH = 9
MOST_STAGES = 6  # with more, the rest are counted
MOST_LINES, MOST_WARNINGS, SAMPLES = 25, 3, 2
REPORT, CARD = "report.html", "README.md"
HEADS = {
    "done": "Done",
    "stopped": "Not finished yet",
    "failed": "Failed",
    "running": "Interrupted",
}


def run_json(run: Run | DryRun) -> dict[str, Any]:
    """run.json (or dry_run.json) and the folder it is in, as one JSON document."""
    return {
        **run.record.to_dict(),
        "folder": str(run.folder),
        "already_done": isinstance(run, Run) and run.already_done,
        "dry_run": isinstance(run, DryRun),
    }


def print_run(run: Run | DryRun, console: Console, *, samples: bool = True) -> None:
    """Print the summary; every line can be read without colour, and no command is wrapped."""
    if run.node:
        say = f"machine {run.node}: done; machine 0 shows the result, in {shown_path(run.folder)}"
        console.print(say, markup=False, highlight=False, soft_wrap=True)
        return
    lines = summary_lines(run, width=console.width, samples=samples)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def summary_lines(run: Run | DryRun, *, width: int = 80, samples: bool = True) -> list[str]:
    """The summary: at most 25 lines for a run of one stage; sample answers give way first."""
    if isinstance(run, DryRun):
        return dry_run_lines(run)
    for count in range(SAMPLES if samples else 0, 0, -1):
        lines = _run_lines(run, width, count)
        if len(lines) <= MOST_LINES:
            return lines
    return _run_lines(run, width, 0)


def _run_lines(run: Run, width: int, samples: int) -> list[str]:
    record, folder = run.record, run.folder
    head = "Finished before, nothing to do" if run.already_done else HEADS.get(run.status)
    lines = ["", f"{head or run.status}: {record.name}, in {shown_path(folder)}"]
    if record.max_steps:
        lines.append(
            f"A trial: at most {record.max_steps} steps a stage, evaluated on a small sample."
        )
    if judged := verdict_lines(record, folder, width=width):
        lines += ["", *judged]
    if samples and record.status == DONE:
        lines += _sample_lines(record, width, samples)
    lines.append("")
    several = len(record.stages) > 1
    for stage in record.stages[:MOST_STAGES]:
        lines += _stage_lines(stage, folder, brief=several and stage.status == DONE)
    if len(record.stages) > MOST_STAGES:
        lines.append(f"... and {len(record.stages) - MOST_STAGES} more, in the report")
    return [*lines, "", *_next_lines(record, folder)]


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"


def _sample_lines(record: RunRecord, width: int, count: int) -> list[str]:
    """So many sample answers, a line for each text."""
    picked = [one for one in picked_samples(evaluation_shown(record)) if one.rank != MIDDLE]
    lines: list[str] = []
    for one in picked[:count]:
        question = " ".join(one.sample.prompt.split())
        before, after = (
            " ".join((said or "").split()) for said in (one.sample.base, one.sample.tuned)
        )
        if before == after:
            texts = {"both": before}
        else:
            start = _cut_start(before, after, width // 2)
            texts = {
                name: f"... {said[start:]}" if start else said
                for name, said in (("before", before), ("after", after))
            }
        lines += [
            *([""] if not lines else []),
            _short(f"  {one.why[:1].upper()}{one.why[1:]}: {question}", width),
            *(_short(_line(f"  {name}", said), width) for name, said in texts.items()),
        ]
    return lines


def _cut_start(before: str, after: str, room: int) -> int:
    """Where two answers are shown from, so that the place where they part can be seen."""
    pairs = enumerate(zip(before, after, strict=False))
    alike = next((at for at, (one, other) in pairs if one != other), min(len(before), len(after)))
    if alike <= room:
        return 0
    return before.rfind(" ", 0, alike - room // 2) + 1


def _short(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 4].rstrip()} ..."


def _stage_lines(stage: StageRecord, folder: Path, *, brief: bool) -> list[str]:
    """What became of one stage; `brief`: one line, and one for what went wrong."""
    data = stage.data
    rows = f", {data.train_rows:,} rows" if data and data.train_rows else ""
    head = f"Stage {stage.name}: {what_was_trained(stage)}{rows}"
    adjusted = [_line("adjusted", one.sentence()) for one in stage.adjusted]
    if stage.status != DONE:
        reason = f": {stage.error.what}" if stage.error else ""
        return [head, _line("status", f"{stage.status}{reason}"), *adjusted]
    if stage.loss_first is not None and stage.loss_last is not None:
        losses = f"{stage.loss_first:.3f} -> {stage.loss_last:.3f}"
        head += f", loss {losses} over {stage.steps or 0:,} steps"
    wrong = [check.text for check in stage.checks if not check.ok]
    more = len(wrong) - MOST_WARNINGS
    said = wrong[:MOST_WARNINGS] + ([f"{more} more, in the report"] if more > 0 else [])
    warnings = [_line("WARNING", text) for text in said]
    if brief:
        measured = stage.measured or Measured()
        peak, time = (
            _shown(format_gib, measured.peak_bytes),
            _shown(format_duration, measured.train_s),
        )
        costs = ", ".join(filter(None, (peak, time)))
        return [f"{head}{f'; {costs}' if costs else ''}", *adjusted, *warnings]
    lines = [head, *_cost_lines(stage), *adjusted]
    if data:
        counts = (("dropped", data.dropped), ("truncated", data.truncated))
        if kept := [f"{count:,} {kind}" for kind, count in counts if count]:
            lines.append(_line("rows", f"{' and '.join(kept)} for their length"))
    for one in stage.rewards or ():
        first, last = ("?" if mean is None else f"{mean:.3g}" for mean in (one.first, one.last))
        missing = f", no score for {one.missing:.1%} of the answers" if one.missing else ""
        lines.append(_line("reward", f"{one.weight:g} x {one.name}: {first} -> {last}{missing}"))
    lines += warnings
    if not (folder / stage.folder / CARD).is_file():  # whose path the last line says
        lines.append(_line("result", shown_path(folder / stage.folder)))
    return lines


def _shown(show: Callable[[Any], str], amount: float | None, ends: str = "") -> str:
    """An amount with its unit and `{}` of `ends` around it; nothing where it is not known."""
    return "" if amount is None else (ends or "{}").format(show(amount))


EXPECTED = ", {} expected"  # beside what was measured


def _cost_lines(stage: StageRecord) -> list[str]:
    """Memory and time, measured beside what was expected."""
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    times, foreseen = stage.times or Times(), expected.times or Times()
    lines = []
    if measured.peak_bytes is not None:
        beside = _shown(format_gib, expected.counted_bytes, EXPECTED)
        lines.append(_line("memory", f"{format_gib(measured.peak_bytes)} measured{beside}"))
    if expected.learned is not None:
        lines.append(_line("learned", learned_words(expected.learned)))
    if times.total_s is not None:
        beside = _shown(format_duration, foreseen.total_s, EXPECTED)
        inside = _shown(format_duration, times.train_s or None, " ({} of it training)")
        lines.append(_line("time", f"{format_duration(times.total_s)} in all{beside}{inside}"))
    elif measured.train_s is not None:
        beside = _shown(format_duration, expected.duration_s, EXPECTED)
        lines.append(_line("time", f"{format_duration(measured.train_s)} training{beside}"))
    return lines


def _next_lines(record: RunRecord, folder: Path) -> list[str]:
    """Commands that continue from here; each can be pasted as it is."""
    if record.status != DONE:
        command = resume_command(shown_path(folder), max_steps=record.max_steps, judge=record.judge)
        return ["Go on with:", f"  {command}"]
    stage = record.stages[-1]
    result = shown_path(folder / stage.folder)
    what, command = use_of(record, stage, result)
    if not record.writes(stage):
        use = [f"{what} (put your own in):", f"  {command}"]
    else:
        use = [f"Talk to it:  advise chat {shlex.quote(shown_path(folder))}"]
        if forms := forms_of(record, stage):
            use.append(f"Export it:   {export_command(forms[0], folder)}")
            use.append(f"  or with {', '.join(f'--to {form}' for form in forms[1:])}")
    more = {"Report:      ": folder / REPORT, "Load, merge, serve:  ": Path(result) / CARD}
    return [*use, *(f"{label}{shown_path(path)}" for label, path in more.items() if path.is_file())]


def _measured_lines(expected: Expected, measured: Measured) -> list[str]:
    """What a dry run measured beside what was expected."""
    lines = []
    if measured.peak_bytes is not None:
        beside = _shown(format_gib, expected.counted_bytes, EXPECTED)
        counter = COUNTERS.get(str(measured.counter), "")
        how = f" ({counter})" if counter else ""
        lines.append(_line("memory", f"{format_gib(measured.peak_bytes)} measured{beside}{how}"))
    if measured.train_s is not None:
        beside = _shown(format_duration, expected.duration_s, EXPECTED)
        time = f"{format_duration(measured.train_s)} measured{beside} (training)"
        lines.append(_line("time", time))
    if expected.learned is not None:
        lines.append(_line("learned", learned_words(expected.learned)))
    speed = speed_words(measured)
    return [*lines, *([_line("speed", speed)] if speed else [])]


def dry_run_lines(run: DryRun) -> list[str]:
    """What two real steps and one evaluation batch measured, beside what was expected."""
    lines = ["", f"Measured, not trained: {run.record.name}"]
    for stage in run.record.stages:
        lines += ["", f"Stage {stage.name}: {what_was_trained(stage)}"]
        measured, expected = stage.measured, stage.expected or Expected()
        if measured is None:
            lines.append(_line("not", stage.why or "measured"))
            continue
        lines += _measured_lines(expected, measured)
        if stage.longest_batch_duration_s is not None:
            every = "; {} expected for rows of every length"
            most = (
                f"at most {format_duration(stage.longest_batch_duration_s)} for"
                f" {stage.steps or 0:,} steps, if every batch were as long as the longest"
            )
            beside = _shown(format_duration, expected.duration_s, every)
            lines.append(_line("in all", f"{most}{beside}"))
        peak, limit = measured.peak_bytes, expected.limit_bytes
        if peak is not None and limit:
            verdict = "it fits" if peak <= 0.9 * limit else "it fits barely: close other programs"
            verdict = verdict if peak <= limit else "it does not fit"
            lines.append(_line("room", f"{format_gib(limit)} free on the device: {verdict}"))
    return [*lines, "", f"kept in {shown_path(run.folder / DRY_RUN)}"]


COUNTERS = {
    "allocated": "allocated on the GPU",
    "rss_growth": "growth of the process above what it held before the model",
}


def what_was_trained(stage: StageRecord | DryRunStage) -> str:
    """Objective, update and base in a few words: 'sft+qlora (lora on a nf4 base)'."""
    name = str(
        Composition(chain=(stage.objective,), update=stage.update, quantization=stage.quantization)
    )
    return f"{name} ({stage.update} on a {stage.quantization} base)" if stage.quantization else name


def speed_words(measured: Measured) -> str:
    """'2.06 s a step, 243 tokens/s, 12% of the tokens computed were padding', as far as known."""
    parts = [f"{measured.step_s:.2f} s a step"] if measured.step_s is not None else []
    parts += [f"{format_count(measured.tokens_per_s)} tokens/s"] if measured.tokens_per_s else []
    if measured.tokens and measured.computed_tokens:
        share = 1 - measured.tokens / measured.computed_tokens
        parts.append(f"{share:.0%} of the tokens computed were padding")
    return ", ".join(parts)


def learned_words(found: LearnedRecord) -> str:
    """'corrected by 3 runs here: memory x 0.93, speed x 1.12', as the record says it."""
    names = ("memory_runs", "time_runs", "memory_scale", "time_scale")
    return f"corrected by {Learned(**{name: getattr(found, name) for name in names}).sentence}"
