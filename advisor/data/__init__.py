"""Data files as a person has them: read, recognised, measured, and handed to the trainers as
examples. Torch-free.

The names below are loaded when first used, so that advice without data pays nothing for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.data.amounts import shortages as shortages
    from advisor.data.example import Example as Example
    from advisor.data.example import Message as Message
    from advisor.data.examples import SkippedRows as SkippedRows
    from advisor.data.examples import read_examples as read_examples
    from advisor.data.measure import Depth as Depth
    from advisor.data.measure import profile as profile
    from advisor.data.measure import unusable as unusable
    from advisor.data.read.lines import Faults as Faults
    from advisor.data.read.rows import read_rows as read_rows
    from advisor.data.read.source import content_digest as content_digest
    from advisor.data.read.source import find_data as find_data
    from advisor.data.read.source import team_files as team_files
    from advisor.data.read.source import typed_path as typed_path
    from advisor.data.recognition.recognise import ColumnsUnclear as ColumnsUnclear
    from advisor.data.recognition.recognise import DataSet as DataSet
    from advisor.data.recognition.recognise import recognise as recognise
    from advisor.data.templates.chat_text import ALWAYS as ALWAYS
    from advisor.data.templates.chat_text import missing_text as missing_text
    from advisor.data.templates.tokenizer import has_template as has_template
    from advisor.data.templates.tokenizer import switch_at_hand as switch_at_hand
    from advisor.data.templates.tokenizer import template_at_hand as template_at_hand

_NAMES = {
    "amounts": "shortages",
    "example": "Example Message",
    "examples": "SkippedRows read_examples",
    "measure": "Depth profile unusable",
    "read.lines": "Faults",
    "read.rows": "read_rows",
    "read.source": "content_digest find_data team_files typed_path",
    "recognition.recognise": "ColumnsUnclear DataSet recognise",
    "templates.chat_text": "ALWAYS missing_text",
    "templates.tokenizer": "has_template switch_at_hand template_at_hand",
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names.split():
            return getattr(import_module(f"advisor.data.{module}"), name)
    raise AttributeError(f"module 'advisor.data' has no attribute '{name}'")
