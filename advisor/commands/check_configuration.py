"""`advise check` of another tool's configuration: what it does, whether it fits, what is wrong."""

from __future__ import annotations

from pathlib import Path

from advisor.commands.output import console, print_json, put, with_error
from advisor.ground.errors import Fault


def is_configuration(path: str) -> bool:
    """Whether the file is taken as a configuration, not as data."""
    if Path(path).suffix.lower() in (".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".md", ""):
        return False  # most data, without a look
    from advisor.other_tools.recognise import looks_like_configuration

    return looks_like_configuration(Path(path))


def check_configuration(path: str, *, gpu: str | None, plan: str | None, as_json: bool) -> int:
    """Check one configuration and print what was found. Returns the exit code.

    Args:
        gpu: The GPU that it has to fit; None: this machine's.
        plan: Where to write it as a plan; None: nowhere.
        as_json: Print one JSON document.

    Raises InputError for a file that cannot be read as one.
    """
    from advisor.other_tools.file import read_file
    from advisor.other_tools.page import configuration_json, print_configuration, write_carried
    from advisor.other_tools.report import report_on
    from advisor.probe import probe, stated_hardware

    file = read_file(path)
    notes: tuple[str, ...] = ()
    if gpu is None:
        hardware = probe()
    else:
        hardware, notes = stated_hardware(gpu, from_flag=True)
    report = report_on(file, hardware, notes)
    written = None if plan is None else write_carried(report, Path(plan))
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
