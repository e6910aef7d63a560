"""The schema of rules/data/amounts.yaml."""

from typing import Any

from advisor.methods import objectives

NUMBER = {"type": "integer", "minimum": 1}
SOURCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["title", "kind"],
    "properties": {
        "title": {"type": "string", "minLength": 1},
        "url": {"type": "string"},
        "kind": {"enum": ["document", "paper", "vendor", "measured", "derived", "assumed"]},
    },
}


def amounts_schema() -> dict[str, Any]:
    """How much data each objective wants."""
    amount = {
        "type": "object",
        "additionalProperties": False,
        "required": ["too_few", "usual", "text", "sources"],
        "properties": {
            "unit": {"enum": ["rows", "tokens"], "description": "left out: rows"},
            "too_few": {**NUMBER, "description": "below this it is documented to fail"},
            "usual": {
                "type": "array",
                "items": NUMBER,
                "minItems": 2,
                "maxItems": 2,
                "description": "the range that published runs sit in",
            },
            "text": {"type": "string", "minLength": 1},
            "sources": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "How much data each objective wants",
        "type": "object",
        "additionalProperties": False,
        "required": ["checked", "sources", "objectives"],
        "properties": {
            "checked": {
                "type": "string",
                "pattern": r"^\d{4}-\d{2}-\d{2}$",
                "description": "a date: 2026-11-25",
            },
            "sources": {
                "type": "object",
                "additionalProperties": SOURCE,
                "description": "sources that rules/sources.yaml does not list",
            },
            "objectives": {
                "type": "object",
                "additionalProperties": False,
                "properties": dict.fromkeys((*objectives(), "classification"), amount),
            },
        },
    }
