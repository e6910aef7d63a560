"""report.html of a run folder: one file, no network, everything a person asks after training.

Made from run.json, metrics.jsonl and plan.yaml alone, so that it can be made again at any time.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.files import PLAN_FILE, write_atomically
from advisor.ground.terminal import shown
from advisor.ground.units import format_duration, format_gib
from advisor.methods import Update, objective, update
from advisor.methods.model import SERVERS
from advisor.plan.record import (
    DONE,
    FAILED,
    ROLLOUTS,
    Check,
    Confusion,
    DataCounts,
    Evaluation,
    Expected,
    HeldOut,
    MachineRecord,
    Measured,
    ResolvedSettings,
    RunRecord,
    Sample,
    StageRecord,
    last_of_each_task,
)
from advisor.render.blocks import Item, Items, Row, Table
from advisor.render.html import block, document
from advisor.render.markup import text
from advisor.render.metric_curves import metric_curves
from advisor.render.rollouts import (
    REWARD_COLUMNS,
    SAMPLE_COLUMNS,
    read_rollouts,
    reward_rows,
    sample_rows,
)
from advisor.render.run import (
    COUNTERS,
    ask_command,
    learned_words,
    rewrite_command,
    serve_command,
    served_stages,
    shown_path,
    sort_command,
    speed_words,
    times_words,
    what_was_trained,
)

REPORT, METRICS, CARD = "report.html", "metrics.jsonl", "README.md"
STYLE = """
figure { margin: 1rem 0; } figcaption { color: var(--quiet); font-size: .85rem; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--quiet); }
svg .grid { stroke: var(--line); } svg .mark { stroke: var(--warn); stroke-dasharray: 4 4; }
svg .line { fill: none; stroke: var(--mark); stroke-width: 1.5; }
svg .second { fill: none; stroke: var(--warn); stroke-width: 1.5; }
svg .point { fill: var(--warn); } svg .dot { fill: none; stroke: var(--warn); stroke-width: 2; }
.key { display: inline-block; width: 1.2rem; height: 0; margin: 0 .4rem .2rem 0;
  border-top: 2px solid; } .key.line { color: var(--mark); }
.key.second { color: var(--warn); margin-left: 1rem; } th { white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
.verdict { background: var(--soft); border-left: 4px solid var(--mark); padding: .5rem 1rem;
  border-radius: 0 6px 6px 0; font-size: 1.1rem; }
.verdict.bad { border-left-color: var(--warn); }
"""
SHOWN_SAMPLES = 8
SERVER_NAMES = {"transformers": "transformers", "vllm": "vLLM", "ollama": "Ollama"}
CARD_KEYS = (  # of TRL's settings, those that the model card names
    "learning_rate",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
)


def write_report(folder: Path, record: RunRecord) -> Path:
    """Write the report into the run folder and a model card beside each result; returns the
    report's path.
    """
    plan = folder / PLAN_FILE
    page = report_page(
        record,
        folder=folder,
        plan_text=plan.read_text("utf-8") if plan.is_file() else "",
        metrics=read_metrics(folder / METRICS),
        rollouts={
            stage.name: read_rollouts(folder / stage.folder / ROLLOUTS)
            for stage in record.stages
            if stage.folder
        },
    )
    write_atomically(folder / REPORT, page)
    for stage in record.stages:
        if stage.status == DONE:
            write_atomically(folder / stage.folder / CARD, model_card(record, stage))
    return folder / REPORT


def model_card(record: RunRecord, stage: StageRecord) -> str:
    """README.md of a result, with the hub's front matter: what it is, what it was trained on, how
    well it does, how to load it.
    """
    model = record.base_model(stage)
    # A folder of this machine means nothing on the hub.
    base = model if "/" in model and not model.startswith(("/", ".", "~")) else None
    rows = f" on {stage.data.train_rows:,} rows" if stage.data and stage.data.train_rows else ""
    lines = [
        "---",
        f"library_name: {'peft' if update(stage.update).is_module else 'transformers'}",
        *([f"base_model: {_yaml_word(base)}"] if base else []),
        "tags: [fine-tuned, finetune-advisor]",
        "---",
        "",
        f"# {_markdown(record.name)}: {_markdown(stage.name)}",
        "",
        f"{_markdown(what_was_trained(stage))} of {_markdown(base or Path(model).name)}{rows}.",
        *_card_losses(stage.evaluation or Evaluation()),
        *_card_step(stage.held_out),
        *_card_caveats(stage),
        *_card_loading(record, stage),
        "",
        "| setting | value |",
        "| --- | --- |",
        *(
            f"| {_markdown(key)} | {_markdown(value)} |"
            for key, value in _card_settings(record.settings(stage)).items()
        ),
    ]
    versions = ", ".join(
        f"{name} {version}" for name, version in record.versions.items() if version
    )
    lines += ["", _markdown(f"Made with advise {record.advise_version}; {versions}.")]
    return "\n".join(lines) + "\n"


def _markdown(value: object) -> str:
    """A value as text on one line of Markdown: it starts no HTML, table cell or code."""
    line = shown(str(value)).replace("\n", "\\n")
    return re.sub(r"[|<`\[]", lambda found: f"&#{ord(found[0])};", line)


def _yaml_word(value: str) -> str:
    """A text as a YAML value that is nothing but this text."""
    return value if re.fullmatch(r"[\w./-]+", value, re.ASCII) else json.dumps(value)


def _card_losses(found: Evaluation) -> list[str]:
    before, after = found.holdout_loss_before, found.holdout_loss_after
    if before is None or after is None:
        return []
    losses = f"{before:.3f} before, {after:.3f} after"
    return ["", f"Loss on {found.rows or 0:,} held-out rows: {losses}."]


def _card_step(found: HeldOut | None) -> list[str]:
    """Which weights these are, where they are not those of the plan's last step."""
    if found is None or found.kept_step in (None, found.planned_steps):
        return []
    loss = "" if found.kept_step != found.best_step else ", where its held-out loss was lowest"
    return ["", f"Weights after step {found.kept_step} of {found.planned_steps}{loss}."]


def _card_caveats(stage: StageRecord) -> list[str]:
    method = update(stage.update)
    if not method.imports:
        return []
    what = method.result[:1].upper() + method.result[1:]
    return ["", f"{what}: `import {method.imports}` before loading it. {limits(method)}"]


def limits(method: Update) -> str:
    """What cannot be done with the result of an update, in a sentence; empty if everything can."""
    servers = [SERVER_NAMES[name] for name in SERVERS if name not in method.serves]
    parts = [
        *(["it cannot be merged"] if method.is_module and not method.merges else []),
        *([f"{' and '.join(servers)} cannot load it"] if servers else []),
    ]
    sentence = ", and ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _card_loading(record: RunRecord, stage: StageRecord) -> list[str]:
    method = update(stage.update)
    head, labels = "CausalLM", ""
    if objective(stage.objective).scores:
        head, labels = "SequenceClassification", ", num_labels=1"
    elif record.is_classifier(stage):
        head = "SequenceClassification"
    elif record.is_seq2seq(stage):
        head = "Seq2SeqLM"
    library, auto = ("peft", "AutoPeftModel") if method.is_module else ("transformers", "AutoModel")
    return [
        "",
        "```python",
        *([f"import {method.imports}"] if method.imports else []),
        f"from {library} import {auto}For{head} as Loader",
        f'model = Loader.from_pretrained("THIS_FOLDER"{labels})',
        "```",
    ]


def _card_settings(settings: ResolvedSettings) -> dict[str, Any]:
    own = {
        "chat template": template_words(settings),
        "seq_len": settings.seq_len,
        "weights_dtype": settings.weights_dtype,
        "trainable_parameters": settings.trainable_parameters,
    }
    trl = {key: value for key, value in (settings.trl or {}).items() if key in CARD_KEYS}
    return {
        **{key: value for key, value in own.items() if value is not None},
        **trl,
        **settings.options,
    }


def template_words(settings: ResolvedSettings) -> str | None:
    """What whoever serves the result has to know of its chat template; None: nothing, because it is
    the base's own.
    """
    if settings.plain_template:
        return "plain, stored in chat_template.jinja: the base has none"
    if not settings.template:
        return None
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.template.items())
    return f"with {given}, stored in chat_template.jinja; with the base's own template, pass it"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was cut off or damaged is left out."""
    found = []
    if path.is_file():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                found.append(entry)
    return found


def report_page(
    record: RunRecord,
    *,
    folder: Path,
    plan_text: str,
    metrics: Sequence[Mapping[str, Any]],
    rollouts: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
    """The report as HTML.

    Args:
        rollouts: Name of a stage -> the lines of its rollouts.jsonl.
    """
    body = [*_verdict(record), *_facts(record)]
    for stage in record.stages:
        own = [
            line
            for line in metrics
            if line.get("stage") == stage.plan_stage and line.get("task") == stage.task
        ]
        answers = (rollouts or {}).get(stage.name, ())
        body += _stage(stage, own, answers, record.resolved.get(stage.name))
    body += [*_cross_table(record), *_use(record, folder), *_plan(plan_text), *_versions(record)]
    return document(
        f"Report: {record.name}",
        f"Report: <code>{text(str(record.name))}</code>",
        body,
        footer=f"advise {record.advise_version or ''}",
        style=STYLE,
    )


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


def _verdict(record: RunRecord) -> list[str]:
    verdict = record.verdict
    said = (verdict.text if verdict else None) or {
        "done": "Done; nothing was compared.",
        "failed": "The run failed.",
        "stopped": "The run is not finished.",
        "running": "The run is going on.",
    }.get(record.status, record.status)
    is_bad = record.status == FAILED or (verdict is not None and not verdict.ok)
    trial = (
        f"<p class=warning>A trial: at most {record.max_steps} steps a stage. Its numbers say"
        " little about the whole run.</p>"
        if record.max_steps
        else ""
    )
    return [f'<div class="verdict{" bad" if is_bad else ""}"><p>{text(said)}</p></div>', trial]


def _facts(record: RunRecord) -> list[str]:
    hardware = record.hardware or MachineRecord()
    where = ", ".join(hardware.gpus) or f"{hardware.cpu_cores or '?'} CPU cores"
    trained = ", ".join(dict.fromkeys(what_was_trained(stage) for stage in record.stages))
    attempts = f"{record.attempts} attempt{'s' if record.attempts != 1 else ''}"
    lines = [
        f"What: {record.composition or trained}",
        f"Model: {record.model}",
        f"Machine: {where}",
        f"Started {record.started_at}, ended {record.finished_at or 'not yet'}; {attempts}",
    ]
    return _section("The run", _items(lines))


def _cross_table(record: RunRecord) -> list[str]:
    """Every module on every task's held-out rows, if there are several."""
    found = record.cross_evaluation or {}
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


def _use(record: RunRecord, folder: Path) -> list[str]:
    """Lines to paste, for the last result of each task."""
    if record.status != DONE:
        return []
    parts = []
    for stage in last_of_each_task(record.stages):
        result = shown_path(folder / stage.folder)
        if record.is_classifier(stage):
            parts.append(f"<p>Sort a text</p><pre>{text(sort_command(result))}</pre>")
            continue
        if record.is_seq2seq(stage):
            command = rewrite_command(result, stage.update)
            parts.append(f"<p>Rewrite a text</p><pre>{text(command)}</pre>")
            continue
        lines = [
            ("Talk to it", f"advise chat {shlex.quote(shown_path(folder))}"),
            ("Ask it from Python", ask_command(result, stage.update)),
        ]
        method = update(stage.update)
        if method.merges:
            merge = f"advise export {shlex.quote(shown_path(folder))} --to merged"
            lines.append(("Merge it into its base", merge))
        if method.imports:
            note = f"{method.result}: in Python, import {method.imports} first. {limits(method)}"
            lines.append(("Note", note))
        upload = f"hf upload YOUR_NAME/{record.name} {shlex.quote(result)}"
        lines.append(("Upload it to the hub", upload))
        heading = f"<h3>{text(stage.task)}</h3>" if stage.task else ""
        parts.append(
            heading + "".join(f"<p>{text(name)}</p><pre>{text(line)}</pre>" for name, line in lines)
        )
    served = served_stages(record)
    if served:
        parts.append(
            f"<p>Serve {'them' if len(served) > 1 else 'it'} with"
            f" vLLM</p><pre>{text(serve_command(record, served, folder))}</pre>"
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


def _versions(record: RunRecord) -> list[str]:
    versions = {"python": sys.version.split()[0], **record.versions}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    inputs = {name: digest[:16] for name, digest in record.inputs.items()}
    digests = {**record.digests, **inputs}
    lines = [shown, *(f"{name}: {digest}" for name, digest in digests.items())]
    return _section("Versions and digests", _items(lines))


# --------------------------------------------------------------------------- one stage


def _stage(
    stage: StageRecord,
    metrics: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Mapping[str, Any]],
    resolved: ResolvedSettings | None,
) -> list[str]:
    title = f"Stage {stage.name}: {what_was_trained(stage)}"
    if stage.status != DONE:
        reason = f": {stage.error.what}" if stage.error else ""
        told = [f"{stage.status}{reason}", *(one.sentence() for one in stage.adjusted)]
        return _section(title, _items(told), *metric_curves(metrics), _rollouts(rollouts))
    said = stage.verdict.text if stage.verdict else None
    evaluation = stage.evaluation or Evaluation()
    return _section(
        title,
        f"<p>{text(said)}</p>" if said else "",
        _before_after(evaluation),
        _items(stage.held_out.sentences()) if stage.held_out else "",
        _items([one.sentence() for one in stage.adjusted]) if stage.adjusted else "",
        _grid(REWARD_COLUMNS, reward_rows(stage.rewards or ())),
        *metric_curves(metrics),
        _rollouts(rollouts),
        _costs(stage),
        _data(stage.data),
        _computed_by(resolved),
        _checks(stage.checks),
        _confusion(evaluation.confusion),
        _samples(evaluation.samples),
    )


def _before_after(found: Evaluation) -> str:
    """Before and after by every metric there is, with the interval of the difference if there is
    one.
    """
    rows = []
    for name, before, after, interval in (
        (
            "held-out loss",
            found.holdout_loss_before,
            found.holdout_loss_after,
            found.holdout_loss_interval,
        ),
        ("perplexity", found.perplexity_before, found.perplexity_after, None),
    ):
        if before is not None or after is not None:
            rows.append([name, _number(before), _number(after), _interval(interval)])
    for name, metric in found.metrics.items():
        numbers = [_number(metric.before), _number(metric.after), _interval(metric.interval)]
        rows.append([name.replace("_", " "), *numbers])
    return _grid(
        ["measured on held-out rows", "before", "after", "difference (95 % interval)"], rows
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(found: Sequence[float | None] | None) -> str:
    low, high = found if found is not None and len(found) == 2 else (None, None)
    return f"{low:+.3g} to {high:+.3g}" if low is not None and high is not None else ""


def _rollouts(lines: Sequence[Mapping[str, Any]]) -> str:
    table = _grid(SAMPLE_COLUMNS, sample_rows(lines))
    return table and f"<h3>Answers that were learned from, at the start and in the end</h3>{table}"


def _costs(stage: StageRecord) -> str:
    expected, measured = stage.expected or Expected(), stage.measured or Measured()
    rows = []
    if measured.peak_bytes is not None:
        estimate = expected.counted_bytes
        rows.append(
            [
                f"peak memory ({COUNTERS.get(str(measured.counter), 'measured')})",
                format_gib(estimate) if estimate else "",
                format_gib(measured.peak_bytes),
            ]
        )
    if measured.train_s is not None:
        duration_s = expected.duration_s
        rows.append(
            [
                "training time",
                format_duration(duration_s) if duration_s else "",
                format_duration(measured.train_s),
            ]
        )
    if speed := speed_words(measured):
        rows.append(["speed", "", speed])
    if whole := times_words(stage.times):
        rows.append(["the whole time, when it was finished", times_words(expected.times), whole])
    if expected.learned is not None:
        rows.append(["learned from earlier runs", learned_words(expected.learned), ""])
    return _grid(["", "expected", "measured"], rows)


def _data(data: DataCounts | None) -> str:
    if data is None:
        return ""
    counts = [
        f"{count:,} {name}"
        for count, name in (
            (data.train_rows, "rows trained on"),
            (data.holdout_rows, "held out"),
            (data.dropped, "dropped"),
            (data.truncated, "truncated"),
        )
        if count is not None
    ]
    return _items([f"Data: {', '.join(counts)}", *(f"Note: {note}" for note in data.notes)])


def _computed_by(resolved: ResolvedSettings | None) -> str:
    """Which kernels computed the stage, as they were resolved where it ran."""
    if resolved is None or resolved.attention is None:
        return ""
    words = [f"attention {resolved.attention}", f"fused layers {resolved.kernels or 'none'}"]
    words += ["compiled layers"] if resolved.compile else []
    return _items([f"Computed with: {', '.join(words)}"])


def _checks(checks: Iterable[Check]) -> str:
    return _items(
        Item(
            text=f"{'Check' if check.ok else 'Warning'}: {check.text}",
            tone="plain" if check.ok else "warning",
        )
        for check in checks
    )


def _confusion(table: Confusion | None) -> str:
    """Which class was taken for which, for classifiers."""
    if table is None or not table.labels:
        return ""
    rows = [
        [label, *(f"{count:,}" for count in counts)]
        for label, counts in zip(table.labels, table.counts, strict=False)
    ]
    columns = ["is \\ was called", *table.labels]
    return "<h3>Which class was taken for which</h3>" + _grid(columns, rows)


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    rows = [
        [
            " ".join((part or "").split())
            for part in (sample.prompt, sample.base, sample.tuned, sample.expected)
        ]
        for sample in samples[:SHOWN_SAMPLES]
    ]
    return "<h3>Held-out questions, answered before and after</h3>" + _grid(
        ["question", "before", "after", "as in the data"], rows
    )
