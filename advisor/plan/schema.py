"""The JSON Schema of plans, for editors and other tools; `advise rules schema` writes it.

Derived from model.py and from the keys that methods declare, so it cannot say anything else than
the reader does. JSON Schema 2020-12, of which only words are used that draft-07 tools know too.
"""

from __future__ import annotations

from typing import Any

from advisor.ground.files import NAME_PATTERN
from advisor.plan.checks import FULL
from advisor.plan.keys import KeySpecs, key_specs
from advisor.plan.model import Plan


def plan_schema(specs: KeySpecs | None = None) -> dict[str, Any]:
    """The schema, with the keys of every method; a key beside a method that does not read it is
    flagged as well.
    """
    from pydantic import TypeAdapter

    specs = specs or key_specs()
    schema = TypeAdapter(Plan).json_schema()
    _without_titles(schema)
    definitions = schema["$defs"]
    for owner in (schema, definitions["Stage"], definitions["Task"]):
        owner["properties"]["name"] |= {"pattern": f"^{NAME_PATTERN}$"}
    stage = definitions["Stage"]
    del stage["properties"]["options"]
    stage["description"] = "One training stage."
    conditions: list[dict[str, Any]] = []
    for key in specs.names():
        variants = [
            method.keys[key].schema()
            for table in (specs.updates, specs.objectives)
            for method in table.values()
            if key in method.keys
        ]
        different = [
            variant for index, variant in enumerate(variants) if variant not in variants[:index]
        ]
        stage["properties"][key] = different[0] if len(different) == 1 else {"anyOf": different}
        conditions.append(_only_beside(key, specs))
    conditions.append(
        {
            "if": _is("update", ["full"]),
            "then": {"properties": {"quantization": {"type": "null", "description": FULL}}},
        }
    )
    conditions.append(
        {
            "if": _is("quantization", ["nf4"]),
            "else": {"properties": {"double_quantization": {"type": "null"}}},
        }
    )
    stage["allOf"] = conditions
    with_default = [
        name for name, method in specs.updates.items() if method.defaults.get("learning_rate")
    ]
    if with_default:
        stage["required"].remove("learning_rate")
        stage["allOf"].append(
            {"if": _is("update", with_default), "else": {"required": ["learning_rate"]}}
        )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Launch file of advise (plan.yaml)",
        **schema,
    }


def _is(key: str, values: list[str]) -> dict[str, Any]:
    return {"properties": {key: {"enum": values}}, "required": [key]}


def _only_beside(key: str, specs: KeySpecs) -> dict[str, Any]:
    """The condition that a key stands beside a method that declares it."""
    updates = [name for name, method in specs.updates.items() if key in method.keys]
    objectives = [name for name, method in specs.objectives.items() if key in method.keys]
    owners = [
        _is(axis, names)
        for axis, names in (("update", updates), ("objective", objectives))
        if names
    ]
    return {"if": {"not": {"anyOf": owners}}, "then": {"properties": {key: False}}}


def _without_titles(node: Any) -> None:
    """Drop pydantic's titles: they repeat the keys, and editors show them instead of the
    descriptions.
    """
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for part in node.values():
            _without_titles(part)
    elif isinstance(node, list):
        for part in node:
            _without_titles(part)
