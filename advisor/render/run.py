"""What a run came to, as JSON and as a page: trained what, better or not, expected beside measured,
where it is, what next.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.units import format_count, format_duration, format_gib
from advisor.methods.composition import Composition

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.launch import Run

COUNTERS = {
    "allocated": "allocated on the card",
    "rss_growth": "growth of the process above what it held before the model",
}
LABEL_WIDTH = 11


def run_json(run: Run) -> dict[str, Any]:
    """run.json (or dry_run.json) with the folder it lies in, as one JSON document."""
    return {
        **run.record,
        "folder": str(run.folder),
        "already_done": run.already_done,
        "dry_run": run.dry_run,
    }


def print_run(run: Run, console: Console) -> None:
    """Print the summary; every line can be read without colour, and commands are left whole."""
    console.print("\n".join(summary_lines(run)), markup=False, highlight=False, soft_wrap=True)


def summary_lines(run: Run) -> list[str]:
    """The summary, line by line."""
    if run.dry_run:
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
    lines = ["", f"{head}: {record.get('name')}, in {where}"]
    if record.get("max_steps"):
        lines.append(
            f"A trial: at most {record['max_steps']} steps a stage, and the evaluation on a small"
            " sample. Its numbers say little about the whole run."
        )
    for stage in record["stages"]:
        lines += ["", *_stage_lines(stage, run.folder)]
    if (run.folder / "report.html").is_file():
        lines += ["", f"Report, to open in a browser: {shown_path(run.folder / 'report.html')}"]
    return [*lines, "", *_next_lines(record, run.folder)]


def shown_path(path: Path) -> str:
    """The path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"


def _stage_lines(stage: Mapping[str, Any], folder: Path) -> list[str]:
    data, checks = stage.get("data") or {}, stage.get("checks") or []
    rows = f", {data['train_rows']:,} rows" if data.get("train_rows") else ""
    lines = [f"Stage {stage['name']}: {what_was_trained(stage)}{rows}"]
    if stage["status"] != "done":
        reason = (stage.get("error") or {}).get("what", "")
        return [*lines, _line("status", stage["status"] + (f": {reason}" if reason else ""))]
    if stage.get("loss_first") is not None and stage.get("loss_last") is not None:
        lines.append(
            _line(
                "loss",
                f"{stage['loss_first']:.3f} -> {stage['loss_last']:.3f} over"
                f" {stage.get('steps') or 0:,} steps",
            )
        )
    lines += _evaluation_lines(stage.get("evaluation") or {})
    lines += _cost_lines(stage.get("expected") or {}, stage.get("measured") or {})
    kept = [
        f"{count:,} {kind}"
        for kind, count in (("dropped", data.get("dropped")), ("truncated", data.get("truncated")))
        if count
    ]
    if kept:
        lines.append(_line("rows", f"{' and '.join(kept)} for their length"))
    lines += [_line("note", str(note)) for note in data.get("notes") or []]
    lines += [
        _line("check" if check.get("ok") else "WARNING", str(check.get("text"))) for check in checks
    ]
    return [*lines, _line("result", shown_path(folder / str(stage.get("folder", ""))))]


def what_was_trained(stage: Mapping[str, Any]) -> str:
    """Objective, update and base in a few words: 'sft+qlora (lora on a nf4 base)'."""
    name = str(
        Composition(
            chain=(stage["objective"],),
            update=stage["update"],
            quantization=stage.get("quantization"),
        )
    )
    return (
        f"{name} ({stage['update']} on a {stage['quantization']} base)"
        if stage.get("quantization")
        else name
    )


def _evaluation_lines(found: Mapping[str, Any]) -> list[str]:
    before, after = found.get("holdout_loss_before"), found.get("holdout_loss_after")
    measured = [
        _metric_line(name, metric)
        for name, metric in (found.get("metrics") or {}).items()
        if metric.get("after") is not None
    ]
    if before is None or after is None:
        return measured or (
            []
            if not found
            else [
                _line("held out", "no rows were held out, so before and after cannot be compared")
            ]
        )
    perplexity = ""
    if found.get("perplexity_before") and found.get("perplexity_after"):
        perplexity = (
            f", perplexity {found['perplexity_before']:.4g} -> {found['perplexity_after']:.4g}"
        )
    direction = (
        "lower, as it should be"
        if after < before
        else "not lower: the model did not get better on rows it had not seen"
    )
    return [
        _line(
            "held out",
            f"loss {before:.3f} -> {after:.3f}{perplexity} on {found.get('rows') or 0:,} rows"
            f" ({direction})",
        )
    ]


def _metric_line(name: str, metric: Mapping[str, Any]) -> str:
    before = f"{metric['before']:.3g} -> " if metric.get("before") is not None else ""
    return _line(
        "held out",
        f"{name.replace('_', ' ')} {before}{metric['after']:.3g} on {metric.get('rows') or 0:,}"
        f" rows ({metric.get('word')})",
    )


def _cost_lines(expected: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    lines = []
    if measured.get("peak_bytes") is not None:
        hoped = expected.get("counted_bytes")
        beside = f", {format_gib(hoped)} expected" if hoped is not None else ""
        counter = COUNTERS.get(str(measured.get("counter")), "")
        lines.append(
            _line(
                "memory",
                f"{format_gib(measured['peak_bytes'])}"
                f" measured{beside}{f' ({counter})' if counter else ''}",
            )
        )
    if measured.get("train_s") is not None:
        hoped = expected.get("duration_s")
        beside = f", {format_duration(hoped)} expected" if hoped is not None else ""
        lines.append(_line("time", f"{format_duration(measured['train_s'])} measured{beside}"))
    speed = [f"{measured['step_s']:.2f} s a step"] if measured.get("step_s") is not None else []
    speed += (
        [f"{format_count(measured['tokens_per_s'])} tokens/s"]
        if measured.get("tokens_per_s")
        else []
    )
    return [*lines, *([_line("speed", ", ".join(speed))] if speed else [])]


def _next_lines(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Commands that continue from here; each can be pasted as it is."""
    plan = shlex.quote(shown_path(folder / "plan.yaml"))
    if record.get("status") != "done":
        return ["Go on with:", f"  advise run {plan}"]
    stage = record["stages"][-1]
    result = shown_path(folder / str(stage.get("folder", "")))
    name = str(stage["name"])
    plan_stage = name.removesuffix(f"-{stage['task']}") if stage.get("task") else name
    if sorts(record, stage):
        return [
            "Sort a text (put your own in):",
            f"  {sort_command(result)}",
            "Train it longer, as a run of its own:",
            f"  advise run {plan} --set stages.{plan_stage}.epochs=5",
        ]
    if stage["objective"] == "rm":
        module, own = stage["update"] != "full", stage["update"] == "adapter"
        return [
            "Score an answer (put your own in):",
            f"  {score_command(result, module=module, own=own)}",
        ]
    lines = [
        "Talk to it:",
        f"  advise chat {shlex.quote(shown_path(folder))}",
        "Ask it (put your own question in):",
        f"  {ask_command(result, str(stage['update']))}",
    ]
    served = served_modules(record, folder)
    if served:
        lines += ["Serve it with vLLM:", f"  {serve_command(record, served)}"]
    return [
        *lines,
        "Train it longer, as a run of its own:",
        f"  advise run {plan} --set stages.{plan_stage}.epochs=5",
    ]


def sorts(record: Mapping[str, Any], stage: Mapping[str, Any]) -> bool:
    """Whether a result sorts texts into classes instead of writing."""
    resolved = (record.get("resolved") or {}).get(str(stage["name"])) or {}
    return bool((resolved.get("options") or {}).get("head") == "classes")


def sort_command(result: str) -> str:
    """One line that loads a classifier with transformers and lets it sort a text."""
    code = (
        'from transformers import pipeline; print(pipeline("text-classification",'
        f' {_quoted(result)})("Your text"))'
    )
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def score_command(result: str, *, module: bool, own: bool) -> str:
    """One line that loads a reward model and lets it score an answer."""
    load = (
        "from peft import AutoPeftModelForSequenceClassification as M"
        if module
        else "from transformers import AutoModelForSequenceClassification as M"
    )
    head = (
        f"{'import advisor.peft_adapter; ' if own else ''}{load}; from transformers import"
        f" AutoTokenizer as T; f = {_quoted(result)}"
    )
    talk = (
        '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning!"}]'
    )
    ask = f'T.from_pretrained(f).apply_chat_template({talk}, return_tensors="pt", return_dict=True)'
    code = f"{head}; print(M.from_pretrained(f, num_labels=1)(**{ask}).logits[0, 0].item())"
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def ask_command(result: str, update: str = "lora") -> str:
    """One line that loads the result with transformers (and PEFT) and lets it answer."""
    load, model = "from transformers import pipeline", _quoted(result)
    if update in ("adapter", "prefix"):  # transformers itself loads neither
        load = (
            "import advisor.peft_adapter; from peft import AutoPeftModelForCausalLM as M; from"
            f" transformers import AutoTokenizer as T, pipeline; f = {model}"
        )
        model = "M.from_pretrained(f), tokenizer=T.from_pretrained(f)"
    code = (
        f'{load}; print(pipeline("text-generation", {model})([{{"role": "user", "content":'
        ' "Hello"}])[0]["generated_text"][-1]["content"])'
    )
    return f"{shlex.quote(_interpreter())} -c {shlex.quote(code)}"


def _interpreter() -> str:
    """`python`, or its path where `python` is another one, without the packages."""
    return "python" if shutil.which("python") == sys.executable else sys.executable


def served_modules(record: Mapping[str, Any], folder: Path) -> list[tuple[Mapping[str, Any], str]]:
    """The LoRA results that a server loads, the last of each task, with their folders; [] where
    there is none.
    """
    last = {
        stage.get("task"): stage
        for stage in record.get("stages", [])
        if stage.get("objective") != "rm"
    }
    return [
        (stage, shown_path(folder / str(stage.get("folder", ""))))
        for stage in last.values()
        if stage["update"] == "lora"
    ]


def serve_command(
    record: Mapping[str, Any], served: Sequence[tuple[Mapping[str, Any], str]]
) -> str:
    """The vLLM server for LoRA results, one name each; its rank limit has to be raised by hand
    above 16.
    """
    resolved = [(record.get("resolved") or {}).get(str(stage["name"])) or {} for stage, _ in served]
    ranks = [rank for found in resolved if (rank := (found.get("options") or {}).get("rank"))]
    limit = f" --max-lora-rank {max(ranks)}" if ranks else ""
    several = f" --max-loras {len(served)}" if len(served) > 1 else ""
    base = shlex.quote(str(resolved[0].get("model") or record.get("model")))
    modules = " ".join(
        shlex.quote(f"{stage.get('task') or stage['name']}={result}") for stage, result in served
    )
    return f"vllm serve {base} --enable-lora{limit}{several} --lora-modules {modules}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def dry_run_lines(run: Run) -> list[str]:
    """What two real steps and an evaluation batch measured, beside what was expected."""
    lines = ["", f"Measured, not trained: {run.record.get('name')}"]
    for stage in run.record["stages"]:
        lines += ["", f"Stage {stage['name']}: {what_was_trained(stage)}"]
        measured, expected = stage.get("measured") or {}, stage.get("expected") or {}
        if not measured:
            lines.append(_line("not", str(stage.get("why", "measured"))))
            continue
        lines += _cost_lines(expected, measured)
        if stage.get("longest_batch_duration_s") is not None:
            hoped = expected.get("duration_s")
            beside = (
                f"; {format_duration(hoped)} expected for rows of every length"
                if hoped is not None
                else ""
            )
            lines.append(
                _line(
                    "whole run",
                    f"at most {format_duration(stage['longest_batch_duration_s'])} for"
                    f" {stage.get('steps') or 0:,} steps, if every batch were as long as the"
                    f" longest{beside}",
                )
            )
        peak, limit = measured.get("peak_bytes"), expected.get("limit_bytes")
        if peak is not None and limit:
            verdict = (
                "it fits"
                if peak <= 0.9 * limit
                else "it fits barely: close other programs"
                if peak <= limit
                else "it does not fit"
            )
            lines.append(_line("room", f"{format_gib(limit)} free on the device: {verdict}"))
    return [*lines, "", f"kept in {shown_path(run.folder / 'dry_run.json')}"]
