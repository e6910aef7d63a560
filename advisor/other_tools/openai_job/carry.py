"""What of a job goes into a plan, and what does not, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.ground.files import folder_name
from advisor.other_tools.openai_job.job import Job

# Graders whose answer `verifier: exact` gives too.
EXACT = ("eq",)
LARGEST_SEED = 2**32 - 1  # of numpy
PRACTICE = ("grpo", "rloo", "ppo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What becomes of one value of a job."""

    theirs: str  # "n_epochs: 3"
    ours: str  # "epochs: 3", or why nothing is
    setting: str | None = None  # for the plan: "stages.0.epochs=3"


def carried(job: Job, objectives: Sequence[str]) -> tuple[Carried, ...]:
    """What a plan with these stages takes over, in the order of the plan."""
    found = []
    name = folder_name(job.suffix or "")
    if name:
        found.append(
            Carried(theirs=f"suffix: {job.suffix}", ours=f"name: {name}", setting=f"name={name}")
        )
    at = main_stage(job, objectives)
    if at is None:
        return tuple(found)
    stage = objectives[at]
    if job.epochs is not None and stage not in PRACTICE:
        found.append(
            Carried(
                theirs=f"n_epochs: {job.epochs}",
                ours=f"epochs: {job.epochs} ({stage})",
                setting=f"stages.{at}.epochs={job.epochs}",
            )
        )
    if job.beta is not None and stage == "dpo":
        found.append(
            Carried(
                theirs=f"beta: {job.beta:g}",
                ours=f"beta: {job.beta:g} (dpo)",
                setting=f"stages.{at}.beta={job.beta}",
            )
        )
    if job.seed is not None and 0 <= job.seed <= LARGEST_SEED:
        found += [
            Carried(
                theirs=f"seed: {job.seed}",
                ours=f"seed: {job.seed} ({objective})",
                setting=f"stages.{place}.seed={job.seed}",
            )
            for place, objective in enumerate(objectives)
        ]
    return tuple(found)


def main_stage(job: Job, objectives: Sequence[str]) -> int | None:
    """The stage that does what the job did: the one of its method, else the last."""
    wanted = {"supervised": "sft", "dpo": "dpo", "reinforcement": "grpo"}[job.method]
    if wanted in objectives:
        return list(objectives).index(wanted)
    return len(objectives) - 1 if objectives else None


def not_carried(job: Job, objectives: Sequence[str]) -> tuple[Carried, ...]:
    """What has no place in a plan, and what stands there instead."""
    found = []

    def lost(theirs: str, why: str) -> None:
        found.append(Carried(theirs=theirs, ours=why))

    if job.tuned:
        lost(job.tuned, "its weights stay with OpenAI: the training starts anew from the data")
    if job.started_from:
        lost(
            job.started_from,
            "the job went on from a tuned model: put the data of that job before these, or into"
            " the same file",
        )
    at = main_stage(job, objectives)
    for key in job.automatic:
        lost(f"{key}: auto", "chosen by OpenAI; here by the rules")
    if job.epochs is not None and at is not None and objectives[at] in PRACTICE:
        lost(f"n_epochs: {job.epochs}", "how long to practise is chosen by the rules, in steps")
    if job.batch_size is not None:
        lost(
            f"batch_size: {job.batch_size}",
            "goes with their learning rate; here both are chosen together",
        )
    if job.rate_multiplier is not None:
        lost(
            f"learning_rate_multiplier: {job.rate_multiplier:g}",
            "a factor on a learning rate that OpenAI does not publish",
        )
    if job.beta is not None and (at is None or objectives[at] != "dpo"):
        lost(f"beta: {job.beta:g}", "no stage of the plan reads it")
    if job.seed is not None and not 0 <= job.seed <= LARGEST_SEED:
        lost(f"seed: {job.seed}", "no seed that a trainer takes; the plan has its own")
    for key, value in job.more.items():
        lost(f"{key}: {value}", "a setting of OpenAI's practice; the plan has its own")
    if job.grader is not None:
        lost(*_grader(job))
    if job.validation_file:
        lost(
            f"validation_file: {job.validation_file}",
            "a run holds out rows of the training file; look for rows in both:"
            " `advise check FILE --eval VALIDATION_FILE`",
        )
    for name in job.integrations:
        lost(f"integrations: {name}", "metrics are in metrics.jsonl and report.html of the run")
    if job.unread:
        lost(", ".join(job.unread), "not known to this version, not read")
    return tuple(found)


def _grader(job: Job) -> tuple[str, str]:
    grader = job.grader or {}
    kind = str(grader.get("type", "?"))
    if kind == "string_check" and grader.get("operation") in EXACT:
        return "grader: string_check eq", "the plan's `verifier: exact` compares with the same text"
    return (
        f"grader: {kind}",
        "write it as a function and name it in the plan: `reward: file.py:function`"
        " (docs/rewards.md)",
    )
