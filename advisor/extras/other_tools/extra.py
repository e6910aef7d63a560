"""Configurations of TRL, LLaMA-Factory and Axolotl, read and written, files for Unsloth, and Python
code that trains, read (docs/other_tools.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from advisor.extras.protocol import Catalogue, Extra, Form

TOOLS = {"trl": "TRL", "llamafactory": "LLaMA-Factory", "axolotl": "Axolotl"}
RULES = ("findings", "runs")  # files of rules/tools that are about every tool
DATA = (".jsonl", ".csv", ".tsv", ".parquet", ".md", "")  # data, without a look


class OtherTools(Extra):
    """`advise check` of such a file, and the forms that write one."""

    NAME = "other_tools"
    HELP = "checks configurations and runs of other trainers, and writes configurations"
    EXPORTERS = tuple(
        Form(
            NAME=name,
            HELP=help_,
            TAKES="plan",
            ANSWERS=True,
            function=f"advisor.extras.other_tools.{module}:export",
        )
        for name, help_, module in (
            *((key, f"the file of {name}, with its data", "files") for key, name in TOOLS.items()),
            ("unsloth", "unsloth.yaml and train.py of Unsloth, with its data", "unsloth"),
        )
    )

    def recognise(self, path: str) -> Callable[..., int] | None:
        from advisor.extras.other_tools.run_state import kind_of_run

        if kind_of_run(Path(path)) is not None:
            from advisor.extras.other_tools.run_page import check_run

            return check_run
        ending = Path(path).suffix.lower()
        from advisor.extras.other_tools.printed_log import is_output

        if is_output(Path(path)):
            return _of_output(path)
        if ending in DATA:
            return None
        from advisor.extras.other_tools.file import looks_like_configuration

        if not looks_like_configuration(Path(path)):
            return None
        from advisor.extras.other_tools.page import check_configuration

        return check_configuration

    def recognise_beside(self, path: str, other: str) -> Callable[..., int] | None:
        from advisor.extras.other_tools.page import check_configuration

        if self.recognise(path) is not check_configuration:
            return None
        from advisor.extras.other_tools.out_of_memory import looks_like_memory_error

        is_error = looks_like_memory_error(Path(other))
        return partial(check_configuration, beside=other) if is_error else None

    def catalogues(self) -> Iterable[Catalogue]:
        from advisor.extras.other_tools.findings import FINDINGS_FILE, shipped_rules
        from advisor.extras.other_tools.script import SCRIPTS_FILE, table
        from advisor.extras.other_tools.tool import TOOL_FILE, tool_named

        return [
            Catalogue("tool", TOOL_FILE, [partial(tool_named, tool) for tool in TOOLS]),
            Catalogue("findings", FINDINGS_FILE, [partial(shipped_rules, one) for one in RULES]),
            Catalogue("scripts", SCRIPTS_FILE, [table]),
        ]


def _of_output(path: str) -> Callable[..., int] | None:
    """What checks the output of a program; None: a text is data."""
    from advisor.extras.other_tools import out_of_memory
    from advisor.extras.other_tools.printed_log import last_error, printed, printed_state

    if out_of_memory.looks_like_memory_error(Path(path)):
        return out_of_memory.check_memory_error
    text = printed(Path(path))
    if printed_state(text)[0]:
        from advisor.extras.other_tools.run_page import check_run

        return check_run
    return out_of_memory.check_other_error if last_error(text) else None


EXTRA = OtherTools()
