"""`advise check` of another tool's configuration: what it does, whether it fits, what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advisor.commands.options import refuse_unused
from advisor.commands.output import console, print_json, put, with_error
from advisor.ground.errors import Fault

DATA_OPTIONS = {
    "--map": "mapping", "--eval": "evaluation", "--model": "model", "--template": "template",
    "--seq-len": "seq_len", "--full": "full",
}  # fmt: skip


def check_configuration(
    path: str, *, gpu: str | None, plan_file: str | None, as_json: bool, **of_data: Any
) -> int:
    """Check one configuration and print what was found. Returns the exit code.

    Args:
        gpu: The GPU that it has to fit; None: this machine's.
        plan_file: Where to write it as a plan; None: nowhere.
        as_json: Print one JSON document.
        of_data: The options that are about data.

    Raises InputError for a file that cannot be read as one, and for options of data.
    """
    from advisor.extras.other_tools.file import read_file
    from advisor.extras.other_tools.page import (
        configuration_json,
        print_configuration,
        write_carried,
    )
    from advisor.extras.other_tools.report import report_on
    from advisor.probe import probe, stated_hardware

    given = {flag: of_data.get(name) or None for flag, name in DATA_OPTIONS.items()}
    given["--show-row"] = of_data.get("show_row")  # row 0 was asked for too
    refuse_unused(given, "a configuration; it names its own model, data and lengths")
    file = read_file(path)
    notes: tuple[str, ...] = ()
    if gpu is None:
        hardware = probe()
    else:
        hardware, notes = stated_hardware(gpu, from_flag=True)
    report = report_on(file, hardware, notes)
    written = None if plan_file is None else write_carried(report, Path(plan_file))
    if as_json:
        document = configuration_json(report)
        if written is not None:
            document["plan_file"] = str(written.path)
        refused = [Fault(where=one.where, what=one.text) for one in report.findings if one.refused]
        print_json(with_error(document, refused) if refused else document)
    else:
        print_configuration(report, console())
        for line in () if written is None else written.lines:
            put(line)
    return report.exit_code
