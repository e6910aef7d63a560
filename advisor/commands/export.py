"""`advise export`: a plan or the result of a run in another form."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from advisor.advice.planning import ENGINE, make_plan, missing_for_plan
from advisor.advice.types import Advice
from advisor.commands.choosing import incomplete
from advisor.commands.options import (
    AdviceOptions,
    Sections,
    answer_options,
    choose_option,
    completed,
    json_option,
    rule_options,
)
from advisor.commands.output import (
    SCHEMA_VERSION,
    print_json,
    refuse_without,
    run_tool,
    say,
    with_error,
)
from advisor.commands.session import advise_on, choose_candidate, read_answers
from advisor.export.exporter import ExportRequest, Form, exporters
from advisor.ground.errors import Fault, InputError, did_you_mean
from advisor.ground.extras import all_extras
from advisor.ground.files import PLAN_FILE
from advisor.plan.model import Plan
from advisor.record.files import find_run, newest_run
from advisor.ruleset.model import Ruleset


def _forms(takes: str) -> str:
    lines = [f"  {name:13} {one.HELP}" for name, one in exporters().items() if takes == one.TAKES]
    return "\n".join(lines)


# \b: click leaves the lines of the paragraph as they are.
FORMS = f"""\b
Forms of a plan:
{_forms("plan")}

\b
Forms of a run's result:
{_forms("run")}
"""


@click.command(cls=Sections, epilog=FORMS)
@click.argument("source", required=False, metavar="[PLAN|RUN]", type=click.Path())
@click.option(
    "--to",
    required=True,
    metavar="FORM",
    help="One of the forms below.",
    shell_complete=completed(exporters),
)
@click.option(
    "--out",
    metavar="PATH",
    type=click.Path(),
    help="Where to write it: a folder, or NAME.tar.gz for a bundle; default: the current folder"
    " for a plan, export/FORM in the run folder for a run.",
)
@click.option("--only", metavar="NAME", help="Export only this task or stage.")
@answer_options
@choose_option
@click.option("--force", is_flag=True, help="Take what --choose names although it ranks lower.")
@rule_options
@json_option
@click.pass_context
def export(
    context: click.Context,
    /,
    source: str | None,
    to: str,
    out: str | None,
    only: str | None,
    **options: Any,
) -> None:
    """Write a plan or the result of a run in another form.

    Without a name it takes ./plan.yaml, or the newest run under ./runs. Answers and flags in place
    of a plan advise first, and write what is recommended.
    """
    given = AdviceOptions.of(options)
    as_json = given.as_json
    name, colon, variant = to.partition(":")
    for line in all_extras().warnings():
        say(line)
    found = exporters().get(name)
    if found is None:
        raise InputError(
            f"unknown form '{name}'",
            where="--to",
            allowed=f"forms: {', '.join(exporters())}",
            hint=did_you_mean(name, exporters()),
        )
    if colon and not (variant and found.VARIANTS):
        raise InputError(
            f"--to {to}: {name} has no variant '{variant}'", where="--to", allowed=f"--to {name}"
        )
    if out is not None and not out.strip():
        raise InputError("--out is empty", where="--out", allowed="a path that is not there yet")
    plan = _advised(given, found, source) if given.states_answers else None
    place = _source(found, source) if plan is None else Path(PLAN_FILE)
    refuse_without(found.NEEDS, "`advise export`")
    messages: list[str] = []
    faults: list[Fault] = []

    def tell(line: str) -> None:
        messages.append(line)
        say(line)

    def tool(name: str, *arguments: str) -> int:
        if not as_json:
            return run_tool(name, *arguments).returncode
        done = run_tool(name, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if told := done.stderr.rstrip():
            say(told)
        for line in done.stdout.splitlines():
            tell(line)
        if done.returncode:
            what, *more = done.stderr.rpartition("error: ")[2].strip().splitlines()[:4] or [name]
            faults.append(Fault(what=what, hint="; ".join(map(str.strip, more))))
        return done.returncode

    wanted = ExportRequest(
        source=place,
        plan=plan,
        out=Path(out).expanduser().absolute() if out else None,
        only=only,
        say=tell,
        run_tool=tool,
        form=name,
        variant=variant,
    )
    code = found.export(wanted)
    if as_json:
        document = {"schema_version": SCHEMA_VERSION, "form": to, "source": str(place)}
        document |= wanted.document | {"messages": messages}
        if code and not faults:
            faults.append(Fault(what=messages[-1] if messages else f"--to {to} failed"))
        print_json(with_error(document, faults) if code else document)
    context.exit(code)


def _advised(given: AdviceOptions, form: Form, source: str | None) -> Plan:
    """The plan of what is recommended for these answers, also where another engine trains it."""
    if source is not None or not form.ANSWERS:
        what = "both a plan and answers are given" if source else "answers are given"
        taken = "a run" if form.TAKES == "run" else "a plan" if source else "a written plan"
        able = ", ".join(name for name, one in exporters().items() if one.ANSWERS)
        raise InputError(
            f"{what}: --to {form.NAME} takes {taken}",
            where="--to",
            allowed=f"answers in place of a plan: {able}",
            hint="`advise` with the same answers and --plan plan.yaml writes a plan",
        )
    stated = read_answers(given.answers_file, given.flags, given.rule_layers)
    advice, ruleset = advise_on(stated, given.rule_layers, online=True)
    advice = choose_candidate(advice, ruleset, given.choose, force=given.force)
    say(f"recommended: {advice.recommendation.composition}")
    return _plan(advice, ruleset)


def _plan(advice: Advice, ruleset: Ruleset) -> Plan:
    """The plan of the recommended candidate for another tool's file, whoever trains it; without a
    path if no data file is named.

    Raises InputError for what it lacks besides.
    """
    candidate = advice.recommendation
    if not candidate.composition.chain:
        raise incomplete([], advice)
    ours = replace(candidate, stages=tuple(replace(one, engine=None) for one in candidate.stages))
    missing = [one for one in missing_for_plan(advice, ours) if one not in (ENGINE, "data.path")]
    if missing:
        raise incomplete(missing, advice)
    return make_plan(advice, candidate, ruleset)[0]


def _source(form: Form, named: str | None) -> Path:
    if form.TAKES == "run":
        return find_run(named) if named else newest_run(Path.cwd())
    if named is None and not Path(PLAN_FILE).exists():
        raise InputError(
            f"there is no ./{PLAN_FILE}",
            allowed="a plan, named before --to",
            hint="`advise` asks the questions and writes a plan",
        )
    path = Path(named or PLAN_FILE).expanduser()
    return path / PLAN_FILE if path.is_dir() else path  # a run folder stands for its plan
