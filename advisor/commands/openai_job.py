"""`advise check JOB.json`: an exported OpenAI fine-tuning job, and what takes its place."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.advice.flips import cheapest_holding
from advisor.advice.types import Advice
from advisor.commands.output import console, print_json, say, with_error
from advisor.commands.session import Stated, advise_on, incomplete, resolve_plan
from advisor.data import profile, unusable
from advisor.estimate.cost import cost_estimate
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.types import DataProfile, GpuSpec, Hardware
from advisor.ground.yaml_reader import Document
from advisor.launch.expected import expect_stage
from advisor.other_tools.openai_job.answers import (
    answers_of,
    assumed,
    data_mapping,
    method_differs,
    task_of,
)
from advisor.other_tools.openai_job.carry import carried, not_carried
from advisor.other_tools.openai_job.files import file_beside
from advisor.other_tools.openai_job.job import Job
from advisor.other_tools.openai_job.report import JobReport, chosen_job
from advisor.other_tools.openai_job.service import openai_service
from advisor.plan.change import set_values
from advisor.plan.comments import BY_SET, comments_after
from advisor.plan.entries import entries
from advisor.plan.model import Comments, Plan
from advisor.plan.write import flat_place
from advisor.plan.write_target import write_plan_file
from advisor.probe import probe
from advisor.probe.catalogue import cheapest_cards
from advisor.render.openai_job import job_json, print_job
from advisor.ruleset.facts import load_facts
from advisor.ruleset.model import Ruleset
from advisor.situation.answers import answers_from_document, answers_from_flags, merge_answers

BY_JOB = "taken from the OpenAI job"


def check_job(
    path: str,
    jobs: Sequence[Job],
    *,
    gpu: str | None = None,
    model: str | None = None,
    mapping: Mapping[str, str] | None = None,
    plan_file: str | None = None,
    as_json: bool = False,
) -> int:
    """Answer for the newest job of a file, write its plan if one was asked for, and print both.

    Args:
        path: The file that holds the jobs.
        jobs: Its jobs.
        gpu: A GPU by its name; None: this machine's, or a rented one if it has none.
        model: The open model to take; None: the suggested one.
        mapping: Role -> column of the training file, where the names do not say it.
        plan_file: Where to write the launch file.

    Returns the exit code: 3 if nothing fits, or a plan was asked for and nothing is trained.

    Raises AdviseError, after the answer was printed, for a plan that cannot be written.
    """
    report, comments = job_report(path, jobs, gpu=gpu, model=model, mapping=mapping)
    refusal = None
    if plan_file is not None and report.plan is not None:
        inputs = [Path(path), *([Path(report.data)] if report.data else [])]
        try:
            write_plan_file(report.plan, comments, Path(plan_file), inputs=inputs, force=False)
        except AdviseError as error:
            refusal = error
        else:
            say(f"wrote {plan_file}; start it with: advise run {shlex.quote(plan_file)}")
    elif plan_file is not None and report.trains:
        refusal = _no_plan(report)
    if as_json:
        document = job_json(report, comments)
        print_json(document if refusal is None else with_error(document, refusal.faults))
    else:
        is_written = plan_file is not None and refusal is None and report.plan is not None
        print_job(report, console(), plan_path=plan_file if is_written else None)
    if refusal is not None:
        raise refusal
    return 3 if plan_file is not None and not report.trains else report.exit_code


def job_report(
    path: str,
    jobs: Sequence[Job],
    *,
    gpu: str | None = None,
    model: str | None = None,
    mapping: Mapping[str, str] | None = None,
) -> tuple[JobReport, Comments]:
    """All that is said of the newest job, and the comments of its plan. See check_job."""
    job, others = chosen_job(jobs)
    columns = dict(mapping or data_mapping(job))
    data = _data_beside(path, job, columns)
    task, taken_from = task_of(job, data.profile)
    stated = answers_of(
        job, path=data.path if data.profile is not None else None, mapping=columns, task=task
    )
    found = _advice({**stated, "model": model}, gpu)
    objectives = tuple(str(stage.objective) for stage in found.advice.recommendation.stages)
    plan, comments, missing = resolve_plan(found.advice, found.ruleset)
    taken = carried(job, objectives)
    report = JobReport(
        path=path,
        job=job,
        others=others,
        service=openai_service(),
        advice=found.advice,
        data=data.path,
        profile=data.profile,
        data_problem=data.problem,
        options=_options(gpu, model, mapping),
        rented=found.rented,
        assumed=tuple(assumed(job, taken_from, task, has_data=data.profile is not None)),
        differs=method_differs(job, objectives),
        carried=taken,
        not_carried=not_carried(job, objectives),
        plan=None,
        missing=tuple(missing),
    )
    if plan is None:
        return report, {}
    settings = [one.setting for one in taken if one.setting]
    changed = set_values(plan, settings)
    # No reason rests on beta, which takes no memory.
    but_beta = set_values(plan, [setting for setting in settings if ".beta=" not in setting])
    reasons = {
        place: text.replace(BY_SET, BY_JOB)
        for place, text in comments_after(comments, plan, but_beta).items()
    }
    for one in taken:
        if one.setting:
            steps = one.setting.partition("=")[0].split(".")
            reasons[flat_place(tuple(map(_step, steps)))] = f"of the OpenAI job: {one.theirs}"
    return _with_cost(replace(report, plan=changed)), reasons


def _options(
    gpu: str | None, model: str | None, mapping: Mapping[str, str] | None
) -> tuple[str, ...]:
    """What was given, as it is typed again."""
    named = [(flag, value) for flag, value in (("--gpu", gpu), ("--model", model)) if value]
    return (
        *(word for pair in named for word in pair),
        *(["--map", *(f"{role}={name}" for role, name in mapping.items())] if mapping else []),
    )


def _step(part: str) -> str | int:
    return int(part) if part.isdigit() else part


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    path: str | None = None
    profile: DataProfile | None = None
    problem: str = ""


def _data_beside(path: str, job: Job, mapping: Mapping[str, str]) -> _Data:
    """The training file, if it lies beside the job, as far as it can be used."""
    file = file_beside(path, job.training_file)
    if file is None:
        return _Data()
    name = os.path.relpath(file) if not file.is_absolute() else str(file)
    try:
        found = profile(name, mapping=mapping or None, strict=False)
    except InputError as error:
        return _Data(path=name, problem=error.text())
    refused = unusable(found)
    return (
        _Data(path=name, profile=found)
        if refused is None
        else _Data(path=name, problem=refused.text())
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Advised:
    advice: Advice
    ruleset: Ruleset
    rented: GpuSpec | None = None


def _advice(stated: Mapping[str, Any], gpu: str | None) -> _Advised:
    """The advice for the machine named, for this one, or for the cheapest GPU to rent that holds
    what would be advised if no machine set limits.
    """
    here = None if gpu is not None else probe()
    if gpu is not None or (here is not None and here.gpus):
        advice, ruleset = _advise(stated, gpu, here)
        return _Advised(advice=advice, ruleset=ruleset)
    free, ruleset = _advise(stated, "unknown", here)
    stages = free.recommendation.stages
    if not stages:  # nothing to train: no reason to rent
        advice, ruleset = _advise(stated, None, here)
        return _Advised(advice=advice, ruleset=ruleset)
    card = cheapest_holding(replace(free.situation, cards=cheapest_cards(0)), stages)
    if card is None:
        return _Advised(advice=free, ruleset=ruleset)
    advice, ruleset = _advise(stated, card.name, here)
    return _Advised(advice=advice, ruleset=ruleset, rented=card)


def _advise(
    stated: Mapping[str, Any], gpu: str | None, here: Hardware | None
) -> tuple[Advice, Ruleset]:
    facts = load_facts()
    document = Document(name="answers", data=stated, key_marks={}, value_marks={})
    answers, warnings = answers_from_document(document, facts)
    if gpu is not None:
        answers = merge_answers(answers, answers_from_flags({"gpu": gpu}, facts)[0])
    return advise_on(Stated(answers=answers, warnings=warnings), probed=here)


def _with_cost(report: JobReport) -> JobReport:
    """The report with the time and the price of its plan: the advice's own are for its epochs."""
    plan, situation = report.plan, report.advice.situation
    assert plan is not None
    total = _duration(plan, report)
    gpus = situation.hardware.gpus
    cost, price = cost_estimate(total, plan.launch.world_size, gpus[0].spec if gpus else None)
    return replace(report, duration_s=total, cost_usd=cost, price=price)


def _duration(plan: Plan, report: JobReport) -> float | None:
    situation = report.advice.situation
    total = 0.0
    for entry in entries(plan):
        expected = expect_stage(
            plan,
            entry,
            situation.model,
            situation.hardware,
            profile=report.profile,
            past=situation.past,
        )
        seconds = expected.duration_s if expected.times is None else expected.times.total_s
        if seconds is None:
            return None
        total += seconds
    return total


def _no_plan(report: JobReport) -> InputError:
    """The error for a plan that was asked for and lacks its data, or something else."""
    if report.data_problem:
        return InputError(
            f"the training file cannot be used: {report.data_problem}",
            where=str(report.data),
            hint=f"advise check {shlex.quote(str(report.data))}",
        )
    if report.data is None:
        folder = Path(report.path).parent
        wanted = Path(report.job.training_file).name
        target = folder / (wanted if "." in wanted else f"{wanted}.jsonl")
        return InputError(
            f"the training file {report.job.training_file} is not beside the job",
            "a plan needs the rows",
            f"save it as {target}: GET /v1/files/{report.job.training_file}/content",
            where=report.path,
        )
    return incomplete(report.missing)
