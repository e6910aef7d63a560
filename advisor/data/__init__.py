"""Data files as a person has them: read, recognised, measured, and handed to the trainers as
examples. Torch-free.

The names below are loaded when first used, so that advice without data pays nothing for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.data.amounts import shortages
    from advisor.data.example import Example, Message
    from advisor.data.examples import SkippedRows, read_examples
    from advisor.data.measure import profile, unusable
    from advisor.data.read.lines import Faults
    from advisor.data.read.rows import read_rows
    from advisor.data.read.source import content_digest, find_data, team_files
    from advisor.data.recognition.recognise import ColumnsUnclear, DataSet, recognise
    from advisor.data.templates.tokenizer import has_template, switch_at_hand, template_at_hand

_HOMES = {
    "ColumnsUnclear": "recognition.recognise",
    "has_template": "templates.tokenizer",
    "shortages": "amounts",
    "switch_at_hand": "templates.tokenizer",
    "team_files": "read.source",
    "template_at_hand": "templates.tokenizer",
    "Example": "example",
    "Message": "example",
    "SkippedRows": "examples",
    "read_examples": "examples",
    "Faults": "read.lines",
    "content_digest": "read.source",
    "find_data": "read.source",
    "profile": "measure",
    "unusable": "measure",
    "read_rows": "read.rows",
    "DataSet": "recognition.recognise",
    "recognise": "recognition.recognise",
}
__all__ = [
    "ColumnsUnclear",
    "DataSet",
    "Example",
    "Faults",
    "Message",
    "SkippedRows",
    "content_digest",
    "find_data",
    "has_template",
    "profile",
    "read_examples",
    "read_rows",
    "recognise",
    "shortages",
    "switch_at_hand",
    "team_files",
    "template_at_hand",
    "unusable",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'advisor.data' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"advisor.data.{_HOMES[name]}"), name)
