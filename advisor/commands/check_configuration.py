"""`advise check` of another tool's configuration: what it does, whether it fits, what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advisor.commands.output import console, print_json, put, with_error
from advisor.ground.errors import Fault


def is_configuration(path: str) -> bool:
    """Whether the file is taken as a configuration, not as data."""
    if Path(path).suffix.lower() in (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".md", ""):
        return False  # most data, without a look
    if Path(path).suffix.lower() in (".yaml", ".yml") and not Path(path).exists():
        return True  # no data have such a name: whoever reads it says that it is not there
    from advisor.other_tools.reading.recognise import looks_like_configuration

    return looks_like_configuration(path)


def check_configuration(path: str, *, gpu: str | None, plan: str | None, as_json: bool) -> int:
    """Check one configuration and print what was found. Returns the exit code.

    Args:
        gpu: The GPU that it has to fit; None: this machine's.
        plan: Where to write it as a plan; None: nowhere.
        as_json: Print one JSON document.

    Raises InputError for a file that cannot be read as one.
    """
    from advisor.other_tools.checking.assemble import report_on
    from advisor.other_tools.reading.file import read_file
    from advisor.probe import probe, stated_hardware
    from advisor.render.configuration_page import configuration_json, print_configuration

    file = read_file(path)
    notes: tuple[str, ...] = ()
    if gpu is None:
        hardware = probe()
    else:
        hardware, notes = stated_hardware(gpu, from_flag=True)
    report = report_on(file, hardware, notes)
    written = None
    if plan is not None:
        from advisor.other_tools.checking.plan_file import write_carried

        written = write_carried(report, Path(plan))
    if as_json:
        document = configuration_json(report)
        if written is not None:
            document["plan_file"] = str(written.path)
        print_json(with_error(document, _refusals(report)) if report.exit_code == 2 else document)
    else:
        print_configuration(report, console())
        for line in () if written is None else written.lines:
            put(line)
    return report.exit_code


def _refusals(report: Any) -> list[Fault]:
    """What keeps the tool from starting, as faults."""
    return [Fault(where=one.where, what=one.text) for one in report.findings if one.refused]
