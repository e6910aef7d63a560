"""`advise export`: a plan or the result of a run in another form."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.commands.options import json_option
from advisor.commands.output import SCHEMA_VERSION, print_json, refuse_without, run_tool, say
from advisor.export.exporter import ExportRequest, Form, exporters
from advisor.ground.errors import InputError, did_you_mean
from advisor.ground.extras import all_extras
from advisor.ground.files import PLAN_FILE
from advisor.record.files import find_run, newest_run


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


@click.command(epilog=FORMS)
@click.argument("source", required=False, metavar="[PLAN|RUN]", type=click.Path())
@click.option("--to", required=True, metavar="FORM", help="One of the forms below.")
@click.option(
    "--out",
    metavar="PATH",
    type=click.Path(),
    help="Where to write it: a folder, or NAME.tar.gz for a bundle; default: the current folder"
    " for a plan, export/FORM in the run folder for a run.",
)
@click.option("--only", metavar="NAME", help="Export only this task or stage.")
@json_option
@click.pass_context
def export(
    context: click.Context,
    source: str | None,
    to: str,
    out: str | None,
    only: str | None,
    as_json: bool,
) -> None:
    """Write a plan or the result of a run in another form.

    Without a name it takes ./plan.yaml, or the newest run under ./runs.
    """
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
    place = _source(found, source)
    refuse_without(found.NEEDS, "`advise export`")
    messages: list[str] = []

    def tell(line: str) -> None:
        messages.append(line)
        say(line)

    wanted = ExportRequest(
        source=place,
        out=Path(out).expanduser().absolute() if out else None,
        only=only,
        say=tell,
        run_tool=lambda name, *arguments: run_tool(name, *arguments).returncode,
        form=name,
        variant=variant,
    )
    code = found.export(wanted)
    if as_json:
        document = {"schema_version": SCHEMA_VERSION, "form": to, "source": str(place)}
        print_json(document | wanted.document | {"messages": messages})
    context.exit(code)


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
