"""What `advise check` prints of an OpenAI fine-tuning job, and the same as a JSON document.

First the verdict, then the job, what takes its place and what that needs, what is carried over and
what is not, and the next command.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from advisor.ground.terminal import shown
from advisor.ground.units import format_count, format_duration, format_usd
from advisor.other_tools.openai_job.carry import Carried
from advisor.other_tools.openai_job.job import Job
from advisor.other_tools.openai_job.report import JobReport
from advisor.plan.write import plan_data
from advisor.render.advice_json import advice_document
from advisor.render.answer.flips import told_warnings
from advisor.render.answer.needs import memory_line, time_and_cost
from advisor.render.answer.reasons import reason_text
from advisor.render.answer.steps import first_steps
from advisor.render.words import sentence, what_to_do

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.plan.model import Comments

SCHEMA_VERSION = 1
LABEL = 11  # columns of the labels at the left
ENTRY = "  -"  # before an entry of a list
SHOWN_JOBS, SHOWN_WARNINGS, SHOWN_REASONS = 6, 3, 3
SIZES = "OpenAI publishes no sizes of its models, so none is matched"
Line = tuple[str, str, str]  # label, text, style; without a text the label is a heading


def print_job(report: JobReport, console: Console, *, plan_path: str | None = None) -> None:
    """Print the page, wrapped to the console's width."""
    from rich.text import Text

    for label, text, style in job_lines(report, plan_path=plan_path):
        if not text:
            console.print(Text(shown(label), style))
            continue
        if not label:  # a command is one line, however long, so that it can be copied
            is_command = text.startswith(("  ", "Next: "))
            console.print(Text(shown(text), style), soft_wrap=is_command)
            continue
        width = len(label) if label == ENTRY else LABEL
        lines = Text(shown(text)).wrap(console, max(20, console.width - width - 1), overflow="fold")
        for place, line in enumerate(lines):
            line.rstrip()
            lead = Text((shown(label) if place == 0 else "").ljust(width + 1), "dim")
            console.print(lead.append(line.plain, style))


def job_lines(report: JobReport, *, plan_path: str | None = None) -> list[Line]:
    """The page, one paragraph a line."""
    lines: list[Line] = [("", verdict(report), "bold"), ("", "", "")]
    lines += [("The job", "", "bold"), *_labelled(_job(report))]
    lines += [("", "", ""), ("What takes its place", "", "bold"), *_labelled(_instead(report))]
    for title, parts in (
        ("Carried over", report.carried),
        ("Not carried over", report.not_carried),
    ):
        if parts and report.trains:
            lines += [("", "", ""), (title, "", "bold")]
            lines += [(ENTRY, f"{one.theirs} -> {one.ours}", "") for one in _together(parts)]
    lines += [("", "", ""), *(("", text, "") for text in _next(report, plan_path))]
    return lines


def _labelled(parts: Iterator[tuple[str, str]]) -> list[Line]:
    return [(f"  {label}", text, "yellow" if label == "Warning" else "") for label, text in parts]


def _together(parts: Sequence[Carried]) -> list[Carried]:
    """The parts with one entry for a value that goes to several stages."""
    found: dict[str, Carried] = {}
    for one in parts:
        before = found.get(one.theirs)
        ours = one.ours if before is None else f"{before.ours}, {one.ours}"
        found[one.theirs] = Carried(theirs=one.theirs, ours=ours, setting=one.setting)
    return list(found.values())


# --------------------------------------------------------------------------- the verdict


def verdict(report: JobReport) -> str:
    """The first line: what takes the place of the model, on which machine, for how long and how
    much.
    """
    if not report.trains:
        return what_to_do(report.advice)
    advice = report.advice
    model = advice.situation.model
    name = model.id if model is not None else "an open model"
    how = str(advice.recommendation.composition)
    takes = [text for text in (_time(report), _cost(report)) if text]
    about = f": about {' and '.join(takes)}" if takes else ""
    return sentence(f"{name} ({how}) takes the place of {report.job.model}{_on(report)}{about}")


def _on(report: JobReport) -> str:
    gpus = report.advice.situation.hardware.gpus
    if not gpus:
        return ""
    name = gpus[0].spec.name if gpus[0].spec is not None else gpus[0].name
    count = "one" if len(gpus) == 1 else str(len(gpus))
    return f" on {count} {'rented ' if report.rented else ''}{name}"


def _time(report: JobReport) -> str:
    if report.plan is not None:
        return "" if report.duration_s is None else format_duration(report.duration_s)
    times = report.advice.recommendation.estimate.times
    return "" if times is None else format_duration(times.total_s)


def _cost(report: JobReport) -> str:
    if report.advice.situation.hardware.origin == "probed":
        return ""
    if report.plan is not None:
        return "" if report.cost_usd is None else format_usd(report.cost_usd)
    usd = report.advice.recommendation.estimate.cost_usd
    return "" if usd is None else format_usd(usd)


# --------------------------------------------------------------------------- the job


def _job(report: JobReport) -> Iterator[tuple[str, str]]:
    job = report.job
    yield "Job", " ".join(part for part in (job.id or "a request to start one", job.where) if part)
    yield "Model", job.model + (f", tuned as {job.tuned}" if job.tuned else "")
    epochs = f", {job.epochs} epoch{'s' if job.epochs != 1 else ''}" if job.epochs else ""
    tokens = f", {job.trained_tokens:,} tokens trained" if job.trained_tokens else ""
    yield "Method", f"{job.method}{epochs}{tokens}"
    if job.status and job.status != "succeeded":
        why = f": {job.error}" if job.error else ""
        yield "Status", f"{job.status}{why}"
    yield "Ends", _ends(report)
    yield "Data", _data(report)
    if report.others:
        few = "; ".join(map(_short, report.others[:SHOWN_JOBS]))
        more = len(report.others) - SHOWN_JOBS
        rest = f"; and {more} more" if more > 0 else ""
        yield (
            "Others",
            f"{few}{rest}. This answer is for the newest that succeeded; for another one save it"
            " in a file of its own",
        )


def _short(job: Job) -> str:
    return " ".join(part for part in (job.id or job.where, job.model, job.status or "") if part)


def _ends(report: JobReport) -> str:
    day = report.service.last_day(report.job.model)
    models = (
        f"; models tuned from {report.job.model} answer until {day}"
        if day is not None
        else "; a tuned model answers as long as its base model does"
    )
    url = report.service.source.url
    return (
        f"new jobs until {report.service.new_jobs_until}, for those who still have access{models}"
        f" ({url})"
    )


def _data(report: JobReport) -> str:
    if report.data_problem:
        return f"{report.data} cannot be used: {report.data_problem}"
    if report.profile is not None:
        profile = report.profile
        tokens = f", {format_count(profile.tokens.total)} tokens" if profile.tokens else ""
        return f"{report.data}: {profile.rows:,} rows{tokens} ({profile.format})"
    return (
        f"{report.job.training_file} is not here. Save it beside the job under this name:"
        f" GET /v1/files/{report.job.training_file}/content"
    )


# --------------------------------------------------------------------------- what takes its place


def _instead(report: JobReport) -> Iterator[tuple[str, str]]:
    advice = report.advice
    situation = advice.situation
    if report.trains and situation.suggestion is None and situation.model is not None:
        yield "Model", f"{situation.model.id}, as named"
    if report.trains and situation.suggestion is not None:
        because = situation.suggestion.because
        yield (
            "Model",
            f"{situation.suggestion.model}: {because}. {SIZES}: it is suggested by task, language"
            " and machine",
        )
    if not report.trains:
        for reason in advice.recommendation.because[:SHOWN_REASONS]:
            yield "Why", sentence(reason_text(reason))
    else:
        yield "Method", what_to_do(advice)
        yield "Machine", _machine(report)
        yield "Memory", memory_line(advice)
        time, cost = time_and_cost(advice)
        if report.plan is not None and report.duration_s is not None:
            time, cost = format_duration(report.duration_s), _plan_cost(report) or cost
        yield "Time", time
        yield "Cost", cost
    if report.differs:
        yield "Note", report.differs
    for text in report.assumed:
        yield "Assumed", text
    for text in told_warnings(advice)[:SHOWN_WARNINGS]:
        yield "Warning", sentence(text)


def _plan_cost(report: JobReport) -> str:
    if report.cost_usd is None or report.advice.situation.hardware.origin == "probed":
        return ""
    return f"{format_usd(report.cost_usd)}: {report.price}"


def _machine(report: JobReport) -> str:
    hardware = report.advice.situation.hardware
    gpus = hardware.gpus
    if report.rented is not None:
        return (
            f"{report.rented.name}, rented: the cheapest GPU of the catalogue that holds it, since"
            " this machine has none; --gpu NAME names another"
        )
    if hardware.kind == "unknown":
        return "not known: --gpu NAME says it"
    if not gpus:
        return "this computer's processor"
    name = gpus[0].spec.name if gpus[0].spec is not None else gpus[0].name
    own = "this machine's" if hardware.origin == "probed" else "as named"
    return f"{len(gpus)} x {name} ({own})"


def _next(report: JobReport, plan_path: str | None) -> Iterator[str]:
    rented = () if report.rented is None else ("--gpu", report.rented.name)
    again = shlex.join(["advise", "check", report.path, *report.options, *rented, "--plan"])
    if plan_path is not None:
        yield f"Next: advise run {shlex.quote(plan_path)}"
    elif report.data_problem:
        yield f"Next: advise check {shlex.quote(str(report.data))}"
    elif report.data is None:
        yield "Save the training file beside the job, then"
        yield f"Next: {again} plan.yaml"
    elif report.trains:
        yield f"Next: {again} plan.yaml"
    if not report.trains:
        yield from _without_training(report)


def _without_training(report: JobReport) -> Iterator[str]:
    """What to do where nothing is trained, and how to train all the same."""
    for item in first_steps(report.advice):
        yield item.text
        yield from (f"  {command}" for command in item.commands)
    trained = [one for one in report.advice.alternatives if one.composition.chain]
    if report.advice.fits and report.profile is not None and trained:
        words = ["advise", "--task", str(report.advice.facts.get("task")), "--data"]
        words += [str(report.data), *report.options, "--signal", "prompting_tried"]
        words += ["--choose", str(trained[0].composition), "--force", "--plan", "plan.yaml"]
        yield "To train all the same:"
        yield f"  {shlex.join(words)}"


# --------------------------------------------------------------------------- JSON


def job_json(report: JobReport, comments: Comments) -> dict[str, Any]:
    """The report as plain values; `advice` is what `advise --json` prints."""
    job = report.job
    plan = None if report.plan is None else plan_data(report.plan, comments)
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict(report),
        "job": {
            "file": report.path,
            "id": job.id,
            "model": job.model,
            "tuned": job.tuned,
            "method": job.method,
            "status": job.status,
            "epochs": job.epochs,
            "trained_tokens": job.trained_tokens,
            "training_file": job.training_file,
            "training_file_here": report.data,
        },
        "other_jobs": [
            {"id": other.id, "model": other.model, "status": other.status}
            for other in report.others
        ],
        "service": {
            "new_jobs_until": report.service.new_jobs_until,
            "answers_until": report.service.last_day(job.model),
            "source": report.service.source.url,
        },
        "machine": {
            "rented": report.rented is not None,
            "hours": None if report.duration_s is None else round(report.duration_s / 3600, 4),
            "usd": None if report.cost_usd is None else round(report.cost_usd, 4),
            "price": report.price,
        },
        "data_problem": report.data_problem or None,
        "assumed": list(report.assumed),
        "differs": report.differs or None,
        "carried": [{"theirs": one.theirs, "ours": one.ours} for one in report.carried],
        "not_carried": [{"theirs": one.theirs, "because": one.ours} for one in report.not_carried],
        "advice": advice_document(report.advice, plan=plan, missing=list(report.missing)),
    }
