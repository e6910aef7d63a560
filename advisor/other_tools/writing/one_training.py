"""One training of a plan in the words of another tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from advisor.data.read.hub import is_hub_id
from advisor.other_tools.tables.keys import ToolRelease, keys_of
from advisor.other_tools.tables.mapping import COMMAND, Writing, write
from advisor.other_tools.tables.ours import flat_stage, usual_values
from advisor.other_tools.tables.tool import Tool
from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.rewards import add_rewards
from advisor.other_tools.writing.rows import KINDS, PROMPTS, TEXT, rows_of
from advisor.other_tools.writing.writer import writer_of
from advisor.plan.entries import Entry, entries
from advisor.plan.model import Comments, Plan
from advisor.plan.read import resolve_path

# Said in other words: held-out rows are a file, processes an argument of the start command.
ELSEWHERE = ("holdout", "save_minutes")
MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as P; from transformers import'
    " AutoTokenizer as T; P.from_pretrained('{at}').merge_and_unload().save_pretrained('{to}');"
    " T.from_pretrained('{at}').save_pretrained('{to}')\""
)


class Everything:
    """All names: before the command of a tool's command line is known."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


def job_of(
    tool: Tool,
    release: ToolRelease,
    plan: Plan,
    entry: Entry,
    source: Path,
    comments: Comments,
) -> Job:
    """The training with all that is written for it, but for the rows themselves."""
    stage = entry.stage
    number = [one.name for one in plan.stages].index(stage.name) + 1
    parts = [
        entry.task.name if entry.task else "",
        f"{number}-{stage.name}" if len(plan.stages) > 1 else "",
    ]
    place = ".".join(part for part in parts if part)
    job = Job(
        tool=tool, plan=plan, entry=entry, place=place, model=plan.model, rows=None, layout=None
    )
    _start(job, source)
    path = resolve_path(source, entry.data.path)
    if path.exists() or not is_hub_id(entry.data.path):
        job.rows = rows_of(entry, path)
        job.layout = writer_of(tool.id).layout_of(
            stage.objective, job.rows.traits,
            learn_all=stage.options.get("loss_on") == "all",
            marks=bool(tool.template_of(plan.model)[0]),
        )  # fmt: skip
        job.notes += [*job.rows.notes, *job.layout.notes]
        job.notes += [f"{count:,} rows left out: {why}" for why, count in job.rows.left_out.items()]
    written = _written(job, release)
    job.values, job.lost = written.values, list(written.lost)
    job.command = str(written.aside.get(COMMAND, "train"))
    job.because = {**written.because, **_reasons(plan, entry, written, comments)}
    writer_of(tool.id).complete(job)
    if KINDS[stage.objective] == PROMPTS:
        add_rewards(job)
    job.notes.append("rows come in another order")
    if plan.extra_key("benchmarks", "evaluation") is not None:
        job.notes.append("the benchmarks of `evaluation` are not run")
    return job


def _written(job: Job, release: ToolRelease) -> Writing:
    """The stage in the tool's words."""
    stage = job.entry.stage
    if job.rows is not None:  # what is learned decides, not what it is called
        kind = job.rows.traits.kind
        objective = {"sft": "cpt"} if kind == TEXT else {"cpt": "sft"}
        stage = replace(stage, objective=objective.get(stage.objective, stage.objective))
        if stage.objective != job.entry.stage.objective:
            job.notes.append(
                f"objective {job.entry.stage.objective} is written as {stage.objective}, which is"
                " what these rows are trained by"
            )
    ours = {**flat_stage(job.plan, stage), "model": job.model}
    usual = usual_values(stage.objective, stage.update)
    for key in ELSEWHERE:
        ours.pop(key, None)
    if KINDS[stage.objective] == PROMPTS:  # a file of its own says them
        for key in ("verifier", "pattern"):
            ours.pop(key, None)
    command = write(job.tool, ours, known=Everything(), usual=usual).aside.get(COMMAND, "train")
    known = keys_of(release, str(command))
    found = write(job.tool, ours, known=known, usual=usual)
    found.aside.setdefault(COMMAND, command)
    return found


def _start(job: Job, source: Path) -> None:
    """What the training starts from: the model, a folder, or the result of an earlier one."""
    entry = job.entry
    if entry.starts_from is not None:
        earlier = next(one for one in entries(job.plan) if one.name == entry.starts_from)
        number = [one.name for one in job.plan.stages].index(earlier.stage.name) + 1
        task = f"{entry.task.name}." if entry.task else ""
        folder = f"out/{task}{number}-{earlier.stage.name}"
        if earlier.stage.update == "full":
            job.model = folder
            return
        job.model = f"{folder}-merged"
        job.before.append(MERGE.format(at=folder, to=job.model))
        job.notes.append(
            f"this stage trains a new LoRA on the merged result of {earlier.stage.name}"
        )
        return
    named = entry.start_folder or job.plan.model
    path = resolve_path(source, named)
    job.model = str(path) if path.exists() else named


def _reasons(plan: Plan, entry: Entry, written: Writing, comments: Comments) -> Mapping[str, str]:
    """Their key -> the reason that stands beside ours in the plan."""
    place = [stage.name for stage in plan.stages].index(entry.stage.name)
    found = {}
    for theirs, ours in written.came_from.items():
        said = [comments.get(("stages", place, key), "") for key in ours]
        reason = next((one for one in said if one), "")
        if reason and "." not in theirs:
            found[theirs] = reason
    return found
