"""What is written for one tool alone: a module of tools/ with the name of the tool."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from advisor.other_tools.writing.job import Job
from advisor.other_tools.writing.rows import Traits
from advisor.other_tools.writing.shapes import Layout


class Writer(Protocol):
    """A module of tools/."""

    def complete(self, job: Job) -> None:
        """Add the keys that no key of a plan stands beside: data, evaluation, output, several
        processes. What they are called is read from the tool's own classes (rules/tools/TOOL/).
        """

    def layout_of(self, objective: str, traits: Traits, *, learn_all: bool, marks: bool) -> Layout:
        """How the rows of a stage are written.

        Args:
            learn_all: The loss is on every token (`loss_on: all`).
            marks: The tool has a template of this model in which the answers are marked.
        """

    def start_of(self, job: Job, command: str) -> str:
        """The command that trains it, with what several processes need."""


def writer_of(tool: str) -> Writer:
    """The writer of a tool, by its id."""
    return cast(Writer, import_module(f"advisor.other_tools.writing.tools.{tool}"))


def start_of(job: Job) -> str:
    """The command that trains it, in the folder of the export."""
    command = job.tool.start.format(file=job.file, command=job.command)
    return writer_of(job.tool.id).start_of(job, command)
