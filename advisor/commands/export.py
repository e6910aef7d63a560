"""`advise export`: the result of a run in another form."""

from __future__ import annotations

from pathlib import Path

import click

from advisor.commands.tools import (
    TORCH_PACKAGES,
    device_of,
    find_run,
    newest_run,
    refuse_without,
    run_tool,
)
from advisor.ground.errors import InputError, nearest

FORMS = ("merged",)


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@click.option(
    "--to",
    required=True,
    metavar="FORM",
    help="`merged`: a LoRA result as one plain model, compared with the unmerged one.",
)
@click.option(
    "--out", metavar="FOLDER", help="Where to write it; default: export/FORM in the run folder."
)
@click.option("--only", metavar="NAME", help="Export only this task or stage.")
@click.pass_context
def export(
    context: click.Context, run: str | None, to: str, out: str | None, only: str | None
) -> None:
    """Write the result of a run in another form.

    Without a run it takes the newest one under ./runs.
    """
    if to not in FORMS:
        raise InputError(
            f"--to {to}: unknown form",
            allowed=f"forms: {', '.join(FORMS)}",
            hint=nearest(to, FORMS),
        )
    folder = find_run(run) if run else newest_run(Path.cwd())
    target = Path(out).expanduser().absolute() if out else folder / "export" / to
    refuse_without(TORCH_PACKAGES, "`advise export`")
    done = run_tool(
        "merge",
        str(folder),
        "--out",
        str(target),
        "--device",
        device_of(folder),
        *(["--only", only] if only else []),
    )
    context.exit(done.returncode)
