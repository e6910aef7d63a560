"""Words that the JSON Schemas are made of.

Draft-07 words only, since many editors' YAML servers know no later draft.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "array", "items": TEXT, "minItems": 1}
DATE: Schema = {
    "type": "string",
    "pattern": r"^\d{4}-\d{2}-\d{2}$",
    "description": "a date: 2026-11-25",
}
VERSION: Schema = {"const": 1}


def dumped(schema: Schema) -> str:
    """The schema as the text of its file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def head(title: str, **rest: Any) -> Schema:
    """A schema of a whole file."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": title, **rest}


def closed(properties: Mapping[str, Schema], *required: str, **rest: Any) -> Schema:
    """A map with these keys and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": list(required)} if required else {}),
        "properties": dict(properties),
        **rest,
    }


def map_of(schema: Schema) -> Schema:
    """A map from any name to such a value."""
    return {"type": "object", "additionalProperties": schema}


def one_or_more(schema: Schema) -> Schema:
    """The value, or a list of such values: the only OR there is."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def offered(names: list[str]) -> Schema:
    """Completes the shipped names and takes others, since a file may bring its own."""
    return {"anyOf": [{"enum": names}, TEXT]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def ordered(known: Mapping[str, Schema], keys: Iterable[str]) -> dict[str, Schema]:
    """The keys a reader takes, in the order of `known`; one that is not known there takes
    anything.
    """
    allowed = set(keys)
    return {
        **{key: schema for key, schema in known.items() if key in allowed},
        **{key: {} for key in sorted(allowed - set(known))},
    }


def needed(schema: Schema, defined: Schema) -> Schema:
    """The schema with those of the definitions that it refers to, directly or through another."""
    found: Schema = {}
    waiting = [schema]
    while waiting:
        for name in dict.fromkeys(
            re.findall(r'"#/definitions/([^"]+)"', json.dumps(waiting.pop()))
        ):
            if name not in found:
                found[name] = defined[name]
                waiting.append(defined[name])
    return {**schema, "definitions": {name: found[name] for name in defined if name in found}}


def pattern(regex: re.Pattern[str]) -> str:
    """A pattern of the loader's, as JSON Schema writes it."""
    return f"^{regex.pattern.removesuffix(chr(92) + 'Z')}$"
