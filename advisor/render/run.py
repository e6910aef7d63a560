"""What came of a run, as JSON and as a page: what was trained, whether it is better, what was
expected and measured, where the result is, what to do next.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.estimate.types import Learned
from advisor.ground.errors import AdviseError
from advisor.ground.files import PLAN_FILE
from advisor.ground.units import format_count, format_duration, format_gib
from advisor.methods import Update, objective, update
from advisor.methods.composition import Composition
from advisor.plan.entries import entries
from advisor.plan.next_run import longer_setting, resume_command
from advisor.plan.read import read_plan
from advisor.plan.record import (
    DONE,
    DRY_RUN,
    ROLLOUTS,
    DryRun,
    DryRunStage,
    Evaluation,
    Expected,
    LearnedRecord,
    Measured,
    Metric,
    RewardRecord,
    Run,
    RunRecord,
    StageRecord,
    Times,
    last_of_each_task,
)
from advisor.render.gpu_rows import WHERE_ROWS_GO, gpu_rows

if TYPE_CHECKING:
    from rich.console import Console

COUNTERS = {
    "allocated": "allocated on the card",
    "rss_growth": "growth of the process above what it held before the model",
}
LABEL_WIDTH = 11


def run_json(run: Run | DryRun) -> dict[str, Any]:
    """run.json (or dry_run.json) and the folder it is in, as one JSON document."""
    return {
        **run.record.to_dict(),
        "folder": str(run.folder),
        "already_done": isinstance(run, Run) and run.already_done,
        "dry_run": isinstance(run, DryRun),
    }


def print_run(run: Run | DryRun, console: Console) -> None:
    """Print the summary; every line can be read without colour, and no command is wrapped."""
    console.print("\n".join(summary_lines(run)), markup=False, highlight=False, soft_wrap=True)


def summary_lines(run: Run | DryRun) -> list[str]:
    """The summary, line by line."""
    if isinstance(run, DryRun):
        return dry_run_lines(run)
    record = run.record
    where = shown_path(run.folder)
    heads = {
        "done": "Done",
        "stopped": "Not finished yet",
        "failed": "Failed",
        "running": "Interrupted",
    }
    head = (
        "Finished before, nothing to do" if run.already_done else heads.get(run.status, run.status)
    )
    lines = ["", f"{head}: {record.name}, in {where}"]
    if record.max_steps:
        lines.append(
            f"A trial: at most {record.max_steps} steps a stage, and the evaluation on a small"
            " sample. Its numbers say little about the whole run."
        )
    for stage in record.stages:
        lines += ["", *_stage_lines(stage, run.folder)]
    if (run.folder / "report.html").is_file():
        lines += ["", f"Report, to open in a browser: {shown_path(run.folder / 'report.html')}"]
    if not run.already_done and (rows := gpu_rows(record)):
        lines += ["", WHERE_ROWS_GO, *rows]
    return [*lines, "", *_next_lines(record, run.folder)]


def shown_path(path: Path) -> str:
    """The path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"


def _reward_words(one: RewardRecord) -> str:
    first, last = ("?" if mean is None else f"{mean:.3g}" for mean in (one.first, one.last))
    missing = f", no score for {one.missing:.1%} of the answers" if one.missing else ""
    return f"{one.weight:g} x {one.name}: {first} -> {last}{missing}"


def _stage_lines(stage: StageRecord, folder: Path) -> list[str]:
    data = stage.data
    rows = f", {data.train_rows:,} rows" if data and data.train_rows else ""
    lines = [f"Stage {stage.name}: {what_was_trained(stage)}{rows}"]
    if stage.status != DONE:
        reason = f": {stage.error.what}" if stage.error else ""
        adjusted = [_line("adjusted", one.sentence()) for one in stage.adjusted]
        return [*lines, _line("status", f"{stage.status}{reason}"), *adjusted]
    if stage.loss_first is not None and stage.loss_last is not None:
        losses = f"{stage.loss_first:.3f} -> {stage.loss_last:.3f}"
        lines.append(_line("loss", f"{losses} over {stage.steps or 0:,} steps"))
    lines += _evaluation_lines(stage.evaluation) if stage.evaluation else []
    if stage.held_out:
        lines += [_line("training", said) for said in stage.held_out.sentences()]
    lines += _cost_lines(stage.expected, stage.measured)
    if whole := times_words(stage.times):
        expected = times_words(stage.expected.times) if stage.expected is not None else ""
        lines.append(_line("in all", whole))
        lines += [_line("expected", expected)] if expected else []
    lines += [_line("adjusted", one.sentence()) for one in stage.adjusted]
    if data:
        kept = [
            f"{count:,} {kind}"
            for kind, count in (("dropped", data.dropped), ("truncated", data.truncated))
            if count
        ]
        if kept:
            lines.append(_line("rows", f"{' and '.join(kept)} for their length"))
        lines += [_line("note", note) for note in data.notes]
    lines += [_line("reward", _reward_words(one)) for one in stage.rewards or ()]
    lines += [_line("check" if check.ok else "WARNING", check.text) for check in stage.checks]
    if (rollouts := folder / stage.folder / ROLLOUTS).is_file():
        lines.append(_line("answers", f"samples with their rewards: {shown_path(rollouts)}"))
    return [*lines, _line("result", shown_path(folder / stage.folder))]


def what_was_trained(stage: StageRecord | DryRunStage) -> str:
    """Objective, update and base in a few words: 'sft+qlora (lora on a nf4 base)'."""
    name = str(
        Composition(chain=(stage.objective,), update=stage.update, quantization=stage.quantization)
    )
    return f"{name} ({stage.update} on a {stage.quantization} base)" if stage.quantization else name


def _evaluation_lines(found: Evaluation) -> list[str]:
    before, after = found.holdout_loss_before, found.holdout_loss_after
    if before is None or after is None:
        measured = [
            _metric_line(name, metric)
            for name, metric in found.metrics.items()
            if metric.after is not None
        ]
        nothing = "no rows were held out, so before and after cannot be compared"
        return measured or [_line("held out", nothing)]
    perplexity = ""
    if found.perplexity_before and found.perplexity_after:
        perplexity = f", perplexity {found.perplexity_before:.4g} -> {found.perplexity_after:.4g}"
    direction = (
        "lower, as it should be"
        if after < before
        else "not lower: the model did not get better on rows it had not seen"
    )
    return [
        _line(
            "held out",
            f"loss {before:.3f} -> {after:.3f}{perplexity} on {found.rows or 0:,} rows"
            f" ({direction})",
        )
    ]


def _metric_line(name: str, metric: Metric) -> str:
    before = f"{metric.before:.3g} -> " if metric.before is not None else ""
    return _line(
        "held out",
        f"{name.replace('_', ' ')} {before}{metric.after:.3g} on {metric.rows or 0:,} rows"
        f" ({metric.word})",
    )


def _cost_lines(expected: Expected | None, measured: Measured | None) -> list[str]:
    expected, measured = expected or Expected(), measured or Measured()
    lines = []
    if measured.peak_bytes is not None:
        estimate = expected.counted_bytes
        beside = f", {format_gib(estimate)} expected" if estimate is not None else ""
        counter = COUNTERS.get(str(measured.counter), "")
        how = f" ({counter})" if counter else ""
        lines.append(_line("memory", f"{format_gib(measured.peak_bytes)} measured{beside}{how}"))
    if measured.train_s is not None:
        duration_s = expected.duration_s
        beside = f", {format_duration(duration_s)} expected" if duration_s is not None else ""
        lines.append(
            _line("time", f"{format_duration(measured.train_s)} measured{beside} (training)")
        )
    if expected.learned is not None:
        lines.append(_line("learned", learned_words(expected.learned)))
    speed = speed_words(measured)
    return [*lines, *([_line("speed", speed)] if speed else [])]


def speed_words(measured: Measured) -> str:
    """'2.06 s a step, 243 tokens/s, 12% of the tokens computed were padding'; what is known of
    it.
    """
    parts = [f"{measured.step_s:.2f} s a step"] if measured.step_s is not None else []
    parts += [f"{format_count(measured.tokens_per_s)} tokens/s"] if measured.tokens_per_s else []
    if measured.tokens and measured.computed_tokens:
        share = 1 - measured.tokens / measured.computed_tokens
        parts.append(f"{share:.0%} of the tokens computed were padding")
    return ", ".join(parts)


def learned_words(found: LearnedRecord) -> str:
    """'corrected by 3 runs here: memory x 0.93, speed x 1.12', as the record says it."""
    learned = Learned(
        memory_runs=found.memory_runs,
        time_runs=found.time_runs,
        closest=found.closest,
        memory_scale=found.memory_scale,
        time_scale=found.time_scale,
    )
    return f"corrected by {learned.sentence}"


def times_words(times: Times | None) -> str:
    """'31 s: 9 s loading, 4 s before, 7 s training, 11 s after'; empty where it is not known."""
    if times is None or times.total_s is None:
        return ""
    parts = (
        (times.load_s, "loading"),
        (times.before_s, "measuring before"),
        (times.train_s, "training"),
        (times.after_s, "saving and checking after"),
    )
    named = [f"{format_duration(s)} {what}" for s, what in parts if s is not None]
    return f"{format_duration(times.total_s)}: {', '.join(named)}"


def _next_lines(record: RunRecord, folder: Path) -> list[str]:
    """Commands that continue from here; each can be pasted as it is."""
    if record.status != DONE:
        command = resume_command(shown_path(folder), max_steps=record.max_steps, judge=record.judge)
        return ["Go on with:", f"  {command}"]
    stage = record.stages[-1]
    result = shown_path(folder / stage.folder)
    longer = _longer_lines(record, folder)
    if record.is_classifier(stage):
        return ["Sort a text (put your own in):", f"  {sort_command(result)}", *longer]
    if record.is_seq2seq(stage):
        rewriting = rewrite_command(result, stage.update)
        return ["Rewrite a text (put your own in):", f"  {rewriting}", *longer]
    if objective(stage.objective).scores:
        scoring = score_command(result, stage.update)
        return ["Score an answer (put your own in):", f"  {scoring}"]
    lines = [
        "Talk to it:",
        f"  advise chat {shlex.quote(shown_path(folder))}",
        "Ask it (put your own question in):",
        f"  {ask_command(result, stage.update)}",
    ]
    served = served_stages(record)
    if served:
        lines += ["Serve it with vLLM:", f"  {serve_command(record, served, folder)}"]
    return [*lines, *longer]


def _longer_lines(record: RunRecord, folder: Path) -> list[str]:
    """How to train for longer; nothing where that would change nothing: the last stage has stopped
    early, or its plan is not there any more.
    """
    plan = shlex.quote(shown_path(folder / PLAN_FILE))
    if record.max_steps:
        whole = shlex.quote(f"{shown_path(folder)}-whole")
        return ["Train the whole plan:", f"  advise run {plan} --output {whole}"]
    stage = record.stages[-1]
    if stage.held_out is not None and stage.held_out.stopped_early:
        return []
    try:
        found = [one for one in entries(read_plan(folder / PLAN_FILE)) if one.name == stage.name]
    except AdviseError:
        return []
    return [
        line
        for entry in found
        for line in (
            "Train it twice as long, as a run of its own:",
            f"  advise run {plan} --set {shlex.quote(longer_setting(entry))}",
        )
    ]


def sort_command(result: str) -> str:
    """One line that loads a classifier with transformers and lets it sort a text."""
    code = (
        'from transformers import pipeline; print(pipeline("text-classification",'
        f' {_quoted(result)})("Your text"))'
    )
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def rewrite_command(result: str, update_name: str) -> str:
    """One line that loads a sequence-to-sequence model and lets it rewrite a text."""
    library, auto = (
        ("peft", "AutoPeftModel")
        if update(update_name).is_module
        else ("transformers", "AutoModel")
    )
    code = (
        f"from {library} import {auto}ForSeq2SeqLM as M; from transformers import AutoTokenizer as"
        f" T; f = {_quoted(result)}; t = T.from_pretrained(f); print(t.decode(M.from_pretrained(f)"
        '.generate(**t("Your text", return_tensors="pt", return_token_type_ids=False),'
        " max_new_tokens=128)[0], skip_special_tokens=True))"
    )
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def score_command(result: str, update_name: str) -> str:
    """One line that loads a reward model and lets it score an answer."""
    method = update(update_name)
    load = (
        "from peft import AutoPeftModelForSequenceClassification as M"
        if method.is_module
        else "from transformers import AutoModelForSequenceClassification as M"
    )
    head = (
        f"{_first_import(method)}{load}; from transformers import AutoTokenizer as T;"
        f" f = {_quoted(result)}"
    )
    messages = (
        '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning!"}]'
    )
    ask = (
        f'T.from_pretrained(f).apply_chat_template({messages}, return_tensors="pt",'
        " return_dict=True)"
    )
    code = f"{head}; print(M.from_pretrained(f, num_labels=1)(**{ask}).logits[0, 0].item())"
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def ask_command(result: str, update_name: str) -> str:
    """One line that loads the result with transformers (and PEFT) and lets it answer."""
    method = update(update_name)
    load, model = "from transformers import pipeline", _quoted(result)
    if method.imports:  # transformers alone cannot load it
        load = (
            f"{_first_import(method)}from peft import AutoPeftModelForCausalLM as M; from"
            f" transformers import AutoTokenizer as T, pipeline; f = {model}"
        )
        model = "M.from_pretrained(f), tokenizer=T.from_pretrained(f)"
    code = (
        f'{load}; print(pipeline("text-generation", {model})([{{"role": "user", "content":'
        ' "Hello"}])[0]["generated_text"][-1]["content"])'
    )
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def _first_import(method: Update) -> str:
    """What has to be imported before PEFT loads the result."""
    return f"import {method.imports}; " if method.imports else ""


def _interpreter() -> str:
    """`python` if that is this interpreter, which has the packages; else the path of this one."""
    if shutil.which("python") == sys.executable:
        return "python"
    return shown_path(Path(sys.executable))


def served_stages(record: RunRecord) -> list[StageRecord]:
    """The stages whose modules vLLM loads beside their base, the last of each task."""
    writing = [stage for stage in record.stages if not objective(stage.objective).scores]
    return [
        stage
        for stage in last_of_each_task(writing)
        if (method := update(stage.update)).is_module and "vllm" in method.serves
    ]


def serve_command(record: RunRecord, served: Sequence[StageRecord], folder: Path) -> str:
    """The vLLM server for several modules on one base, each under its own name.

    vLLM's own limit of the rank is 16.
    """
    options = [(record.settings(stage).options, update(stage.update)) for stage in served]
    ranks = [rank for found, method in options if (rank := found.get(method.size_key))]
    limit = f" --max-lora-rank {max(ranks)}" if ranks else ""
    several = f" --max-loras {len(served)}" if len(served) > 1 else ""
    base = record.base_model(served[0])
    base = shlex.quote(shown_path(Path(base)) if Path(base).is_absolute() else base)
    modules = " ".join(
        shlex.quote(f"{stage.task or stage.name}={shown_path(folder / stage.folder)}")
        for stage in served
    )
    # vLLM takes the base's template for its modules, unless it is told another.
    settings = record.settings(served[0])
    stored = shown_path(folder / served[0].folder / "chat_template.jinja")
    own = settings.plain_template or settings.template
    template = f" --chat-template {shlex.quote(stored)}" if own else ""
    return f"vllm serve {base} --enable-lora{limit}{several}{template} --lora-modules {modules}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def dry_run_lines(run: DryRun) -> list[str]:
    """What two real steps and one evaluation batch measured, beside what was expected."""
    lines = ["", f"Measured, not trained: {run.record.name}"]
    for stage in run.record.stages:
        lines += ["", f"Stage {stage.name}: {what_was_trained(stage)}"]
        measured, expected = stage.measured, stage.expected or Expected()
        if measured is None:
            lines.append(_line("not", stage.why or "measured"))
            continue
        lines += _cost_lines(expected, measured)
        if stage.longest_batch_duration_s is not None:
            beside = (
                f"; {format_duration(expected.duration_s)} expected for rows of every length"
                if expected.duration_s is not None
                else ""
            )
            lines.append(
                _line(
                    "whole run",
                    f"at most {format_duration(stage.longest_batch_duration_s)} for"
                    f" {stage.steps or 0:,} steps, if every batch were as long as the"
                    f" longest{beside}",
                )
            )
        peak, limit = measured.peak_bytes, expected.limit_bytes
        if peak is not None and limit:
            verdict = (
                "it fits"
                if peak <= 0.9 * limit
                else "it fits barely: close other programs"
                if peak <= limit
                else "it does not fit"
            )
            lines.append(_line("room", f"{format_gib(limit)} free on the device: {verdict}"))
    return [*lines, "", f"kept in {shown_path(run.folder / DRY_RUN)}"]
