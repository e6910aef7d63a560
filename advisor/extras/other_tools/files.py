"""A plan as a folder that another tool trains from: its configuration, one for each training, and
the data in the shape that its loader reads. Written whole or not at all; a file that is there and
differs is never overwritten.
"""

from __future__ import annotations

import filecmp
import json
import os
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from advisor.extras.other_tools.job import TEST, TRAIN, Job
from advisor.extras.other_tools.mapping import flat_stage, usual_values, write
from advisor.extras.other_tools.rows import KINDS, PROMPTS
from advisor.extras.other_tools.tool import Tool, tool_named
from advisor.extras.other_tools.write_job import job_of, rewards_fault, start_of
from advisor.ground.errors import Fault, InputError
from advisor.ground.files import TEMPORARY, cannot_write, shown_path, text_of
from advisor.ground.version import __version__
from advisor.plan.comments import comments_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Plan
from advisor.plan.read import read_plan

MOST_SHOWN = 3  # notes on the screen; all of them stand in the files
WIDTH = 96
LONGEST_REASON = 90
# What stands at the top of the file: the model, then its data.
MODEL = (
    "model_name_or_path",
    "base_model",
    "model_revision",
    "revision_of_model",
    "trust_remote_code",
)
DATA = (
    "dataset_name", "dataset_train_split", "dataset_test_split", "dataset_dir", "dataset",
    "eval_dataset", "template", "enable_thinking", "datasets", "test_datasets", "val_set_size",
    "chat_template", "chat_template_kwargs", "dataset_prepared_path", "reward_funcs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was written."""

    folder: Path
    jobs: tuple[Job, ...]
    unchanged: int  # files that were there already, with the same content

    def lines(self) -> list[str]:
        """What was written, what is not in it, and how it is started."""
        tool, first = self.jobs[0].tool, self.jobs[0]
        files = ", ".join(job.file for job in self.jobs[:3])
        more = f" and {len(self.jobs) - 3} more" if len(self.jobs) > 3 else ""
        rows = {name: count for job in self.jobs for name, count in job.written.items()}
        trained = sum(count for name, count in rows.items() if name.endswith(TRAIN))
        held = sum(rows.values()) - trained
        lines = [f"Wrote {shown_path(self.folder)}: {files}{more}, for {tool.title}."]
        if rows:
            lines.append(
                f"Data: {trained:,} rows to train on, {held:,} held out"
                f" ({shown_path(self.folder / 'data')})."
            )
        lost = list(dict.fromkeys(f"{one.key}: {one.why}" for job in self.jobs for one in job.lost))
        if lost:
            some = f"{len(lost)}, such as" if len(lost) > MOST_SHOWN else "the file says it too"
            lines.append(f"Not carried over ({some}):")
            lines += [one for line in lost[:MOST_SHOWN] for one in _wrapped(line)]
        left = dict.fromkeys(note for job in self.jobs for note in job.notes if "left out" in note)
        lines += [one for note in list(left)[:2] for one in _wrapped(note)]
        lines.append(f"Install it in an environment of its own: {tool.install}")
        if first.before:
            lines.append("Give the commands at the top of the file first.")
        lines.append(f"Start: cd {shlex.quote(shown_path(self.folder))} && {start_of(first)}")
        return lines


def _wrapped(text: str) -> list[str]:
    """A note as lines of a narrow terminal."""
    return textwrap.wrap(text, 79, initial_indent="  ", subsequent_indent="    ")


def write_files(tool_id: str, source: Path, out: Path | None, *, only: str | None) -> Written:
    """Write the files of a plan for another tool.

    Args:
        tool_id: Which one (rules/tools/).
        source: The plan file.
        out: The folder; default: <name of the plan>-<tool> in the current one.
        only: One task or stage.

    Raises InputError for a plan that the tool cannot train, and for files that are there and
    differ; MachineNotReady if it cannot be written.
    """
    plan = read_plan(source)
    tool = tool_named(tool_id)
    chosen = _chosen(plan, only)
    faults = [fault for entry in chosen for fault in _refusals(tool, plan, entry)]
    if faults:
        raise InputError(faults=list(dict.fromkeys(faults)))
    folder = (out or Path(f"{plan.name}-{tool_id}")).expanduser().absolute()
    comments = comments_of(text_of(source), name=str(source))
    jobs = [job_of(tool, plan, entry, source, comments) for entry in chosen]
    work = folder.parent / f"{TEMPORARY}{os.getpid()}-{folder.name}"
    try:
        work.mkdir(parents=True)
        texts = _texts(jobs, work)
        for name, text in texts.items():
            (work / name).write_text(text, "utf-8")
        unchanged = place(work, folder)
    except OSError as error:
        raise cannot_write(folder, error, way_out="choose another place with --out") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Written(folder=folder, jobs=tuple(jobs), unchanged=unchanged)


def _chosen(plan: Plan, only: str | None) -> list[Entry]:
    every = entries(plan)
    if only is None:
        return every
    found = [
        entry
        for entry in every
        if only in (entry.name, entry.stage.name, entry.task.name if entry.task else None)
    ]
    if not found:
        names = [entry.name for entry in every]
        raise InputError(
            f"the plan has no task or stage '{only}'",
            where="--only",
            allowed=", ".join(names),
        )
    return found


# --------------------------------------------------------------------------- what it cannot hold


def _refusals(tool: Tool, plan: Plan, entry: Entry) -> Iterator[Fault]:
    """What the tool has no word for, without which the training would be another one."""
    stage, place = entry.stage, f"stage {entry.stage.name}"
    hint = "`advise export PLAN --to bundle` carries the plan itself to another machine"
    usual = usual_values(stage.objective, stage.update)
    written = write(tool, flat_stage(plan, stage), command=None, usual=usual)
    if why := tool.not_written.get(stage.objective):
        yield Fault(
            where=place, what=f"{stage.objective} is not written for {tool.name}: {why}", hint=hint
        )
        return
    lost = [one for one in written.lost if one.key in ("objective", "update", "quantization")]
    if lost or stage.objective not in KINDS:
        key, value = (lost[0].key, lost[0].value) if lost else ("objective", stage.objective)
        yield Fault(where=place, what=f"{tool.name} has no {key} '{value}'", hint=hint)
    if stage.options.get("head") not in (None, "language"):
        yield Fault(
            where=place,
            what=f"`head: {stage.options['head']}` is not written for {tool.name}: it trains"
            " language models here",
            hint=hint,
        )
    if KINDS.get(stage.objective) == PROMPTS and (fault := rewards_fault(stage, place, hint)):
        yield fault


# --------------------------------------------------------------------------- files


def _texts(jobs: list[Job], work: Path) -> dict[str, str]:
    """Write the data of all jobs, and give the text of every other file."""
    texts: dict[str, str] = {}
    info: dict[str, Any] = {}
    for job in jobs:
        job.written = _write_rows(job, work)
        for name, text in job.files.items():
            if name == "dataset_info.json":
                info |= json.loads(text)
            else:
                texts[name] = text if text.endswith("\n") else f"{text}\n"
    if info:
        texts["dataset_info.json"] = json.dumps(info, indent=2, ensure_ascii=False) + "\n"
    # After the data: the file says how many rows there are.
    return {**texts, **{job.file: page(job) for job in jobs}}


def _write_rows(job: Job, work: Path) -> dict[str, int]:
    """Data file -> rows. Rows that the tool cannot hold are counted in the notes."""
    if job.rows is None or job.layout is None:
        return {}
    folder = work / job.folder
    folder.mkdir(parents=True)
    counts = {TRAIN: 0, TEST: 0}
    refused: dict[str, int] = {}
    with (
        (folder / TRAIN).open("x", encoding="utf-8", newline="\n") as train,
        (folder / TEST).open("x", encoding="utf-8", newline="\n") as test,
    ):
        for example, is_held in job.rows.examples():
            shaped = job.layout.shape(example)
            if isinstance(shaped, str):
                refused[shaped] = refused.get(shaped, 0) + 1
                continue
            for row in shaped:
                line = json.dumps({**row, **job.columns}, ensure_ascii=False)
                (test if is_held else train).write(f"{line}\n")
                counts[TEST if is_held else TRAIN] += 1
    if not counts[TRAIN]:
        raise InputError(
            f"{job.tool.name} can hold none of the rows: {'; '.join(refused)}",
            where=job.rows.path,
            hint="`advise export PLAN --to bundle` carries the plan itself to another machine",
        )
    if not counts[TEST]:
        (folder / TEST).unlink()
    job.notes += [
        f"{count:,} rows left out: {job.tool.name} cannot hold {why}"
        for why, count in refused.items()
    ]
    return {f"{job.folder}/{name}": count for name, count in counts.items() if count}


def place(work: Path, folder: Path) -> int:
    """Move every file to its place. Returns how many were there already.

    Raises InputError with every file that is there and differs.
    """
    files = sorted(path for path in work.rglob("*") if path.is_file())
    there = [path for path in files if (folder / path.relative_to(work)).exists()]
    differ = [
        path.relative_to(work).as_posix()
        for path in there
        if not filecmp.cmp(path, folder / path.relative_to(work), shallow=False)
    ]
    if differ:
        raise InputError(
            faults=[
                Fault(
                    where=str(folder / name),
                    what="is there already with another content, and nothing is overwritten",
                    hint="remove it, or choose another folder with --out",
                )
                for name in differ
            ]
        )
    for path in files:
        target = folder / path.relative_to(work)
        if path not in there:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    return len(there)


# --------------------------------------------------------------------------- the page


def page(job: Job) -> str:
    """The text of the file."""
    return "\n".join([*_head(job), "", *_body(job), ""])


def _head(job: Job) -> Iterator[str]:
    stage = job.entry.stage
    what = f"{stage.objective}, {stage.update}" + (
        f" on a base in {stage.quantization}" if stage.quantization else ""
    )
    yield from _commented(
        f"{what} of {job.model}, for {job.tool.title}. Written by finetune-advisor"
        f" {__version__} from the plan {job.plan.name}."
    )
    if job.tool.install:
        yield f"# Install, in an environment of its own:  {job.tool.install}"
    for command in job.before:
        yield f"# First:  {command}"
    yield f"# Start, in this folder:  {start_of(job)}"
    for name, count in job.written.items():
        yield f"# Data:  {name}, {count:,} rows"
    yield from _listed(
        "Not carried over:", [f"{one.key} ({_word(one.value)}): {one.why}" for one in job.lost]
    )
    yield from _listed("Different from `advise run`:", job.notes)


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(dict.fromkeys(lines))
    if lines:
        yield f"# {title}"
    for line in lines:
        yield from _commented(line, first="#  - ", later="#    ")


def _commented(text: str, first: str = "# ", later: str = "# ") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _word(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _body(job: Job) -> Iterator[str]:
    order = {key: place for place, key in enumerate((*MODEL, *DATA))}
    for key, value in sorted(job.values.items(), key=lambda item: order.get(item[0], len(order))):
        because = job.because.get(key, "")
        if isinstance(value, dict) or (isinstance(value, list) and any(map(_nests, value))):
            yield yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).rstrip("\n")
        elif because and len(because) <= LONGEST_REASON:
            yield f"{key}: {_word(value)}  # {because}"
        else:
            yield f"{key}: {_word(value)}"


def _nests(value: Any) -> bool:
    return isinstance(value, dict | list)
