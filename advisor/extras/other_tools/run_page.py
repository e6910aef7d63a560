"""`advise check` of a run: of ours by its own verdict, of another trainer by what it logged. On the
screen, or as JSON.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from advisor.commands.check_options import CheckOptions
from advisor.commands.output import console, print_json, with_error
from advisor.extras.other_tools.file import looks_like_configuration
from advisor.extras.other_tools.findings import (
    SEVERITIES,
    Known,
    by_rules,
    shipped_rules,
    worst_first,
)
from advisor.extras.other_tools.page import OF_DATA, Line, finding_lines, print_lines
from advisor.extras.other_tools.run_signs import Curve, Signs, sig
from advisor.extras.other_tools.run_state import RunLog, kind_of_run, read_log
from advisor.ground.errors import AdviseError, Fault, InputError
from advisor.ground.files import free_path, shown_path
from advisor.ground.units import format_duration, format_gib
from advisor.methods import updates
from advisor.record.files import record_of
from advisor.record.next_step import resume_command
from advisor.record.run import DONE, RunRecord
from advisor.record.smaller import yaml_value
from advisor.record.verdict import BETTER, LOST, NOT_MEASURED, UNCLEAR, WORSE, Verdict, limits
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
MOST_CONFIGURATIONS = 20  # files beside a run that are looked at
SCHEMA_VERSION = 1
LABEL = 16  # columns
STEPS = {  # key of the document -> fact
    "done": "done", "planned": "planned", "epochs": "epoch", "planned_epochs": "epochs",
}  # fmt: skip
SAID_ABOVE = ("run/next-step", "run/general-lost")  # in the lines of our own verdict


def check_run(path: str, options: CheckOptions) -> int:
    """Check one run and print what was found. Returns 0, also with findings.

    Raises InputError if it cannot be read.
    """
    hint = "a run has no rows, and no GPU is asked for: leave it out"
    options.refuse({**OF_DATA, **OF_CONFIGURATIONS}, "a run", hint)
    is_ours = kind_of_run(Path(path)) == "ours"
    document, lines = _ours(path) if is_ours else _other(path)
    head = {"schema_version": SCHEMA_VERSION, "checked": "run", "path": path}
    words, faults = _verified(path, document, lines) if is_ours else (None, ())
    if options.as_json:
        whole = {**head, **document, "verified": words}
        print_json(with_error(whole, faults) if faults else whole)
    else:
        print_lines(_page(path, document, lines), console())
    return InputError.exit_code if faults else 0


def _page(path: str, document: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[Line]:
    """The verdict, what it rests on, what was found, what to change, and the next command."""
    learned, command = document["learned"], document["next"]
    head = learned["words"].partition(": ")[0] if document["kind"] != "ours" else learned["words"]
    yield f"{path}: {head}", HEAD_STYLES.get(learned["verdict"], "bold yellow")
    if lines:
        yield "", ""
        yield from lines
    is_said = document["kind"] == "ours"
    found = [one for one in learned["findings"] if not (is_said and one["id"] in SAID_ABOVE)]
    if found:
        yield "", ""
        yield from finding_lines([{"where": "", **one} for one in found], path)
    changes: dict[str, Any] = {}
    for one in reversed(found):  # the worst has the last word
        changes |= one["set"] or {}
    if changes:
        yield "", ""
        yield "For the stage of a plan", "bold"
        yield from ((f"  {key}: {yaml_value(value)}", "whole") for key, value in changes.items())
    if document["notes"]:
        yield "", ""
        yield "How it was read", "bold"
        yield from ((f"  - {note}", "") for note in document["notes"])
    if command is not None and not any(command in text for text, _ in lines):
        yield "", ""
        yield f"Next:  {command}", "whole"


# --------------------------------------------------------------------------- another trainer


def _other(path: str) -> tuple[dict[str, Any], list[Line]]:
    log = read_log(path)
    trained, base = log.trained()
    signs = Signs(log, trained if trained in updates() else None)
    step = signs["best.step"]
    folder = None if step is None else log.weights_of(step)
    numbers = dict(_numbers(signs))
    said = "; ".join(f"{name.lower()} {text}" for name, text in numbers.items())
    learned = {
        "verdict": signs.word,
        "words": ": ".join(filter(None, (_head(signs), said))),
        "overfits_from_step": signs["eval.overfits"],
        "best_step": step,
        "best_checkpoint": None if folder is None else shown_path(folder),
        "steps": {name: signs[f"steps.{fact}"] or None for name, fact in STEPS.items()},
        "findings": [*_findings(signs)],
    }
    if learned["steps"]["done"]:
        numbers["Steps"] = _progress(learned["steps"])
    if step is not None:
        where = learned["best_checkpoint"] or "its checkpoint is not here"
        numbers["Best"] = f"step {step} by {signs['best.by']}: {where}"
    return {
        "kind": "trainer_state", "learned": learned, "notes": list(log.notes),
        "next": _next(log, base),
    }, [(f"{name:<{LABEL}}{text}", "") for name, text in numbers.items()]  # fmt: skip


def _findings(signs: Signs) -> Iterator[dict[str, Any]]:
    """What the rules say, with the keys of a stage that they change."""
    for one in worst_first([*by_rules(shipped_rules("runs"), Known({}, {}, signs.facts))]):
        changes = {
            key.removeprefix(OURS): value
            for key, value in (one.instead or {}).items()
            if value is not None
        }
        yield _finding(one.id, one.severity, one.text, changes, one.sources)


def _finding(
    id_: str, severity: str, text: str, changes: Mapping[str, Any], sources: Sequence[str] = ()
) -> dict[str, Any]:
    found = {"id": id_, "severity": severity, "text": text}
    return {**found, "set": dict(changes) or None, "sources": list(sources)}


def _progress(steps: Mapping[str, Any]) -> str:
    """'300 of 300; epochs: 3 of 3'."""
    planned = f" of {steps['planned']:,}" if steps["planned"] else ""
    of = f" of {steps['planned_epochs']:g}" if steps["planned_epochs"] else ""
    epochs = f"; epochs: {steps['epochs']:g}{of}" if steps["epochs"] else ""
    return f"{steps['done']:,}{planned}{epochs}"


def _head(signs: Signs) -> str:
    overfits, word = signs["eval.overfits"], signs.word
    if (step := signs["broken.from"]) is not None:
        return f"It broke, with no finite loss from step {step} on"
    if (step := signs["broken.zero"]) is not None and word == UNCLEAR:
        return f"It learned nothing, with a loss of exactly 0 from step {step} on"
    if word == WORSE and (step := signs["loss.diverged"]) is not None:
        return f"It diverged from step {step} on"
    if overfits is None:
        return HEADS[word]
    if word == WORSE:
        return f"It overfits from step {overfits} on, and ends worse than it began"
    return f"{HEADS[word]}, and overfits from step {overfits} on"


def _numbers(signs: Signs) -> Iterator[tuple[str, str]]:
    """(what was measured, from where to where), as far as it was logged."""
    if signs.reward is not None:
        yield "Reward", _from_to(signs.reward)
    elif signs.loss is not None and any(signs.loss.values):
        yield "Training loss", _from_to(signs.loss)
    if signs.held_out is not None:
        first, best, last = (signs[f"eval.{name}"] for name in ("first", "best", "last"))
        said = f"{first:g} to {last:g}" if signs["eval.count"] > 1 else f"{first:g}"
        lowest = f", lowest {best:g} at step {signs['eval.best_step']}" if best < last else ""
        yield "Held-out loss", said + lowest
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


def _next(log: RunLog, base: str | None) -> str:
    """The command that goes on from here: the configuration beside the run, or a plan."""
    beside = sorted(log.folder.glob("*.y*ml")) if log.checkpoints or base else []
    for file in beside[:MOST_CONFIGURATIONS]:
        with suppress(OSError, AdviseError, ValueError):
            if looks_like_configuration(file):
                return f"advise check {shlex.quote(shown_path(file))}"
    model = f" --model {shlex.quote(base)}" if base else ""
    return f"advise{model} --plan {free_path()}"


# --------------------------------------------------------------------------- ours


def _ours(path: str) -> tuple[dict[str, Any], list[Line]]:
    """What the verdict of run.json says, of several stages with the curve of the last."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    record = record_of(folder.absolute())
    verdict, stage = verdict_of(record, folder), record.stages[-1] if record.stages else None
    curve = stage.held_out if stage is not None else None
    best, planned = (None, None) if curve is None else (curve.best_step, curve.planned_steps)
    overfits = result = None
    if curve is not None and curve.best_loss and curve.last_loss:
        rose = curve.last_loss / curve.best_loss - 1
        overfits = best if rose >= limits()["overfits"] else None
    if stage is not None and stage.status == DONE and curve is not None:
        result = shown_path(folder / stage.folder) if curve.kept_step == best else None
    step = verdict.next if verdict is not None else None
    plain = verdict.plain if verdict is not None else None
    command = step.command if step is not None else None
    if record.status != DONE:
        command = resume_command(shown_path(folder), max_steps=record.max_steps, judge=record.judge)
    found = _own_findings(record, verdict)
    learned = {
        "verdict": (verdict.word if verdict is not None else None) or NOT_MEASURED,
        "words": plain.text if plain is not None else f"It is not finished: {record.status}",
        "overfits_from_step": overfits,
        "best_step": best,
        "best_checkpoint": result,
        "steps": {
            **dict.fromkeys(STEPS),
            "done": stage.steps if stage is not None else None,
            "planned": planned,
        },
        "findings": sorted(found, key=lambda one: SEVERITIES.index(one["severity"])),
    }
    lines = [(line, "whole") for line in verdict_lines(record, folder)]
    return {"kind": "ours", "learned": learned, "notes": [], "next": command}, lines


def _verified(
    path: str, document: dict[str, Any], lines: list[Line]
) -> tuple[Mapping[str, str] | None, Sequence[Fault]]:
    """(what is as it was when the run ended, the faults of what is not); added to the lines, or
    why nothing was compared to the notes.
    """
    from advisor.launch.identity import SAME, VERSIONS, verify

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    record = record_of(folder.absolute())
    found = verify(folder.absolute(), record)
    if found is None:
        why = "it is not done" if record.status != DONE else "an earlier version wrote run.json"
        document["notes"].append(f"plan, rows, base and result were not verified: {why}")
        return None, ()
    is_whole = all(word == SAME for word in found.words.values())
    same = "everything is as it was when the run ended"
    lines += [("", ""), (f"Verified: {same}" if is_whole else "Verified", "bold")]
    for part, word in found.words.items():
        said = ": ".join(filter(None, (word, found.why.get(part))))
        style = "" if word == SAME else "yellow" if part == VERSIONS else "bold red"
        lines.append((f"  {part:<{LABEL - 2}}{said}", style))
    size, took = format_gib(found.read_bytes), format_duration(found.duration_s)
    lines.append((f"  {size} read in {took}", "dim"))
    return found.words, found.faults


def _own_findings(record: RunRecord, verdict: Verdict | None) -> Iterator[dict[str, Any]]:
    """What the record and its verdict say against the result, and the next step as lines."""
    for stage in record.stages:
        if stage.error is not None:
            yield _finding("run/failed", "error", f"{stage.name}: {stage.error.what}", {})
        for check in stage.checks:
            if not check.ok:
                text = f"{stage.name}: {check.text or check.name}"
                yield _finding(f"run/{check.name}", "warning", text, {})
        curve = stage.held_out
        if curve is not None and curve.best_step != curve.last_step:
            changes = {} if curve.kept_step == curve.best_step else {"keep": "best"}
            text = f"{stage.name}: {'; '.join(curve.sentences())}"
            yield _finding("run/held-out", "note", text, changes)
    if verdict is not None and verdict.general is not None and verdict.general.status == LOST:
        yield _finding("run/general-lost", "warning", f"lost: {verdict.general.text}", {})
    if verdict is not None and verdict.next is not None:
        words = shlex.split(verdict.next.command or "")
        pairs = (word.partition("=") for flag, word in pairwise(words) if flag == "--set")
        changes = {key.rpartition(".")[2]: value for key, _, value in pairs}
        yield _finding("run/next-step", "note", verdict.next.text, changes)
