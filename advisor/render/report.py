"""report.html of a run folder: one file, no network, everything a person asks after training.

Made from run.json, metrics.jsonl and plan.yaml alone, so that it can be made again at any time.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advisor.ground.extras import extras
from advisor.ground.files import PLAN_FILE, shown_path, text_of, write_atomically
from advisor.methods import update
from advisor.record.next_step import upload_command
from advisor.record.run import DONE, FAILED, ROLLOUTS, MachineRecord, RunRecord, last_of_each_task
from advisor.render import bars, curves
from advisor.render.html import block, document, grid, items, number, section, text
from advisor.render.model_card import limits, model_card
from advisor.render.report_stage import json_lines, read_rollouts, stage_section
from advisor.render.result_commands import (
    ask_command,
    export_command,
    forms_of,
    serve_command,
    served_stages,
    use_of,
)
from advisor.render.run import what_was_trained
from advisor.render.verdict import OF_THE_STATE, verdict_of

REPORT, METRICS, CARD = "report.html", "metrics.jsonl", "README.md"
STYLE = (
    bars.STYLE
    + curves.STYLE
    + """
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
@media (min-width: 36.01rem) { th { white-space: nowrap; } }
@media (max-width: 36rem) { td:empty { display: none; } }
@media print { figure, .verdict { break-inside: avoid; } }
.verdict { background: var(--soft); border-left: 4px solid var(--mark); padding: .5rem 1rem;
  border-radius: 0 6px 6px 0; }
.verdict.bad { border-left-color: var(--warn); }
.verdict dl { display: grid; grid-template-columns: auto 1fr; gap: .35rem .9rem;
  margin: .3rem 0; }
.verdict dt { font-weight: 600; } .verdict dd { margin: 0; }
.verdict pre { background: var(--paper); margin: .4rem 0 0; }
"""
)


def write_report(folder: Path, record: RunRecord) -> Path:
    """Write the report, and a model card beside each result; returns the report's path."""
    plan = folder / PLAN_FILE
    page = report_page(
        record,
        folder=folder,
        plan_text=text_of(plan) if plan.is_file() else "",
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
            write_atomically(folder / stage.folder / CARD, model_card(record, stage, folder))
    return folder / REPORT


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was cut off or damaged is left out."""
    return json_lines(path) if path.is_file() else []


def report_page(
    record: RunRecord,
    *,
    folder: Path,
    plan_text: str,
    metrics: Sequence[Mapping[str, Any]],
    rollouts: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> str:
    """The report as HTML; `rollouts` has the lines of each stage's rollouts.jsonl."""
    body = [*_verdict(record, folder), *_facts(record)]
    for stage in record.stages:
        own = [
            line
            for line in metrics
            if line.get("stage") == stage.plan_stage and line.get("task") == stage.task
        ]
        answers = (rollouts or {}).get(stage.name, ())
        body += stage_section(stage, own, answers, record.resolved.get(stage.name))
    body += _cross_table(record)
    for extra in extras().values():
        for one in extra.block(record):
            body += section(one.title, *map(block, one.blocks))
    body += [*_use(record, folder), *_plan(record, plan_text), *_versions(record)]
    return document(
        f"Report: {record.name}",
        f"Report: <code>{text(str(record.name))}</code>",
        body,
        footer=f"advise {record.advise_version or ''}",
        style=STYLE,
    )


# --------------------------------------------------------------------------- the whole run


def _verdict(record: RunRecord, folder: Path) -> list[str]:
    """The three lines that one can act on; of an unfinished run how far it is."""
    found, trial = verdict_of(record, folder), ""
    if record.max_steps:
        trial = (
            f"<p class=warning>A trial: at most {record.max_steps} steps a stage. Its numbers say"
            " little about the whole run.</p>"
        )
    if found is None:
        said = OF_THE_STATE.get(record.status, record.status)
        is_bad = record.status == FAILED
        return [f'<div class="verdict{" bad" if is_bad else ""}"><p>{text(said)}</p></div>', trial]
    lines = []
    for about, said in found.lines():
        status, _, numbers = said.partition(": ")
        shown = text(said)
        if about != "next":
            shown = f"<strong>{text(status)}</strong>{f': {text(numbers)}' if numbers else ''}"
        if about == "next" and found.next is not None and found.next.command:
            shown += f"<pre>{text(found.next.command)}</pre>"
        lines.append(f"<dt>{about.capitalize()}</dt><dd>{shown}</dd>")
    bad = "" if found.is_good else " bad"
    return [f'<div class="verdict{bad}"><dl>{"".join(lines)}</dl></div>', trial]


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
    return section("The run", items(lines))


def _cross_table(record: RunRecord) -> list[str]:
    """Every module on every task's held-out rows, if there are several."""
    found = record.cross_evaluation or {}
    tasks = list(found)
    if len(tasks) < 2:
        return []
    columns = ["held-out loss on", "base", *tasks]
    rows = [[task, *(number(found[task].get(one)) for one in ("base", *tasks))] for task in tasks]
    said = "Lower is better. A column is a module; its own task stands on the diagonal."
    note = f'<p class="quiet">{said}</p>'
    return section("Every module on every task", grid(columns, rows), note)


def _use(record: RunRecord, folder: Path) -> list[str]:
    """Lines to paste, for the last result of each task."""
    if record.status != DONE:
        return []
    parts = []
    for stage in last_of_each_task(record.stages):
        result = shown_path(folder / stage.folder)
        if record.is_classifier(stage) or record.is_seq2seq(stage):
            what, command = use_of(record, stage, result)
            parts.append(f"<p>{what}</p><pre>{text(command)}</pre>")
            continue
        lines = [
            ("Talk to it", f"advise chat {shlex.quote(shown_path(folder))}"),
            ("Ask it from Python", ask_command(result, stage.update)),
        ]
        method = update(stage.update)
        if forms := forms_of(record, stage):
            others = ", ".join(f"--to {form}" for form in forms[1:])
            taken = export_command(forms[0], folder)
            lines.append((f"Take it to Ollama, or in another form ({others})", taken))
        if method.imports:
            note = f"{method.result}: in Python, import {method.imports} first. {limits(method)}"
            lines.append(("Note", note))
        if stage.files:
            upload = upload_command(f"YOUR_NAME/{record.name}", result, stage.files)
            lines.append(("Upload it to the hub; the plan's key push_to does it in a run", upload))
        heading = f"<h3>{text(stage.task)}</h3>" if stage.task else ""
        parts.append(
            heading + "".join(f"<p>{text(name)}</p><pre>{text(line)}</pre>" for name, line in lines)
        )
    served = served_stages(record)
    if served:
        command = text(serve_command(record, served, folder))
        them = "them" if len(served) > 1 else "it"
        parts.append(f"<p>Serve {them} with vLLM</p><pre>{command}</pre>")
    return section("How to use the result", *parts)


def _plan(record: RunRecord, plan_text: str) -> list[str]:
    lines = plan_text.splitlines(keepends=True)
    shown = "".join(one for one in lines if not one.startswith("# yaml-language-server:"))
    if not shown:
        return []
    trial = (
        f"<p class=quiet>The reasons are those for the whole run: this trial ended after at most"
        f" {record.max_steps} steps a stage, whatever `epochs` and `max_steps` say.</p>"
    )
    plan = f"<pre>{text(shown, keep_lines=True)}</pre>"
    title = "The plan, with the reason for each value"
    return section(title, trial if record.max_steps else "", plan)


def _versions(record: RunRecord) -> list[str]:
    versions = {"python": sys.version.split()[0], **record.versions}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    inputs = {name: digest[:16] for name, digest in record.input_digests.items()}
    digests = {**record.digests, **inputs}
    lines = [shown, *(f"{name}: {digest}" for name, digest in digests.items())]
    return section("Versions and digests", items(lines))
