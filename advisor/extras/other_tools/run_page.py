"""`advise check` of a run: of ours by its own verdict, of another trainer by what it logged. On the
screen, or as JSON.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from advisor.commands.check_options import CheckOptions
from advisor.commands.output import console, print_json
from advisor.extras.other_tools.file import looks_like_configuration
from advisor.extras.other_tools.findings import (
    SEVERITIES,
    Known,
    ToolFinding,
    by_rules,
    shipped_rules,
    worst_first,
)
from advisor.extras.other_tools.page import OF_DATA, Line, finding_lines, print_lines
from advisor.extras.other_tools.run_signs import Curve, Signs, sig
from advisor.extras.other_tools.run_state import RunLog, kind_of_run, read_log
from advisor.ground.errors import AdviseError
from advisor.ground.files import MOST_CONFIG_BYTES, free_plan, shown_path, text_of
from advisor.methods import updates
from advisor.record.files import record_of
from advisor.record.next_step import resume_command
from advisor.record.run import DONE, RunRecord
from advisor.record.smaller import yaml_value
from advisor.record.verdict import BETTER, LOST, NOT_MEASURED, UNCLEAR, WORSE, limits
from advisor.render.run import verdict_lines, verdict_of

OF_CONFIGURATIONS = {
    "--gpu": "gpu", "--plan": "plan_file", "--fix": "fix_to", "--as-is": "as_is",
}  # fmt: skip
HEADS = {
    BETTER: "It learned",
    WORSE: "It got worse",
    UNCLEAR: "No change that can be told from noise",
    NOT_MEASURED: "Too little was logged to tell whether it learned",
}
HEAD_STYLES = {BETTER: "bold green", WORSE: "bold red"}
OURS = "plan."  # before a key of a stage, in the rules
ADAPTER, WEIGHTS = "adapter_config.json", ("model.safetensors", "model.safetensors.index.json")
MOST_CONFIGURATIONS = 20  # files beside a run that are looked at
SCHEMA_VERSION = 1
LABEL = 16  # columns


def check_run(path: str, options: CheckOptions) -> int:
    """Check one run and print what was found. Returns 0, also with findings.

    Raises InputError if it cannot be read.
    """
    hint = "a run has no rows, and no GPU is asked for: leave it out"
    options.refuse({**OF_DATA, **OF_CONFIGURATIONS}, "a run", hint)
    if kind_of_run(Path(path)) == "ours":
        document, lines = _ours(path)
    else:
        document, lines = _other(path)
    if options.as_json:
        print_json(document)
    else:
        print_lines(lines, console())
    return 0


def _document(path: str, kind: str, learned: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The document of either kind."""
    head = {"schema_version": SCHEMA_VERSION, "checked": "run", "kind": kind, "path": path}
    return {**head, "learned": dict(learned), "verified": None, **more}


def _as_json(one: ToolFinding) -> dict[str, Any]:
    changes = {key.removeprefix(OURS): value for key, value in (one.instead or {}).items()}
    changes = {key: value for key, value in changes.items() if value is not None}
    found = {"severity": one.severity, "text": one.text, "set": changes or None}
    return {"id": one.id, **found, "sources": list(one.sources)}


# --------------------------------------------------------------------------- another trainer


def _other(path: str) -> tuple[dict[str, Any], Iterator[Line]]:
    log = read_log(path)
    trained, base = _trained(log)
    signs = Signs(log, trained)
    found = [
        _as_json(one)
        for one in worst_first([*by_rules(shipped_rules("runs"), Known({}, {}, signs.facts))])
    ]
    checkpoint, why = _best_checkpoint(log, signs)
    if why and signs.word in (BETTER, WORSE):
        keep = {"keep": "best"} if signs["best.step"] != signs["steps.done"] else None
        gone = {"id": "run/best-is-gone", "severity": "note", "text": why, "set": keep}
        found.append({**gone, "sources": ["product"]})
    next_line = _next(log, trained, base)
    numbers = [*_numbers(signs)]
    said = "; ".join(f"{name.lower()} {text}" for name, text in numbers)
    learned = {
        "verdict": signs.word,
        "words": ": ".join(filter(None, (_head(signs), said))),
        "overfits_from_step": signs["eval.overfits"],
        "best_step": signs["best.step"],
        "best_checkpoint": checkpoint,
        "steps": {
            "done": signs["steps.done"], "planned": signs["steps.planned"],
            "epochs": signs["steps.epoch"], "planned_epochs": signs["steps.epochs"],
        },
        "findings": found,
    }  # fmt: skip
    document = _document(path, "trainer_state", learned, notes=list(log.notes), next=next_line)
    return document, _page(path, signs, numbers, document)


def _head(signs: Signs) -> str:
    if (step := signs["broken.from"]) is not None:
        return f"It broke: its loss is no number from step {step} on"
    if signs["broken.zero"] is not None and signs.word == UNCLEAR:
        return f"It learned nothing: its loss is exactly 0 from step {signs['broken.zero']} on"
    if signs.word == WORSE and signs["loss.diverged"] is not None:
        return f"It diverged from step {signs['loss.diverged']} on"
    step = signs["eval.overfits"]
    if step is not None and signs.word == WORSE:
        return f"It overfits from step {step} on, and ends worse than it began on held-out rows"
    return HEADS[signs.word] + ("" if step is None else f", and overfits from step {step} on")


def _numbers(signs: Signs) -> Iterator[tuple[str, str]]:
    """(what was measured, from where to where), as far as it was logged."""
    if signs.reward is not None:
        yield "Reward", _from_to(signs.reward)
    if signs.loss is not None and any(signs.loss.values):
        yield "Training loss", _from_to(signs.loss)
    if signs.held_out is not None:
        best, last = signs["eval.best"], signs["eval.last"]
        said = f"{signs['eval.first']:g}"
        if signs["eval.count"] > 1:
            said += f" to {last:g}"
        if best < last and signs["eval.count"] > 1:
            said += f", lowest {best:g} at step {signs['eval.best_step']}"
        yield "Held-out loss", said
    if (percent := signs["pairs.percent"]) is not None:
        yield "Pairs", f"{percent} % ranked as in the data at the end"


def _from_to(found: Curve) -> str:
    """'2.1 to 0.31, 85 % lower (noise 0.04)'."""
    if len(found.values) == 1:
        return f"{sig(found.first):g}, logged once"
    said = f"{sig(found.first):g} to {sig(found.last):g}"
    if found.first > 0 and found.moved:
        share = max(round(100 * (found.last / found.first - 1)), -99)
        said += f", {abs(share)} % {'higher' if share > 0 else 'lower'}"
    return f"{said} (noise {sig(found.noise):.2g})"


def _page(
    path: str, signs: Signs, numbers: Sequence[tuple[str, str]], document: Mapping[str, Any]
) -> Iterator[Line]:
    learned = document["learned"]
    yield f"{path}: {_head(signs)}", HEAD_STYLES.get(signs.word, "bold yellow")
    yield "", ""
    steps = learned["steps"]
    planned = f" of {steps['planned']:,}" if steps["planned"] else ""
    of = f" of {steps['planned_epochs']:g}" if steps["planned_epochs"] else ""
    epochs = f"; epochs: {steps['epochs']:g}{of}" if steps["epochs"] else ""
    rows = [*numbers, ("Steps", f"{steps['done']:,}{planned}{epochs}")]
    if learned["best_step"] is not None:
        where = learned["best_checkpoint"] or "its checkpoint is not here"
        rows.append(("Best", f"step {learned['best_step']} by {signs['best.by']}: {where}"))
    for name, said in rows:
        yield f"{name:<{LABEL}}{said}", ""
    yield from _findings_and_changes(learned["findings"], path)
    if document["notes"]:
        yield "", ""
        yield "How it was read", "bold"
        for note in document["notes"]:
            yield f"  - {note}", ""
    yield "", ""
    yield f"Next:  {document['next']}", "whole"


def _findings_and_changes(found: Sequence[Mapping[str, Any]], name: str) -> Iterator[Line]:
    if found:
        yield "", ""
        yield from finding_lines([{"where": "", **one} for one in found], name)
    changes: dict[str, Any] = {}
    for one in reversed(found):  # the worst has the last word
        changes |= one["set"] or {}
    if changes:
        yield "", ""
        yield "For the stage of a plan", "bold"
        for key, value in changes.items():
            yield f"  {key}: {yaml_value(value)}", "whole"


def _trained(log: RunLog) -> tuple[str | None, str | None]:
    """(update, base model) by the files beside the log; None where nothing says so."""
    for folder in (log.folder, *islice(log.checkpoints.values(), 1)):
        with suppress(OSError, ValueError, AdviseError):
            said = json.loads(text_of(folder / ADAPTER, most_bytes=MOST_CONFIG_BYTES))
            kind, base = str(said.get("peft_type", "")).lower(), said.get("base_model_name_or_path")
            return kind if kind in updates() else None, base if isinstance(base, str) else None
        if any((folder / name).is_file() for name in WEIGHTS):
            return "full", None
    return None, None


def _best_checkpoint(log: RunLog, signs: Signs) -> tuple[str | None, str]:
    """(the folder with the best weights, why there is none)."""
    step = signs["best.step"]
    if step is None:
        return None, ""
    if step in log.checkpoints:
        return shown_path(log.checkpoints[step]), ""
    if step == signs["steps.done"] and any(
        (log.folder / name).is_file() for name in (ADAPTER, *WEIGHTS)
    ):
        return shown_path(log.folder), ""
    here = ", ".join(map(str, sorted(log.checkpoints))) or "none"
    return None, (
        f"the best step is {step}, and checkpoint-{step} is not beside the log (there: {here}): it"
        " was deleted, never saved, or is elsewhere"
    )


def _next(log: RunLog, trained: str | None, base: str | None) -> str:
    """The command that goes on from here: the configuration beside the run, or a plan."""
    beside = sorted(log.folder.glob("*.y*ml")) if trained is not None or log.checkpoints else []
    for file in beside[:MOST_CONFIGURATIONS]:
        with suppress(OSError, AdviseError, ValueError):
            if looks_like_configuration(file):
                return f"advise check {shlex.quote(shown_path(file))}"
    model = f" --model {shlex.quote(base)}" if base else ""
    return f"advise{model} --plan {free_plan()}"


# --------------------------------------------------------------------------- ours


def _ours(path: str) -> tuple[dict[str, Any], Iterator[Line]]:
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    record = record_of(folder.absolute())
    verdict, stage = verdict_of(record, folder), record.stages[-1] if record.stages else None
    curve = stage.held_out if stage is not None else None
    best = curve.best_step if curve is not None else None
    overfits = None
    if curve is not None and best != curve.last_step and curve.best_loss and curve.last_loss:
        rose = curve.last_loss / curve.best_loss - 1
        overfits = best if rose >= limits()["overfits"] else None
    is_best = stage is not None and stage.status == DONE and curve is not None
    is_best = is_best and curve is not None and curve.kept_step == best
    result = folder / stage.folder if stage is not None else folder
    step = verdict.next if verdict is not None else None
    going_on = resume_command(shown_path(folder), max_steps=record.max_steps, judge=record.judge)
    next_line = going_on if record.status != DONE else step.command if step is not None else None
    word = verdict.word if verdict is not None else None
    plain = verdict.plain.text if verdict is not None and verdict.plain is not None else ""
    words = plain or f"The run is not finished: {record.status}."
    learned = {
        "verdict": word or NOT_MEASURED,
        "words": words,
        "overfits_from_step": overfits,
        "best_step": best,
        "best_checkpoint": shown_path(result) if is_best else None,
        "steps": {
            "done": stage.steps if stage is not None else None,
            "planned": curve.planned_steps if curve is not None else None,
            "epochs": None, "planned_epochs": None,
        },
        "findings": sorted(
            _own_findings(record, folder), key=lambda one: SEVERITIES.index(one["severity"])
        ),
    }  # fmt: skip
    return _document(path, "ours", learned, notes=[], next=next_line), _own_page(
        path, words, learned, verdict_lines(record, folder), next_line
    )


def _own_findings(record: RunRecord, folder: Path) -> Iterator[dict[str, Any]]:
    """What the record and its verdict say against the result, and the next step as lines."""

    def one(id_: str, severity: str, text: str, **changes: Any) -> dict[str, Any]:
        found = {"id": f"run/{id_}", "severity": severity, "text": text}
        return {**found, "set": changes or None, "sources": []}

    verdict = verdict_of(record, folder)
    for stage in record.stages:
        if stage.error is not None:
            yield one("stage-failed", "error", f"{stage.name}: {stage.error.what}")
        for check in stage.checks:
            if not check.ok:
                yield one(check.name, "warning", f"{stage.name}: {check.text or check.name}")
        if stage.held_out is not None and stage.held_out.best_step != stage.held_out.last_step:
            keep = stage.held_out.kept_step == stage.held_out.best_step
            changes = {} if keep else {"keep": "best"}
            for text in stage.held_out.sentences():
                yield one("held-out", "note", f"{stage.name}: {text}", **changes)
    if verdict is None:
        return
    if verdict.general is not None and verdict.general.status == LOST:
        yield one("general-lost", "warning", f"lost: {verdict.general.text}")
    if verdict.next is not None:
        words = shlex.split(verdict.next.command or "")
        named = (word for flag, word in pairwise(words) if flag == "--set")
        pairs = (word.partition("=") for word in named)
        changes = {key.rpartition(".")[2]: value for key, _, value in pairs}
        yield one("next-step", "note", verdict.next.text, **changes)


def _own_page(
    path: str, words: str, learned: Mapping[str, Any], verdict: Sequence[str], command: str | None
) -> Iterator[Line]:
    style = HEAD_STYLES.get(learned["verdict"], "bold yellow")
    yield f"{path}: {words}", style
    for line in ("", *verdict) if verdict else ():
        yield line, "whole"
    said = ("run/next-step", "run/general-lost")  # by the verdict
    yield from _findings_and_changes(
        [one for one in learned["findings"] if one["id"] not in said], path
    )
    if command is not None and command not in "\n".join(verdict):
        yield "", ""
        yield f"Next:  {command}", "whole"
