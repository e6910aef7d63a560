"""report.html of a run folder: one file, no network, everything a person asks after training.

Made from run.json, metrics.jsonl and plan.yaml alone, so that it can be made again at any time.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.files import write_atomically
from advisor.ground.units import format_duration, format_gib
from advisor.render.curves import curve
from advisor.render.html import block, document, text
from advisor.render.page import Item, Items, Row, Table
from advisor.render.run import (
    COUNTERS,
    ask_command,
    serve_command,
    served_modules,
    sort_command,
    sorts,
    what_was_trained,
)

REPORT, METRICS, CARD = "report.html", "metrics.jsonl", "README.md"
STYLE = """
figure { margin: 1rem 0; }
figcaption { color: var(--quiet); font-size: .85rem; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
svg .grid { stroke: var(--line); }
svg .mark { stroke: var(--warn); stroke-dasharray: 4 4; }
svg .line { fill: none; stroke: var(--mark); stroke-width: 1.5; }
th { white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
.verdict { background: var(--soft); border-left: 4px solid var(--mark); padding: .5rem 1rem;
  border-radius: 0 6px 6px 0; font-size: 1.1rem; }
.verdict.bad { border-left-color: var(--warn); }
"""
SHOWN_SAMPLES = 8
# Of metrics.jsonl, what is drawn: key -> name and unit. A trainer that logs more is drawn by adding
# a line here.
DRAWN = {
    "loss": ("Training loss", ""),
    "learning_rate": ("Learning rate", ""),
    "reward": ("Mean reward", ""),
    "kl": ("KL to the reference", "nats a token"),
    "entropy": ("Entropy", "nats"),
    "clip_fraction": ("Share of clipped tokens", ""),
    "explained_variance": ("Explained variance of the value", ""),
    "response_tokens": ("Length of answers", "tokens"),
    "ended": ("Answers that end by themselves", "share"),
    "grad_norm": ("Gradient norm", ""),
    "tokens_per_s": ("Speed", "tokens/s"),
    "memory_bytes": ("Memory", "GiB"),
}


def write_report(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the report into the run folder and return its path."""
    plan = folder / "plan.yaml"
    page = report_page(
        record,
        folder=folder,
        plan_text=plan.read_text("utf-8") if plan.is_file() else "",
        metrics=read_metrics(folder / METRICS),
    )
    write_atomically(folder / REPORT, page)
    for stage in record.get("stages", []):
        if stage.get("status") == "done":
            write_atomically(folder / str(stage["folder"]) / CARD, model_card(record, stage))
    return folder / REPORT


def model_card(record: Mapping[str, Any], stage: Mapping[str, Any]) -> str:
    """README.md of a result: what it is, what it was trained on, how it did, how to load it; with
    the hub's front matter.
    """
    resolved = (record.get("resolved") or {}).get(stage["name"]) or {}
    model = str(resolved.get("model") or record.get("model"))
    data, found, module = (
        stage.get("data") or {},
        stage.get("evaluation") or {},
        stage["update"] != "full",
    )
    base = (
        model if "/" in model and not model.startswith(("/", ".", "~")) else None
    )  # a folder of one computer names nothing on the hub
    front = [
        "---",
        f"library_name: {'peft' if module else 'transformers'}",
        *([f"base_model: {base}"] if base else []),
        "tags: [fine-tuned, finetune-advisor]",
        "---",
    ]
    rows = f" on {data['train_rows']:,} rows" if data.get("train_rows") else ""
    lines = [
        *front,
        "",
        f"# {record.get('name')}: {stage['name']}",
        "",
        f"{what_was_trained(stage)} of {Path(model).name if base is None else model}{rows}.",
    ]
    before, after = found.get("holdout_loss_before"), found.get("holdout_loss_after")
    if before is not None and after is not None:
        lines += [
            "",
            (
                f"Loss on {found.get('rows') or 0:,} held-out rows: {before:.3f} before,"
                f" {after:.3f} after."
            ),
        ]
    if stage["update"] == "adapter":
        lines += [
            "",
            (
                "A bottleneck adapter: `import advisor.peft_adapter` before loading it. It cannot"
                " be merged, and vLLM and Ollama cannot load it."
            ),
        ]
    if stage["update"] == "prefix":
        why = "PEFT 0.21 otherwise writes without the prefix under transformers from 5.24 on"
        lines += [
            "",
            (
                f"A prefix: `import advisor.peft_adapter` before it answers ({why}). It cannot be"
                " merged, and vLLM and Ollama cannot load it."
            ),
        ]
    head, labels = (
        ("SequenceClassification", ", num_labels=1")
        if stage["objective"] == "rm"
        else ("CausalLM", "")
    )
    loader = (
        f"from peft import AutoPeftModelFor{head} as Loader"
        if module
        else f"from transformers import AutoModelFor{head} as Loader"
    )
    first = "import advisor.peft_adapter\n" if stage["update"] in ("adapter", "prefix") else ""
    lines += [
        "",
        "```python",
        f"{first}{loader}",
        f'model = Loader.from_pretrained("THIS_FOLDER"{labels})',
        "```",
    ]
    settings = {
        key: resolved.get(key)
        for key in ("seq_len", "weights_dtype", "trainable_parameters")
        if resolved.get(key) is not None
    }
    wanted = (
        "learning_rate",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "optim",
    )
    settings |= {
        key: value for key, value in (resolved.get("trl") or {}).items() if key in wanted
    } | (resolved.get("options") or {})
    lines += [
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in settings.items()),
    ]
    versions = ", ".join(
        f"{name} {version}" for name, version in (record.get("versions") or {}).items() if version
    )
    return (
        "\n".join([*lines, "", f"Made with advise {record.get('advise_version')}; {versions}."])
        + "\n"
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off is left out."""
    found = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def report_page(
    record: Mapping[str, Any], *, folder: Path, plan_text: str, metrics: Sequence[Mapping[str, Any]]
) -> str:
    """The report as HTML."""
    body = [*_verdict(record), *_facts(record)]
    for stage in record.get("stages", []):
        body += _stage(
            stage,
            [
                line
                for line in metrics
                if line.get("stage") == _plan_stage(stage) and line.get("task") == stage.get("task")
            ],
        )
    body += [*_cross_table(record), *_use(record, folder), *_plan(plan_text), *_versions(record)]
    title = f"Report: {record.get('name')}"
    return document(
        title,
        f"Report: <code>{text(str(record.get('name')))}</code>",
        body,
        footer=f"advise {record.get('advise_version', '')}",
        style=STYLE,
    )


def _plan_stage(stage: Mapping[str, Any]) -> str:
    """The stage's name in the plan: a task's entry is called stage-task."""
    name = str(stage["name"])
    return name.removesuffix(f"-{stage['task']}") if stage.get("task") else name


def _section(title: str, *parts: str) -> list[str]:
    kept = [part for part in parts if part]
    return ["<section>", f"<h2>{text(title)}</h2>", *kept, "</section>"] if kept else []


def _items(lines: Iterable[str | Item]) -> str:
    items = tuple(line if isinstance(line, Item) else Item(text=line) for line in lines)
    return block(Items(items=items)) if items else ""


def _grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    listed = tuple(Row(cells=tuple(row)) for row in rows)
    return (
        block(Table(columns=tuple(columns), rows=listed, fixed=(False,) * len(columns)))
        if listed
        else ""
    )


# --------------------------------------------------------------------------- the whole run


def _verdict(record: Mapping[str, Any]) -> list[str]:
    status = str(record.get("status"))
    verdict = record.get("verdict") or {}
    said = verdict.get("text") or {
        "done": "Done; nothing was compared.",
        "failed": "The run failed.",
        "stopped": "The run is not finished.",
        "running": "The run is going on.",
    }.get(status, status)
    bad = status == "failed" or verdict.get("ok") is False
    trial = (
        f"<p class=warning>A trial: at most {record['max_steps']} steps a stage. Its numbers say"
        " little about the whole run.</p>"
        if record.get("max_steps")
        else ""
    )
    return [f'<div class="verdict{" bad" if bad else ""}"><p>{text(str(said))}</p></div>', trial]


def _facts(record: Mapping[str, Any]) -> list[str]:
    hardware = record.get("hardware") or {}
    where = ", ".join(hardware.get("gpus") or []) or f"{hardware.get('cpu_cores') or '?'} CPU cores"
    what = record.get("composition") or ", ".join(
        dict.fromkeys(what_was_trained(stage) for stage in record.get("stages", []))
    )
    lines = [
        f"What: {what}",
        f"Model: {record.get('model')}",
        f"Machine: {where}",
        (
            f"Started {record.get('started_at')}, ended {record.get('finished_at') or 'not yet'};"
            f" {record.get('attempts', 1)} attempt{'s' if record.get('attempts', 1) != 1 else ''}"
        ),
    ]
    return _section("The run", _items(lines))


def _cross_table(record: Mapping[str, Any]) -> list[str]:
    """Every module on every task's held-out rows, where there are several."""
    found = record.get("cross_evaluation") or {}
    tasks = list(found)
    if len(tasks) < 2:
        return []
    columns = ["held-out loss on", "base", *tasks]
    rows = [
        [task, *(_number(found[task].get(module)) for module in ("base", *tasks))] for task in tasks
    ]
    note = (
        '<p class="quiet">Lower is better. A column is a module; its own task stands on the'
        " diagonal.</p>"
    )
    return _section("Every module on every task", _grid(columns, rows), note)


def _use(record: Mapping[str, Any], folder: Path) -> list[str]:
    """Lines to paste, for the last result of each task."""
    if record.get("status") != "done" or not record.get("stages"):
        return []
    last = {stage.get("task"): stage for stage in record["stages"]}
    parts = []
    for task, stage in last.items():
        result = (
            os.path.relpath(folder / str(stage.get("folder", "")), Path.cwd())
            if folder.is_relative_to(Path.cwd())
            else str(folder / str(stage.get("folder", "")))
        )
        shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
        talk = f"advise chat {shlex.quote(shown)}"
        if sorts(record, stage):
            parts.append(f"<p>Sort a text</p><pre>{text(sort_command(result))}</pre>")
            continue
        lines = [
            ("Talk to it", talk),
            ("Ask it from Python", ask_command(result, str(stage["update"]))),
        ]
        if stage["update"] == "lora":
            lines.append(
                ("Merge it into its base", f"advise export {shlex.quote(str(folder))} --to merged")
            )
        if stage["update"] in ("adapter", "prefix"):
            what = "a bottleneck adapter" if stage["update"] == "adapter" else "a prefix"
            lines.append(
                (
                    "Note",
                    (
                        f"{what} cannot be merged, and vLLM and Ollama cannot load it; in Python:"
                        " import advisor.peft_adapter first"
                    ),
                )
            )
        lines.append(
            (
                "Upload it to the hub",
                f"hf upload YOUR_NAME/{record.get('name')} {shlex.quote(result)}",
            )
        )
        heading = f"<h3>{text(str(task))}</h3>" if task else ""
        parts.append(
            heading + "".join(f"<p>{text(name)}</p><pre>{text(line)}</pre>" for name, line in lines)
        )
    served = served_modules(record, folder)
    if served:
        parts.append(
            f"<p>Serve {'them' if len(served) > 1 else 'it'} with"
            f" vLLM</p><pre>{text(serve_command(record, served))}</pre>"
        )
    return _section("How to use the result", *parts)


def _plan(plan_text: str) -> list[str]:
    shown = "".join(
        line
        for line in plan_text.splitlines(keepends=True)
        if not line.startswith("# yaml-language-server:")
    )
    return _section(
        "The plan, with the reason for each value",
        f"<pre>{text(shown, keep_lines=True)}</pre>" if shown else "",
    )


def _versions(record: Mapping[str, Any]) -> list[str]:
    versions = {"python": sys.version.split()[0], **(record.get("versions") or {})}
    digests = [
        f"{name}: {digest}"
        for name, digest in {
            **(record.get("digests") or {}),
            **(record.get("inputs") or {}),
        }.items()
    ]
    return _section(
        "Versions and digests",
        _items(
            [
                ", ".join(f"{name} {version}" for name, version in versions.items() if version),
                *digests,
            ]
        ),
    )


# --------------------------------------------------------------------------- one stage


def _stage(stage: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    title = f"Stage {stage['name']}: {what_was_trained(stage)}"
    if stage.get("status") != "done":
        reason = (stage.get("error") or {}).get("what", "")
        return _section(
            title,
            _items([f"{stage.get('status')}{f': {reason}' if reason else ''}"]),
            *_curves(metrics),
        )
    said = (stage.get("verdict") or {}).get("text")
    return _section(
        title,
        f"<p>{text(said)}</p>" if said else "",
        _before_after(stage.get("evaluation") or {}),
        *_curves(metrics),
        _costs(stage),
        _data(stage),
        _checks(stage),
        _confusion(stage.get("evaluation") or {}),
        _samples(stage.get("evaluation") or {}),
    )


def _before_after(found: Mapping[str, Any]) -> str:
    """Before and after by every metric there is, with the interval of the difference where one was
    computed.
    """
    rows = []
    for name, key in (("held-out loss", "holdout_loss"), ("perplexity", "perplexity")):
        before, after = found.get(f"{key}_before"), found.get(f"{key}_after")
        if before is not None or after is not None:
            rows.append(
                [name, _number(before), _number(after), _interval(found.get(f"{key}_interval"))]
            )
    for name, metric in (found.get("metrics") or {}).items():
        rows.append(
            [
                name.replace("_", " "),
                _number(metric.get("before")),
                _number(metric.get("after")),
                _interval(metric.get("interval")),
            ]
        )
    return _grid(
        ["measured on held-out rows", "before", "after", "difference (95 % interval)"], rows
    )


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _interval(found: Any) -> str:
    return (
        f"{found[0]:+.3g} to {found[1]:+.3g}"
        if isinstance(found, list | tuple) and len(found) == 2
        else ""
    )


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    drawn = []
    for key, (name, unit) in DRAWN.items():
        scale = 2**30 if key == "memory_bytes" else 1
        points = [
            (float(line["step"]), float(line[key]) / scale)
            for line in metrics
            if isinstance(line.get(key), int | float) and "step" in line
        ]
        drawn.append(curve(name, points, unit=unit))
    return [svg for svg in drawn if svg]


def _costs(stage: Mapping[str, Any]) -> str:
    expected, measured = stage.get("expected") or {}, stage.get("measured") or {}
    rows = []
    if measured.get("peak_bytes") is not None:
        hoped = expected.get("counted_bytes")
        rows.append(
            [
                f"peak memory ({COUNTERS.get(str(measured.get('counter')), 'measured')})",
                format_gib(hoped) if hoped else "",
                format_gib(measured["peak_bytes"]),
            ]
        )
    if measured.get("train_s") is not None:
        hoped = expected.get("duration_s")
        rows.append(
            [
                "training time",
                format_duration(hoped) if hoped else "",
                format_duration(measured["train_s"]),
            ]
        )
    return _grid(["", "expected", "measured"], rows)


def _data(stage: Mapping[str, Any]) -> str:
    data = stage.get("data") or {}
    if not data:
        return ""
    counts = [
        f"{data[key]:,} {name}"
        for key, name in (
            ("train_rows", "rows trained on"),
            ("holdout_rows", "held out"),
            ("dropped", "dropped"),
            ("truncated", "truncated"),
        )
        if data.get(key) is not None
    ]
    return _items(
        [f"Data: {', '.join(counts)}", *(f"Note: {note}" for note in data.get("notes") or [])]
    )


def _checks(stage: Mapping[str, Any]) -> str:
    return _items(
        Item(
            text=f"{'Check' if check.get('ok') else 'Warning'}: {check.get('text')}",
            tone="plain" if check.get("ok") else "warning",
        )
        for check in stage.get("checks") or []
    )


def _confusion(found: Mapping[str, Any]) -> str:
    """What was sorted where, for classifiers."""
    table = found.get("confusion") or {}
    labels = table.get("labels") or []
    if not labels:
        return ""
    rows = [
        [label, *(f"{count:,}" for count in counts)]
        for label, counts in zip(labels, table.get("counts") or [], strict=False)
    ]
    return "<h3>Which class was taken for which</h3>" + _grid(["is \\ was called", *labels], rows)


def _samples(found: Mapping[str, Any]) -> str:
    samples = list(found.get("samples") or [])[:SHOWN_SAMPLES]
    if not samples:
        return ""
    keys = ("prompt", "base", "tuned", "expected")
    rows = [[" ".join(str(sample.get(key) or "").split()) for key in keys] for sample in samples]
    return "<h3>Held-out questions, answered before and after</h3>" + _grid(
        ["question", "before", "after", "as in the data"], rows
    )
