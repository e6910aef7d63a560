"""What came of a run, as JSON and on one screen; the report has the rest."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from rich.console import Console
from rich.text import Text

from advisor.estimate.types import Learned
from advisor.ground.counting import counted
from advisor.ground.files import shown_path
from advisor.ground.terminal import shown, width_of
from advisor.ground.units import format_count, format_duration, format_gib
from advisor.methods.composition import Composition
from advisor.record.judge import folder_verdict
from advisor.record.next_step import resume_command
from advisor.record.run import (
    DONE,
    DRY_RUN,
    REPORT,
    RUNNING,
    DryRun,
    DryRunStage,
    FinishedRun,
    RunRecord,
    StageRecord,
)
from advisor.record.stage import (
    Evaluation,
    Expected,
    LearnedRecord,
    Measured,
    SampleAnswer,
    Times,
    metric_words,
)
from advisor.record.verdict import Verdict
from advisor.render.result_commands import export_command, forms_of, spare_of, use_of

LABEL_WIDTH = 9
MOST_STAGES = 6  # with more, the rest are counted
MOST_WARNINGS = 3
LOSS_STEPS = 20  # fewer steps show no direction in the loss of the first and the last batch
ANSWER_LINES = 4  # of a sample answer; the report has the whole of a longer one
ROOMY = 0.9  # of the memory: above it other programs have to be closed
HEADS = {
    "done": "Done",
    "stopped": "Not finished yet",
    "failed": "Failed",
    "running": "Interrupted",
}
CHECKED = {  # a check that was passed -> what the result does, in a word or two
    "saved-model-is-the-trained-one": "loads",
    "changes-the-base-model": "differs from its base",
    "the-same-without-peft": "merges",
    "answers-end-by-themselves": "ends its answers",
}
COLOURS = (  # of words that say the same without them
    (re.compile(r"  [A-Z]\w+ +(better|kept)\b"), "green"),
    (re.compile(r"  [A-Z]\w+ +(worse|lost)\b"), "red"),
    (re.compile(r"  [A-Z]\w+ +(not distinguishable|not measured|mixed)\b"), "yellow"),
    (re.compile(r".* on the device: (it fits)"), "green"),
    (re.compile(r".* on the device: (it does not fit)"), "red"),
    (re.compile(r"  (WARNING) "), "yellow"),
    (re.compile(r"(Failed|Interrupted):"), "red"),
    (re.compile(r"(It fits)\."), "green"),
)
OFFERED = ("advise run ", "advise chat ")  # lines that a menu stands for
COUNTERS = {
    "allocated": "allocated on the GPU",
    "rss_growth": "growth of the process above what it held before the model",
}


def run_json(run: FinishedRun | DryRun) -> dict[str, Any]:
    """run.json (or dry_run.json) and the folder it is in, as one JSON document."""
    return {
        **run.record.to_dict(),
        "folder": str(run.folder),
        "already_done": isinstance(run, FinishedRun) and run.already_done,
        "dry_run": isinstance(run, DryRun),
    }


def print_run(run: FinishedRun | DryRun, console: Console, *, has_menu: bool = False) -> None:
    """Print the summary; every line can be read without colour, and no command is wrapped.

    Args:
        has_menu: Whether a menu follows, which offers what the last lines would name.
    """
    lines = summary_lines(run, width=console.width, has_menu=has_menu)
    if run.node:
        where = shown_path(run.folder)
        lines = [f"machine {run.node}: done; machine 0 shows the result, in {where}"]
    for line in lines:
        text = Text(shown(line))
        for pattern, style in COLOURS:
            if found := pattern.match(line):
                text.stylize(style, *found.span(1))
        console.print(text, soft_wrap=True)


def summary_lines(
    run: FinishedRun | DryRun, *, width: int = 80, has_menu: bool = False
) -> list[str]:
    """The summary: the result in a sentence and in sample answers, then numbers."""
    if isinstance(run, DryRun):
        return dry_run_lines(run, width)
    record, folder = run.record, run.folder
    head = "Finished before, nothing to do" if run.already_done else HEADS.get(run.status)
    found, lines = verdict_of(record, folder), [""]
    if found and found.plain:
        lines += _wrapped(found.plain.text, width)
    if record.max_steps:
        limit = f"at most {counted(record.max_steps, 'step')} a stage"
        lines.append(f"A trial: {limit}, judged on a small sample.")
    for one in samples_shown(record) if record.status == DONE else ():
        lines += ["", *_sample_lines(one, width)]
    about = verdict_lines(record, folder, width=width, has_menu=has_menu)
    lines += ["", *about, ""] if about else []
    lines.append(f"{head or run.status}: {record.name}, in {shown_path(folder)}")
    several = len(record.stages) > 1
    for stage in record.stages[:MOST_STAGES]:
        brief = several and stage.status == DONE
        lines += _folded(_stage_lines(stage, folder, brief=brief), width)
        if stage.status == DONE and not brief:
            lines.append(_line("result", shown_path(folder / stage.folder)))
    if len(record.stages) > MOST_STAGES:
        lines.append(f"... and {len(record.stages) - MOST_STAGES} more, in the report")
    return [*lines, "", *([] if has_menu else next_lines(record, folder))]


def _folded(lines: Iterable[str], width: int) -> Iterator[str]:
    """The lines, each wrapped behind its label."""
    for line in lines:
        yield from _wrapped(line, width, 2 + LABEL_WIDTH if line.startswith("  ") else 2)


def _wrapped(text: str, width: int, indent: int = 0, **limit: Any) -> list[str]:
    """The text in lines that end between words; those after the first are indented."""
    if not limit and width_of(text) <= width:
        return [text]
    # Letters that are two columns wide fill a line sooner.
    room = max(40, width) * len(text) // max(1, width_of(text))
    return textwrap.wrap(
        text, room, subsequent_indent=" " * indent, break_on_hyphens=False,
        break_long_words=not text.isascii(), **limit,
    )  # fmt: skip


# --------------------------------------------------------------------------- the verdict


def verdict_of(record: RunRecord, folder: Path) -> Verdict | None:
    """The verdict on a run with commands for here; an unfinished run has none."""
    return folder_verdict(folder, record) or record.verdict if record.status == DONE else None


def verdict_lines(
    record: RunRecord, folder: Path, *, width: int = 80, has_menu: bool = False
) -> list[str]:
    """'  Task     better: held-out loss ...', wrapped; the next command on a whole line, unless the
    menu that follows offers it.
    """
    found, lines = verdict_of(record, folder), list[str]()
    about = found.lines() if found else []
    column = max((LABEL_WIDTH, *(len(name) + 1 for name, _ in about)))
    for name, said in about:
        label = f"  {name.capitalize():<{column}}"
        lines += _wrapped(f"{label}{shown(said)}", width, len(label))
    command = found.next.command if found and found.next else None
    if has_menu and command and command.startswith(OFFERED):
        command = None
    return [*lines, f"    {shown(command)}"] if command else lines


def _sample_lines(one: PickedSample, width: int) -> list[str]:
    texts = (one.sample.prompt, one.sample.base or "", one.sample.tuned or "")
    question, before, after = (" ".join(text.split()) or "(nothing)" for text in texts)
    which = one.why.partition(":")[0].capitalize()
    said = {"both": before} if before == after else {"before": before, "after": after}
    lines = [(f"  {which}: {question}", 4)]
    lines += [(_line(f"  {label}", text), 2 + LABEL_WIDTH) for label, text in said.items()]
    most = {"max_lines": ANSWER_LINES, "placeholder": f" ... (whole in {REPORT})"}
    return [part for line, indent in lines for part in _wrapped(line, width, indent, **most)]


# --------------------------------------------------------------------------- a stage


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"


def _stage_lines(stage: StageRecord, folder: Path, *, brief: bool) -> list[str]:
    """What became of one stage; `brief`: one line, and one for what went wrong."""
    data, measured = stage.data, stage.measured or Measured()
    rows = f", {counted(data.train_rows, 'row')}" if data and data.train_rows else ""
    head = f"Stage {stage.name}: {what_was_trained(stage)}{rows}"
    adjusted = [_line("adjusted", one.sentence()) for one in stage.adjusted]
    if stage.status != DONE:
        reason = f": {stage.error.what}" if stage.error else ""
        return [head, _line("status", f"{stage.status}{reason}"), *adjusted]
    losses = ""
    is_long = (stage.steps or 0) >= LOSS_STEPS
    if stage.loss_first is not None and stage.loss_last is not None and is_long:
        change = f"{stage.loss_first:.3f} -> {stage.loss_last:.3f}"
        losses = f"{change} over {counted(stage.steps or 0, 'step')}"
    wrong = [check.text for check in stage.checks if not check.ok]
    more = len(wrong) - MOST_WARNINGS
    told = wrong[:MOST_WARNINGS] + ([f"{more} more, in the report"] if more > 0 else [])
    warnings = [_line("WARNING", text) for text in told]
    if brief:
        costs = [] if measured.peak_bytes is None else [format_gib(measured.peak_bytes)]
        costs += [] if measured.train_s is None else [format_duration(measured.train_s)]
        head += f", loss {losses}" if losses else ""
        head += f"; {', '.join(costs)}" if costs else ""
        return [head, *adjusted, *warnings]
    lines = [head, *([_line("loss", losses)] if losses else [])]
    if stage.evaluation is not None and stage.evaluation.kept_base is not None:
        lines.append(_line("base", stage.evaluation.kept_base.sentence))
    lines += [*_cost_lines(stage, stage.times or Times()), *adjusted]
    counts = {"left out": data.dropped, "cut to seq_len": data.truncated} if data else {}
    if kept := [f"{count:,} {kind}" for kind, count in counts.items() if count]:
        lines.append(_line("rows", f"{' and '.join(kept)}"))
    for one in stage.rewards or ():
        first, last = ("?" if mean is None else f"{mean:.3g}" for mean in (one.first, one.last))
        missing = f", no score for {one.missing:.1%} of the answers" if one.missing else ""
        lines.append(_line("reward", f"{one.weight:g} x {one.name}: {first} -> {last}{missing}"))
    passed = [CHECKED.get(one.name, one.name.replace("-", " ")) for one in stage.checks if one.ok]
    lines += [_line("checked", ", ".join(passed))] if passed else []
    return [*lines, *warnings]


def _expected(amount: float | None, shown: Any) -> str:
    """What was expected, beside what was measured; '' if it is not known."""
    return "" if amount is None else f", {shown(amount)} expected"


def _cost_lines(stage: StageRecord | DryRunStage, times: Times) -> list[str]:
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    foreseen, lines = expected.times or Times(), []
    if measured.peak_bytes is not None:
        beside = _expected(expected.counted_bytes, format_gib)
        # The live line and the advice count the whole process.
        apart = ", both without Python and its libraries" if beside else ""
        apart = apart if measured.counter == "rss_growth" else ""
        lines.append(_line("memory", f"{format_gib(measured.peak_bytes)} measured{beside}{apart}"))
    if expected.learned is not None:
        lines.append(_line("learned", learned_words(expected.learned)))
    if times.total_s is not None:
        beside = _expected(foreseen.total_s, format_duration)
        inside = f" ({format_duration(times.train_s)} of it training)" if times.train_s else ""
        lines.append(_line("time", f"{format_duration(times.total_s)} in all{beside}{inside}"))
    elif measured.train_s is not None and isinstance(stage, StageRecord):
        beside = _expected(expected.duration_s, format_duration)
        lines.append(_line("time", f"{format_duration(measured.train_s)} training{beside}"))
    return lines


def _around_s(expected: Expected) -> float:
    """Seconds expected before and after the steps; 0 if they are not known."""
    times = expected.times or Times()
    return (times.load_s or 0.0) + (times.before_s or 0.0) + (times.after_s or 0.0)


def go_on_words(record: RunRecord) -> str:
    """What stands before the command that goes on; it only looks on where a run is at work."""
    return "Go on with:" if record.status != RUNNING else "If nothing trains any more, go on with:"


def next_lines(record: RunRecord, folder: Path) -> list[str]:
    """What to do with a result, or to go on with a run: lines to paste."""
    where = shown_path(folder)
    if record.status != DONE:
        command = resume_command(where, max_steps=record.max_steps, judge=record.judge)
        return [go_on_words(record), f"  {command}"]
    stage = record.stages[-1]
    result = shown_path(folder / stage.folder)
    if not record.writes(stage):
        what, command = use_of(record, stage, result)
        use = [f"{what} (put your own in):", f"  {command}"]
    else:
        use = [f"Talk to it:  advise chat {shlex.quote(where)}"]
        if forms := forms_of(record, stage):
            use.append(f"Export it:   {export_command(forms[0], folder)}")
            use.append(f"  or with {', '.join(f'--to {form}' for form in forms[1:])}")
    if spare := spare_of(record, folder):
        use += [f"{spare[0]}:", f"  {spare[1]}"]
    report = folder / REPORT
    return [*use, *([f"Report:      {shown_path(report)}"] if report.is_file() else [])]


def dry_run_lines(run: DryRun, width: int) -> list[str]:
    """What two real steps and one evaluation batch measured, beside what was expected."""
    lines = ["", f"Measured, not trained: {run.record.name}"]
    for stage in run.record.stages:
        lines += ["", f"Stage {stage.name}: {what_was_trained(stage)}"]
        if stage.measured:
            found = [*_cost_lines(stage, Times()), *_outlook_lines(stage, stage.measured)]
            lines += _folded(found, width)
        else:
            lines += _folded([_line("not", stage.why or "measured")], width)
    where = shown_path(run.folder)
    train = ["It fits. Train:", f"  {resume_command(where)}"]
    is_known = all(map(_fits, run.record.stages))
    return [*lines, "", f"kept in {where}/{DRY_RUN}", *(train if is_known else [])]


def _fits(stage: DryRunStage) -> bool:
    """Whether what was measured has room on the device."""
    peak_bytes = None if stage.measured is None else stage.measured.peak_bytes
    limit_bytes = None if stage.expected is None else stage.expected.limit_bytes
    return peak_bytes is not None and limit_bytes is not None and peak_bytes <= limit_bytes


def _outlook_lines(stage: DryRunStage, measured: Measured) -> Iterator[str]:
    """The speed, how long the whole run takes at most, and whether it fits."""
    expected, peak_bytes = stage.expected or Expected(), measured.peak_bytes
    longest_s, limit_bytes = stage.longest_batch_duration_s, expected.limit_bytes
    if speed := speed_words(measured):
        first_s = (measured.step_times_s or (None,))[0]
        start = measured.step_s is not None and first_s is not None and first_s > measured.step_s
        begins = f"; the first took {first_s:.2f} s, with its start-up" if start else ""
        yield _line("speed", f"{speed}{begins}")
    if longest_s is not None:
        most = f"at most {format_duration(longest_s)} for {counted(stage.steps or 0, 'step')}"
        # Two steps on a busy machine may say less than the estimate, which is no news then.
        usual_s = min(expected.duration_s or longest_s, longest_s)
        foreseen = _expected(usual_s if usual_s < longest_s else None, format_duration)
        foreseen += " for rows of every length" if foreseen else ""
        around_s = _around_s(expected)
        beside = f"; {format_duration(around_s)} more to load and compare" if around_s else ""
        said = f"{most}, if every batch were as long as the longest{foreseen}{beside}"
        yield _line("in all", said)
    if peak_bytes is not None and limit_bytes:
        fits = "it fits" if peak_bytes <= limit_bytes else "it does not fit"
        if ROOMY * limit_bytes < peak_bytes <= limit_bytes:
            fits = "it fits barely: close other programs"
        yield _line("room", f"{format_gib(limit_bytes)} free on the device: {fits}")


# --------------------------------------------------------------------------- in words


def what_was_trained(stage: StageRecord | DryRunStage) -> str:
    """Objective, update and base in a few words: 'sft+qlora (lora on a nf4 base)'."""
    update, base = stage.update, stage.quantization
    name = str(Composition(chain=(stage.objective,), update=update, quantization=base))
    return f"{name} ({update} on a {base} base)" if base else name


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


# --------------------------------------------------------------------------- sample answers

BEST, WORST, MIDDLE, FIRST = "best", "worst", "middle", "first"


class PickedSample(Struct, frozen=True):
    """One sample answer, and which it is."""

    rank: str  # best | worst | middle | first
    why: str  # 'gained most: ROUGE-L 0.12 -> 0.61'
    sample: SampleAnswer


def picked_samples(found: Evaluation | None) -> list[PickedSample]:
    """The samples that gained most, least and middling by score; without scores the first three."""
    samples = found.samples if found is not None else ()
    pairs = [
        (before, after)
        for before, after in map(_scores, samples)
        if before is not None and after is not None
    ]
    if found is None or not samples or len(pairs) < len(samples):
        return [PickedSample(FIRST, "sample answer", sample) for sample in samples[:3]]
    # Of equals the first in the file: the pick is the same every time.
    ordered = sorted(range(len(pairs)), key=lambda place: pairs[place][0] - pairs[place][1])
    ends = ((BEST, ordered[0]), (WORST, ordered[-1]), (MIDDLE, ordered[len(ordered) // 2]))
    ranks: dict[int, str] = {}
    for rank, place in ends:
        ranks.setdefault(place, rank)
    return [
        PickedSample(rank, _why(rank, *pairs[place], _metric(found)), samples[place])
        for place, rank in ranks.items()
    ]


def _why(rank: str, before: float, after: float, metric: str) -> str:
    ends = {BEST: ("gained most", "lost least"), WORST: ("gained least", "lost most")}
    words = "in the middle" if rank == MIDDLE else ends[rank][after < before]
    words = "unchanged" if rank != MIDDLE and after == before else words
    return f"{words}: {metric} {before:.2f} -> {after:.2f}"


def _metric(found: Evaluation) -> str:
    is_rewarded = any(one.reward_after is not None for one in found.samples)
    return "reward" if is_rewarded else metric_words(str(found.sample_metric))


def rule_of_picking(picked: Sequence[PickedSample], found: Evaluation) -> str:
    """How the samples were picked, as a sentence."""
    answers = f"{len(found.samples)} sample answers"
    if any(one.rank == FIRST for one in picked):
        return f"The first {len(picked)} of {answers}."
    return f"Of {answers} those that gained most and least by {_metric(found)}, and the middle one."


def _scores(sample: SampleAnswer) -> tuple[float | None, float | None]:
    if sample.reward_before is not None or sample.reward_after is not None:  # the training's aim
        return sample.reward_before, sample.reward_after
    return sample.score_before, sample.score_after


def samples_shown(record: RunRecord) -> list[PickedSample]:
    """The picked samples of the last stage that has some."""
    found = [stage.evaluation for stage in record.stages if stage.evaluation]
    return picked_samples(next((one for one in reversed(found) if one.samples), None))
