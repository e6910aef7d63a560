"""One training of a plan in the words of another tool."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from advisor.data.read.hub import is_hub_id
from advisor.extras.other_tools.job import Job
from advisor.extras.other_tools.mapping import COMMAND, Writing, flat_stage, usual_values, write
from advisor.extras.other_tools.rows import KINDS, PROMPTS, TEXT, Layout, Traits, rows_of
from advisor.extras.other_tools.tool import Tool
from advisor.ground.errors import Fault
from advisor.ground.resources import trainers_root
from advisor.methods.stage import Stage
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


class Writer(Protocol):
    """What is written for one tool alone: a module of tools/ with the name of the tool."""

    def complete(self, job: Job) -> None:
        """Add the keys that no key of a plan stands beside: data, evaluation, output, processes."""

    def layout_of(self, objective: str, traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
        """How the rows of a stage are written.

        Args:
            learn_all: The loss is on every token (`loss_on: all`).
            marks: The tool has a template of this model in which the answers are marked.
        """

    def start_of(self, job: Job, command: str) -> str:
        """The command that trains it, with what several processes need."""


def writer_of(tool: str) -> Writer:
    """The writer of a tool, by its id."""
    return cast(Writer, import_module(f"advisor.extras.other_tools.tools.{tool}"))


def start_of(job: Job) -> str:
    """The command that trains it, in the folder of the export."""
    command = job.tool.start.format(file=job.file, command=job.command)
    return writer_of(job.tool.id).start_of(job, command)


def job_of(tool: Tool, plan: Plan, entry: Entry, source: Path, comments: Comments) -> Job:
    """The training with all that is written for it, but for the rows themselves."""
    stage = entry.stage
    parts = [entry.task.name] if entry.task else []
    if len(plan.stages) > 1:
        parts.append(_numbered(plan, stage))
    job = Job(tool=tool, plan=plan, entry=entry, place=".".join(parts), model=plan.model)
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
    written = _written(job)
    job.values, job.lost = written.values, list(written.lost)
    job.command = str(written.aside.get(COMMAND, "train"))
    job.because = {**written.because, **_reasons(plan, entry, written, comments)}
    writer_of(tool.id).complete(job)
    if KINDS[stage.objective] == PROMPTS:
        _add_rewards(job)
    job.notes.append("rows come in another order")
    if plan.extra_key("benchmarks", "evaluation") is not None:
        job.notes.append("the benchmarks of `evaluation` are not run")
    return job


def _numbered(plan: Plan, stage: Stage) -> str:
    return f"{[one.name for one in plan.stages].index(stage.name) + 1}-{stage.name}"


def _written(job: Job) -> Writing:
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
    # A file of its own says the rewards.
    said = ELSEWHERE + (("verifier", "pattern") if KINDS[stage.objective] == PROMPTS else ())
    ours = {key: value for key, value in ours.items() if key not in said}
    usual = usual_values(stage.objective, stage.update)
    command = write(job.tool, ours, command=None, usual=usual).aside.get(COMMAND, "train")
    return write(job.tool, ours, command=str(command), usual=usual)


def _start(job: Job, source: Path) -> None:
    """What the training starts from: the model, a folder, or the result of an earlier one."""
    entry = job.entry
    if entry.starts_from is not None:
        earlier = next(one for one in entries(job.plan) if one.name == entry.starts_from)
        task = f"{entry.task.name}." if entry.task else ""
        folder = f"out/{task}{_numbered(job.plan, earlier.stage)}"
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


# --------------------------------------------------------------------------- rewards

# Verifier -> its call, and what it needs of trainers/rewards/verifiers.py.
VERIFIERS = {
    "exact": (
        "same_answer(text, expected)",
        ("same_answer", "final_answer", "plain_text", "number", "NUMBER", "BOXED"),
    ),
    "regex": ("matches(text, PATTERN, expected)", ("matches",)),
    "format": ("matches_all(text, PATTERN, expected)", ("matches_all",)),
}
OTHER_REWARDS = ("reward_model", "reward", "rewards", "schema", "overlong_tokens", "ngram")


def rewards_fault(stage: Stage, place: str, hint: str) -> Fault | None:
    """Why the rewards of a stage cannot be written; None if they can."""
    verifier = stage.options.get("verifier") or "exact"
    other = [key for key in OTHER_REWARDS if stage.options.get(key) is not None]
    if not other and verifier in VERIFIERS:
        return None
    named = other[0] if other else f"verifier: {verifier}"
    allowed = f"verifier: {', '.join(VERIFIERS)}"
    return Fault(where=place, what=f"`{named}` is not written for TRL", allowed=allowed, hint=hint)


def _add_rewards(job: Job) -> None:
    """The Python file of the rewards, which TRL imports, and the key that names it."""
    options = job.entry.stage.options
    text = _reward_file(options.get("verifier") or "exact", options.get("pattern"))
    job.files["rewards.py"] = text
    job.put("reward_funcs", ["rewards.reward"], "rewards.py beside this file")


def _reward_file(verifier: str, pattern: Any) -> str:
    """The verifier of the trainers, word for word, and one function for the stage; it needs nothing
    but Python.
    """
    call, needed = VERIFIERS[verifier]
    source = (trainers_root() / "trainers" / "rewards" / "verifiers.py").read_text("utf-8")
    parts = []
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if getattr(node, "name", getattr(target, "id", "")) in needed:
            parts.append(ast.get_source_segment(source, node) or "")
    constant = [f"PATTERN = {pattern!r}"] if pattern is not None else []
    return "\n\n\n".join(
        [
            '"""The reward of an answer: what the verifier of the plan gives."""\n\n'
            "import math\nimport re",
            *constant,
            *parts,
            "def reward(completions, answer=None, **columns):\n"
            '    """1 for each answer that the verifier accepts, else 0."""\n'
            "    scores = []\n"
            "    for place, written in enumerate(completions):\n"
            "        text = written if isinstance(written, str) else written[-1]['content']\n"
            "        expected = answer[place] if answer is not None else ''\n"
            f"        scores.append(1.0 if {call} else 0.0)\n"
            "    return scores\n",
        ]
    )
