"""What a run leaves for people to read: report.html of its folder, README.md of each result.

Made from run.json, metrics.jsonl and plan.yaml alone, so that it can be made again at any time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from advisor.ground.extras import extras
from advisor.ground.files import (
    PLAN_FILE,
    folder_name,
    shown_path,
    text_of,
    without_home,
    write_atomically,
)
from advisor.ground.resources import as_called
from advisor.ground.terminal import shown
from advisor.methods import Update, objective, update
from advisor.methods.model import SERVERS
from advisor.record.files import label
from advisor.record.next_step import resume_command, upload_command
from advisor.record.run import (
    CARD,
    DONE,
    FAILED,
    METRICS,
    REPORT,
    ROLLOUTS,
    MachineRecord,
    ResolvedSettings,
    RunRecord,
    StageRecord,
    last_of_each_task,
)
from advisor.record.stage import Evaluation, metric_words
from advisor.record.verdict import Verdict
from advisor.render.blocks import Paragraph, Section
from advisor.render.report_stage import stage_values
from advisor.render.result_commands import (
    ask_command,
    auto_class,
    export_command,
    forms_of,
    serve_command,
    served_stages,
    spare_of,
    use_of,
)
from advisor.render.run import CHECKED, go_on_words, samples_shown, verdict_of, what_was_trained

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

OF_THE_STATE = {
    "done": "done; nothing was compared",
    "failed": "the run failed",
    "stopped": "the run is not finished",
    "running": "the run is going on",
}
MOST_BYTES = 32 * 2**20  # of rollouts.jsonl; trainers write about 5 MB
Lines = Sequence[Mapping[str, Any]]  # of a file of JSON lines


class ToPaste(Struct, frozen=True, kw_only=True):
    """A line to paste, and what it does."""

    what: str
    line: str


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
    return _json_lines(path) if path.is_file() else []


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The lines of rollouts.jsonl; none of a file that is far larger than trainers write it."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return []
    return [entry for entry in _json_lines(path) if isinstance(entry.get("step"), int)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in text_of(path, errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict)]


def report_page(
    record: RunRecord,
    *,
    folder: Path,
    plan_text: str,
    metrics: Lines,
    rollouts: Mapping[str, Lines] | None = None,
) -> str:
    """The report as HTML; `rollouts` has the lines of each stage's rollouts.jsonl.

    It can be forwarded: paths of the user's home begin with ~, and lines to paste name folders from
    where the run was started.
    """
    if without_home(str(folder)) != str(folder):
        folder = Path(os.path.relpath(folder))
    stages, shown_first, how_picked = [], samples_shown(record), ""
    for stage in record.stages:
        own = [
            line
            for line in metrics
            if line.get("stage") == stage.plan_stage and line.get("task") == stage.task
        ]
        answers = (rollouts or {}).get(stage.name, ())
        values = stage_values(stage, own, answers, record.resolved.get(stage.name))
        if values["samples"] == shown_first:  # they stand at the top
            how_picked, values["samples"] = values["how_picked"], []
        stages.append(values)
    sections = [section for extra in extras().values() for section in extra.block(record)]
    sections.append(Section(title="How to use the result", blocks=list(_use(record, folder))))
    verdict = verdict_of(record, folder)
    state, goes_on = "", None
    if verdict is None:
        state = OF_THE_STATE.get(record.status, record.status)
        state += next((f": {one['at']}" for one in stages if one["at"]), "")
        if record.status != DONE:
            shown_folder = shown_path(folder)
            goes_on = resume_command(shown_folder, max_steps=record.max_steps, judge=record.judge)
    lines = plan_text.splitlines(keepends=True)
    inputs = {name: digest[:16] for name, digest in record.input_digests.items()}
    checks = [check for stage in record.stages for check in stage.checks]
    where = {stage.name: f"{stage.name}: " if stages[1:] else "" for stage in record.stages}
    is_failed = record.status == FAILED
    values = {
        "title": title_of(record, verdict),
        "samples": shown_first,
        "how_picked": how_picked,
        "checked": dict.fromkeys(CHECKED.get(one.name, one.name) for one in checks if one.ok),
        "warnings": [
            f"{where[stage.name]}{one.text}"
            for stage in record.stages
            for one in stage.checks
            if not one.ok
        ],
        "plain": verdict.plain.text if verdict and verdict.plain else "",
        "state": state,
        "goes_on": goes_on,
        "go_on_words": go_on_words(record),
        "tone": "" if verdict and verdict.is_good else "bad" if verdict or is_failed else "open",
        "verdict": verdict.lines() if verdict else (),
        "command": verdict.next.command if verdict and verdict.next else None,
        "record": record,
        "machine": record.hardware or MachineRecord(),
        "what": record.composition or ", ".join(dict.fromkeys(one["trained"] for one in stages)),
        "stages": stages,
        "tasks": record.cross_evaluation or {},
        "sections": sections,
        "plan_text": "".join(one for one in lines if not one.startswith("# yaml-language-server:")),
        "digests": {**record.digests, **inputs},
    }
    return render_html("report.html", values)


def title_of(record: RunRecord, verdict: Verdict | None) -> str:
    """'SmolLM2-135M-Instruct on support.jsonl: better', for a window and a list of files."""
    names = [name.removeprefix("data ") for name in record.input_files if name.startswith("data ")]
    data = Path(names[0]).name if len(names) == 1 else f"{len(names)} data sets"
    word = verdict.word if verdict and verdict.word else OF_THE_STATE.get(record.status)
    return f"{Path(record.model or '?').name}{f' on {data}' if names else ''}: {word}"


def _use(record: RunRecord, folder: Path) -> Iterator[Paragraph | ToPaste]:
    if record.status != DONE:
        return
    for stage in last_of_each_task(record.stages):
        result = shown_path(folder / stage.folder)
        if not record.writes(stage):
            what, command = use_of(record, stage, result)
            yield ToPaste(what=what, line=command)
            continue
        if stage.task:
            yield Paragraph(text=stage.task, tone="heading")
        yield ToPaste(what="Talk to it", line=f"advise chat {shlex.quote(shown_path(folder))}")
        yield ToPaste(what="Ask it from Python", line=ask_command(result, stage.update))
        if forms := forms_of(record, stage):
            others = ", ".join(f"--to {form}" for form in forms[1:])
            what = f"Take it to Ollama, or in another form ({others})"
            yield ToPaste(what=what, line=export_command(forms[0], folder))
        method = update(stage.update)
        if method.imports:
            note = f"{method.result}: in Python, import {method.imports} first. {limits(method)}"
            yield ToPaste(what="Note", line=note)
        if stage.files:
            upload = upload_command(str(record.name), result, stage.files)
            what = "Upload it to the hub; the plan's key push_to does it in a run"
            yield ToPaste(what=what, line=upload)
    if served := served_stages(record):
        what = f"Serve {'them' if len(served) > 1 else 'it'} with vLLM"
        yield ToPaste(what=what, line=serve_command(record, served, folder))
    if spare := spare_of(record, folder):
        yield ToPaste(what=spare[0], line=spare[1])


SERVER_NAMES = {"transformers": "transformers", "vllm": "vLLM", "ollama": "Ollama"}
CARD_KEYS = (  # of TRL's settings, those that the model card names
    "learning_rate",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
)


def model_card(record: RunRecord, stage: StageRecord, folder: Path = Path()) -> str:
    """README.md of a result in a run folder, with the hub's front matter."""
    model, method = record.base_model(stage), update(stage.update)
    held_out = stage.held_out
    verdict = verdict_of(record, folder) if stage in last_of_each_task(record.stages) else None
    is_kept_early = held_out and held_out.kept_step not in (None, held_out.planned_steps)
    writes, scores = record.writes(stage), objective(stage.objective).scores
    whole = "."
    if method.is_module:
        whole = "./merged" if method.merges else ""
    head = "CausalLM"
    if scores or record.is_classifier(stage):
        head = "SequenceClassification"
    elif record.is_seq2seq(stage):
        head = "Seq2SeqLM"
    values = {
        "record": record,
        "stage": stage,
        "method": method,
        # A folder of this machine means nothing on the hub.
        "base": model if "/" in model and not model.startswith(("/", ".", "~")) else None,
        "model_name": Path(model).name,
        "trained": what_was_trained(stage),
        "origin": _origin(record),
        "plain": verdict.plain.text if verdict and verdict.plain else "",
        "verdict": verdict.lines() if verdict else (),  # its command names folders of this machine
        "evaluation": stage.evaluation or Evaluation(),
        "kept_step": held_out if is_kept_early else None,
        "limits": limits(method),
        "auto_class": auto_class(method),
        "head": head,
        "scores": scores,
        "only": f" --only {shlex.quote(label(stage))}" if len(record.stages) > 1 else "",
        "merges": writes and method.is_module and method.merges,
        "vllm": _serve_beside_base(record, stage),
        "for_ollama": "ollama" in forms_of(record, stage),
        "ollama_name": folder_name(str(record.name)) or "model",
        "whole": whole if writes else "",
        "run_folder": "/".join(".." for _ in Path(stage.folder).parts),
        "settings": _settings(record.settings(stage)),
    }
    return render_markdown("model_card.md", values)


def _origin(record: RunRecord) -> list[str]:
    said = [f"Licence of the base: {record.license}."] if record.license else []
    data = [digest for name, digest in record.input_digests.items() if name.startswith("data ")]
    if data:
        what = "digest" if len(data) == 1 else "digests"
        said.append(f"The data is not part of this folder; its {what}: {', '.join(data)}.")
    return said


def limits(method: Update) -> str:
    """What cannot be done with the result of an update, in a sentence; empty if everything can."""
    servers = [SERVER_NAMES[name] for name in SERVERS if name not in method.serves]
    parts = ["it cannot be merged"] if method.is_module and not method.merges else []
    parts += [f"{' and '.join(servers)} cannot load it"] if servers else []
    sentence = ", and ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def _settings(settings: ResolvedSettings) -> dict[str, Any]:
    own = {
        "chat template": template_words(settings),
        "seq_len": settings.seq_len,
        "weights_dtype": settings.weights_dtype,
        "trainable_parameters": settings.trainable_parameters,
    }
    known = {key: value for key, value in own.items() if value is not None}
    trl = {key: value for key, value in (settings.trl or {}).items() if key in CARD_KEYS}
    return {**known, **trl, **settings.options}


def template_words(settings: ResolvedSettings) -> str | None:
    """What who serves the result must know of its chat template; None: it is the base's own."""
    if settings.plain_template:
        return "plain, stored in chat_template.jinja: the base has none"
    if not settings.template:
        return None
    given = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.template.items())
    return f"with {given}, stored in chat_template.jinja; with the base's own template, pass it"


def _serve_beside_base(record: RunRecord, stage: StageRecord) -> str:
    """The line of vLLM for a module that writes, typed in its folder; empty if it has none."""
    served = [one for one in served_stages(record) if one.name == stage.name]
    if not served:
        return ""
    base = record.base_model(stage)
    command = serve_command(record, served, Path("RUN_FOLDER"))
    command = command.replace(f"RUN_FOLDER/{stage.folder}", ".")
    # A folder of this machine means nothing elsewhere, and its path is nobody's business.
    shown = shlex.quote(shown_path(Path(base)))
    name = Path(base).name if Path(base).is_absolute() else base
    return command.replace(shown, shlex.quote(name))


# --------------------------------------------------------------------------- templates
# Every value that one shows is escaped: no name, path or answer becomes markup.

TEMPLATES = Path(__file__).with_name("templates")
CODE = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<!\S)-[^\s&]{1,28}(?!\S)")  # that fits a line of a phone


def html_text(value: object) -> str:
    """A value on one line; control characters, which HTML forbids, as their escapes."""
    return shown(without_home(as_called(str(value)))).replace("\n", "\\n")


def markdown_text(value: object) -> str:
    """A value on one line of Markdown: it starts no HTML, table cell or code."""
    line = shown(without_home(str(value))).replace("\n", "\\n")
    return re.sub(r"[|<`\[]", lambda found: f"&#{ord(found[0])};", line)


def render_html(template: str, values: Mapping[str, Any]) -> str:
    """A page from an HTML template."""
    return html_templates().get_template(template).render(values)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """A text from a Markdown template."""
    from markupsafe import Markup

    environment = _environment(markdown_text, autoescape=False)
    environment.filters |= {
        # A name from outside neither ends a block of code nor opens a tag.
        "shell": lambda line: Markup(shown(line).replace("`", "_").replace("<", "_")),  # noqa: S704
        "yaml": lambda word: Markup(  # noqa: S704
            word if re.fullmatch(r"[\w./-]+", word, re.ASCII) else json.dumps(word)
        ),
    }
    return environment.get_template(template).render(values)


def _interval(found: Sequence[float | None] | None) -> str:
    """'-2.2 to -1.8'; '' if it is not known."""
    low, high = found if found is not None and len(found) == 2 else (None, None)
    return f"{low:+.3g} to {high:+.3g}" if low is not None and high is not None else ""


@cache
def html_templates() -> Environment:
    """The HTML templates, each shown value escaped."""
    from markupsafe import Markup, escape

    def marked(text: str) -> Markup:
        """Escaped text with what stands between backticks as code."""
        return Markup(CODE.sub(r"<code>\1</code>", str(escape(html_text(text)))))  # noqa: S704

    def whole(command: str) -> Markup:
        """Escaped text of a command whose options do not break, as browsers do behind `--`."""
        text = str(escape(html_text(command)))
        return Markup(OPTION.sub(r'<span class="whole">\g<0></span>', text))  # noqa: S704

    environment = _environment(html_text, autoescape=True)
    environment.filters |= {
        "marked": marked,
        "whole": whole,
        "with_lines": lambda text: escape(shown(without_home(as_called(text)))),
        "kind": lambda block: type(block).__name__,
        "number": lambda value: "" if value is None else f"{value:.4g}",
        "count": lambda value: f"{value:,}",
        "share": lambda value: "" if value is None else f"{value:.1%}",
        "interval": _interval,
        "metric": metric_words,
        "words": lambda text: " ".join((text or "").split()),
    }
    return environment


def _environment(as_text: Callable[[object], str], *, autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 - Markdown is escaped by `as_text`
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else as_text(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
